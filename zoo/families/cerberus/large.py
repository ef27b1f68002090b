"""Large pictures, decoded from maps on disk: the very objects that decoding the whole in memory gives.

Objects are found tile by tile (`tiles.each`) and drawn into label maps on disk; then those are read twice from top to
bottom, once for what is said of each object, once to be given away. Memory is that of a tile, of the largest connected
piece, of a strip, and of some numbers an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo import registry
from zoo.families.base import StoredLabels, StoredMaps
from zoo.families.cerberus import tiles
from zoo.families.cerberus.decode import patch
from zoo.families.cerberus.options import CerberusOptions, Task
from zoo.types import Geometry, InstancesPrediction, LabelPrediction, Prediction

TILE = 2048
"""Side of the tiles in which pieces are found."""
ROWS = 256
"""Rows that are read at once."""


@dataclass
class Sums:
    """What is added up over the pixels of N objects and the background (place 0): `area`, `sure` (probability of inside
    and contour), and of K classes and none: how many pixels have each, and their summed probability."""

    count: int
    classes: int
    area: NDArray[np.int64] = field(init=False)
    sure: NDArray[np.float64] = field(init=False)
    votes: NDArray[np.int64] = field(init=False)
    likely: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        n = self.count + 1
        self.area, self.sure = np.zeros(n, np.int64), np.zeros(n)
        self.votes, self.likely = np.zeros((n, self.classes), np.int64), np.zeros((n, self.classes))

    def add(self, labels: NDArray[Any], sure: NDArray[Any], kinds: NDArray[Any] | None) -> None:
        """Add (h, W) labels, (h, W) `sure` and, where there are classes, (K + 1, h, W) `kinds`."""
        flat, n = labels.ravel(), self.count + 1
        self.area += np.bincount(flat, minlength=n)
        self.sure += np.bincount(flat, sure.ravel(), minlength=n)
        if kinds is not None:
            best = flat.astype(np.int64) * self.classes + kinds.argmax(0).ravel()
            self.votes += np.bincount(best, minlength=n * self.classes).reshape(n, self.classes)
            for k, plane in enumerate(kinds):
                self.likely[:, k] += np.bincount(flat, plane.ravel(), minlength=n)

    def scores(self) -> NDArray[np.float32]:
        """Return the mean probability of each object, in [0, 1]."""
        mean = (self.sure / np.maximum(self.area, 1)).astype(np.float32)
        return np.clip(mean, 0, 1)

    def kinds(self) -> NDArray[np.int64]:
        """Return the class of each object, from 0: its most frequent one (`objects.vote`), "none" set aside where
        another occurs; where none does, the likeliest."""
        if not self.classes:
            return np.zeros(self.count + 1, np.int64)
        best, second = self.votes.argmax(1), self.votes[:, 1:].argmax(1) + 1
        types = np.where((best == 0) & (self.votes[:, 1:] > 0).any(1), second, best)
        return np.asarray(np.where(types > 0, types - 1, self.likely[:, 1:].argmax(1)), np.int64)


@dataclass
class Drawn:
    """The objects of one task in a label map on disk; `around`: the label map of what they must lie in. `sums`: what is
    known of them by the ids of the label map; `final`: those ids to the picture's, 0 where an object is not there."""

    name: str
    task: Task
    labels: StoredLabels
    count: int
    around: StoredLabels | None = None
    sums: Sums | None = None
    final: NDArray[np.int32] | None = None

    def rows(self, begin: int, end: int, width: int) -> NDArray[np.int32]:
        """Return a strip of labels, cut to what lies inside other objects."""
        window = (slice(begin, end), slice(0, width))
        own: NDArray[np.int32] = self.labels.read(window)[0]
        if self.around is None:
            return own
        cut: NDArray[np.int32] = registry.get("postprocess", "cerberus_inside")(own, self.around.read(window)[0])
        return cut


def decode(
    maps: StoredMaps, geometry: Geometry, options: CerberusOptions
) -> Iterator[tuple[int, dict[str, Prediction]]]:
    """Yield (first row, task -> prediction of the rows from there on) of a picture; see `Family.decode_stored`."""
    drawn = {n: _draw(maps, n, t) for n, t in options.tasks.items() if t.kind == "objects"}
    for one in drawn.values():
        if one.task.inside:
            one.around = drawn[one.task.inside].labels
    for one in drawn.values():
        _add_up(maps, one, options)
        _number(maps.shape, geometry, one)
    said = {name: _told(one, options) for name, one in drawn.items()}
    labels = {n: np.zeros(t.planes) for n, t in options.tasks.items() if t.kind == "patch" and t.output == "label"}
    pictures = [n for n, t in options.tasks.items() if t.kind == "patch" and n not in labels]
    for begin in range(0, geometry.shape[0], ROWS):
        end = min(begin + ROWS, geometry.shape[0])
        found: dict[str, Prediction] = {}
        for name, one in drawn.items():
            classes, index, scores = said[name]
            found[name] = InstancesPrediction(_at_source(maps.shape, geometry, one, begin, end), classes, index, scores)
        for name in pictures:
            found[name] = patch(*_strip(maps, name, geometry, begin, end), options.tasks[name])
        yield begin, found
    for begin in range(0, maps.shape[0], ROWS):
        for name, total in labels.items():
            total += maps.read(name, (slice(begin, begin + ROWS), slice(None))).sum((1, 2), dtype=np.float64)
    if labels:
        size = maps.shape[0] * maps.shape[1]
        yield 0, {n: _label(options.tasks[n], total / size) for n, total in labels.items()}


