"""Volumes: the network on overlapping blocks, objects found over the whole, drawn window by window.

A block is read with a margin that is not trusted; candidates come from its core, in coordinates of the volume, so that
one suppression over all of them knows no borders. The memory is that of a block, of the candidates, and of a window of
labels; an object that crosses windows is drawn in each with the same id.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import DataError, UserError
from zoo.families.base import Family, IOSpec, Maps
from zoo.io.volumes import VolumeFile
from zoo.types import Geometry, InstancesPrediction, Prediction

Array = NDArray[Any]
Box = tuple[tuple[int, int], ...]
WINDOW = (64, 512, 512)
"""Voxels of the source that are drawn at once."""
SAMPLE = 2**22
"""Voxels that percentiles are measured on at most."""


@dataclass(frozen=True)
class VolumeSource:
    """A volume to predict: `shape` (D, H, W), `spacing` um per voxel where it is known, `read(begin, size)` gives
    (C, d, h, w) in the stored dtype."""

    shape: tuple[int, int, int]
    channels: int
    spacing: tuple[float, ...] | None
    read: Any
    name: str = "volume"


def of_array(image: Array, spec: IOSpec) -> VolumeSource:
    """Return the source of (D, H, W) or (D, H, W, C) voxels. Raises `UserError` where it is no volume for the model."""
    image = np.asarray(image)
    wanted = len(spec.channels)
    if image.ndim == 2 or (image.ndim == 3 and wanted != 3 and image.shape[2] == 3 and image.shape[0] > 16):
        raise UserError(
            f"image: shape {image.shape} is a picture, and the model predicts volumes. Expected (z, y, x). "
            "Choose a model for pictures."
        )
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise UserError(f"image: shape {image.shape} is no volume. Expected (z, y, x) or (z, y, x, channels).")
    if image.ndim == 4 and image.shape[3] != wanted:
        first = " Channels stand last: move the first axis to the end." if image.shape[0] == wanted else ""
        raise UserError(
            f"image: shape {image.shape} has {image.shape[3]} channels on its last axis. Expected {wanted}: "
            f"{', '.join(spec.channels)}.{first}"
        )
    planes = image[None] if image.ndim == 3 else np.moveaxis(image, -1, 0)
    if len(planes) != wanted:
        raise UserError(f"image: one channel where the model wants {wanted}: {', '.join(spec.channels)}.")

    def read(begin: Sequence[int], size: Sequence[int]) -> Array:
        window = tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))
        found: Array = planes[(slice(None), *window)]
        return found

    return VolumeSource((planes.shape[1], planes.shape[2], planes.shape[3]), len(planes), None, read)


def of_file(file: VolumeFile, spec: IOSpec) -> VolumeSource:
    """Return the source of an opened volume. Raises `DataError` where its channels do not fit."""
    if file.channels != len(spec.channels):
        raise DataError(
            f"{file.path}: the volume has {file.channels} channels. Expected {len(spec.channels)}: "
            f"{', '.join(spec.channels)}. Choose a volume with these channels or another model."
        )
    return VolumeSource(file.shape, file.channels, file.spacing, file.read, str(file.path))


def scales_of(spec: IOSpec, known: Sequence[float] | None, given: Any, where: str) -> tuple[float, ...]:
    """Return model voxels per source voxel along each axis; 2 % count as equal.

    `given`: um per voxel of all axes or of each, or "native"; it goes before what the file says (`known`). Raises
    `UserError` where the model has a resolution and the volume's is not known.
    """
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = (float(given),) * 3
    if given is not None and given != "native" and (len(given) != 3 or not all(0 < float(v) < 1e4 for v in given)):
        raise UserError(f"mpp: {given} will not do. Expected um per voxel of z, y and x, as 2,0.5,0.5.")
    if spec.spacing is None or given == "native":
        return (1.0, 1.0, 1.0)
    voxel = known if given is None else given
    if voxel is None:
        wanted = ",".join(f"{v:g}" for v in spec.spacing)
        raise UserError(
            f"{where}: the voxel size is not known and the model works at {wanted} um (z,y,x). Say it with --mpp Z,Y,X "
            "(mpp=(Z, Y, X) in Python), or --mpp native where the voxels already are of that size."
        )
    found = tuple(float(v) / s for v, s in zip(voxel, spec.spacing, strict=True))
    return tuple(1.0 if abs(f - 1) < 0.02 else f for f in found)


# --- blocks -----------------------------------------------------------------------------------------------------------


def along(length: int, tile: int, margin: int, divisor: int) -> list[tuple[int, int, int, int]]:
    """Return (begin, end, first and last of the core) of each block of an axis; begins are multiples of `divisor`.

    Raises `UserError` where a block would be all margin.
    """
    tile, margin = (math.ceil(v / divisor) * divisor for v in (tile, margin))
    if length <= tile:
        return [(0, length, 0, length)]
    step = tile - 2 * margin
    if step < divisor:
        raise UserError(
            f"tile: blocks of {tile} voxels with a margin of {margin} on both sides have no core. Choose a larger tile "
            "or a smaller margin."
        )
    edges = [0, *range(tile - margin, length - margin, step), length]
    return [(max(0, a - margin), min(length, b + margin), a, b) for a, b in itertools.pairwise(edges)]


def tiles_of(spec: IOSpec, tile: int | None) -> tuple[int, ...]:
    """Return the sides of a block: what the user says, else the model's."""
    return (tile,) * 3 if tile is not None else spec.tiles or (spec.tile,) * 3


