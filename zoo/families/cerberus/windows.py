"""The published way to cut a large picture: windows of 448 pixels of which the middle 144 are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """Windows over a picture that is padded by reflection: `before` (top, left) pixels, to `padded` in all. `boxes` (N,
    2, 2, 2): of each window the box that is read and the box that is written, each top-left and bottom-right, (row,
    column), in the padded picture."""

    before: tuple[int, int]
    padded: tuple[int, int]
    boxes: NDArray[np.int32]


def windows(shape: tuple[int, int], read: int = 448, written: int = 144, overlap: int = 0) -> Windows:
    """Return the published windows of a picture of `shape`: `read` pixels a side, the middle `written` kept.

    Neighbours share `overlap` of what is written. Columns come first, rows within them.
    """
    step = written - overlap
    if step < 1 or written > read:
        raise ValueError(f"windows of {read} of which {written} are kept, {overlap} of them twice, cannot be laid")
    margin = int((read - written) * 0.5)
    starts = [np.arange(math.ceil((size - written) / step) + 1 if size > written else 1) * step for size in shape]
    rows, columns = np.meshgrid(*starts, indexing="xy")
    corner = np.stack([rows.ravel(), columns.ravel()], axis=1)
    read_box = np.stack([corner, corner + read], axis=1)
    write_box = np.stack([corner + margin, corner + margin + written], axis=1)
    padded = [margin + len(at) * step + read for at in starts]
    return Windows((margin, margin), (padded[0], padded[1]), np.stack([read_box, write_box], axis=1).astype(np.int32))


def cut(image: NDArray[Any], laid: Windows) -> NDArray[Any]:
    """Return (N, read, read, C) windows of a picture (H, W, C), what lies outside it reflected."""
    (top, left), (height, width) = laid.before, laid.padded
    bottom, right = height - top - image.shape[0], width - left - image.shape[1]
    padded = np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="reflect")
    return np.stack([padded[a[0] : b[0], a[1] : b[1]] for a, b in laid.boxes[:, 0]])


def paste(tiles: NDArray[Any], laid: Windows, shape: tuple[int, int]) -> NDArray[Any]:
    """Return (H, W, C) from what is written of each window (N, written, written, C); the mean where several are."""
    total = np.zeros((*laid.padded, tiles.shape[-1]), np.float64)
    count = np.zeros(laid.padded, np.float64)
    for tile, (a, b) in zip(tiles, laid.boxes[:, 1], strict=True):
        total[a[0] : b[0], a[1] : b[1]] += tile
        count[a[0] : b[0], a[1] : b[1]] += 1
    top, left = laid.before
    inside = (slice(top, top + shape[0]), slice(left, left + shape[1]))
    return total[inside] / np.maximum(count[inside], 1)[..., None]
