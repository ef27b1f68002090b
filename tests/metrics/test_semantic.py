"""Semantic metrics against a slow twin, by hand, and by their invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo.metrics import semantic

K = 4
maps = hnp.arrays(np.uint8, (2, 5, 6), elements=st.integers(0, K - 1))


def slow_confusion(prediction: Any, truth: Any, classes: int, ignore: int | None) -> Any:
    table = np.zeros((classes, classes), np.int64)
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != ignore:
            table[t, p] += 1
    return table


def slow_dice(prediction: Any, truth: Any, label: int) -> float:
    p, t = prediction == label, truth == label
    return 2 * float((p & t).sum()) / float(p.sum() + t.sum()) if p.any() or t.any() else math.nan


@given(maps, st.sampled_from([None, 0, 2]), st.sampled_from([np.uint8, np.int64, np.int32]))
def test_confusion_equals_its_slow_twin(pair: Any, ignore: int | None, dtype: Any) -> None:
    prediction, truth = pair.astype(dtype)
    table = semantic.confusion(prediction, truth, K, ignore)
    assert table.dtype == np.int64
    np.testing.assert_array_equal(table, slow_confusion(prediction, truth, K, ignore))


@pytest.mark.parametrize("classes", [2, 16, 17, 300])
def test_confusion_counts_every_pixel_whatever_the_number_of_classes(classes: int) -> None:
    rng = np.random.default_rng(classes)
    prediction, truth = rng.integers(0, classes, (2, 40, 50))
    truth[:3] = 255 if classes < 255 else -1
    table = semantic.confusion(prediction, truth, classes, ignore=int(truth[0, 0]))
    np.testing.assert_array_equal(table, slow_confusion(prediction, truth, classes, int(truth[0, 0])))
    assert table.sum() == 37 * 50


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.full((2, 2), 3), np.zeros((2, 2), int), "prediction holds the value 3"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "truth holds the value -1"),
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "differ in shape"),
    ],
)
def test_confusion_refuses_what_it_cannot_count(prediction: Any, truth: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        semantic.confusion(prediction, truth, 3)


def test_an_empty_pair_has_an_empty_table() -> None:
    assert semantic.confusion(np.zeros((0, 3), int), np.zeros((0, 3), int), 2).tolist() == [[0, 0], [0, 0]]


@given(maps)
def test_dice_and_iou_equal_their_slow_twins(pair: Any) -> None:
    prediction, truth = pair
    table = semantic.confusion(prediction, truth, K)
    expected = [slow_dice(prediction, truth, k) for k in range(K)]
    np.testing.assert_allclose(semantic.dice_per_class(table), expected, atol=1e-12)
    np.testing.assert_allclose(semantic.iou_per_class(table), [d / (2 - d) for d in expected], atol=1e-12)
    foreground = [d for d in expected[1:] if not math.isnan(d)]
    mean = sum(foreground) / len(foreground) if foreground else math.nan
    assert semantic.dice(table) == pytest.approx(mean, nan_ok=True)


@given(maps)
def test_pixel_f1_pools_the_foreground(pair: Any) -> None:
    prediction, truth = pair
    hits = int(((prediction == truth) & (truth > 0)).sum())
    wrong = int(((prediction > 0) & (prediction != truth)).sum())
    missed = int(((truth > 0) & (prediction != truth)).sum())
    found = semantic.from_confusion(semantic.confusion(prediction, truth, K))
    under = 2 * hits + wrong + missed
    assert found["pixel_f1"] == pytest.approx(2 * hits / under if under else math.nan, nan_ok=True)
    assert found["pixel_precision"] == pytest.approx(hits / (hits + wrong) if hits + wrong else math.nan, nan_ok=True)
    assert found["pixel_recall"] == pytest.approx(hits / (hits + missed) if hits + missed else math.nan, nan_ok=True)
    assert found["pixel_accuracy"] == pytest.approx(float((prediction == truth).mean()))


def test_conventions_of_absent_classes() -> None:
    background = np.zeros((3, 3), int)
    empty = semantic.from_confusion(semantic.confusion(background, background, 3))
    assert math.isnan(empty["dice"])
    assert math.isnan(empty["pixel_f1"])
    assert empty["pixel_accuracy"] == 1
    truth = background.copy()
    truth[0] = 1
    missed = semantic.from_confusion(semantic.confusion(background, truth, 3))
    assert (missed["dice"], missed["iou"], missed["pixel_recall"]) == (0, 0, 0)
    assert math.isnan(missed["pixel_precision"])
    # class 2 is in neither map and drops out of the mean: 1, not 1/2
    assert semantic.dice(semantic.confusion(truth, truth, 3)) == 1
    assert semantic.dice(semantic.confusion(truth, background, 2), background=None) == pytest.approx((12 / 15 + 0) / 2)


@given(maps, st.permutations(range(K)))
def test_renaming_the_classes_only_reorders_the_numbers(pair: Any, order: list[int]) -> None:
    prediction, truth = np.asarray(order)[pair]
    renamed = semantic.dice_per_class(semantic.confusion(prediction, truth, K))
    plain = semantic.dice_per_class(semantic.confusion(*pair, K))
    np.testing.assert_allclose(renamed[order], plain)


@given(maps)
def test_flips_change_nothing_and_swapped_roles_swap_precision_and_recall(pair: Any) -> None:
    prediction, truth = pair
    table = semantic.confusion(prediction, truth, K)
    np.testing.assert_array_equal(table, semantic.confusion(prediction[::-1, ::-1], truth[::-1, ::-1], K))
    there, back = semantic.from_confusion(table), semantic.from_confusion(semantic.confusion(truth, prediction, K))
    for one, other in (("dice", "dice"), ("iou", "iou"), ("pixel_precision", "pixel_recall")):
        assert there[one] == pytest.approx(back[other], nan_ok=True)


@given(hnp.arrays(bool, (2, 3, 5, 4)), hnp.arrays(bool, (5, 4)))
def test_multilabel_counts_each_plane_as_a_binary_map(pair: Any, ignore: Any) -> None:
    prediction, truth = pair
    table = semantic.confusion_multilabel(prediction, truth, ignore)
    for k in range(3):
        marked = np.where(ignore, 9, truth[k].astype(int))
        np.testing.assert_array_equal(table[k], slow_confusion(prediction[k].astype(int), marked, 2, 9))
    counted = ~ignore
    found = semantic.from_confusion(table)
    expected = [slow_dice(prediction[k][counted], truth[k][counted], True) for k in range(3)]
    np.testing.assert_allclose(found["dice_per_class"], expected, atol=1e-12)
    if counted.any():
        assert found["pixel_accuracy"] == pytest.approx(float((prediction == truth)[:, counted].mean()))


def test_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

    rng = np.random.default_rng(3)
    truth = rng.integers(0, K, (2, 32, 32))
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, K, truth.shape))
    found = semantic.from_confusion(semantic.confusion(prediction, truth, K, ignore=3))
    arguments = {"num_classes": K, "ignore_index": 3, "average": "none"}
    p, t = torch.tensor(prediction), torch.tensor(truth)
    f1 = multiclass_f1_score(p, t, **arguments).numpy()
    jaccard = multiclass_jaccard_index(p, t, **arguments).numpy()
    np.testing.assert_allclose(found["dice_per_class"][:3], f1[:3], atol=1e-6)
    np.testing.assert_allclose(found["iou_per_class"][:3], jaccard[:3], atol=1e-6)
