"""Are two weights different: paired tests by group, corrected for many; what could have been seen; who ranks where.

Images of one patient or slide are not independent, so every test here draws, flips or ranks whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.bench.statistics import FEW, POOLED_RESAMPLES, Mean, mean_by_group

EXACT = 14
"""Up to so many groups every flip of signs is counted; beyond, `FLIPS` are drawn."""
FLIPS = 20_000
POOLED_EXACT = 8
"""The same of a pooled number, which is taken anew at each exchange; beyond, `POOLED_FLIPS` are drawn."""
POOLED_FLIPS = 500
POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """One weights against another, on the images and groups that both have.

    `difference`: mean of `first` minus `second` with its interval; `p`: of the paired permutation test, `adjusted`
    after Holm's correction over the table; `detectable`: the smallest difference that this many groups would show in
    four of five such studies (nan with fewer than two groups); `lowest`: the smallest p that so few groups can give.
    """

    metric: str
    first: str
    second: str
    difference: Mean
    p: float
    adjusted: float
    detectable: float
    lowest: float

    @property
    def few(self) -> bool:
        """True where no result could have been significant at 0.05, or where groups are fewer than `FEW`."""
        return self.lowest > 0.05 or self.difference.groups < FEW


def _by_group(values: NDArray[np.float64], groups: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the count of each group."""
    _, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return np.asarray(np.bincount(index, values), np.float64), np.bincount(index).astype(np.float64)


