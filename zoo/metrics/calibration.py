"""Metrics of probabilities: does 0.8 mean eight in ten?

Conventions, for every function here:

- a pixel's confidence is the probability of its most probable class, and it is right where that class is the true one
  (Guo et al., ICML 2017); of a multi-label map each plane is a question of its own, the confidence being its
  probability and the answer whether the truth has the class;
- bins have equal width, [a, b), the last one closed;
- tables add up: pooled numbers are those of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """By bin of confidence: `count` of pixels, sum of their `confidence`, how many are `right`; `squared`: sum over
    pixels of the squared error of all probabilities."""

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    right: NDArray[np.float64]
    squared: float

    def __add__(self, other: Reliability) -> Reliability:
        """Return the table of two images together."""
        return Reliability(
            self.count + other.count,
            self.confidence + other.confidence,
            self.right + other.right,
            self.squared + other.squared,
        )


def reliability(probability: Any, truth: Any, ignore: Any = None, bins: int = BINS) -> Reliability:
    """Return the reliability table of one image.

    `probability`: (K, ...) float in [0, 1]; `truth`: (...) integer class indices below K, or (K, ...) bool planes of a
    multi-label truth; `ignore`: (...) bool, True where a pixel is not counted. Raises `ValueError` for shapes that do
    not fit and for values outside [0, 1].
    """
    p, true = np.asarray(probability), np.asarray(truth)
    if true.shape not in (p.shape, p.shape[1:]):
        raise ValueError(f"probability {p.shape} and truth {true.shape} differ in shape")
    counted = np.ones(p.shape[1:], bool) if ignore is None else ~np.asarray(ignore, bool)
    chosen = p[:, counted].astype(np.float64)
    if chosen.size and not (chosen.min() >= -1e-4 and chosen.max() <= 1 + 1e-4):
        raise ValueError("the probabilities are not all in [0, 1]")
    if true.ndim == p.ndim:
        answers = true[:, counted].astype(np.float64)
        confidence, right = chosen.ravel(), answers.ravel()
        squared = float(((chosen - answers) ** 2).sum())
    else:
        labels = true[counted]
        best = chosen.argmax(0)
        confidence = np.take_along_axis(chosen, best[None], 0)[0]
        right = (best == labels).astype(np.float64)
        of_true = np.take_along_axis(chosen, labels[None].astype(np.intp), 0)[0]
        squared = float((chosen**2).sum() - 2 * of_true.sum() + of_true.size)
    place = np.clip((confidence * bins).astype(np.intp), 0, bins - 1)
    return Reliability(
        np.bincount(place, minlength=bins).astype(np.int64),
        np.asarray(np.bincount(place, confidence, minlength=bins), np.float64),
        np.asarray(np.bincount(place, right, minlength=bins), np.float64),
        squared,
    )


def ece(table: Reliability) -> float:
    """Return the expected calibration error: sum over bins of their share times |accuracy - mean confidence|.

    nan where nothing is counted.
    """
    total = int(table.count.sum())
    return float(np.abs(table.right - table.confidence).sum() / total) if total else float("nan")


def brier(table: Reliability) -> float:
    """Return the Brier score: the mean over pixels of sum_k (p_k - y_k)², in [0, 2] (Brier, 1950).

    Of a multi-label map, the mean over pixels and classes of (p - y)², in [0, 1].
    """
    total = int(table.count.sum())
    return table.squared / total if total else float("nan")
