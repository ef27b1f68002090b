"""Images stretched as a whole before patches are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.collate import Item, NoTargets, collate
from zoo.data.stretch import LIMITS, limits, stretch
from zoo.families.base import Encoding, encode
from zoo.types import Geometry, Meta, Sample

PERCENTILES = Encoding("percentile")


def _sample(image: np.ndarray) -> Sample:
    names = tuple(f"c{i}" for i in range(len(image)))
    return Sample("one", "test", image, channels=names)


@given(st.integers(0, 2**16), st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_a_patch_of_a_stretched_image_is_the_patch_of_the_encoded_image(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    top = {np.uint8: 120, np.uint16: 4000, np.float32: 3}[dtype]
    image = (rng.random((2, 40, 50)) ** 3 * top).astype(dtype)
    whole = encode(torch.from_numpy(image.astype(np.float32))[None], PERCENTILES)[0, :, 5:20, 7:30]
    found = stretch(_sample(image), PERCENTILES.low, PERCENTILES.high).image
    patch = torch.from_numpy(found[:, 5:20, 7:30].copy())[None]
    encoded = encode(patch, PERCENTILES, torch.from_numpy(limits(found))[None])[0]
    room = (LIMITS[0] / (LIMITS[1] - LIMITS[0]), (255 - LIMITS[0]) / (LIMITS[1] - LIMITS[0]))
    step = 0.5 / (LIMITS[1] - LIMITS[0]) if dtype == np.uint8 else 0
    assert torch.allclose(encoded, whole.clamp(-room[0], room[1]), atol=step + 1e-3)


def test_dtype_stays_where_it_is_uint8_and_a_flat_image_stays_flat() -> None:
    flat = stretch(_sample(np.full((3, 8, 8), 9, np.uint8)), 1, 99.8).image
    assert flat.dtype == np.uint8
    assert np.unique(flat).tolist() == [int(LIMITS[0])]
    assert stretch(_sample(np.full((1, 8, 8), 9, np.uint16)), 1, 99.8).image.dtype == np.float32


def test_a_batch_of_both_dtypes_has_one_scale() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    items = []
    for dtype in (np.uint8, np.uint16):
        found = stretch(_sample(image.astype(dtype)), 1, 99.8).image
        meta = Meta("one", "test", Geometry((8, 8)))
        items.append(Item(found, np.ones((8, 8), bool), {}, NoTargets(), meta, limits(found)))
    batch = collate(items)
    first, second = encode(batch.inputs["image"], PERCENTILES, batch.inputs["range"])
    assert torch.allclose(first, second, atol=0.6 / (LIMITS[1] - LIMITS[0]))


@pytest.mark.parametrize("known", [True, False])
def test_a_range_is_carried_only_where_every_item_has_one(known: bool) -> None:
    image = np.zeros((1, 8, 8), np.uint8)
    meta = Meta("one", "test", Geometry((8, 8)))
    items = [
        Item(image, np.ones((8, 8), bool), {}, NoTargets(), meta, limits(image)),
        Item(image, np.ones((8, 8), bool), {}, NoTargets(), meta, limits(image) if known else None),
    ]
    assert ("range" in collate(items).inputs) is known
