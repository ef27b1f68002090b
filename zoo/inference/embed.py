"""Embedding pictures: tiles of any images through an encoder, a vector a tile; threads read while it computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.encoders import Encoder
from zoo.errors import DataError
from zoo.families.base import Encoding, IOSpec
from zoo.inference.inputs import Item
from zoo.inference.source import ModelGrid, Mpp, Source, model_shape, of_file, scale_of
from zoo.inference.windows import axis
from zoo.io.features import Rows
from zoo.io.images import read_image

RGB = ("red", "green", "blue")
Place = tuple[float, float, float, float]
MOST = {"cpu": 32, "cuda": 512}
"""Largest batch that is tried, by kind of device."""
GAIN = 1.05
"""A larger batch must be so much faster to be kept."""


@dataclass(frozen=True)
class How:
    """How pictures are embedded. `tile`: side in pixels of the encoder's grid; `step`: from tile to tile (None = tile);
    `batch`: tiles at once, 0 = found out; `pool`: class, class+mean or mean (None = the encoder's own); `dtype`: of the
    stored numbers; `precision`: "32", "bf16" or "16", what the encoder computes in."""

    tile: int = 224
    step: int | None = None
    mpp: Mpp = None
    batch: int = 0
    pool: str | None = None
    dtype: str = "float32"
    precision: str = "32"


# --- tiles ------------------------------------------------------------------------------------------------------------


def spec_of(encoder: Encoder) -> IOSpec:
    """Return what an encoder wants of a picture."""
    encoding = Encoding("rgb8", tuple(encoder.mean), tuple(encoder.std))
    return IOSpec(maps={}, outputs={}, channels=RGB, encoding=encoding, mpp=encoder.mpp)


def tiles_of(source: Source, scale: float, how: How, least: int) -> Iterator[tuple[NDArray[np.uint8], Place]]:
    """Yield the tiles of a picture, (h, w, 3) with their places in the source, row by row.

    The last tile of a row or column is moved inwards, so that all of the picture is seen and nothing is made up; a
    picture smaller than a tile is one tile of its own size. Raises `DataError` for less than `least` pixels a side.
    """
    shape = model_shape(source.shape, scale)
    if min(shape) < least:
        raise DataError(
            f"{source.name}: {shape[0]} x {shape[1]} pixels on the encoder's grid, less than one patch of {least}. "
            "Expected larger pictures, or another --mpp."
        )
    sides = [min(how.tile, n) for n in shape]
    starts = [_starts(n, side, how) for n, side in zip(shape, sides, strict=True)]
    grid = ModelGrid(source, shape, shape[1])
    ratio = [whole / n for whole, n in zip(source.shape, shape, strict=True)]
    for y in starts[0]:
        band = grid.band(y, y + sides[0])
        for x in starts[1]:
            place = (y * ratio[0], x * ratio[1], sides[0] * ratio[0], sides[1] * ratio[1])
            yield band[:, x : x + sides[1]], place


def _starts(length: int, side: int, how: How) -> tuple[int, ...]:
    step = how.step or how.tile
    if step > how.tile:  # tiles that leave something out between them
        return tuple(range(0, length - side + 1, step))
    return axis(length, side, min(how.tile - step, side - 1)).starts


# --- the encoder ------------------------------------------------------------------------------------------------------


class Batches:
    """How many tiles go through at once: a number, or found out on the tiles themselves.

    The size doubles from 1 as long as that makes a tile at least 5 % cheaper; memory that runs out halves it for good.
    """

    def __init__(self, asked: int, device: str) -> None:
        self.size, self.settled = asked or 1, asked > 0
        self.most = MOST.get(device, 32)
        self._cost: dict[int, list[float]] = {}

    def took(self, count: int, seconds: float) -> None:
        """Take note of a whole batch; two of a size are looked at, for the first one of a size is slower."""
        if self.settled or count != self.size:
            return
        costs = self._cost.setdefault(count, [])
        costs.append(seconds / count)
        if len(costs) < 2:
            return
        before = self._cost.get(count // 2)
        if before and min(costs) * GAIN > min(before):
            self.size, self.settled = (count // 2 if min(before) < min(costs) else count), True
        elif count >= self.most:
            self.settled = True
        else:
            self.size = count * 2

    def too_many(self, count: int) -> bool:
        """Halve the size after memory ran out; False where one tile is too much."""
        self.size, self.settled = max(1, count // 2), True
        return count > 1


class Embedder:
    """An encoder on its device that turns tiles into vectors."""

    def __init__(self, encoder: Encoder, how: How, device: str = "cpu") -> None:
        self.encoder, self.how, self.device = encoder.eval().to(device), how, torch.device(device)
        self.batches = Batches(how.batch, self.device.type)
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, device=self.device) for v in (encoder.mean, encoder.std))
        self.shift, self.scale = (mean * 255).view(shape), (std * 255).view(shape)
        self._low = {"bf16": torch.bfloat16, "16": torch.float16}.get(how.precision)
        self.readers = 1 if self.device.type == "cpu" else 4

    def tiles(self, path: Path) -> Iterator[tuple[NDArray[np.uint8], Place]]:
        """Yield the tiles of a file. Raises `DataError`, `UserError`."""
        file = read_image(path)
        try:
            source = of_file(file, spec_of(self.encoder))
            scale = scale_of(spec_of(self.encoder), source.mpp, self.how.mpp, source.name)
            yield from tiles_of(source, scale, self.how, self.encoder.patch or 1)
        finally:
            file.close()

    @torch.inference_mode()
    def features(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return (N, D) of (N, H, W, 3) uint8."""
        x = torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        x = (x.float() - self.shift) / self.scale
        with torch.autocast(self.device.type, self._low, enabled=self._low is not None):
            found: Tensor = self.encoder.embedding(self.encoder.pooled(x.contiguous()), self.how.pool)
        return np.asarray(found.float().cpu().numpy(), self.how.dtype)

    def run(self, tiles: list[NDArray[np.uint8]]) -> Iterator[NDArray[Any]]:
        """Yield the features of tiles of one shape, in as many pieces as the memory asks for."""
        began, count = time.perf_counter(), len(tiles)
        try:
            found = self.features(np.stack(tiles))
        except torch.OutOfMemoryError:
            if not self.batches.too_many(count):
                raise
            torch.cuda.empty_cache()
            yield from self.run(tiles[: count // 2])
            yield from self.run(tiles[count // 2 :])
            return
        self.batches.took(count, time.perf_counter() - began)
        yield found


# --- many pictures ----------------------------------------------------------------------------------------------------


@dataclass
class Picture:
    """A picture on its way: the places of the tiles that were read, the features of those that were computed."""

    item: Item
    name: str
    stamp: str
    places: list[Place] = field(default_factory=list)
    found: dict[int, NDArray[Any]] = field(default_factory=dict)
    read: bool = False
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """Return whether nothing more will come of it."""
        return self.read and (self.error is not None or len(self.found) == len(self.places))

    def rows(self) -> Rows:
        """Return its rows."""
        count = len(self.places)
        made = np.stack([self.found[i] for i in range(count)])
        return Rows(np.full(count, self.name, object), np.array(self.places, np.float64), made)


def embedded(embedder: Embedder, pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Yield pictures when all of their tiles are computed, or with their error.

    Threads read tiles while others are computed; tiles of one shape go through together, of whichever pictures.
    """
    waiting: dict[tuple[int, ...], list[tuple[Picture, int, NDArray[np.uint8]]]] = {}

    def compute(shape: tuple[int, ...]) -> Iterator[Picture]:
        group = [entry for entry in waiting.pop(shape) if entry[0].error is None]
        if not group:
            return
        made = np.concatenate(list(embedder.run([pixels for _, _, pixels in group])))
        for (picture, index, _), vector in zip(group, made, strict=True):
            picture.found[index] = vector
        yield from {id(p): p for p, _, _ in group if p.over}.values()

    for picture, pixels in read_ahead(embedder, pictures):
        if pixels is not None:
            group = waiting.setdefault(pixels.shape, [])
            group.append((picture, len(picture.places) - 1, pixels))
            if len(group) >= embedder.batches.size:
                yield from compute(pixels.shape)
        elif picture.over:
            yield picture
    for shape in list(waiting):
        yield from compute(shape)


def read_ahead(embedder: Embedder, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, NDArray[np.uint8] | None]]:
    """Yield tiles that threads have read, each with its picture, and None at the end of one.

    A place is noted here and not in the thread, so that what a picture knows changes in one thread only.
    """
    tiles: queue.Queue[tuple[Picture, Any, Any]] = queue.Queue(4 * embedder.batches.most)
    stop, turn, source = threading.Event(), threading.Lock(), iter(pictures)

    def put(picture: Picture, pixels: Any, place: Any) -> None:
        while not stop.is_set():
            try:
                tiles.put((picture, pixels, place), timeout=0.1)
            except queue.Full:
                continue
            return

    def read() -> None:
        while not stop.is_set():
            with turn:
                picture = next(source, None)
            if picture is None:
                return
            try:
                for pixels, place in embedder.tiles(picture.item.path):
                    put(picture, pixels, place)
            except Exception as error:
                put(picture, None, error)
            else:
                put(picture, None, None)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(embedder.readers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) or not tiles.empty():
            try:
                picture, pixels, told = tiles.get(timeout=0.1)
            except queue.Empty:
                continue
            if pixels is None:
                picture.read, picture.error = True, told
            else:
                picture.places.append(told)
            yield picture, pixels
    finally:
        stop.set()
        for thread in threads:
            thread.join()
