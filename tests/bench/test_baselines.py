"""Otsu and the side it takes, without looking at a truth."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.bench import baselines


@pytest.mark.parametrize("seed", range(3))
def test_otsu_equals_scikit_image(seed: int) -> None:
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(seed)
    image = np.clip(np.where(rng.random((40, 40)) < 0.3, rng.normal(70, 20), rng.normal(190, 25)), 0, 255)
    image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    assert baselines.otsu_threshold(image) == threshold_otsu(image)


def test_a_constant_image_has_an_empty_or_a_full_mask() -> None:
    image = np.full((4, 4), 90, np.uint8)
    assert baselines.foreground("otsu", image, dark=False).mean() in (0, 1)
    assert baselines.foreground("all-foreground", image, dark=True).all()


def test_the_side_is_that_of_what_is_stained() -> None:
    rng = np.random.default_rng(0)
    field = np.clip(rng.normal(230, 8, (3, 32, 32)), 0, 255).astype(np.uint8)
    field[:, 4:12, 4:12] = 80
    bright_field, dark_field = baselines.grey(field), baselines.grey(255 - field)
    assert baselines.objects_are_dark([bright_field, bright_field, dark_field])
    assert not baselines.objects_are_dark([dark_field])
    assert not baselines.objects_are_dark([])
    truth = np.zeros((32, 32), bool)
    truth[4:12, 4:12] = True
    np.testing.assert_array_equal(baselines.foreground("otsu", bright_field, True), truth)
    np.testing.assert_array_equal(baselines.foreground("otsu", dark_field, False), truth)


def test_brightness_of_any_channels_and_depth() -> None:
    rng = np.random.default_rng(0)
    dim = rng.integers(0, 235, (1, 16, 16)).astype(np.uint16)
    assert baselines.grey(dim).max() == 255  # 16-bit grey is stretched
    assert baselines.grey(np.concatenate([dim, dim])).shape == (16, 16)


def test_watershed_parts_touching_balls_in_planes_and_volumes() -> None:
    for shape, centres in [((40, 60), [(20, 18), (20, 38)]), ((24, 40, 60), [(12, 20, 18), (12, 20, 38)])]:
        places = np.indices(shape)
        balls = [((places - np.array(c).reshape(-1, *[1] * len(shape))) ** 2).sum(0) <= 11**2 for c in centres]
        labels = baselines.watershed(balls[0] | balls[1])
        assert labels.max() == 2
        assert labels[centres[0]] != labels[centres[1]]
        assert ((labels > 0) == (balls[0] | balls[1])).all()


def test_volumes_have_a_brightness() -> None:
    volume = np.random.default_rng(0).integers(100, 900, (2, 5, 8, 9)).astype(np.uint16)
    assert baselines.grey(volume).shape == (5, 8, 9)
    assert baselines.grey(volume).max() == 255
