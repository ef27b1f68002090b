"""Outlines: filling them gives the objects back, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo import postprocess as pp

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def filled(polygons: list[pp.Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centre lies in a polygon: the slow way back."""
    out = np.zeros(shape, bool)
    shapes = [shapely.Polygon(p.outer, p.holes) for p in polygons]
    for i in range(shape[0]):
        for j in range(shape[1]):
            out[i, j] = any(s.contains(shapely.Point(j + 0.5, i + 0.5)) for s in shapes)
    return out


@given(MASKS)
def test_filling_gives_the_mask_back(mask: np.ndarray) -> None:
    polygons = pp.mask_polygons(mask)
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)
    assert len(polygons) == pp.components(mask).max(initial=0)
    area = sum(shapely.Polygon(p.outer, p.holes).area for p in polygons)
    assert area == mask.sum()
    for polygon in polygons:
        assert pp.ring_area(polygon.outer) > 0
        assert all(pp.ring_area(hole) < 0 for hole in polygon.holes)
        for ring in (polygon.outer, *polygon.holes):
            assert (ring[0] == ring[-1]).all()
            assert shapely.LinearRing(ring).is_simple  # never crosses or touches itself
        assert shapely.Polygon(polygon.outer, polygon.holes).is_valid


@given(MASKS)
def test_flips_flip(mask: np.ndarray) -> None:
    H, W = mask.shape
    there = shapely.union_all([shapely.Polygon(p.outer, p.holes) for p in pp.mask_polygons(mask)])
    flipped = [shapely.Polygon(p.outer, p.holes) for p in pp.mask_polygons(mask[::-1, ::-1])]
    back = shapely.union_all([shapely.transform(s, lambda xy: (W, H) - xy) for s in flipped])
    assert there.symmetric_difference(back).area == 0


def test_a_square_with_a_hole() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 2:6] = True
    mask[2, 3] = False
    (polygon,) = pp.mask_polygons(mask, offset=(100, 10))
    assert {tuple(p) for p in polygon.outer.tolist()} == {(12, 101), (16, 101), (16, 105), (12, 105)}
    (hole,) = polygon.holes
    assert {tuple(p) for p in hole.tolist()} == {(13, 102), (14, 102), (14, 103), (13, 103)}


def test_label_polygons_and_rings() -> None:
    labels = np.zeros((8, 9), np.int32)
    labels[0:2, 0:2] = 3
    labels[5:8, 5:9] = 1
    labels[4, 0] = 1  # an object in two pieces
    found = pp.label_polygons(labels)
    assert sorted(found) == [1, 3]
    assert len(found[1]) == 2
    rings = pp.outer_rings(pp.relabel(labels))
    assert [pp.ring_area(r) for r in rings] == [12, 4]


@given(st.integers(0, 1000))
def test_holes_find_their_polygon(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 24), bool)  # rings in rings, side by side
    for k, (i, j) in enumerate([(0, 0), (0, 12), (12, 0), (12, 12)]):
        size = 7 + int(rng.integers(0, 5))
        mask[i : i + size, j : j + size] = True
        mask[i + 1 : i + size - 1, j + 1 : j + size - 1] = False
        mask[i + 2 : i + size - 2, j + 2 : j + size - 2] = k % 2 == 0
        mask[i + 3 : i + size - 3, j + 3 : j + size - 3] = False
    np.testing.assert_array_equal(filled(pp.mask_polygons(mask), mask.shape), mask)


def test_corners_that_touch_stay_two_polygons() -> None:
    assert len(pp.mask_polygons(np.eye(3, dtype=bool))) == 3
    diagonal = np.pad(~np.eye(3, dtype=bool), 1, constant_values=True)
    (polygon,) = pp.mask_polygons(diagonal)
    assert len(polygon.holes) == 3  # holes that touch at a corner are apart: a ring through both would touch itself
    assert pp.mask_polygons(np.zeros((3, 3), bool)) == []
    assert pp.ring_area(np.array([[0, 0], [2, 0], [2, 3], [0, 3], [0, 0]])) == pytest.approx(6)
