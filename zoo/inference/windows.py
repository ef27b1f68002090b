"""How a picture of any size is cut into tiles, and with which weights overlapping tiles are blended.

Along each axis, tile i starts at a multiple of the model's divisor, so that strided layers sample every tile on the
same grid. Between two neighbours lies a ramp r (raised cosine, 0 to 1) in the middle of their overlap; tile i has the
weight r[i] - r[i + 1], with r[0] = 1 and r[n] = 0. The sum telescopes: it is 1 everywhere, whatever the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis: `length` pixels of the picture, tiles of `tile` pixels at `starts`, weights that change
    over `ramp` pixels in the middle of each overlap."""

    length: int
    tile: int
    starts: tuple[int, ...]
    ramp: int

    @property
    def padded(self) -> int:
        """Return the length that the tiles cover: at least `length`."""
        return self.starts[-1] + self.tile

    @cached_property
    def _ramps(self) -> tuple[int, ...]:
        """First pixel of the ramp between tile i and tile i + 1."""
        ends = [start + self.tile for start in self.starts[:-1]]
        return tuple((start + end - self.ramp) // 2 for start, end in zip(self.starts[1:], ends, strict=True))

    def support(self, index: int) -> tuple[int, int]:
        """Return the pixels [begin, end) of the picture to which tile `index` contributes."""
        begin = self._ramps[index - 1] if index else 0
        end = self._ramps[index] + self.ramp if index < len(self._ramps) else self.length
        return begin, end

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return the weight of tile `index` over its support."""
        begin, end = self.support(index)
        found = np.ones(end - begin, np.float32)
        rise = _raised_cosine(self.ramp)
        if index:
            found[: self.ramp] = rise
        if index < len(self._ramps):
            found[len(found) - self.ramp :] -= rise
        return found

    def scaled(self, scale: float) -> Axis:
        """Return this axis on a grid of `scale` pixels for each of its own."""
        if scale == 1:
            return self
        values = [self.tile * scale, *(start * scale for start in self.starts)]
        if any(value != int(value) for value in values):
            raise UserError(
                f"tile: tiles of {self.tile} pixels have no whole size at the model's output scale {scale:g}. "
                "Choose another tile."
            )
        tile, *starts = (int(value) for value in values)
        return Axis(math.ceil(self.length * scale - 1e-9), tile, tuple(starts), int(self.ramp * scale))


def _raised_cosine(count: int) -> NDArray[np.float32]:
    position = (np.arange(count) + 0.5) / count
    return np.asarray((1 - np.cos(np.pi * position)) / 2, np.float32)


def axis(length: int, tile: int, overlap: int, divisor: int = 1, margin: int | None = None) -> Axis:
    """Return the tiles of one axis.

    `tile` and every start are multiples of `divisor`; neighbours share `overlap` pixels or more. A picture shorter than
    a tile gets one tile of the next multiple of `divisor`. The `margin` pixels at a tile's border are not trusted:
    they get no weight as far as the overlap allows (the ramp keeps a quarter of it). With an overlap of 8 / 3 `margin`
    or more none of them counts. Raises `UserError` for sizes that cannot be.
    """
    if length < 1:
        raise UserError(f"the picture has a side of {length} pixels. Expected at least one.")
    tile = math.ceil(tile / divisor) * divisor
    if length <= tile:
        return Axis(length, math.ceil(length / divisor) * divisor, (0,), 0)
    step = (tile - overlap) // divisor * divisor
    if overlap < 0 or step < 1:
        raise UserError(
            f"overlap: tiles of {tile} pixels cannot share {overlap}. Expected 0 to {max(0, tile - divisor)}, for the "
            f"starts of tiles are {divisor} pixels apart or more."
        )
    last = math.ceil((length - tile) / divisor) * divisor
    starts = (*range(0, last, step), last)
    shared = tile - step
    trim = min(shared // 2 if margin is None else margin, 3 * shared // 8)
    return Axis(length, tile, starts, shared - 2 * trim)


@dataclass(frozen=True)
class Plan:
    """Tiles of a picture: rows and columns."""

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Return the number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield (first row, first column) of each tile, row by row."""
        for y in self.rows.starts:
            for x in self.columns.starts:
                yield y, x


def plan(shape: tuple[int, int], tile: int, overlap: int, divisor: int = 1, margin: int | None = None) -> Plan:
    """Return the tiles of a picture of `shape` (rows, columns); see `axis`."""
    return Plan(*(axis(length, tile, overlap, divisor, margin) for length in shape))
