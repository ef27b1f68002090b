"""Decoding in windows: a large picture in blocks of its stitched maps, or each tile of a detector by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.base import Family, Maps
from zoo.inference import merge
from zoo.inference.merge import Span, Table
from zoo.inference.source import ModelGrid
from zoo.inference.stitch import Band, Infer
from zoo.inference.windows import Axis, Plan
from zoo.types import (
    BoxesPrediction,
    Geometry,
    InstancesPrediction,
    PicturePrediction,
    Prediction,
    SemanticPrediction,
)

CORE = 1024
"""Side of a block's core on the model's grid, without the halo in which its objects may end."""


@dataclass(frozen=True)
class Part:
    """Predictions for the rows from `begin` of a picture.

    `whole`: these are all its rows. Otherwise label maps hold provisional ids, whose meaning the last part tells in
    `tables`, and boxes come with the last part.
    """

    begin: int
    predictions: dict[str, Prediction]
    whole: bool = False
    tables: dict[str, Table] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """One axis of a window on the model's grid (`begin` to `end`) and on the source's (`span`)."""

    begin: int
    end: int
    span: Span
    offset: float


def cuts(windows: Sequence[tuple[int, int, int, int]], out: int, source: int, scale: float | None = None) -> list[Cut]:
    """Return windows (begin, end, first and last of the core) of a grid of `out` pixels, laid on `source` pixels.

    `scale`: pixels of the grid for each of the source; None = `out` / `source`.
    """
    scale = out / source if scale is None else scale
    found = []
    for begin, end, first, last in windows:
        low = 0 if begin == 0 else int(np.ceil(begin / scale))
        high = source if end >= out else int(np.floor(end / scale))
        core = (round(first / scale), source if last >= out else min(source, round(last / scale)))
        found.append(Cut(begin, end, Span(low, high, *core), begin - low * scale))
    return found


def blocks(length: int, core: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Return the blocks of one axis: cores of `core` pixels, each seen with `halo` pixels around."""
    count = max(1, round(length / core))
    edges = [round(i * length / count) for i in range(count + 1)]
    return [(max(0, a - halo), min(length, b + halo), a, b) for a, b in itertools.pairwise(edges)]


class Collector:
    """Turns windows, row by row, into parts of the picture."""

    def __init__(self, family: Family, scale: tuple[float, float], decode: Mapping[str, Any]) -> None:
        self._family = family
        self._scale = scale
        self._decode = decode
        self._objects: dict[str, merge.Objects] = {}
        self._present: dict[str, set[int]] = {}
        self._boxes: dict[str, list[BoxesPrediction]] = {}
        self._last: dict[str, Prediction] = {}

    def row(self, windows: Sequence[tuple[Cut, Cut, Maps]]) -> Part:
        """Return the part that one row of windows gives: their cores side by side."""
        pieces: dict[str, list[Prediction]] = {}
        for rows, columns, maps in windows:
            shape = (rows.span.end - rows.span.begin, columns.span.end - columns.span.begin)
            down, across = self._family.spec.scales  # offsets are in pixels of the maps
            geometry = Geometry(shape, self._scale, (rows.offset / down, columns.offset / across))
            decoded = self._family.decode(maps, [geometry], **self._decode)[0]
            for name, prediction in decoded.items():
                self._last[name] = prediction
                core = self._core(name, prediction, rows.span, columns.span)
                if core is not None:
                    pieces.setdefault(name, []).append(core)
        for objects in self._objects.values():
            objects.end_row()
        return Part(windows[0][0].span.first, {name: _beside(parts) for name, parts in pieces.items()})

    def _core(self, name: str, prediction: Prediction, rows: Span, columns: Span) -> Prediction | None:
        if isinstance(prediction, InstancesPrediction):
            ids = self._objects.setdefault(name, merge.Objects()).add(prediction, rows, columns)
            self._present.setdefault(name, set()).update(np.unique(ids).tolist())
            return replace(prediction, map=ids, contours=None)
        if isinstance(prediction, BoxesPrediction):
            self._boxes.setdefault(name, []).append(merge.in_core(prediction, rows, columns))
            return None
        if isinstance(prediction, SemanticPrediction | PicturePrediction):
            planes = {n: plane[..., rows.core, columns.core] for n, plane in planes_of(prediction)}
            return replace(prediction, **planes)  # type: ignore[arg-type]
        raise UserError(
            f'{self._family.name}: output "{name}" is a {prediction.kind} for the whole picture, which is too large '
            "to be taken in one piece. Choose a smaller picture."
        )

    def end(self, begin: int) -> Part:
        """Return the last part: boxes, and what the provisional ids mean."""
        tables = {name: objects.table(self._present[name]) for name, objects in self._objects.items()}
        boxes: dict[str, Prediction] = {name: merge.join_boxes(parts) for name, parts in self._boxes.items()}
        return Part(begin, boxes, tables=tables)


