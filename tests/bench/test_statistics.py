"""The group bootstrap: against a slow twin, against what it must depend on, and its coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.bench.statistics import mean_by_group


def slow_means(values: list[float], groups: list[str], resamples: int, seed: int) -> list[float]:
    """Draw whole groups, one resample after another."""
    names = sorted(set(groups))
    drawn = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)))
    means = []
    for resample in drawn:
        kept = [v for index in resample for v, g in zip(values, groups, strict=True) if g == names[index]]
        means.append(sum(kept) / len(kept))
    return means


def test_equals_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random(30).tolist(), [f"p{i}" for i in rng.integers(0, 6, 30)]
    found = mean_by_group(values, groups, resamples=200, seed=3)
    low, high = np.quantile(slow_means(values, groups, 200, 3), [0.025, 0.975])
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.images, found.groups, found.few) == (30, 6, False)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=12), st.permutations(range(6)))
def test_the_order_of_images_and_the_names_of_groups_do_not_matter(values: list[float], order: list[int]) -> None:
    groups = [f"g{i % 3}" for i in range(len(values))]
    plain = mean_by_group(values, groups, resamples=100)
    shuffled = [*order, *range(6, len(values))]
    other = mean_by_group([values[i] for i in shuffled], [groups[i] + "x" for i in shuffled], resamples=100)
    assert (plain.value, plain.low, plain.high) == pytest.approx((other.value, other.low, other.high))


def test_images_of_one_group_do_not_narrow_the_interval() -> None:
    values, groups = [0.2, 0.4, 0.6, 0.8, 0.9, 0.3], list("abcdef")
    once = mean_by_group(values, groups)
    copied = mean_by_group(values * 20, groups * 20)
    assert (once.low, once.high) == (pytest.approx(copied.low), pytest.approx(copied.high))
    alone = mean_by_group(values * 20, [str(i) for i in range(120)])
    assert alone.high - alone.low < 0.5 * (once.high - once.low)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [
        ([math.nan, 0.5, 0.7], ["a", "b", "b"], (0.6, None, 1, 1)),
        ([math.nan], ["a"], (math.nan, None, 0, 1)),
        ([], [], (math.nan, None, 0, 0)),
        ([math.inf, 1.0], ["a", "b"], (math.inf, None, 2, 0)),
    ],
)
def test_what_has_no_interval_says_so(values: Any, groups: Any, expected: Any) -> None:
    found = mean_by_group(values, groups)
    assert (found.value, found.low, found.groups, found.undefined) == pytest.approx(expected, nan_ok=True)
    assert found.few
    with pytest.raises(ValueError, match="groups"):
        mean_by_group([1.0, 2.0], ["a"])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        patients = rng.normal(0.8, 0.1, 30)
        values = (patients[:, None] + rng.normal(0, 0.03, (30, 4))).ravel()
        found = mean_by_group(values, [str(i) for i in range(30) for _ in range(4)], resamples=300, seed=trial)
        hits += found.low <= 0.8 <= found.high  # type: ignore[operator]
    assert 0.89 <= hits / 200 <= 0.98  # images taken as independent would cover some 70 %
