from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.inference.resample import Resampling
from zoo.inference.source import ModelGrid, Source, mirrored

sizes = st.integers(1, 60)


@given(sizes, sizes, st.integers(0, 1000))
def test_a_window_equals_the_whole(old: int, new: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((old, 3)).astype(np.float32)
    way = Resampling(old, new)
    whole = way.apply(values, 0, 0, new, 0)
    begin = int(rng.integers(0, new))
    end = int(rng.integers(begin + 1, new + 1))
    first, last = way.needs(begin, end)
    if not way.identity:
        part = way.apply(values[first:last], 0, begin, end, first)
        np.testing.assert_array_equal(part, whole[begin:end])
    ready = way.ready(last)
    assert ready >= end or last < old
    assert ready == 0 or way.needs(0, ready)[1] <= last


@pytest.mark.parametrize(("old", "new"), [(60, 30), (61, 23), (40, 80), (33, 50), (7, 7)])
def test_it_is_what_opencv_does(old: int, new: int) -> None:
    values = np.random.default_rng(0).random((old, old, 3)).astype(np.float32)
    way = Resampling(old, new)
    found = values if way.identity else way.apply(way.apply(values, 0, 0, new, 0), 1, 0, new, 0)
    how = cv2.INTER_AREA if new < old else cv2.INTER_LINEAR
    np.testing.assert_allclose(found, cv2.resize(values, (new, new), interpolation=how), atol=1e-5)


@given(st.integers(1, 20), st.integers(1, 90))
def test_mirrored_shows_the_picture_again(length: int, padded: int) -> None:
    picture = np.arange(length)
    np.testing.assert_array_equal(picture[mirrored(length, padded)], np.pad(picture, (0, 200), "symmetric")[:padded])


@given(st.integers(1, 50), st.sampled_from([1.0, 0.5, 0.37, 1.9]), st.integers(0, 100))
def test_bands_of_the_model_grid_are_parts_of_the_whole(height: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (height, 9, 3), dtype=np.uint8)
    read: list[tuple[int, int]] = []

    def rows(begin: int, end: int) -> np.ndarray:
        read.append((begin, end))
        return picture[begin:end]

    shape = (max(1, round(height * scale)), max(1, round(9 * scale)))
    padded = (shape[0] + 7, shape[1] + 5)

    def grid() -> ModelGrid:
        return ModelGrid(Source((height, 9), None, rows), shape, padded[1])

    whole = grid().band(0, padded[0])
    assert whole.shape == (*padded, 3)
    bands, step = grid(), int(rng.integers(1, 9))
    read.clear()
    for begin in range(0, padded[0] - 4, step):
        if begin + 4 > height and scale == 1.0:
            # what two bands share was read once
            assert sum(b - a for a, b in read) <= height
            read.clear()
        np.testing.assert_array_equal(bands.band(begin, begin + 4), whole[begin : begin + 4])