def _label(task: Task, mean: NDArray[np.float64]) -> LabelPrediction:
    return LabelPrediction(int(mean.argmax()), task.classes or (), mean.astype(np.float32))


def _draw(maps: StoredMaps, name: str, task: Task) -> Drawn:
    """Return the objects of a task, drawn in the order of their ids."""
    labels, count = maps.labels(), 0

    def read(window: tuple[slice, slice]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        inner, contour = maps.read(name, window)
        return inner, contour

    for found in tiles.each(read, maps.shape, TILE, task.rule_of(name)):
        part = labels.read(found.window)
        part[0][found.mask] = found.id
        labels.write(found.window, part)
        count = found.id
    return Drawn(name, task, labels, count)


def _add_up(maps: StoredMaps, one: Drawn, options: CerberusOptions) -> None:
    named = options.classes_of(one.name)
    one.sums = Sums(one.count, 0 if named is None else named[1].planes)
    height, width = maps.shape
    for begin in range(0, height, ROWS):
        end = min(begin + ROWS, height)
        window = (slice(begin, end), slice(0, width))
        inner, contour = maps.read(one.name, window)
        kinds = None if named is None else maps.read(named[0], window)
        one.sums.add(one.rows(begin, end, width), inner + contour, kinds)


def _number(have: tuple[int, int], geometry: Geometry, one: Drawn) -> None:
    """Number the objects that the picture at its source's scale holds from 1, in the order of their ids."""
    assert one.sums is not None
    there = one.sums.area > 0
    if not _native(geometry):
        there = np.zeros(one.count + 1, bool)
        one.final = np.arange(one.count + 1, dtype=np.int32)
        for begin in range(0, geometry.shape[0], ROWS):
            end = min(begin + ROWS, geometry.shape[0])
            there[np.unique(_at_source(have, geometry, one, begin, end))] = True
    there[0] = False
    one.final = np.where(there, np.cumsum(there), 0).astype(np.int32)


def _told(one: Drawn, options: CerberusOptions) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.float32]]:
    """Return the names of classes, and class and score of each object of the picture."""
    assert one.sums is not None
    assert one.final is not None
    kept = one.final > 0
    named = options.classes_of(one.name)
    classes = named[1].foreground if named is not None else one.task.foreground or (one.name,)
    return classes, one.sums.kinds()[kept], one.sums.scores()[kept]


def _native(geometry: Geometry) -> bool:
    return all(scale == 1.0 for scale in geometry.scale)


def _at_source(have: tuple[int, int], geometry: Geometry, one: Drawn, begin: int, end: int) -> NDArray[np.int32]:
    """Return rows of the source: a pixel belongs to what its centre lies in."""
    assert one.final is not None
    if _native(geometry):
        return one.final[one.rows(begin, end, have[1])]
    rows, columns = (
        np.clip(((np.arange(a, b) + 0.5) * scale - offset).astype(np.int64), 0, size - 1)
        for a, b, scale, offset, size in zip(
            (begin, 0), (end, geometry.shape[1]), geometry.scale, geometry.offset, have, strict=True
        )
    )
    strip = one.rows(int(rows[0]), int(rows[-1]) + 1, have[1])
    return np.asarray(one.final[strip[(rows - rows[0])[:, None], columns[None]]], np.int32)


def _strip(maps: StoredMaps, name: str, geometry: Geometry, begin: int, end: int) -> tuple[torch.Tensor, Geometry]:
    """Return the planes behind rows of the source, and how those lie on them."""
    scale, offset = geometry.scale[0], geometry.offset[0]
    low = max(0, int(np.floor((begin + 0.5) * scale - offset - 0.5)))
    high = min(maps.shape[0], int(np.floor((end - 0.5) * scale - offset - 0.5)) + 2)
    planes = torch.from_numpy(maps.read(name, (slice(low, high), slice(0, maps.shape[1]))))
    place = Geometry(
        (end - begin, geometry.shape[1]), geometry.scale, (offset + low - begin * scale, geometry.offset[1])
    )
    return planes, place