class Grid:
    """A source at the model's resolution, in boxes: (C, d, h, w) float32 or uint8."""

    def __init__(self, source: VolumeSource, scales: tuple[float, ...]) -> None:
        self.source, self.scales = source, scales
        self.shape = tuple(max(1, round(n * s)) for n, s in zip(source.shape, scales, strict=True))
        self.plain = all(s == 1 for s in scales)

    def read(self, box: Box) -> Array:
        """Return the box of the model's grid; interpolated linearly between the centres of the source's voxels."""
        begin, end = zip(*box, strict=True)
        if self.plain:
            return _numbers(self.source.read(begin, [b - a for a, b in box]))
        positions = [
            (np.arange(a, b) + 0.5) * (old / new) - 0.5
            for a, b, old, new in zip(begin, end, self.source.shape, self.shape, strict=True)
        ]
        lows = [max(0, int(np.floor(p[0]))) for p in positions]
        highs = [min(n, int(np.floor(p[-1])) + 2) for p, n in zip(positions, self.source.shape, strict=True)]
        found = _numbers(self.source.read(lows, [b - a for a, b in zip(lows, highs, strict=True)])).astype(np.float32)
        for axis, (position, low) in enumerate(zip(positions, lows, strict=True), start=1):
            at = np.clip(position - low, 0, found.shape[axis] - 1)
            first = np.floor(at).astype(np.intp)
            share = (at - first).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
            after = np.minimum(first + 1, found.shape[axis] - 1)
            found = np.take(found, first, axis) * (1 - share) + np.take(found, after, axis) * share
        return found


def _numbers(array: Array) -> Array:
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def value_range(source: VolumeSource, low: float, high: float, joint: bool) -> NDArray[np.float32]:
    """Return the percentiles of each channel, (C, 2), over at most `SAMPLE` voxels on a grid, read slab by slab."""
    step = max(1, math.ceil((math.prod(source.shape) / SAMPLE) ** (1 / 3)))
    depth, height, width = source.shape
    planes = [
        np.asarray(source.read((z, 0, 0), (1, height, width)))[:, 0, ::step, ::step].reshape(source.channels, -1)
        for z in range(0, depth, step)
    ]
    sample = np.concatenate(planes, axis=1).astype(np.float32)
    if joint:
        sample = np.broadcast_to(sample.reshape(1, -1), (source.channels, sample.size))
    return np.asarray(np.percentile(sample, (low, high), axis=1).T, np.float32)


@dataclass(frozen=True)
class Work:
    """A family at work on one volume."""

    family: Family
    source: VolumeSource
    grid: Grid
    tile: int | None
    margin: int
    decode: Mapping[str, Any] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[Box, Box]]:
        """Yield (box to read, its core) of each block, in voxels of the model."""
        spec = self.family.spec
        divisors = spec.divisors or (spec.divisor,) * 3
        axes = [
            along(n, t, self.margin, d)
            for n, t, d in zip(self.grid.shape, tiles_of(spec, self.tile), divisors, strict=True)
        ]
        for parts in itertools.product(*axes):
            yield tuple(p[:2] for p in parts), tuple(p[2:] for p in parts)

    def maps(self) -> Iterator[tuple[Box, Box, Maps]]:
        """Yield each block with its activated maps, (1, C, ...)."""
        spec, family = self.family.spec, self.family
        limits: Tensor | None = None
        if spec.encoding.kind == "percentile":
            encoding = spec.encoding
            limits = torch.from_numpy(value_range(self.source, encoding.low, encoding.high, encoding.joint))[None]
        for read, core in self.blocks():
            pixels = np.require(self.grid.read(read), requirements=["C", "W"])  # a mapped file is read-only
            inputs = {"image": torch.from_numpy(pixels)[None].to(family.device)}
            if limits is not None:
                inputs["range"] = limits.to(family.device)
            yield read, core, family.activate(family.infer(family.prepare(inputs)))


