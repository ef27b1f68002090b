"""Metrics of single cells on a predicted picture, against scikit-learn and plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.metrics import calls, function

NAMES = ("Hoechst", "CD3e", "SMA", "CD20")


def image(seed: int, count: int = 30) -> calls.Cells:
    """Return evidence whose cells carry markers at random and are seen with noise; CD20 is not annotated."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, 2)) < 0.4).astype(np.float32)
    truth[0, 1] = np.nan
    mean = (rng.normal(size=(count, 2)) + np.nan_to_num(truth)).round(1).astype(np.float32)
    return calls.Cells(("CD3e", "SMA"), mean, 1 / (1 + np.exp(0.5 - mean.astype(float))), truth, truth >= 0.5)


def pooled(images: list[calls.Cells], marker: int) -> tuple[Any, Any, Any]:
    score, probability, truth = (
        np.concatenate([np.asarray(getattr(i, name))[:, marker] for i in images])
        for name in ("mean", "probability", "truth")
    )
    known = ~np.isnan(truth)
    return score[known], probability[known], truth[known]


def test_numbers_of_all_cells_of_all_images() -> None:
    from scipy.stats import pearsonr
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    images = [image(seed) for seed in range(4)]
    expected: dict[str, list[float]] = {}
    for marker in range(2):
        score, probability, truth = pooled(images, marker)
        expected.setdefault("cell_f1", []).append(f1_score(truth > 0.5, probability > 0.5))
        expected.setdefault("cell_balanced_accuracy", []).append(
            balanced_accuracy_score(truth > 0.5, probability > 0.5)
        )
        expected.setdefault("cell_auc", []).append(roc_auc_score(truth > 0.5, score))
        expected.setdefault("cell_auc_called", []).append(roc_auc_score(truth > 0.5, probability))
        expected.setdefault("cell_pearson", []).append(pearsonr(score, truth)[0])
    for name, values in expected.items():
        assert function(name)(images) == pytest.approx(np.mean(values), abs=1e-6), name
        for marker, value in zip(("CD3e", "SMA"), values, strict=True):
            assert function(f"{name}@{marker}")(images) == pytest.approx(value, abs=1e-6)
        assert math.isnan(function(f"{name}@FOXP3")(images))


def test_numbers_of_positive_cells_an_image() -> None:
    images = [image(seed, 10 + 7 * seed) for seed in range(5)]
    found = function("cell_count_pearson@CD3e")(images)
    ours = [int((i.probability[:, 0] > 0.5).sum()) for i in images]  # type: ignore[index]
    theirs = [int((i.truth[:, 0] >= 0.5).sum()) for i in images]
    assert found == pytest.approx(np.corrcoef(ours, theirs)[0, 1])


@pytest.mark.parametrize("name", ["cell_f1", "cell_balanced_accuracy", "cell_auc", "cell_pearson"])
def test_drawing_images_is_taking_them_again(name: str) -> None:
    images = [image(seed) for seed in range(4)]
    metric: Any = function(name)
    again = metric.resampler([metric.record(i) for i in images])
    for drawn in ([0, 1, 2, 3], [2, 2, 0, 1], [3, 3, 3, 3]):
        assert again(np.array(drawn)) == pytest.approx(metric([images[i] for i in drawn]), abs=1e-9)


def test_a_picture_that_calls_nothing_has_no_f1() -> None:
    one = image(0)
    silent = calls.Cells(one.markers, one.mean, None, one.truth, one.positive)
    assert math.isnan(function("cell_f1")([silent]))
    assert math.isnan(function("cell_auc_called")([silent]))
    assert function("cell_auc")([silent]) == pytest.approx(function("cell_auc")([one]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_area_under_the_curve_counts_pairs(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.sort(rng.integers(0, 6, count).astype(float))
    positive, weight = rng.random(count) < 0.5, rng.integers(0, 3, count).astype(float)
    won = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            pair = weight[i] * weight[j]
            won += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
            total += pair
    found = calls.weighted_auc(score, positive, weight)
    assert math.isnan(found) if total == 0 else found == pytest.approx(won / total)


def test_evidence_of_an_image() -> None:
    """Means over more than 20 pixels; markers that both sides name, without the nuclear stain."""
    labels = np.zeros((16, 16), np.int32)
    labels[0:5, 0:5], labels[6:10, 0:5], labels[8:16, 8:16] = 3, 4, 9  # 25, 20 and 64 pixels
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (3, 16, 16), dtype=np.uint8)
    values = {k: np.array([1, k == 3, 0.4, 0.9], np.float32) for k in (3, 4, 9)}
    rule = {"channels": ["CD3e"], "markers": ["SMA"], "weight": [[0.1]], "bias": [-10.0]}
    found = calls.cells(picture, ("SMA", "Hoechst", "CD3e"), labels, values, NAMES, positive=0.5, calling=rule)
    assert found.markers == ("CD3e", "SMA")
    expected = [[picture[c][labels == k].mean() for c in (2, 0)] for k in (3, 9)]
    np.testing.assert_allclose(found.mean, expected, rtol=1e-6)
    assert found.truth.tolist() == [[1.0, pytest.approx(0.4)], [0.0, pytest.approx(0.4)]]
    assert found.positive is not None
    assert found.positive.tolist() == [[True, False], [False, False]]
    assert found.probability is not None
    assert np.isnan(found.probability[:, 0]).all()
    np.testing.assert_allclose(found.probability[:, 1], 1 / (1 + np.exp(10 - 0.1 * np.array(expected)[:, 0])))
    with pytest.raises(ValueError, match="none of the markers Hoechst, CD20"):
        calls.cells(picture, ("SMA", "Hoechst", "CD3e"), labels, values, ("Hoechst", "CD20"))
    with pytest.raises(ValueError, match="pixels and the nuclei"):
        calls.cells(picture, ("SMA", "Hoechst", "CD3e"), labels[:8], values, NAMES)


def test_an_image_without_nuclei_adds_nothing() -> None:
    empty = calls.cells(np.zeros((1, 8, 8), np.uint8), ("SMA",), np.zeros((8, 8), np.int32), {}, ("SMA",), positive=0.5)
    full = calls.Cells(("SMA",), *(np.asarray(a)[:, 1:] for a in vars(image(0)).values() if not isinstance(a, tuple)))
    for name in ("cell_f1", "cell_auc", "cell_pearson"):
        assert function(name)([full, empty]) == pytest.approx(function(name)([full]), nan_ok=True)
