from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.families.base import Family
from zoo.inference.predict import predict_array

Make = Callable[..., Family]
Blobs = Callable[..., np.ndarray]


def whole(family: Any, image: np.ndarray) -> np.ndarray:
    """The slow, obvious twin: the network on the whole image at once."""
    with torch.inference_mode():
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        return family.activate(family.forward(family.prepare({"image": x})))["logits"][0].numpy()


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (31, 33), (64, 64), (97, 130)])
def test_a_local_network_does_not_feel_the_tiles(make: Make, blobs: Blobs, shape: tuple[int, int]) -> None:
    family = make(kind="semantic", radius=3)
    image = blobs(*shape)
    found: Any = predict_array(family, image, overlap=8)["semantic"]
    expected = whole(family, image)
    assert found.map.shape == shape
    assert found.map.dtype == np.uint8
    inside = np.ones(shape, bool)
    inside[-3:] = inside[:, -3:] = False  # there the tiles see mirrored pixels, the whole picture zeros
    np.testing.assert_allclose(found.probability[:, inside], expected[:, inside], atol=1e-5)


@given(st.integers(20, 90), st.integers(20, 90), st.integers(4, 12), st.sampled_from([16, 24, 40]), st.integers(1, 9))
def test_tiles_do_not_show(height: int, width: int, overlap: int, tile: int, batch: int) -> None:
    family = stitch_family()
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found: Any = predict_array(family, image, tile=tile, overlap=overlap, batch=batch)["semantic"]
    np.testing.assert_allclose(found.probability[:, 3:-3, 3:-3], whole(family, image)[:, 3:-3, 3:-3], atol=1e-5)


_family: list[Family] = []


def stitch_family() -> Family:
    return _family[0]


@pytest.fixture(autouse=True)
def _shared(make: Make) -> None:
    _family[:] = [make(kind="semantic", radius=1)]
