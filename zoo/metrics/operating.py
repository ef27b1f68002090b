"""Choosing the threshold at which a model works, on data held out for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def golden_threshold(
    measure: Callable[[float], float], highest: float, *, tolerance: float = 1e-2, steps: int = 20
) -> tuple[float, float]:
    """Return the threshold of the largest `measure` and that measure, by golden-section search.

    The bracket is (highest / 2, highest), what is tried is clipped into it and tried once, and the point is that of the
    search, as StarDist chooses its probability threshold; `highest`: the largest probability that was predicted. For
    measures with one peak: see `grid_threshold` for any other.
    """
    from scipy.optimize import minimize_scalar

    low, high = highest / 2, highest
    known: dict[float, float] = {}

    def cost(threshold: float) -> float:
        at = float(np.clip(threshold, low, high))
        if at not in known:
            known[at] = measure(at)
        return -known[at]

    found = minimize_scalar(cost, bracket=(low, high), method="golden", tol=tolerance, options={"maxiter": steps})
    return float(found.x), float(-found.fun)


def grid_threshold(values: Sequence[float], measures: Sequence[float]) -> tuple[float, float]:
    """Return the value with the largest measure and that measure; of equals the one nearest to the middle of them.

    A plateau's middle is the choice that stays good where the data move a little. nan counts as worst; raises
    `ValueError` where every measure is nan.
    """
    numbers = np.asarray(measures, np.float64)
    if np.isnan(numbers).all():
        raise ValueError("no threshold has a measure")
    best = float(np.nanmax(numbers))
    equal = np.flatnonzero(numbers >= best - 1e-12)
    middle = float(np.mean(np.asarray(values)[equal]))
    chosen = equal[np.abs(np.asarray(values)[equal] - middle).argmin()]
    return float(values[chosen]), best
