"""The score from which a box counts, chosen on validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.boxes import Boxes, matching
from zoo.metrics.operating import grid_threshold

GRID = tuple(round(0.05 + 0.01 * i, 2) for i in range(91))
"""Scores that are tried."""


def best_thresholds(pairs: Sequence[tuple[Boxes, Boxes]], classes: int, fallback: Sequence[float]) -> list[float]:
    """Return for each class (from 1) the score at which F1 over all images is largest, of the middle of equal ones.

    `pairs`: predicted boxes, of every score, and true ones, of each image; matched at IoU >= 0.5 as the metric `box_f1`
    does, the strongest first, so that what is above a threshold is matched as if nothing were below it. A class that is
    nowhere in the truth, or that is never found, keeps its `fallback`.
    """
    scores: list[list[float]] = [[] for _ in range(classes)]
    right: list[list[bool]] = [[] for _ in range(classes)]
    there = np.zeros(classes, np.int64)
    for ours, theirs in pairs:
        hits = {index for index, _ in matching(ours, theirs).pairs}
        assert ours.scores is not None
        for index, (kind, score) in enumerate(zip(ours.classes.tolist(), ours.scores.tolist(), strict=True)):
            scores[kind - 1].append(score)
            right[kind - 1].append(index in hits)
        told = np.ones(len(theirs.classes), bool) if theirs.crowd is None else ~theirs.crowd
        there += np.bincount(theirs.classes[told] - 1, minlength=classes)
    found = []
    for own, hit, count, usual in zip(scores, right, there.tolist(), fallback, strict=True):
        least, best = grid_threshold(GRID, _f1(np.asarray(own), np.asarray(hit, bool), count)) if count else (usual, 0)
        found.append(least if best > 0 else usual)
    return found


def _f1(scores: NDArray[np.float64], hits: NDArray[np.bool_], count: int) -> list[float]:
    """Return F1 at each score of the grid; `count`: true boxes."""
    said = [scores >= least for least in GRID]
    return [2 * float(hits[s].sum()) / (float(s.sum()) + count) for s in said]
