"""From a model's grid to the source's pixels."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.postprocess import to_source
from zoo.types import Geometry


def slow(maps: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The value at each source pixel's centre, one at a time."""
    C, h, w = maps.shape
    out = np.zeros((C, *geometry.shape))
    for i in range(geometry.shape[0]):
        for j in range(geometry.shape[1]):
            y = min(max((i + 0.5) * geometry.scale[0] - geometry.offset[0] - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * geometry.scale[1] - geometry.offset[1] - 0.5, 0), w - 1)
            a, b = int(y), int(x)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            fy, fx = y - a, x - b
            top = maps[:, a, b] * (1 - fx) + maps[:, a, d] * fx
            bottom = maps[:, c, b] * (1 - fx) + maps[:, c, d] * fx
            out[:, i, j] = top * (1 - fy) + bottom * fy
    return out


@given(
    st.integers(0, 1000),
    st.sampled_from([0.5, 1.0, 1.37, 2.0]),
    st.sampled_from([0.0, 3.0, -2.0, 0.25]),
)
def test_equals_its_slow_twin(seed: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((2, 8, 11))
    geometry = Geometry((9, 7), (scale, 1.0), (offset, 0.0))
    np.testing.assert_allclose(to_source(torch.tensor(maps), geometry).numpy(), slow(maps, geometry), atol=1e-12)


def test_without_resampling_it_is_a_crop() -> None:
    maps = torch.rand(3, 12, 12)
    assert torch.equal(to_source(maps, Geometry((12, 12))), maps)
    assert torch.equal(to_source(maps, Geometry((5, 6))), maps[:, :5, :6])
    assert torch.equal(to_source(maps, Geometry((5, 6), (1.0, 1.0), (-2.0, -3.0))), maps[:, 2:7, 3:9])


def test_a_ramp_stays_where_it_is() -> None:
    """The coordinate convention: a point p of the array is at (p + offset) / scale in the source."""
    for scale in (0.5, 2.0):
        size = int(64 * scale)
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) / scale
        maps = centres.view(1, 1, -1).expand(1, size, size)
        found = to_source(maps, Geometry((64, 64), (scale, scale)))
        expected = torch.arange(64, dtype=torch.float64) + 0.5
        torch.testing.assert_close(found[0, 5, 2:-2], expected[2:-2])
