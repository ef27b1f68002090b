"""Instance metrics against slow twins, stardist, ties by hand, and their invariants."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo.metrics import instances

pairs_of_maps = hnp.arrays(np.int32, (2, 5, 7), elements=st.sampled_from([0, 0, 1, 2, 5]))


def slow_objects(label: Any, ignore: Any) -> dict[int, Any]:
    return {i: (label == i) & ~ignore for i in np.unique(label).tolist() if i and ((label == i) & ~ignore).any()}


def slow_iou(prediction: Any, truth: Any, ignore: Any = None) -> Any:
    left_out = np.zeros(truth.shape, bool) if ignore is None else ignore
    true, predicted = slow_objects(truth, left_out), slow_objects(prediction, left_out)
    return np.array([[(t & p).sum() / (t | p).sum() for p in predicted.values()] for t in true.values()]).reshape(
        len(true), len(predicted)
    )


def slow_hits(iou: Any, good: Any) -> int:
    """Try every one-to-one matching."""
    rows, columns = iou.shape
    if rows > columns:
        return slow_hits(iou.T, good.T)
    return max(sum(good[r, c] for r, c in enumerate(order)) for order in itertools.permutations(range(columns), rows))


def slow_best_sum(iou: Any) -> Any:
    rows, columns = iou.shape
    if rows > columns:
        return [(r, c) for c, r in slow_best_sum(iou.T)]
    orders = itertools.permutations(range(columns), rows)
    best = max(orders, key=lambda order: sum(iou[r, c] for r, c in enumerate(order)))
    return [(r, c) for r, c in enumerate(best) if iou[r, c] > 0]


def slow_jaccard(true: list[Any], predicted: list[Any], pairs: Any) -> float:
    shared = sum(int((true[t] & predicted[p]).sum()) for t, p in pairs)
    joint = sum(int((true[t] | predicted[p]).sum()) for t, p in pairs)
    joint += sum(int(t.sum()) for i, t in enumerate(true) if i not in {t for t, _ in pairs})
    joint += sum(int(p.sum()) for i, p in enumerate(predicted) if i not in {p for _, p in pairs})
    return shared / joint if joint else math.nan


def slow_object_dice(true: list[Any], predicted: list[Any]) -> float:
    def side(own: list[Any], other: list[Any]) -> float:
        total = 0.0
        for one in own:
            shared = [int((one & o).sum()) for o in other]
            if shared and max(shared):
                partner = other[shared.index(max(shared))]
                total += one.sum() * 2 * max(shared) / (one.sum() + partner.sum())
        return total / max(1, sum(int(o.sum()) for o in own))

    return (side(true, predicted) + side(predicted, true)) / 2 if true or predicted else math.nan


@given(pairs_of_maps, st.none() | hnp.arrays(bool, (5, 7)))
def test_the_table_equals_its_slow_twin(pair: Any, ignore: Any) -> None:
    prediction, truth = pair
    table = instances.overlap(prediction, truth, ignore)
    iou = np.zeros((len(table.truth_ids), len(table.prediction_ids)))
    iou[table.rows, table.columns] = table.iou
    np.testing.assert_allclose(iou, slow_iou(prediction, truth, ignore), atol=1e-12)
    left_out = np.zeros(truth.shape, bool) if ignore is None else ignore
    assert table.truth_ids.tolist() == list(slow_objects(truth, left_out))
    assert table.truth_area.tolist() == [int(m.sum()) for m in slow_objects(truth, left_out).values()]
    assert table.prediction_area.tolist() == [int(m.sum()) for m in slow_objects(prediction, left_out).values()]


@given(pairs_of_maps, st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans())
def test_the_matching_is_the_best_of_all(pair: Any, threshold: float, strict: bool) -> None:
    table = instances.overlap(*pair)
    iou = slow_iou(*pair)
    found = instances.matching(table, threshold, strict=strict)
    assert found.hits == slow_hits(iou, iou > threshold if strict else iou >= threshold)
    chosen = instances.match(table, threshold, strict=strict)
    assert len(set(table.rows[chosen])) == len(set(table.columns[chosen])) == len(chosen)
    assert (found.wrong, found.missed) == (iou.shape[1] - found.hits, iou.shape[0] - found.hits)


@given(pairs_of_maps)
def test_area_metrics_equal_their_slow_twins(pair: Any) -> None:
    prediction, truth = pair
    none = np.zeros(truth.shape, bool)
    true, predicted = list(slow_objects(truth, none).values()), list(slow_objects(prediction, none).values())
    iou = slow_iou(prediction, truth)
    table = instances.overlap(prediction, truth)
    assert instances.object_dice(table) == pytest.approx(slow_object_dice(true, predicted), nan_ok=True)
    taken = [(t, int(iou[t].argmax())) for t in range(len(true)) if len(predicted) and iou[t].max() > 0]
    assert instances.aji(table) == pytest.approx(slow_jaccard(true, predicted, taken), nan_ok=True)
    assume(len({round(float(v), 9) for v in iou[iou > 0]}) == int((iou > 0).sum()))  # one best matching, not several
    assert instances.aji_plus(table) == pytest.approx(slow_jaccard(true, predicted, slow_best_sum(iou)), nan_ok=True)


def blobs(seed: int, objects: int, size: int = 96) -> Any:
    """Two label maps of touching cells, the second grown from seeds that moved a little."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size, (objects, 2))
    rows, columns = np.mgrid[:size, :size]
    maps = []
    for shift in (0, 2.5):
        moved = points + rng.normal(0, shift, points.shape) if shift else points
        distance = np.hypot(rows[..., None] - moved[:, 0], columns[..., None] - moved[:, 1])
        maps.append(np.where(distance.min(-1) < 6, distance.argmin(-1) + 1, 0).astype(np.int32))
    return maps


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_agrees_with_stardist(seed: int, threshold: float) -> None:
    from stardist.matching import matching

    truth, prediction = blobs(seed, 60)
    theirs = matching(truth, prediction, thresh=threshold)
    ours = instances.matching(instances.overlap(prediction, truth), threshold)
    assert (ours.hits, ours.wrong, ours.missed) == (theirs.tp, theirs.fp, theirs.fn)
    assert ours.f1 == pytest.approx(theirs.f1, abs=1e-6)
    assert ours.precision == pytest.approx(theirs.precision, abs=1e-6)
    assert ours.recall == pytest.approx(theirs.recall, abs=1e-6)
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1e-6)
    if ours.hits:  # without one, the mean is nan here and 0 there
        assert ours.quality == pytest.approx(theirs.mean_matched_score, abs=1e-6)
    quality = ours.iou_sum / (ours.hits + (ours.wrong + ours.missed) / 2)
    assert quality == pytest.approx(theirs.panoptic_quality, abs=1e-6)


