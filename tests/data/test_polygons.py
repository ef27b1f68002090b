"""Polygons become the pixels whose centres they hold."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.readers.polygons import Ring, rasterise

SHAPE = (14, 17)
point = st.tuples(st.integers(-12, 80).map(lambda v: v / 4), st.integers(-12, 80).map(lambda v: v / 4))
ring = st.lists(point, min_size=3, max_size=7, unique=True).map(lambda p: np.array(p, float))


def twin(rings: list[Ring]) -> np.ndarray:
    """Even-odd, a pixel at a time: how many edges does a ray to the left cross?"""
    out = np.zeros(SHAPE, bool)
    for i, j in np.ndindex(SHAPE):
        x, y, crossings = j + 0.5, i + 0.5, 0
        for points in rings:
            for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if min(ay, by) <= y < max(ay, by) and ax + (y - ay) * (bx - ax) / (by - ay) <= x:
                    crossings += 1
        out[i, j] = crossings % 2 == 1
    return out


@given(st.lists(ring, min_size=1, max_size=3))
def test_rasterise_equals_its_twin(rings: list[Ring]) -> None:
    rows, columns, inside = rasterise(rings, SHAPE)
    whole = np.zeros(SHAPE, bool)
    whole[rows, columns] = inside
    assert (whole == twin(rings)).all()


def test_two_halves_share_no_pixel_and_leave_none() -> None:
    corners = np.array([[0, 0], [17, 0], [17, 14], [0, 14]], float)
    halves = [corners[[0, 1, 2]], corners[[0, 2, 3]]]
    total = np.zeros(SHAPE, int)
    for half in halves:
        rows, columns, inside = rasterise([half], SHAPE)
        total[rows, columns] += inside
    assert (total == 1).all()
