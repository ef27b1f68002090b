from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.inference.windows import Axis, axis, plan

lengths = st.integers(1, 400)
tile_sizes = st.integers(1, 100)


def build(length: int, tile: int, overlap: int, divisor: int, margin: int | None) -> Axis:
    rounded = -(-tile // divisor) * divisor
    assume(length <= rounded or (rounded - overlap) // divisor >= 1)
    return axis(length, tile, overlap, divisor, margin)


@given(lengths, tile_sizes, st.integers(0, 60), st.sampled_from([1, 4, 32]), st.one_of(st.none(), st.integers(0, 40)))
def test_weights_sum_to_one(length: int, tile: int, overlap: int, divisor: int, margin: int | None) -> None:
    found = build(length, tile, overlap, divisor, margin)
    total = np.zeros(length)
    for index, start in enumerate(found.starts):
        begin, end = found.support(index)
        weight = found.weights(index)
        assert start <= begin < end <= min(start + found.tile, length)
        assert weight.min() >= -1e-6
        total[begin:end] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(lengths, tile_sizes, st.integers(0, 60), st.sampled_from([1, 4, 32]))
def test_tiles_lie_on_the_grid_and_cover_the_picture(length: int, tile: int, overlap: int, divisor: int) -> None:
    found = build(length, tile, overlap, divisor, None)
    assert found.tile % divisor == 0
    assert all(start % divisor == 0 for start in found.starts)
    assert length <= found.padded < length + divisor
    shared = np.array(found.starts[:-1]) + found.tile - np.array(found.starts[1:])
    assert (shared >= overlap).all()


@given(st.integers(100, 400), st.integers(1, 12))
def test_no_pixel_of_the_margin_counts_where_the_overlap_allows(length: int, margin: int) -> None:
    found = axis(length, 64, -(-8 * margin // 3), 4, margin)
    for index, start in enumerate(found.starts):
        begin, end = found.support(index)
        assert index == 0 or begin - start >= margin
        assert index == len(found.starts) - 1 or start + found.tile - end >= margin


def test_scaling_keeps_the_sum() -> None:
    found = axis(300, 64, 16, 4).scaled(2)
    assert found.length == 600
    total = np.zeros(600)
    for index in range(len(found.starts)):
        begin, end = found.support(index)
        total[begin:end] += found.weights(index)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_that_cannot_be(overlap: int) -> None:
    with pytest.raises(UserError, match=r"Expected 0 to 60"):
        axis(300, 64, overlap, 4)


def test_plan_walks_row_by_row() -> None:
    found = plan((40, 100), 32, 0)
    assert list(found.tiles()) == [(y, x) for y in (0, 8) for x in (0, 32, 64, 68)]
    assert found.count == 8
