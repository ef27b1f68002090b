"""Decoding of a large picture from maps that lie on disk: what is found is what decoding the whole in memory finds.

The stitched maps go to a file as they come, band by band; the family then reads whatever windows it wants. Memory is
that of a row of tiles and of the largest window read, the disk holds 4 bytes a pixel for each plane that is kept.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.base import Family, Window
from zoo.inference.blocks import Part
from zoo.inference.merge import Table
from zoo.inference.stitch import Band
from zoo.types import Geometry, InstancesPrediction


class Room:
    """An array on disk, (C, H, W), zero at first. What is read or written is mapped for that moment only."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        self._path, self._shape, self._dtype = path, tuple(shape), np.dtype(dtype)
        size = math.prod(self._shape) * self._dtype.itemsize
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full says so here, where it can be said
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

    def _mapped(self, mode: Any) -> NDArray[Any]:
        return np.memmap(self._path, self._dtype, mode, shape=self._shape)

    def read(self, window: Window) -> NDArray[Any]:
        """Return a copy of a window of every plane."""
        return np.array(self._mapped("r")[(slice(None), *window)])

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Put values into a window of every plane."""
        self._mapped("r+")[(slice(None), *window)] = values


class Maps:
    """The maps of a picture in a folder: `zoo.families.base.StoredMaps`."""

    def __init__(self, folder: Path, shape: tuple[int, int], keeps: Mapping[str, Sequence[int]]) -> None:
        self.shape = shape
        self._folder, self._keeps = folder, keeps
        self._rooms = {
            name: Room(folder / f"{i}.maps", (len(k), *shape), np.float32) for i, (name, k) in enumerate(keeps.items())
        }
        self._count = 0

    def put(self, band: Band) -> None:
        """Keep the planes of a band."""
        window = (slice(band.begin, band.end), slice(0, self.shape[1]))
        for name, planes in self._keeps.items():
            self._rooms[name].write(window, band.maps[name][0, list(planes)].float().cpu().numpy())

    def read(self, name: str, window: Window) -> NDArray[np.float32]:
        """Return the kept planes of a map in a window, (C, h, w)."""
        return self._rooms[name].read(window)

    def labels(self) -> Room:
        """Return room for a label map, (1, H, W) int32."""
        self._count += 1
        return Room(self._folder / f"{self._count}.labels", (1, *self.shape), np.int32)


def large(
    family: Family,
    bands: Iterator[Band],
    out: tuple[int, int],
    model: tuple[int, int],
    shape: tuple[int, int],
    decode: Mapping[str, Any],
    scratch: Path | None = None,
) -> Iterator[Part]:
    """Yield the parts of a picture of `shape`, `model` on the model's grid, whose stitched maps, a grid of `out`
    pixels, come in bands. `scratch`: the folder in which the maps are kept meanwhile, None = that of the system's
    temporary files. Raises `UserError` where the disk is full."""
    keeps = family.keeps()
    assert keeps is not None
    geometry = Geometry(shape, (model[0] / shape[0], model[1] / shape[1]))
    tables: dict[str, Table] = {}
    with tempfile.TemporaryDirectory(prefix=".zoo-maps-", dir=scratch) as folder:
        try:
            maps = Maps(Path(folder), out, keeps)
            for band in bands:
                maps.put(band)
        except OSError as error:
            size = sum(map(len, keeps.values())) * math.prod(out) * 4 / 2**30
            raise UserError(
                f"{folder}: the maps of this picture cannot be kept ({error.strerror}). Expected {size:.1f} GiB of "
                f"room. {'Set TMPDIR to' if scratch is None else 'Write into'} a folder that has it."
            ) from None
        for begin, predictions in family.decode_stored(maps, geometry, **decode):
            for name, prediction in predictions.items():
                if isinstance(prediction, InstancesPrediction):
                    same = np.arange(len(prediction.class_index) + 1, dtype=np.int32)
                    tables[name] = Table(same, prediction.class_index, prediction.scores)
            yield Part(begin, predictions)
    yield Part(shape[0], {}, tables=tables)