def test_a_tie_at_one_half_counts_for_objects_and_not_for_panoptic_quality() -> None:
    truth = np.array([[1, 1, 1, 1]])
    prediction = np.array([[7, 7, 9, 9]])  # both share half of object 1
    table = instances.overlap(prediction, truth)
    assert table.iou.tolist() == [0.5, 0.5]
    found = instances.matching(table)
    assert (found.hits, found.wrong, found.missed) == (1, 1, 0)
    assert instances.object_f1(table) == pytest.approx(2 / 3)
    assert instances.dq(table) == 0
    assert instances.pq(table) == 0
    assert math.isnan(instances.sq(table))


def test_empty_maps() -> None:
    empty, full = np.zeros((3, 4), int), np.ones((3, 4), int)
    nothing = instances.from_overlap(instances.overlap(empty, empty))
    assert all(math.isnan(v) for v in nothing.values())
    for pair in ((empty, full), (full, empty)):
        found = instances.from_overlap(instances.overlap(*pair))
        assert math.isnan(found.pop("sq"))
        assert set(found.values()) == {0.0}
    whole = instances.from_overlap(instances.overlap(full, full * 5))
    assert set(whole.values()) == {1.0}
    assert instances.overlap(np.zeros((0, 3), int), np.zeros((0, 3), int)).empty


@given(pairs_of_maps, st.permutations([1, 2, 3, 4, 5]))
def test_renumbering_and_flips_change_nothing(pair: Any, order: list[int]) -> None:
    assume(len({round(float(v), 9) for v in slow_iou(*pair).ravel() if v}) == int((slow_iou(*pair) > 0).sum()))
    prediction, truth = pair
    plain = instances.from_overlap(instances.overlap(prediction, truth))
    names = np.array([0, *order])
    renamed = instances.from_overlap(instances.overlap(names[prediction] * 3, truth))
    flipped = instances.from_overlap(instances.overlap(prediction[:, ::-1].T, truth[:, ::-1].T))
    for name, value in plain.items():
        if name != "object_dice":  # equal overlaps break ties by id
            assert renamed[name] == pytest.approx(value, nan_ok=True)
        assert flipped[name] == pytest.approx(value, nan_ok=True)


@given(pairs_of_maps)
def test_swapped_roles_swap_precision_and_recall(pair: Any) -> None:
    prediction, truth = pair
    there = instances.from_overlap(instances.overlap(prediction, truth))
    back = instances.from_overlap(instances.overlap(truth, prediction))
    for one, other in (
        ("object_f1", "object_f1"),
        ("object_precision", "object_recall"),
        ("pq", "pq"),
        ("object_dice", "object_dice"),
    ):
        assert there[one] == pytest.approx(back[other], nan_ok=True)


@settings(max_examples=10)
@given(hnp.arrays(np.int32, (2, 40), elements=st.integers(0, 3)), hnp.arrays(bool, 40), st.integers(1, 41))
def test_bands_give_the_table_of_the_whole(pair: Any, ignore: Any, band: int) -> None:
    whole = instances.overlap(*pair, ignore)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instances, "_BAND", band)
        banded = instances.overlap(*pair, ignore)
    for name in ("truth_ids", "prediction_ids", "truth_area", "prediction_area", "rows", "columns", "area"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(banded, name))


def test_volumes_and_bad_input() -> None:
    volume = np.zeros((3, 4, 4), np.int32)
    volume[1:, 1:3, 1:3] = 4
    assert instances.object_f1(instances.overlap(volume, volume)) == 1
    with pytest.raises(ValueError, match="negative ids"):
        instances.overlap(-volume, volume)
    with pytest.raises(ValueError, match="differ in shape"):
        instances.overlap(volume[0], volume)
    with pytest.raises(ValueError, match="outside"):
        instances.match(instances.overlap(volume, volume), 0)


def test_counts_of_images_add_up() -> None:
    one = instances.Matching(2, 1, 0, 1.5)
    other = instances.Matching(0, 0, 3, 0.0)
    assert one + other == instances.Matching(2, 1, 3, 1.5)
    assert (one + other).recall == pytest.approx(2 / 5)
