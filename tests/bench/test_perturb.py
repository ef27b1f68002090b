"""Perturbations: what stays, what moves, what fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zoo.bench.perturb import PERTURBATIONS, area
from zoo.types import Boxes, Instances, Picture, Sample, Semantic


def sample(dtype: Any = np.uint8, channels: int = 3) -> Sample:
    rng = np.random.default_rng(0)
    image = rng.integers(20, 230, (channels, 40, 60)).astype(dtype)
    labels = np.zeros((40, 60), np.int32)
    labels[10:20, 30:50] = 4
    truth = {
        "objects": Instances(labels, {4: 1}),
        "map": Semantic((labels > 0).astype(np.uint8)),
        "boxes": Boxes(np.array([[30.0, 10, 50, 20]], np.float32), np.array([1])),
        "picture": Picture(image.copy(), ("red", "green", "blue")[:channels]),
    }
    return Sample("x", "made", image, truth=truth, spacing=(0.5, 0.5))


@pytest.mark.parametrize("name", sorted(PERTURBATIONS))
def test_each_level_changes_more_than_the_one_before(name: str) -> None:
    perturbation, clean = PERTURBATIONS[name], sample()
    assert perturbation(clean, perturbation.clean) is clean
    place = perturbation.levels.index(perturbation.clean)
    for levels in (perturbation.levels[place + 1 :], perturbation.levels[:place][::-1]):
        last = 0.0
        for level in levels:
            changed = perturbation(clean, level)
            assert changed.image.dtype == clean.image.dtype
            assert np.array_equal(changed.image, perturbation(clean, level).image)
            if changed.shape != clean.shape:
                continue
            off = float(np.abs(changed.image.astype(float) - clean.image).mean())
            assert off > last
            last = off


def test_magnification_moves_every_truth_and_keeps_what_is_said() -> None:
    changed = PERTURBATIONS["magnification"](sample(), 1.5)
    assert changed.shape == (60, 90)
    assert changed.spacing == (0.5, 0.5)
    assert np.flatnonzero((changed.truth["objects"].map == 4).any(0)).tolist() == list(range(45, 75))  # type: ignore[union-attr]
    assert changed.truth["boxes"].xyxy.tolist() == [[45, 15, 75, 30]]  # type: ignore[union-attr]
    assert changed.truth["picture"].data.shape == (3, 60, 90)  # type: ignore[union-attr]


def test_what_fits_which_images() -> None:
    grey16 = sample(np.uint16, 1)
    assert [n for n, p in PERTURBATIONS.items() if p.fits(grey16)] == ["blur", "brightness", "magnification"]
    assert [n for n, p in PERTURBATIONS.items() if p.fits(sample(np.uint8, 1))] == [
        "blur",
        "jpeg",
        "brightness",
        "magnification",
    ]
    assert PERTURBATIONS["jpeg"](sample(np.uint8, 1), 20).image.shape == (1, 40, 60)
    assert not PERTURBATIONS["blur"].fits(sample().with_(axes="CZYX"))
    bright = PERTURBATIONS["brightness"](grey16, 1.4).image
    np.testing.assert_allclose(bright, grey16.image * 1.4, atol=0.51)


def test_the_area_is_the_mean_height() -> None:
    assert area((0, 1, 2), (1.0, 0.5, 0.0)) == pytest.approx(0.5)
    assert area((0, 1, 2), (0.7, 0.7, 0.7)) == pytest.approx(0.7)
    assert np.isnan(area((0, 1), (0.7, np.nan)))
    with pytest.raises(ValueError, match="2 heights for 3 levels"):
        area((0, 1, 2), (1.0, 0.5))
