"""Metrics of boxes at one IoU threshold.

Conventions: boxes are half-open `x0, y0, x1, y1`; a prediction matches a true box of its own class at IoU >= threshold;
predictions choose in order of falling score (input order among equals), each the best true box that is still free, as
COCO's evaluation does; a crowd box is neither hit nor miss and swallows the predictions that lie in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: `xyxy` (N, 4), `classes` (N,); `scores` (N,) of predictions, `crowd` (N,) bool of truths."""

    xyxy: NDArray[Any]
    classes: NDArray[Any]
    scores: NDArray[Any] | None = None
    crowd: NDArray[Any] | None = None


@dataclass(frozen=True)
class Counts:
    """`hits` matched pairs, `wrong` predictions and `missed` true boxes without a partner."""

    hits: int
    wrong: int
    missed: int


def pairwise(one: Any, other: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the intersections (N, M) of two sets of boxes in square pixels, and their IoU (N, M)."""
    a, b = (np.asarray(x, np.float64).reshape(-1, 4) for x in (one, other))
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared: NDArray[np.float64] = size.clip(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(min=0).prod(-1) for x in (a, b))
    joint = area_a[:, None] + area_b[None] - shared
    return shared, np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def matching(prediction: Boxes, truth: Boxes, threshold: float = 0.5) -> Counts:
    """Return the counts of one image (see the module for the rule)."""
    shared, iou = pairwise(prediction.xyxy, truth.xyxy)
    iou[np.asarray(prediction.classes)[:, None] != np.asarray(truth.classes)[None]] = -1
    crowd = np.zeros(len(truth.xyxy), bool) if truth.crowd is None else np.asarray(truth.crowd, bool)
    scores = np.zeros(len(iou)) if prediction.scores is None else np.asarray(prediction.scores)
    free = ~crowd
    hits = wrong = 0
    for index in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, iou[index], -1)
        best = int(candidates.argmax()) if candidates.size else -1
        if best >= 0 and candidates[best] >= threshold:
            free[best] = False
            hits += 1
        elif not _in_crowd(prediction.xyxy[index], shared[index], crowd & (iou[index] >= 0), threshold):
            wrong += 1
    return Counts(hits, wrong, int(free.sum()))


def _in_crowd(box: NDArray[Any], shared: NDArray[np.float64], crowd: NDArray[np.bool_], threshold: float) -> bool:
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    return bool(crowd.any()) and area > 0 and float(shared[crowd].max()) / area >= threshold


def box_f1(counts: Counts) -> float:
    """Return 2 TP / (2 TP + FP + FN); nan where there is no box in either."""
    under = 2 * counts.hits + counts.wrong + counts.missed
    return 2 * counts.hits / under if under else float("nan")
