"""Putting together what was decoded in windows that overlap: the blocks of a large picture, or the tiles of a detector.

A window has a core; the cores of all windows tile the picture. A pixel's label comes from the window in whose core it
lies, which is the one that sees it best; objects of neighbouring windows that are one are joined through what both see.
A box comes from the window in whose core its centre lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.postprocess.labels import Block, same_objects
from zoo.types import BoxesPrediction, InstancesPrediction

SAME = 0.5
"""Share of the smaller one's pixels (objects), or intersection over union (boxes), from which two are one."""


@dataclass(frozen=True)
class Span:
    """One axis of a window: pixels [begin, end) that were decoded, [first, last) of them its core."""

    begin: int
    end: int
    first: int
    last: int

    @property
    def core(self) -> slice:
        """Return the core within the window."""
        return slice(self.first - self.begin, self.last - self.begin)


@dataclass(frozen=True)
class Table:
    """What provisional ids mean: `final[id]` is the id in the picture (0 = no object), then class and score of 1..N."""

    final: NDArray[np.int32]
    class_index: NDArray[np.int64]
    scores: NDArray[np.float32] | None


class Objects:
    """Joins the objects of one output over windows; keeps one row of windows in memory."""

    def __init__(self) -> None:
        self._parent: list[int] = [0]
        self._area: list[int] = [0]
        self._class: list[int] = [0]
        self._score: list[float] = [0.0]
        self._scored = False
        self._above: list[tuple[Block, int]] = []
        self._row: list[tuple[Block, int]] = []

    def add(self, prediction: InstancesPrediction, rows: Span, columns: Span) -> NDArray[np.int32]:
        """Return the provisional ids of the window's core; windows come row by row, from left to right."""
        offset = len(self._parent) - 1
        labels = prediction.map
        count = len(prediction.class_index)
        self._parent += range(offset + 1, offset + count + 1)
        self._area += np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
        self._class += prediction.class_index.tolist()
        self._scored |= prediction.scores is not None
        self._score += [0.0] * count if prediction.scores is None else prediction.scores.tolist()
        block = Block(labels, rows.begin, columns.begin)
        for other, other_offset in [*self._above, *self._row[-1:]]:
            for theirs, mine in same_objects(other, block, SAME):
                self._join(theirs + other_offset, mine + offset)
        self._row.append((block, offset))
        core = labels[rows.core, columns.core]
        return np.where(core > 0, core + offset, 0).astype(np.int32)

    def end_row(self) -> None:
        """Say that the next window begins a new row."""
        self._above, self._row = self._row, []

    def table(self, present: Iterable[int]) -> Table:
        """Return what provisional ids mean, given those that the picture holds."""
        roots = np.array([self._root(i) for i in range(len(self._parent))], np.int64)
        here = np.zeros(len(roots), bool)
        here[roots[np.fromiter(present, np.int64)]] = True
        here[0] = False
        number = np.where(here, np.cumsum(here), 0)
        final = number[roots].astype(np.int32)
        best = np.full(int(here.sum()) + 1, -1, np.int64)
        for piece in np.argsort(self._area, kind="stable"):  # the largest piece of an object speaks for it
            best[final[piece]] = piece
        scores = np.array(self._score, np.float32)[best[1:]] if self._scored else None
        return Table(final, np.array(self._class, np.int64)[best[1:]], scores)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def _join(self, one: int, two: int) -> None:
        one, two = self._root(one), self._root(two)
        self._parent[max(one, two)] = min(one, two)


def in_core(prediction: BoxesPrediction, rows: Span, columns: Span) -> BoxesPrediction:
    """Return the boxes whose centre lies in the window's core, in pixels of the picture."""
    boxes = prediction.xyxy + np.array([columns.begin, rows.begin] * 2, np.float32)
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    keep = (y >= rows.first) & (y < rows.last) & (x >= columns.first) & (x < columns.last)
    weaker = None if prediction.weaker is None else in_core(prediction.weaker, rows, columns)
    return _pick(replace(prediction, xyxy=boxes, weaker=weaker), np.flatnonzero(keep))


def _pick(prediction: BoxesPrediction, index: NDArray[Any]) -> BoxesPrediction:
    return replace(
        prediction,
        xyxy=prediction.xyxy[index],
        class_index=prediction.class_index[index],
        scores=prediction.scores[index],
        attributes=None if prediction.attributes is None else prediction.attributes[index],
    )


def join_boxes(parts: list[BoxesPrediction]) -> BoxesPrediction:
    """Return the boxes of all windows, strongest first; of two from different windows that are one, the stronger."""
    attributes = [p.attributes for p in parts if p.attributes is not None]
    weaker = [p.weaker for p in parts if p.weaker is not None]
    joined = replace(
        parts[0],
        xyxy=np.concatenate([p.xyxy for p in parts]),
        class_index=np.concatenate([p.class_index for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
        attributes=np.concatenate(attributes) if len(attributes) == len(parts) else None,
        weaker=join_boxes(weaker) if weaker else None,
    )
    window = np.repeat(np.arange(len(parts)), [len(p.xyxy) for p in parts])
    order = np.argsort(-joined.scores, kind="stable")
    joined, window = _pick(joined, order), window[order]
    gone = np.zeros(len(order), bool)
    for strong, weak in _twins(joined, window):
        if not gone[strong]:
            gone[weak] = True
    return _pick(joined, np.flatnonzero(~gone))


def _twins(boxes: BoxesPrediction, window: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return (stronger, weaker) pairs of one class from different windows that overlap enough, strongest first."""
    import shapely

    shapes = shapely.box(*boxes.xyxy.T.astype(float))
    pairs = shapely.STRtree(shapes).query(shapes).T
    first, second = pairs[(pairs[:, 0] < pairs[:, 1])].T
    distinct = (window[first] != window[second]) & (boxes.class_index[first] == boxes.class_index[second])
    first, second = first[distinct], second[distinct]
    shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    union = shapely.area(shapes[first]) + shapely.area(shapes[second]) - shared
    found = np.stack([first, second], 1)[shared > SAME * union]
    return np.asarray(found[np.lexsort((found[:, 1], found[:, 0]))])
