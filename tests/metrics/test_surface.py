"""Outlines against slow twins, MONAI, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from zoo.metrics import surface

masks = hnp.arrays(bool, (2, 6, 8))


def slow_outline(mask: Any) -> list[tuple[int, int]]:
    found = []
    for r, c in np.argwhere(mask):
        around = [(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)]
        inside = [0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] for a, b in around]
        if not all(inside):
            found.append((int(r), int(c)))
    return found


def slow_distances(one: Any, other: Any) -> list[float]:
    return [min(math.dist(p, q) for q in slow_outline(other)) for p in slow_outline(one)]


@given(masks)
def test_distances_equal_their_slow_twin(pair: Any) -> None:
    prediction, truth = pair
    found = surface.surface(prediction, truth)
    assert found.sizes == (len(slow_outline(prediction)), len(slow_outline(truth)))
    if not (prediction.any() and truth.any()):
        return
    there, back = slow_distances(prediction, truth), slow_distances(truth, prediction)
    np.testing.assert_allclose(found.to_truth, there, atol=1e-12)
    np.testing.assert_allclose(found.to_prediction, back, atol=1e-12)
    assert surface.hd95([found], 100) == pytest.approx(max(*there, *back))
    near = sum(d <= 1 for d in there) + sum(d <= 1 for d in back)
    assert surface.surface_dice([found], 1) == pytest.approx(near / (len(there) + len(back)))


def blobs(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(90, 70)), 5) for _ in range(2)]
    return noise[0] > 0.02, noise[0] + 0.6 * noise[1] > 0.02


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls its own deprecated option
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_monai(seed: int) -> None:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    truth, prediction = blobs(seed)
    one, other = (torch.tensor(m)[None, None].float() for m in (prediction, truth))
    found = [surface.surface(prediction, truth)]
    theirs = compute_hausdorff_distance(one, other, include_background=True, percentile=95)
    assert surface.hd95(found) == pytest.approx(float(theirs), abs=1e-5)
    for tolerance in (1.0, 2.0, 3.0):
        dice = compute_surface_dice(one, other, [tolerance], include_background=True)
        assert surface.surface_dice(found, tolerance) == pytest.approx(float(dice), abs=1e-6)


def test_fast_distances_are_exact() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((300, 200)) < 0.001
    np.testing.assert_array_equal(surface.distances(targets), ndimage.distance_transform_edt(~targets))


def test_a_tie_at_the_tolerance_is_near() -> None:
    truth, prediction = np.zeros((5, 9), bool), np.zeros((5, 9), bool)
    truth[2, 2], prediction[2, 4] = True, True
    found = [surface.surface(prediction, truth)]
    assert surface.surface_dice(found, 2) == 1
    assert surface.surface_dice(found, 1.99) == 0
    assert surface.hd95(found) == 2
    assert surface.hd95([surface.surface(prediction, truth, spacing=(1, 0.5))]) == 1


def test_classes_absent_and_missed() -> None:
    truth = np.zeros((3, 4), int)
    truth[0, 0] = 1
    found = surface.surfaces(np.zeros((3, 4), int), truth, [1, 2])
    assert found[1].absent
    assert surface.hd95(found) == 5  # the diagonal of 3 x 4, for the class that was missed
    assert surface.surface_dice(found) == 0
    nothing = surface.surfaces(truth, truth, [2])
    assert math.isnan(surface.hd95(nothing))
    assert math.isnan(surface.surface_dice(nothing))
    ignored = surface.surfaces(np.zeros((3, 4), int), truth, [1], truth == 1)
    assert math.isnan(surface.hd95(ignored))


def test_planes_and_volumes() -> None:
    planes = np.zeros((2, 4, 4), bool)
    planes[1, 1:3, 1:3] = True
    assert surface.hd95(surface.surfaces(planes, planes, [0, 1])) == 0
    volume = np.zeros((4, 5, 6), bool)
    volume[1:3, 1:4, 2:5] = True
    moved = np.roll(volume, 1, axis=0)
    assert surface.hd95([surface.surface(moved, volume, spacing=(3, 1, 1))]) == 3
    with pytest.raises(ValueError, match="differ in shape"):
        surface.surface(volume, volume[0])
