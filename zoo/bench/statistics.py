"""Means over images with intervals that respect groups.

Images of one patient or slide resemble each other, so an interval over images is too narrow. Ours draws whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEW = 5
"""Below so many groups an interval is marked: a percentile bootstrap of few clusters is too narrow."""

RESAMPLES = 5000

POOLED_RESAMPLES = 500
"""Resamples of a number that must be taken again from its records each time."""


@dataclass(frozen=True)
class Mean:
    """A mean over images: `value` (nan where no image has one), `low` and `high` of its interval (None where fewer than
    two groups have a value), the number of `images` and `groups` behind it, and `undefined` images left out."""

    value: float
    low: float | None
    high: float | None
    images: int
    groups: int
    undefined: int = 0

    @property
    def few(self) -> bool:
        """True where the groups are too few for the interval to be trusted."""
        return self.groups < FEW


def mean_by_group(
    values: Sequence[float], groups: Sequence[str], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Mean:
    """Return the mean over images and its percentile-bootstrap interval over groups.

    `values`: a number an image, nan = not defined for this image and left out; `groups`: the group of each. Each
    resample draws as many groups as there are, with replacement, and takes the mean over all their images (every image
    weighs the same); the interval is the central `level` of those means (Efron and Tibshirani 1993, chapter 13; Field
    and Welsh 2007 for whole clusters). An infinite value gives an infinite mean. Deterministic: a function of the
    arguments.
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) != len(groups):
        raise ValueError(f"{len(numbers)} values and {len(groups)} groups")
    defined = ~np.isnan(numbers)
    names, index = np.unique(np.asarray(groups, dtype=object)[defined].astype(str), return_inverse=True)
    images, undefined = int(defined.sum()), int((~defined).sum())
    if not images:
        return Mean(math.nan, None, None, 0, 0, undefined)
    kept = numbers[defined]
    value = float(kept.mean())
    if len(names) < 2 or not np.isfinite(value):
        return Mean(value, None, None, images, len(names), undefined)
    sums, counts = np.bincount(index, kept), np.bincount(index)
    means = _resampled(sums, counts, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Mean(value, float(low), float(high), images, len(names), undefined)


def _resampled(sums: Any, counts: Any, resamples: int, rng: np.random.Generator) -> Any:
    """Return the mean of each resample; in pieces, so that many groups need no large table."""
    count = len(sums)
    step = max(1, 2**22 // count)
    parts = []
    for begin in range(0, resamples, step):
        drawn = rng.integers(0, count, (min(step, resamples - begin), count))
        parts.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(parts)


def pooled_by_group(
    pooled: Any,
    records: Sequence[Any],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = POOLED_RESAMPLES,
    seed: int = 0,
) -> Mean:
    """Return a pooled number (`zoo.metrics.pooled.Pooled`) of all images and its bootstrap interval over groups.

    Each resample draws whole groups and takes the number of all their images again; resamples without a number (a class
    that is in none of them) are left out.
    """
    names, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    again = pooled.resampler(records)
    value = float(again(np.arange(len(records))))
    if len(names) < 2 or not math.isfinite(value) or not pooled.drawn:
        return Mean(value, None, None, len(records), len(names))
    members = [np.flatnonzero(index == g) for g in range(len(names))]
    rng = np.random.default_rng(seed)
    drawn = np.asarray(
        [again(np.concatenate([members[g] for g in rng.integers(0, len(names), len(names))])) for _ in range(resamples)]
    )
    told = drawn[np.isfinite(drawn)]
    if not len(told):
        return Mean(value, None, None, len(records), len(names))
    low, high = np.quantile(told, [(1 - level) / 2, (1 + level) / 2])
    return Mean(value, float(low), float(high), len(records), len(names))
