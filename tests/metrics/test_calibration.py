"""Reliability against a slow twin, torchmetrics, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.metrics import calibration


def random_case(seed: int, classes: int = 4, side: int = 12) -> Any:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(classes, side, side)) * 2
    p = np.exp(logits) / np.exp(logits).sum(0)
    return p, rng.integers(0, classes, (side, side))


def slow_ece(p: Any, truth: Any, bins: int) -> float:
    best, confidence = p.argmax(0).ravel(), p.max(0).ravel()
    right = best == truth.ravel()
    total = 0.0
    for k in range(bins):
        inside = [i for i, c in enumerate(confidence) if min(int(c * bins), bins - 1) == k]
        if inside:
            total += len(inside) * abs(np.mean(right[inside]) - np.mean(confidence[inside]))
    return total / len(right)


@given(st.integers(0, 50), st.integers(1, 20))
def test_equals_its_slow_twin(seed: int, bins: int) -> None:
    p, truth = random_case(seed)
    table = calibration.reliability(p, truth, bins=bins)
    assert calibration.ece(table) == pytest.approx(slow_ece(p, truth, bins))
    one_hot = np.eye(4)[truth].transpose(2, 0, 1)
    assert calibration.brier(table) == pytest.approx(float(((p - one_hot) ** 2).sum(0).mean()))


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, truth = random_case(3, side=40)
    theirs = multiclass_calibration_error(torch.tensor(p)[None], torch.tensor(truth)[None], num_classes=4, n_bins=15)
    assert calibration.ece(calibration.reliability(p, truth)) == pytest.approx(float(theirs), abs=1e-6)


def test_tables_add_up_and_ignored_pixels_do_not_count() -> None:
    p, truth = random_case(1)
    left = np.zeros(truth.shape, bool)
    left[:, :5] = True
    both = calibration.reliability(p, truth, left) + calibration.reliability(p, truth, ~left)
    whole = calibration.reliability(p, truth)
    assert calibration.ece(both) == pytest.approx(calibration.ece(whole))
    assert calibration.brier(both) == pytest.approx(calibration.brier(whole))
    assert math.isnan(calibration.ece(calibration.reliability(p, truth, np.ones(truth.shape, bool))))


def test_multilabel_planes_are_questions_of_their_own() -> None:
    p = np.array([[[0.8, 0.8]], [[0.1, 0.1]]])
    truth = np.array([[[True, False]], [[False, False]]])
    table = calibration.reliability(p, truth, bins=10)
    assert calibration.ece(table) == pytest.approx((2 * abs(0.5 - 0.8) + 2 * 0.1) / 4)
    assert calibration.brier(table) == pytest.approx(np.mean([0.04, 0.64, 0.01, 0.01]))


def test_bad_input() -> None:
    p, truth = random_case(0)
    with pytest.raises(ValueError, match="differ in shape"):
        calibration.reliability(p, truth[1:])
    with pytest.raises(ValueError, match="not all in"):
        calibration.reliability(p * 3, truth)
