"""Checkpoints: plain values and tensors in one file, written so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
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


class Sparing:
    """Large weights are not written after every epoch where that would take more than a twentieth of the time.

    A frozen encoder makes `last.safetensors` large and epochs short. A run is resumed from its checkpoint.
    """

    LARGE = 256 * 2**20
    SHARE = 20

    def __init__(self, path: Path) -> None:
        self.path = path
        self.took, self.ended = 0.0, -math.inf

    def due(self, now: float) -> bool:
        """Return whether it is time to write: always where the file is small or not there."""
        large = self.path.is_file() and self.path.stat().st_size > self.LARGE
        return not large or now - self.ended >= self.SHARE * self.took

    def write(self, how: Callable[[], None]) -> None:
        """Write, and remember what it took."""
        began = time.monotonic()
        how()
        self.ended = time.monotonic()
        self.took = self.ended - began


def tidy(folder: Path) -> None:
    """Remove what a kill inside a write left behind."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)