def permutation_p(differences: Sequence[float], groups: Sequence[str], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Return the two-sided p of a paired permutation test: all differences of a group change sign together.

    The statistic is |mean over images|. All 2^G flips are counted up to `EXACT` groups; beyond, `flips` are drawn and
    the observed one is added, so that p is never 0 (Phipson and Smyth, 2010). nan without images.
    """
    numbers = np.asarray(differences, np.float64)
    if not len(numbers):
        return math.nan
    sums, _ = _by_group(numbers, groups)
    count = len(sums)
    observed = abs(sums.sum()) * (1 - 1e-12)
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    reached = 1
    for begin in range(0, flips, 1000):
        signs = rng.choice([-1.0, 1.0], (min(1000, flips - begin), count))
        reached += int((np.abs(signs @ sums) >= observed).sum())
    return reached / (flips + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction (Scand. J. Statist. 1979); nan stays nan, uncounted."""
    told = [(p, i) for i, p in enumerate(values) if not math.isnan(p)]
    found = [math.nan] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(sorted(told)):
        highest = max(highest, min(1.0, p * (len(told) - rank)))
        found[i] = highest
    return found


def detectable(differences: Sequence[float], groups: Sequence[str], *, alpha: float = 0.05) -> float:
    """Return the difference that a two-sided test at `alpha` shows with a power of 0.8, given the spread of these.

    (t(1 - alpha / 2) + t(0.8)) times the cluster-robust standard error of the mean, t with G - 1 degrees of freedom
    (Bloom, 1995; CR1 of Cameron and Miller, 2015). nan with fewer than two groups.
    """
    numbers = np.asarray(differences, np.float64)
    if not len(numbers):
        return math.nan
    sums, counts = _by_group(numbers, groups)
    if len(sums) < 2:
        return math.nan
    rest = sums - counts * numbers.mean()
    return _shown(math.sqrt(len(sums) / (len(sums) - 1) * float(rest @ rest)) / len(numbers), len(sums), alpha)


def _shown(error: float, groups: int, alpha: float = 0.05) -> float:
    """Return the difference that a test shows with a power of 0.8, of its standard error."""
    from scipy.stats import t

    return float((t.ppf(1 - alpha / 2, groups - 1) + t.ppf(POWER, groups - 1)) * error)


Scores = Mapping[str, tuple[float, str]]
"""Image -> (value, group)."""


def compare(metric: str, rows: Mapping[str, Scores], *, seed: int = 0) -> list[Comparison]:
    """Return every pair of rows (name -> scores) compared on the images that both have a number for."""
    found = []
    for first, second in combinations(rows, 2):
        a, b = rows[first], rows[second]
        shared = [i for i in a if i in b and math.isfinite(a[i][0]) and math.isfinite(b[i][0])]
        differences = [a[i][0] - b[i][0] for i in shared]
        groups = [a[i][1] for i in shared]
        mean = mean_by_group(differences, groups, seed=seed)
        p = permutation_p(differences, groups, seed=seed)
        lowest = 2.0 ** (1 - mean.groups) if mean.groups else math.nan
        found.append(Comparison(metric, first, second, mean, p, p, detectable(differences, groups), lowest))
    return _corrected(found)


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm([c.p for c in found])
    return [replace(c, adjusted=q) for c, q in zip(found, adjusted, strict=True)]


# --- pooled numbers ---------------------------------------------------------------------------------------------------

Records = Mapping[str, tuple[Any, str]]
"""Image -> (what it adds to a pooled number, group)."""


def compare_pooled(
    metric: str, pooled: Any, rows: Mapping[str, Records], *, resamples: int = POOLED_RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """Return every pair of rows compared by a number that no single image has (`zoo.metrics.pooled.Pooled`).

    The difference is that of the two numbers of the images that both have. Its interval draws whole groups, the same
    for both; `p` is that of a permutation test that exchanges the two weights' records of whole groups: all 2^G
    exchanges up to `POOLED_EXACT` groups, else `POOLED_FLIPS` drawn ones and the observed one; `detectable` takes its
    standard error from the resamples. A number that drawing with replacement biases (`drawn` is False) has its
    difference and p alone; records of different shape cannot be exchanged, and p is nan.
    """
    found = []
    for first, second in combinations(rows, 2):
        a, b = rows[first], rows[second]
        shared = [i for i in a if i in b]
        pair = [a[i][0] for i in shared], [b[i][0] for i in shared]
        names, index = np.unique(np.asarray([a[i][1] for i in shared], dtype=object).astype(str), return_inverse=True)
        mean, error = _apart(pooled, pair, index, len(names), resamples, seed)
        p = _exchanged(pooled, pair, index, seed) if math.isfinite(mean.value) else math.nan
        lowest = math.nan
        if mean.groups:
            exact = mean.groups <= POOLED_EXACT
            lowest = 2.0 ** (1 - mean.groups) if exact else 1 / (POOLED_FLIPS + 1)
        size = _shown(error, mean.groups) if math.isfinite(error) else math.nan
        found.append(Comparison(metric, first, second, mean, p, p, size, lowest))
    return _corrected(found)


def _apart(
    pooled: Any, pair: tuple[list[Any], list[Any]], index: NDArray[np.int64], groups: int, resamples: int, seed: int
) -> tuple[Mean, float]:
    """Return the difference of two pooled numbers with its interval, and its standard error (nan where unknown)."""
    images = len(index)
    if not images:
        return Mean(math.nan, None, None, 0, 0), math.nan
    mine, other = (pooled.resampler(records) for records in pair)
    value = float(mine(np.arange(images)) - other(np.arange(images)))
    if groups < 2 or not math.isfinite(value) or not pooled.drawn:
        return Mean(value, None, None, images, groups), math.nan
    members = [np.flatnonzero(index == g) for g in range(groups)]
    rng = np.random.default_rng(seed)
    drawn = (np.concatenate([members[g] for g in rng.integers(0, groups, groups)]) for _ in range(resamples))
    told = np.asarray([found for i in drawn if math.isfinite(found := mine(i) - other(i))])
    if len(told) < 2:
        return Mean(value, None, None, images, groups), math.nan
    low, high = np.quantile(told, [0.025, 0.975])
    error = float(told.std(ddof=1)) * math.sqrt(groups / (groups - 1))  # resamples of few groups spread too little
    return Mean(value, float(low), float(high), images, groups), error


def _exchanged(pooled: Any, pair: tuple[list[Any], list[Any]], index: NDArray[np.int64], seed: int) -> float:
    """Return the two-sided p of the test that exchanges the records of whole groups."""
    records = [*pair[0], *pair[1]]
    if pooled.additive and len({np.shape(record) for record in records}) > 1:
        return math.nan
    again, images, count = pooled.resampler(records), len(index), int(index.max()) + 1
    every = np.arange(images)

    def apart(flip: NDArray[np.bool_]) -> float:
        moved = images * flip[index]
        return abs(float(again(every + moved) - again(every + images - moved)))

    observed = apart(np.zeros(count, bool)) * (1 - 1e-9)
    if count <= POOLED_EXACT:
        flips = (np.arange(2**count)[:, None] >> np.arange(count)) & 1 > 0
        told = [found for flip in flips if math.isfinite(found := apart(flip))]
        return sum(found >= observed for found in told) / len(told)
    drawn = np.random.default_rng(seed).random((POOLED_FLIPS, count)) < 0.5
    told = [found for flip in drawn if math.isfinite(found := apart(flip))]
    return (1 + sum(found >= observed for found in told)) / (1 + len(told))


# --- ranks over groups ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Average ranks over blocks (1 = best): `names` and `ranks` from best to worst; `critical`: the difference of
    average ranks from which two are told apart (Nemenyi, 5 %); `p`: Friedman's test that all are alike; `alike`:
    groups of neighbours (first, last index) that are not told apart."""

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    critical: float
    p: float
    blocks: int
    alike: tuple[tuple[int, int], ...]

    @property
    def few(self) -> bool:
        """True where blocks are too few for the test's approximation (fewer than 10)."""
        return self.blocks < 10


def rank(
    blocks: Sequence[Mapping[str, float]], *, larger_is_better: bool = True, alpha: float = 0.05
) -> Ranking | None:
    """Return average ranks of weights over blocks (a block: weights -> number), None with fewer than two of either.

    Blocks are groups (patients, slides), not images; one that lacks a number for some weights is left out. Friedman's
    test and Nemenyi's critical difference q sqrt(k (k + 1) / 6 N) (Demšar, JMLR 2006, section 3.2).
    """
    from scipy.stats import chi2, rankdata, studentized_range

    names = list(dict.fromkeys(name for block in blocks for name in block))
    whole = [b for b in blocks if all(math.isfinite(b.get(n, math.nan)) for n in names)]
    k, n = len(names), len(whole)
    if k < 2 or n < 2:
        return None
    sign = -1 if larger_is_better else 1
    ranks = np.asarray([rankdata([sign * b[name] for name in names]) for b in whole])
    average = ranks.mean(0)
    spread = float(((ranks - (k + 1) / 2) ** 2).sum()) / (n * (k - 1))  # ties make it less than k (k + 1) / 12
    statistic = n * float(((average - (k + 1) / 2) ** 2).sum()) / spread if spread else 0.0
    critical = float(studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    order = np.argsort(average, kind="stable")
    sorted_ranks = average[order]
    return Ranking(
        tuple(names[i] for i in order),
        tuple(float(r) for r in sorted_ranks),
        critical,
        float(chi2.sf(statistic, k - 1)),
        n,
        _alike(sorted_ranks, critical),
    )


def _alike(ranks: NDArray[np.float64], critical: float) -> tuple[tuple[int, int], ...]:
    """Return the longest runs of neighbours within the critical difference, those inside another left out."""
    runs: list[tuple[int, int]] = []
    for i in range(len(ranks)):
        last = int(np.flatnonzero(ranks - ranks[i] < critical).max())
        if last > i and not any(b >= last for _, b in runs):
            runs.append((i, last))
    return tuple(runs)


# --- seeds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """Several trainings of one recipe on one table: `value` and its interval (both seeds and groups are drawn);
    `between_seeds`, `between_groups`, `residual`: standard deviations of a seed's, of a group's and of the remaining
    effect; `values`: the mean of each seed."""

    recipe: str
    metric: str
    seeds: tuple[str, ...]
    values: tuple[float, ...]
    value: float
    low: float | None
    high: float | None
    between_seeds: float
    between_groups: float
    residual: float
    groups: int


def pool_seeds(
    recipe: str, metric: str, rows: Mapping[str, Scores], *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Seeds | None:
    """Return the pooled result of rows (seed -> scores) of one recipe, None with fewer than two seeds.

    Value: the mean over images, averaged over seeds. Its interval draws seeds and groups with replacement, crossed
    (Owen, 2007), because both are samples. The deviations are those of a two-way random-effects analysis of variance on
    the group means (seed x group), negative estimates being 0.
    """
    names = tuple(rows)
    shared = [i for i in rows[names[0]] if all(math.isfinite(rows[n].get(i, (math.nan, ""))[0]) for n in names)]
    if len(names) < 2 or not shared:
        return None
    groups = [rows[names[0]][i][1] for i in shared]
    table = np.asarray([[rows[n][i][0] for i in shared] for n in names])
    kinds, index = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(index)
    sums = np.stack([np.bincount(index, row) for row in table])
    low = high = None
    s, g = len(names), len(kinds)
    if g > 1:
        rng = np.random.default_rng(seed)
        drawn = []
        for _ in range(resamples):
            chosen = rng.integers(0, g, g)
            drawn.append(sums[rng.integers(0, s, s)][:, chosen].sum() / (s * counts[chosen].sum()))
        low, high = (float(v) for v in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    of_seed, of_group, rest = _components(sums / counts)
    values = tuple(float(v) for v in table.mean(1))
    return Seeds(recipe, metric, names, values, float(table.mean()), low, high, of_seed, of_group, rest, g)


def _components(cells: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the deviations of rows, of columns and of what is left of a table without repeats."""
    s, g = cells.shape
    mean = cells.mean()
    rows, columns = cells.mean(1) - mean, cells.mean(0) - mean
    if g < 2:
        return float(np.std(cells.mean(1), ddof=1)), math.nan, math.nan
    rest = cells - mean - rows[:, None] - columns[None]
    error = float((rest**2).sum()) / ((s - 1) * (g - 1))
    of_rows = (g * float(rows @ rows) / (s - 1) - error) / g
    of_columns = (s * float(columns @ columns) / (g - 1) - error) / s
    return math.sqrt(max(0.0, of_rows)), math.sqrt(max(0.0, of_columns)), math.sqrt(error)
