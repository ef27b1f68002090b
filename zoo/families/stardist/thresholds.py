"""The operating point of a trained network, from validation images: which probability, which overlap.

For each overlap in turn, the probability that makes the mean over IoU thresholds of the pooled accuracy largest is
searched by golden section (Schmidt et al. 2018's package does the same; the steps are those of scipy's `golden`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.metrics import instances

Array = NDArray[Any]
NMS = (0.3, 0.4, 0.5)
IOU = (0.3, 0.5, 0.7)


def optimise(
    score: Callable[[float, float], float],
    highest: float,
    nms: Sequence[float] = NMS,
    tolerance: float = 1e-2,
    most: int = 20,
) -> tuple[float, float, float, list[tuple[float, float]]]:
    """Return the best (probability, overlap, score), and (probability, score) for each of `nms`.

    `score(probability, overlap)` is what is to be large; `highest`: the largest probability that the network says.
    """
    from scipy.optimize import minimize_scalar

    low, high = highest / 2, highest
    each: list[tuple[float, float]] = []
    for overlap in nms:
        known: dict[float, float] = {}

        def lost(x: float, overlap: float = overlap, known: dict[float, float] = known) -> float:
            at = float(np.clip(x, low, high))
            if at not in known:
                known[at] = score(at, overlap)
            return -known[at]

        found = minimize_scalar(lost, bracket=(low, high), method="golden", tol=tolerance, options={"maxiter": most})
        each.append((float(found.x), float(-found.fun)))
    best = max(range(len(each)), key=lambda i: (each[i][1], -i))
    return each[best][0], float(nms[best]), each[best][1], each


def accuracy(pairs: Sequence[tuple[Array, Array]], ious: Sequence[float] = IOU) -> float:
    """Return the mean over `ious` of the accuracy TP / (TP + FP + FN), pooled over (truth, prediction) label maps."""
    tables = [instances.overlap(predicted, truth) for truth, predicted in pairs]
    found = []
    for iou in ious:
        pooled = instances.Matching(0, 0, 0, 0.0)
        for table in tables:
            pooled += instances.matching(table, iou)
        found.append(pooled.accuracy if pooled.hits else 0.0)
    return float(np.mean(found))
