"""Other resolutions and patches: truths stay on their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import crop, resample
from zoo.types import Boxes, Instances, Label, Picture, Sample, Semantic


def sample(shape: tuple[int, int] = (20, 30)) -> Sample:
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.int32)
    labels[4:12, 6:18] = 3
    labels[15, 25] = 8  # one pixel, lost at half the resolution
    truth: dict[str, Any] = {
        "nuclei": Instances(labels, {3: 1, 8: 2}, np.zeros(shape, bool)),
        "tissue": Semantic((labels > 0).astype(np.uint8), ignore=255),
        "boxes": Boxes(np.array([[6, 4, 18, 12]], np.float32), np.array([1])),
        "stain": Picture(rng.random((2, *shape)).astype(np.float32), ("a", "b"), encoding="linear"),
        "grade": Label(2),
    }
    return Sample("a", "b", rng.integers(0, 255, (3, *shape), np.uint8), spacing=(0.5, 0.5), truth=truth)


def test_half_the_resolution() -> None:
    small = resample.resample(sample(), 1.0)
    assert small.image.shape == (3, 10, 15)
    assert small.image.dtype == np.uint8
    assert small.spacing == (1.0, 1.0)
    means = sample().image.reshape(3, 10, 2, 15, 2).mean((2, 4))
    assert np.abs(small.image - means).max() <= 0.75  # area interpolation, slowly
    nuclei, boxes, stain = (small.truth[k] for k in ("nuclei", "boxes", "stain"))
    assert isinstance(nuclei, Instances)
    assert isinstance(boxes, Boxes)
    assert isinstance(stain, Picture)
    assert nuclei.map.dtype == np.int32
    assert (nuclei.map[2:6, 3:9] == 3).all()
    assert set(np.unique(nuclei.map).tolist()) - {0} == set(nuclei.classes or {})
    assert boxes.xyxy.tolist() == [[3, 2, 9, 6]]
    assert stain.data.shape == (2, 10, 15)
    assert small.truth["grade"] == Label(2)


@given(old=st.integers(1, 40), new=st.integers(1, 60))
def test_nearest_takes_the_pixel_under_the_centre(old: int, new: int) -> None:
    row = np.arange(old)
    slow = [min(int((i + 0.5) * old / new), old - 1) for i in range(new)]
    assert resample.nearest(row[None], (1, new))[0].tolist() == slow


def test_unknown_spacing_and_equal_spacing_change_nothing() -> None:
    unknown = sample().with_(spacing=None)
    assert resample.resample(unknown, 0.25) is unknown
    known = sample()
    assert resample.resample(known, 0.5) is known


def test_spacing_says_what_rounding_did() -> None:
    odd = resample.resample(sample((21, 30)), 1.0)
    assert odd.shape == (10, 15)
    assert odd.spacing == pytest.approx((1.05, 1.0))


def test_volumes_with_anisotropic_spacing() -> None:
    volume = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (1, 6, 8, 8))
    labels = np.zeros((6, 8, 8), np.int32)
    labels[2:4] = 1
    given_sample = Sample("a", "b", volume, axes="CZYX", spacing=(2.0, 0.5, 0.5), truth={"o": Instances(labels)})
    found = resample.resample(given_sample, 1.0)
    assert found.image.shape == (1, 12, 4, 4)
    assert np.allclose(found.image[0, 1:-1, 0, 0], np.arange(12)[1:-1] / 2 - 0.25)
    objects = found.truth["o"]
    assert isinstance(objects, Instances)
    assert objects.map.any((1, 2)).tolist() == [False] * 4 + [True] * 4 + [False] * 4


@given(st.integers(0, 25), st.integers(0, 35), st.integers(1, 30), st.integers(1, 40))
def test_crop_equals_slicing_a_padded_image(y: int, x: int, height: int, width: int) -> None:
    whole = crop.with_valid(sample())
    y, x = min(y, 19), min(x, 29)
    patch, valid = crop.take_valid(crop.crop(whole, (y, x), (height, width)))
    assert patch.image.shape == (3, height, width)
    inside = np.zeros((height, width), bool)
    inside[: 20 - y, : 30 - x] = True
    assert np.array_equal(valid, inside)
    assert np.array_equal(patch.image[:, inside], whole.image[:, y : y + height, x : x + width].reshape(3, -1))
    nuclei, tissue, stain = (patch.truth[k] for k in ("nuclei", "tissue", "stain"))
    assert isinstance(nuclei, Instances)
    assert isinstance(tissue, Semantic)
    assert isinstance(stain, Picture)
    assert set(nuclei.classes or {}) == set(np.unique(nuclei.map).tolist()) - {0}
    assert (tissue.map[~inside] == 255).all()
    assert nuclei.ignore is not None
    assert np.array_equal(nuclei.ignore, ~inside)
    assert np.array_equal(inside, np.ones_like(inside) if stain.valid is None else stain.valid)
    assert (tissue.map[inside] == (nuclei.map[inside] > 0)).all()


@given(st.integers(0, 1000), st.integers(0, 19), st.integers(0, 29))
def test_random_windows_hold_the_pixel_they_must(seed: int, y: int, x: int) -> None:
    rng = np.random.default_rng(seed)
    for size in ((8, 8), (20, 8), (40, 40)):
        start = crop.random_start((20, 30), size, rng, (y, x))
        assert all(0 <= s <= max(0, n - w) for s, n, w in zip(start, (20, 30), size, strict=True))
        assert all(s <= p < s + w for s, p, w in zip(start, (y, x), size, strict=True))


def test_boxes_that_barely_show_are_dropped() -> None:
    boxes = Boxes(
        np.array([[0, 0, 10, 10], [8, 0, 18, 10], [5, 5, 5, 9]], np.float32),
        np.array([1, 2, 3]),
        np.array([[1], [2], [3]]),
        np.array([False, True, False]),
    )
    found = crop.crop_boxes(boxes, (8, 0, 20, 10))
    assert found.xyxy.tolist() == [[0, 0, 10, 10]]
    assert found.classes.tolist() == [2]
    assert found.attributes is not None
    assert found.attributes.tolist() == [[2]]
    assert found.crowd is not None
    assert found.crowd.tolist() == [True]


def test_present_ids_counts_or_sorts() -> None:
    small = np.array([[0, 3], [7, 3]], np.int32)
    large = small * 250_000_000
    assert resample.present_ids(small).tolist() == [3, 7]
    assert resample.present_ids(large).tolist() == [750_000_000, 1_750_000_000]
    assert resample.present_ids(np.zeros((0, 4), np.int32)).tolist() == []