def start(family: Family, source: VolumeSource, mpp: Any, tile: int | None, margin: int | None, decode: Any) -> Work:
    """Return a family ready for a volume. Raises `UserError` where the two do not fit."""
    spec = family.spec
    if not hasattr(family, "find"):
        raise UserError(f"{family.name}: this family finds no objects in volumes. Choose another model.")
    grid = Grid(source, scales_of(spec, source.spacing, mpp, source.name))
    return Work(family, source, grid, tile, spec.margin if margin is None else margin, decode)


def found(work: Work) -> Any:
    """Return the objects of a volume, found on blocks and settled over the whole (the family's own kind)."""
    family: Any = work.family
    parts = [family.find(maps, read, core, work.grid.shape, **work.decode) for read, core, maps in work.maps()]
    return family.settle(parts, work.grid.shape, **work.decode)


def windows(shape: Sequence[int], sides: Sequence[int] = WINDOW) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (begin, size) of the windows of a volume, in order of z, y, x."""
    for begin in itertools.product(*(range(0, n, s) for n, s in zip(shape, sides, strict=True))):
        yield begin, tuple(min(s, n - b) for b, n, s in zip(begin, shape, sides, strict=True))


def painted(work: Work, objects: Any) -> Iterator[tuple[tuple[int, ...], NDArray[np.int32]]]:
    """Yield (begin, labels) window by window: object k of the list has the label k + 1, 0 is background."""
    family: Any = work.family
    scales = tuple(m / s for m, s in zip(work.grid.shape, work.source.shape, strict=True))
    scales = work.grid.scales if work.grid.plain else scales
    painter = family.painter(objects, scales)
    for begin, size in windows(work.source.shape):
        yield begin, painter(begin, size)


@torch.inference_mode()
def predict_array(
    family: Family,
    image: Array,
    *,
    mpp: Any = None,
    tile: int | None = None,
    overlap: int | None = None,
    **decode: Any,
) -> dict[str, Prediction]:
    """Return `instances` of a volume (D, H, W) or (D, H, W, C) in memory; see `zoo.inference.predict.predict_array`."""
    family.eval()
    margin = None if overlap is None else overlap // 2
    work = start(family, of_array(image, family.spec), mpp, tile, margin, decode)
    objects = found(work)
    labels = np.zeros(work.source.shape, np.int32)
    for begin, part in painted(work, objects):
        labels[tuple(slice(b, b + n) for b, n in zip(begin, part.shape, strict=True))] = part
    present = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:] > 0
    table = np.concatenate([[0], np.cumsum(present) * present]).astype(np.int32)
    kinds, scores = family.told(objects)  # type: ignore[operator]
    classes = next(iter(family.spec.outputs.values())).classes
    name = next(iter(family.spec.outputs))
    return {name: InstancesPrediction(table[labels], classes, kinds[present], scores[present])}


@torch.inference_mode()
def maps_of(family: Family, image: Array, *, mpp: Any = None) -> tuple[Maps, Geometry]:
    """Return the activated maps of a volume in memory, put together from blocks, and their geometry."""
    family.eval()
    work = start(family, of_array(image, family.spec), mpp, None, None, {})
    spec = family.spec
    whole: Maps = {}
    for read, core, maps in work.maps():
        inner: Any = (..., *_on_maps(spec, [(a - r, b - r) for (a, b), (r, _) in zip(core, read, strict=True)]))
        place: Any = (..., *_on_maps(spec, core))
        for name, value in maps.items():
            if name not in whole:
                whole[name] = value.new_zeros((1, value.shape[1], *spec.out(work.grid.shape)))
            whole[name][place] = value[inner]
    shape = work.source.shape
    scales = tuple(m / s for m, s in zip(work.grid.shape, shape, strict=True))
    return whole, Geometry(shape, scales, (0.0,) * 3)


def _on_maps(spec: IOSpec, box: Sequence[tuple[int, int]]) -> list[slice]:
    """Return a box of the model's voxels on the grid of its maps; ends that are begun count."""
    return [slice(int(a * s), math.ceil(b * s - 1e-9)) for (a, b), s in zip(box, spec.scales, strict=True)]
