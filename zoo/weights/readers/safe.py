"""Safetensors: a header of names, shapes and offsets, then bytes. The library checks that offsets neither overlap nor
leave holes, and that the header is small."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import UserError
from zoo.weights.readers import Contents


def read(path: Path) -> Contents:
    """Return tensors, mapped from the file, and its metadata. Raises `UserError` where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Contents(tensors, dict(file.metadata() or {}), "safetensors")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}). Copy or pull the file again.") from None
