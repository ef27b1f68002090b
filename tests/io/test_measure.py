"""What is measured on objects, against skimage and in bands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage import draw, measure

from zoo.io.measure import Measures


def measured(labels: Any, picture: Any = None, band: int = 1000) -> Measures:
    """Return the measures of a label map whose rows come in bands."""
    found = Measures(int(labels.max()))
    for begin in range(0, len(labels), band):
        rows = slice(begin, begin + band)
        found.put(begin, labels[rows], None if picture is None else picture[rows])
    return found


def blobs(seed: int) -> Any:
    """Return labels of irregular objects, some with holes, some at the border."""
    rng = np.random.default_rng(seed)
    return ndimage.label(ndimage.gaussian_filter(rng.standard_normal((70, 90)), 2.5) > 0.05)[0]


@given(seed=st.integers(0, 10**6), band=st.sampled_from([1, 7, 32]))
def test_shapes_are_those_of_skimage(seed: int, band: int) -> None:
    labels = blobs(seed)
    picture = np.random.default_rng(seed).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    found = measured(labels, picture, band).columns(0.5)
    density = -np.log10(np.maximum(picture, 1) / 255).mean(2)
    for i, region in enumerate(measure.regionprops(labels, density)):
        assert found["area_px"][i] == region.area
        assert found["area_um2"][i] == pytest.approx(region.area / 4)
        assert (found["y"][i] - 0.5, found["x"][i] - 0.5) == pytest.approx(region.centroid)
        assert tuple(int(found[k][i]) for k in ("y0", "x0", "y1", "x1")) == region.bbox
        assert found["eccentricity"][i] == pytest.approx(region.eccentricity, abs=1e-4)
        assert found["major_axis_px"][i] == pytest.approx(region.axis_major_length, abs=1e-5)
        assert found["mean_od"][i] == pytest.approx(region.intensity_mean)
        assert found["perimeter_px"][i] == pytest.approx(
            measure.perimeter_crofton(np.pad(labels == region.label, 2), directions=4), rel=0.02
        )


@given(seed=st.integers(0, 10**6), band=st.sampled_from([1, 5, 23]))
def test_bands_change_nothing(seed: int, band: int) -> None:
    labels = blobs(seed)
    for one, two in zip(
        measured(labels).columns().values(), measured(labels, band=band).columns().values(), strict=True
    ):
        np.testing.assert_allclose(one, two)


def test_a_disc() -> None:
    labels = np.zeros((101, 101), np.int32)
    labels[draw.disk((50, 50), 30.5)] = 1
    found = measured(labels).columns()
    assert found["perimeter_px"][0] == pytest.approx(2 * np.pi * 30.5, rel=0.01)
    assert found["circularity"][0] == pytest.approx(1, abs=0.03)
    assert found["eccentricity"][0] < 0.05


def test_nothing_to_measure() -> None:
    found = measured(np.zeros((5, 5), np.int32), np.zeros((5, 5, 3), np.uint8)).columns(1.0)
    assert all(len(column) == 0 for column in found.values())


def test_other_pictures_have_an_intensity() -> None:
    labels = np.ones((4, 4), np.int32)
    found = measured(labels, np.full((4, 4, 2), 7.0, np.float32)).columns()
    assert found["mean_intensity"][0] == 7
    assert "mean_od" not in found
