"""Objects with classes against slow twins, by hand; pooled numbers against counting everything at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo.metrics import function, instances, pooled, semantic, types

pairs_of_maps = hnp.arrays(np.int32, (2, 6, 7), elements=st.sampled_from([0, 0, 1, 2, 3, 5]))


def evidence(pair: Any, seed: int, classes: int = 3) -> types.Typed:
    rng = np.random.default_rng(seed)
    table = instances.overlap(*pair)
    true, predicted = (rng.integers(0, classes, len(ids)) for ids in (table.truth_ids, table.prediction_ids))
    return types.typed(table, true, predicted, classes)


def slow_pq(prediction: Any, truth: Any) -> float:
    found = instances.matching(instances.overlap(prediction, truth), strict=True)
    under = found.hits + (found.wrong + found.missed) / 2
    return found.iou_sum / under if under else math.nan


@given(pairs_of_maps, st.integers(0, 99))
def test_mpq_is_pq_of_the_map_of_each_class(pair: Any, seed: int) -> None:
    prediction, truth = pair
    found = evidence(pair, seed)
    values = []
    for k in range(3):
        ours = np.where(np.isin(prediction, found.table.prediction_ids[found.prediction == k]), prediction, 0)
        theirs = np.where(np.isin(truth, found.table.truth_ids[found.truth == k]), truth, 0)
        values.append(slow_pq(ours, theirs))
    told = [v for v in values if not math.isnan(v)]
    assert types.mpq(found) == pytest.approx(np.mean(told) if told else math.nan, nan_ok=True)


def cells(kinds: list[int], predicted: list[int]) -> types.Typed:
    label = np.kron(np.arange(1, len(kinds) + 1), np.ones((2, 3), int))
    return types.typed(instances.overlap(label, label), kinds, predicted, 3)


def test_class_f1_by_hand() -> None:
    found = cells([0, 0, 1, 1], [0, 1, 1, 1])
    assert types.type_f1(found) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert types.typed_object_f1(found) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert types.type_f1(cells([0, 0], [1, 1])) == 0


def test_an_object_of_unknown_class_counts_for_nothing() -> None:
    found = cells([0, -1, 1], [0, 2, 1])
    assert types.type_f1(found) == 1
    assert types.mpq(found) == 1  # class 2 was predicted only where nothing is known
    assert types.typed_object_f1(cells([0, 1, 1], [0, 2, 1])) < 1


def test_classes_must_be_as_many_as_objects() -> None:
    with pytest.raises(ValueError, match="2 and 1 classes for 1 true"):
        types.typed(instances.overlap(np.ones((2, 2), int), np.ones((2, 2), int)), [0, 1], [0], 2)


def test_nothing_at_all() -> None:
    empty = types.typed(instances.overlap(np.zeros((2, 2), int), np.zeros((2, 2), int)), [], [], 2)
    assert all(math.isnan(f(empty)) for f in (types.mpq, types.type_f1, types.typed_object_f1))


# --- pooled -----------------------------------------------------------------------------------------------------------


@given(st.lists(pairs_of_maps, min_size=1, max_size=4))
def test_pooled_numbers_are_those_of_all_images_side_by_side(pairs: list[Any]) -> None:
    shifted = [np.where(p > 0, p + 10 * n, 0) for n, p in enumerate(pairs)]
    whole = np.concatenate(shifted, axis=1)
    together = instances.overlap(*whole)
    tables = [instances.overlap(*p) for p in pairs]
    assert function("object_f1_pooled")(tables) == pytest.approx(instances.object_f1(together), nan_ok=True)
    assert function("object_f1_pooled@0.7")(tables) == pytest.approx(instances.object_f1(together, 0.7), nan_ok=True)
    assert function("pq_pooled")(tables) == pytest.approx(instances.pq(together), nan_ok=True)
    found = [evidence(p, n) for n, p in enumerate(pairs)]
    all_types = types.typed(
        together, np.concatenate([f.truth for f in found]), np.concatenate([f.prediction for f in found]), 3
    )
    assert function("mpq_pooled")(found) == pytest.approx(types.mpq(all_types), nan_ok=True)
    matrices = [semantic.confusion(p[0] % 3, p[1] % 3, 3) for p in pairs]
    assert function("dice_pooled")([(m, 0) for m in matrices]) == pytest.approx(
        semantic.dice(np.sum(matrices, axis=0)), nan_ok=True
    )


def test_a_resample_counts_images_as_often_as_they_were_drawn() -> None:
    rng = np.random.default_rng(0)
    tables = [instances.overlap(*rng.integers(0, 4, (2, 5, 5))) for _ in range(5)]
    records = [pooled.pq_pooled.record(t) for t in tables]
    chosen = np.array([1, 1, 4])
    expected = pooled.pq_pooled([tables[i] for i in chosen])
    assert pooled.pq_pooled.resampler(records)(chosen) == pytest.approx(expected)
