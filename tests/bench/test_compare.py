"""Paired tests, corrections, ranks and seeds against slow twins and by hand."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.bench import analysis, compare
from zoo.bench.results import Case, Row
from zoo.bench.statistics import pooled_by_group
from zoo.metrics import instances, pooled


def slow_p(differences: list[float], groups: list[str]) -> float:
    names = sorted(set(groups))
    observed = abs(sum(differences)) * (1 - 1e-12)
    reached = 0
    for signs in itertools.product([1, -1], repeat=len(names)):
        of = dict(zip(names, signs, strict=True))
        reached += abs(sum(of[g] * d for d, g in zip(differences, groups, strict=True))) >= observed
    return reached / 2 ** len(names)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abcdef")), min_size=1, max_size=9))
def test_every_flip_is_counted(pairs: list[Any]) -> None:
    differences, groups = [d for d, _ in pairs], [g for _, g in pairs]
    assert compare.permutation_p(differences, groups) == pytest.approx(slow_p(differences, groups))


def test_many_groups_are_sampled_and_agree_with_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    differences, groups = list(rng.normal(0.4, 1, 13)), [str(i) for i in range(13)]
    exact = compare.permutation_p(differences, groups)
    monkeypatch.setattr(compare, "EXACT", 5)
    assert compare.permutation_p(differences, groups) == pytest.approx(exact, abs=0.02)
    assert compare.permutation_p([1.0] * 40, [str(i) for i in range(40)]) == pytest.approx(1 / 20_001)
    assert math.isnan(compare.permutation_p([], []))


def test_the_test_keeps_its_level_whatever_the_images_a_group() -> None:
    rng = np.random.default_rng(1)
    groups = [str(i // 5) for i in range(50)]
    rejected = 0
    for _ in range(200):
        effect = rng.normal(0, 1, 10).repeat(5)  # images of a group are alike: 50 of them are worth 10
        rejected += compare.permutation_p(list(effect + rng.normal(0, 0.1, 50)), groups) < 0.05
    assert rejected / 200 < 0.09


def test_holm_by_hand() -> None:
    assert compare.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert compare.holm([0.6, 0.5]) == [1.0, 1.0]
    assert compare.holm([]) == []


def test_the_detectable_difference_is_detected_four_times_in_five() -> None:
    from scipy.stats import t

    rng = np.random.default_rng(2)
    groups = [str(i) for i in range(12)]
    size = float(np.mean([compare.detectable(list(rng.normal(0, 1, 12)), groups) for _ in range(200)]))
    found = 0
    for _ in range(400):
        x = rng.normal(size, 1, 12)
        found += abs(x.mean()) / (x.std(ddof=1) / math.sqrt(12)) > t.ppf(0.975, 11)
    assert found / 400 == pytest.approx(0.8, abs=0.06)
    assert math.isnan(compare.detectable([1.0], ["a"]))


def test_pairs_are_compared_on_what_both_have() -> None:
    a = {str(i): (0.9, f"g{i}") for i in range(6)} | {"x": (0.1, "g9")}
    b = {str(i): (0.7, f"g{i}") for i in range(6)} | {"y": (0.9, "g9"), "5": (math.nan, "g5")}
    (found,) = compare.compare("dice", {"a": a, "b": b})
    assert found.difference.images == 5
    assert found.difference.value == pytest.approx(0.2)
    assert found.p == found.adjusted == pytest.approx(2 / 2**5)
    assert found.lowest == pytest.approx(0.0625)
    assert found.few  # five groups cannot be significant


def averaged() -> pooled.Pooled:
    """A pooled number that is a mean over images, so that the plain comparison is its twin."""

    def value(records: Any) -> float:
        total, count = np.sum(np.asarray(records, np.float64), axis=0)
        return float(total / count)

    return pooled.Pooled(lambda one: (one, 1.0), value)


@pytest.mark.parametrize("groups", [6, 12])
def test_a_pooled_mean_is_compared_as_the_mean(groups: int) -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(0.5, 0.1, (2, 3 * groups)) + np.array([[0.06], [0.0]])
    rows = {n: {str(i): (v, f"g{i // 3}") for i, v in enumerate(row)} for n, row in zip("ab", values, strict=True)}
    (plain,) = compare.compare("dice", rows)
    records = {n: {i: ((v, 1.0), g) for i, (v, g) in row.items()} for n, row in rows.items()}
    (found,) = compare.compare_pooled("dice", averaged(), records)
    assert found.difference.value == pytest.approx(plain.difference.value)
    assert (found.difference.images, found.difference.groups) == (3 * groups, groups)
    assert found.p == pytest.approx(plain.p, abs=1e-12 if groups == 6 else 0.03)
    for one, other in ((found.difference.low, plain.difference.low), (found.difference.high, plain.difference.high)):
        assert one == pytest.approx(other, abs=0.015)
    assert found.detectable == pytest.approx(plain.detectable, rel=0.15)
    assert compare.compare_pooled("dice", averaged(), records) == [found]


def test_a_table_of_pooled_numbers_alone_is_compared_by_group() -> None:
    rng = np.random.default_rng(7)

    def row(name: str, wrong: float) -> Row:
        cases = []
        for i in range(12):
            truth = rng.integers(0, 5, (8, 8))
            said = np.where(rng.random((8, 8)) < wrong, 0, truth)
            record = pooled.pq_pooled.record(instances.overlap(truth, said))
            cases.append(Case(f"i{i}", f"g{i // 2}", {}, records={"pq_pooled": record}))
        means = analysis.means_of(["pq_pooled"], cases, 0)
        return Row(name, "d", "test", "cells", "t", "instances", ("pq_pooled",), tuple(cases), means)

    rows = [row("good", 0.02), row("bad", 0.4)]
    (found,) = analysis.comparisons(rows, "pq_pooled", 0)
    assert found.difference.value == pytest.approx(rows[0].means["pq_pooled"].value - rows[1].means["pq_pooled"].value)
    assert (found.difference.images, found.difference.groups) == (12, 6)
    assert found.difference.low is not None
    assert 0 < found.difference.low < found.difference.value
    assert found.p == pytest.approx(2 / 2**6)
    (same,) = analysis.comparisons([rows[0], replace(rows[0], weights="twin")], "pq_pooled", 0)
    assert (same.difference.value, same.p) == (0.0, 1.0)


def test_records_that_cannot_be_exchanged_have_no_p() -> None:
    biased = replace(averaged(), drawn=False)
    rows = {n: {str(i): ((v, 1.0), f"g{i}") for i in range(6)} for n, v in (("a", 0.9), ("b", 0.7))}
    (found,) = compare.compare_pooled("dice", biased, rows)
    assert (found.difference.low, found.p) == (None, pytest.approx(2 / 2**6))
    assert math.isnan(found.detectable)
    other = {n: {i: (np.zeros((3, k)) + 1, g) for i, (_, g) in rows[n].items()} for n, k in (("a", 1), ("b", 2))}
    (found,) = compare.compare_pooled("dice_pooled", pooled.dice_pooled, other)
    assert math.isnan(found.p)
    (found,) = compare.compare_pooled("dice", averaged(), {"a": rows["a"], "b": {"z": ((0.7, 1.0), "g0")}})
    assert (found.difference.images, found.difference.groups) == (0, 0)


def test_ranks_by_hand() -> None:
    blocks = [{"a": 0.9, "b": 0.8, "c": 0.1}] * 10 + [{"a": 0.7, "b": 0.8, "c": 0.1}] * 2 + [{"a": 0.5, "b": math.nan}]
    found = compare.rank(blocks)
    assert found is not None
    assert found.names == ("a", "b", "c")
    assert found.ranks == pytest.approx((14 / 12, 22 / 12, 3.0))
    assert found.blocks == 12
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 12)), abs=1e-3)  # Demšar's table 5
    assert found.alike == ((0, 1),)
    assert not found.few
    lower = compare.rank(blocks, larger_is_better=False)
    assert lower is not None
    assert lower.names[0] == "c"
    assert compare.rank([{"a": 1.0}]) is None


def test_friedman_agrees_with_scipy() -> None:
    from scipy.stats import friedmanchisquare

    rng = np.random.default_rng(3)
    table = rng.integers(0, 4, (9, 4)).astype(float)  # with ties
    found = compare.rank([dict(zip("abcd", row, strict=True)) for row in table])
    assert found is not None
    assert found.p == pytest.approx(friedmanchisquare(*table.T).pvalue)


def test_seeds_are_taken_apart_from_groups() -> None:
    rng = np.random.default_rng(4)
    seed_effect, group_effect = rng.normal(0, 0.05, 8), rng.normal(0, 0.2, 60)
    rows = {
        str(s): {f"i{g}": (0.5 + seed_effect[s] + group_effect[g] + rng.normal(0, 0.02), f"g{g}") for g in range(60)}
        for s in range(8)
    }
    found = compare.pool_seeds("recipe", "dice", rows)
    assert found is not None
    assert found.between_seeds == pytest.approx(float(seed_effect.std(ddof=1)), rel=0.2)
    assert found.between_groups == pytest.approx(float(group_effect.std(ddof=1)), rel=0.1)
    assert found.residual == pytest.approx(0.02, rel=0.1)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.mean(found.values))
    one = compare.pool_seeds("recipe", "dice", {"0": rows["0"]})
    assert one is None


def test_a_pooled_number_is_drawn_by_group() -> None:
    rng = np.random.default_rng(5)
    tables = [instances.overlap(*rng.integers(0, 5, (2, 8, 8))) for _ in range(12)]
    records = [pooled.pq_pooled.record(t) for t in tables]
    found = pooled_by_group(pooled.pq_pooled, records, [str(i // 2) for i in range(12)], resamples=200)
    assert found.value == pytest.approx(pooled.pq_pooled(tables))
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert (found.images, found.groups) == (12, 6)
    again = pooled_by_group(pooled.pq_pooled, records, [str(i // 2) for i in range(12)], resamples=200)
    assert found == again
    assert pooled_by_group(pooled.pq_pooled, records, ["one"] * 12).low is None


def test_seeds_of_a_recipe_are_one_whatever_was_measured_afterwards() -> None:
    def told(more: dict[str, Any] | None = None, **changes: str) -> dict[str, str]:
        options = {"classes": ["WBC"], "threshold": 0.3, **(more or {})}
        metadata = {"recipe": "finder", "seed": "0", "family": "detr", "trained_on": "[]"}
        return {**metadata, "options": json.dumps(options), **changes}

    first = analysis.recipe_key(told())
    assert first is not None
    measured = analysis.recipe_key(told(seed="1", more={"threshold": {"WBC": 0.6}}))
    assert measured == (first[0], "1")
    assert analysis.recipe_key(told(more={"classes": ["RBC"]})) != first
    assert analysis.recipe_key(told(trained_on='["bccd"]')) != first
    assert analysis.recipe_key(told(recipe="")) is None
    assert analysis.recipe_key(told(family="gone")) is not None