def planes_of(prediction: Prediction) -> list[tuple[str, NDArray[Any]]]:
    """Return the arrays of a prediction whose last two axes are rows and columns, by field name."""
    if isinstance(prediction, SemanticPrediction):
        planes = [("map", prediction.map), ("probability", prediction.probability)]
        return [(name, plane) for name, plane in planes if plane is not None]
    if isinstance(prediction, InstancesPrediction):
        return [("map", prediction.map)]
    return [("data", prediction.data)] if isinstance(prediction, PicturePrediction) else []


def _beside(parts: list[Prediction]) -> Prediction:
    columns = [planes_of(part) for part in parts]
    planes = {
        name: np.concatenate([column[i][1] for column in columns], axis=-1) for i, (name, _) in enumerate(columns[0])
    }
    return replace(parts[0], **planes)  # type: ignore[arg-type]


def large(
    family: Family,
    bands: Iterator[Band],
    out: tuple[int, int],
    model: tuple[int, int],
    shape: tuple[int, int],
    decode: Mapping[str, Any],
) -> Iterator[Part]:
    """Yield the parts of a picture of `shape`, `model` on the model's grid, whose stitched maps, a grid of `out`
    pixels, come in bands."""
    scale = (model[0] / shape[0], model[1] / shape[1])
    halo = max(family.spec.extent, family.spec.margin)
    rows, columns = (
        cuts(blocks(length, max(CORE, 4 * halo), halo), length, source, own * fine)
        for length, source, own, fine in zip(out, shape, scale, family.spec.scales, strict=True)
    )
    collector = Collector(family, scale, decode)
    kept: list[Band] = []
    waiting = iter(rows)
    cut = next(waiting)
    for band in bands:
        kept.append(band)
        while cut is not None and band.end >= cut.end:
            maps = _rows(kept, cut.begin, cut.end)
            yield collector.row(
                [(cut, c, {n: v[..., c.begin : c.end].contiguous() for n, v in maps.items()}) for c in columns]
            )
            following = next(waiting, None)
            if following is None:
                break
            cut = following
            kept = [b for b in kept if b.end > cut.begin]
    yield collector.end(shape[0])


def _rows(bands: list[Band], begin: int, end: int) -> Maps:
    return {
        name: torch.cat(
            [b.maps[name][:, :, max(0, begin - b.begin) : end - b.begin] for b in bands if b.begin < end], dim=2
        )
        for name in bands[0].maps
    }


def tiles(
    family: Family,
    infer: Infer,
    grid: ModelGrid,
    plan: Plan,
    shape: tuple[int, int],
    batch: int,
    decode: Mapping[str, Any],
) -> Iterator[Part]:
    """Yield the parts of a picture of which each tile is decoded by itself (`stitch: objects`)."""
    out, fine = family.spec.out(grid.shape), family.spec.scales
    scale = (grid.shape[0] / shape[0], grid.shape[1] / shape[1])
    down, across = plan.rows.scaled(fine[0]), plan.columns.scaled(fine[1])
    rows = cuts(_tile_windows(down), out[0], shape[0], scale[0] * fine[0])
    columns = cuts(_tile_windows(across), out[1], shape[1], scale[1] * fine[1])
    collector = Collector(family, scale, decode)
    count = len(columns)
    for index, (cut, start) in enumerate(zip(rows, plan.rows.starts, strict=True)):
        pixels = grid.band(start, start + plan.rows.tile)
        windows: list[tuple[Cut, Cut, Maps]] = []
        for first in range(0, count, batch):
            numbers = range(first, min(first + batch, count))
            cut_out = [pixels[:, plan.columns.starts[n] : plan.columns.starts[n] + plan.columns.tile] for n in numbers]
            maps = infer(np.stack(cut_out), range(index * count + numbers.start, index * count + numbers.stop))
            for i, n in enumerate(numbers):
                windows.append((cut, columns[n], {name: v[i : i + 1] for name, v in maps.items()}))
        yield collector.row(windows)
    yield collector.end(shape[0])


def _tile_windows(axis: Axis) -> list[tuple[int, int, int, int]]:
    """Return each tile with its core: to the middle of the ramps that it shares with its neighbours."""
    supports = [axis.support(i) for i in range(len(axis.starts))]
    edges = [0, *((a[1] + b[0]) // 2 for a, b in itertools.pairwise(supports)), axis.length]
    return [
        (start, min(start + axis.tile, axis.length), first, last)
        for start, first, last in zip(axis.starts, edges, edges[1:], strict=False)
    ]
