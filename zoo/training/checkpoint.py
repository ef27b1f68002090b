"""Checkpoints: plain values and tensors in one file, written so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from zoo import paths
from zoo.errors import UserError

FORMAT = 2
"""1 held every tensor; 2 leaves what stands still in a file of its own (zoo.training.standing)."""
_READABLE = (1, 2)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically (`paths.replacing`)."""
    with paths.replacing(path) as file:
        file.write(data)


def save(path: Path, state: dict[str, Any]) -> int:
    """Write a checkpoint and return its bytes; `state` holds tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getvalue())
    return buffer.tell()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint on to the CPU, executing nothing from it. Raises `UserError`."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: the checkpoint cannot be read ({first}). Expected a file that zoo train wrote. "
            "Start the run again in another output folder."
        ) from None
    if state.get("format") not in _READABLE:
        raise UserError(
            f"{path}: the checkpoint has format {state.get('format')!r}. Expected format {FORMAT}. "
            "Go on with the version of the package that wrote it, or start again."
        )
    return state


def tidy(folder: Path) -> None:
    """Remove what a kill inside a write left behind."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)
