from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo import postprocess
from zoo.errors import UserError
from zoo.families.base import Family
from zoo.inference import blocks
from zoo.inference.predict import assemble, predict_array, predict_source, settings_for
from zoo.inference.source import of_array

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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(20, 90), st.integers(20, 90), st.integers(4, 12), st.sampled_from([16, 24, 40]), st.integers(1, 9))
def test_tiles_do_not_show(make: Make, height: int, width: int, overlap: int, tile: int, batch: int) -> None:
    family = make(kind="semantic", radius=1)
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found: Any = predict_array(family, image, tile=tile, overlap=overlap, batch=batch)["semantic"]
    expected = whole(family, image)
    np.testing.assert_allclose(found.probability[:, :-3, :-3], expected[:, :-3, :-3], atol=1e-5)


def test_a_sampler_does_not_depend_on_the_batch_but_on_the_seed(make: Make, blobs: Blobs) -> None:
    family = make("sampler")
    image = blobs(70, 90)
    one, many, again, other = (
        predict_array(family, image, batch=batch, seed=seed)["semantic"].probability  # type: ignore[union-attr]
        for batch, seed in ((1, 3), (7, 3), (7, 3), (7, 4))
    )
    np.testing.assert_array_equal(many, again)
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert np.abs(np.asarray(other) - np.asarray(many)).max() > 0.1
    quiet: Any = predict_array(family, image, noise=0.0, overlap=8)["semantic"]
    np.testing.assert_allclose(quiet.probability[:, :-3, :-3], whole(family, image)[:, :-3, :-3], atol=1e-5)


def test_the_tiles_of_a_picture_share_its_percentiles(make: Make) -> None:
    family = make(kind="semantic", channels=("dapi",), encoding="percentile", radius=1)
    image = (np.linspace(0, 60000, 90 * 80).reshape(90, 80)).astype(np.uint16)
    found: Any = predict_array(family, image)["semantic"]
    expected = whole(family, image[..., None].astype(np.float32))
    np.testing.assert_allclose(found.probability[:, :-3, :-3], expected[:, :-3, :-3], atol=1e-4)


@pytest.mark.parametrize("mpp", [0.25, 0.4, 1.0])
def test_objects_are_found_where_they_are_at_any_resolution(make: Make, blobs: Blobs, mpp: float) -> None:
    image = blobs(120, 150, 4, radius=14)
    truth = image.mean(2) < 127
    family = make("threshold", kind="semantic", mpp=0.5)
    found: Any = predict_array(family, image, mpp=mpp)["semantic"]
    assert found.map.shape == truth.shape
    both = 2 * (found.map.astype(bool) & truth).sum() / (found.map.sum() + truth.sum())
    assert both > 0.93


@pytest.mark.parametrize("mpp", [0.2, 0.5, 0.9])
def test_bands_join_without_a_trace_when_resampled(make: Make, blobs: Blobs, mpp: float) -> None:
    image = blobs(150, 60, 4)
    family = make(kind="semantic", mpp=0.5, radius=1)
    banded: Any = predict_array(family, image, mpp=mpp, overlap=8)["semantic"]
    at_once: Any = predict_array(family, image, mpp=mpp, tile=512)["semantic"]
    edge = 12  # mirrored on the one side, more of the picture on the other
    np.testing.assert_allclose(banded.probability[:, :-edge, :-edge], at_once.probability[:, :-edge, :-edge], atol=1e-4)


def test_a_model_with_a_resolution_never_guesses(make: Make, blobs: Blobs) -> None:
    family = make("threshold", mpp=0.5)
    image = blobs(40, 40)
    with pytest.raises(UserError, match=r"not known .* works at 0\.5.*--mpp"):
        predict_array(family, image)
    native: Any = predict_array(family, image, mpp="native")["semantic"]
    same: Any = predict_array(family, image, mpp=0.505)["semantic"]
    np.testing.assert_array_equal(native.map, same.map)
    for wrong in (0, -1, "coarse"):
        with pytest.raises(UserError, match="mpp"):
            predict_array(family, image, mpp=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [60, 64, 150])
def test_objects_are_the_same_in_blocks(make: Make, monkeypatch: pytest.MonkeyPatch, blobs: Blobs, side: int) -> None:
    """Connected components feel no blocks: neither cut nor doubled nor joined, even where they exceed a block."""
    monkeypatch.setattr(blocks, "CORE", 32)
    image = blobs(side, side + 17, 5, radius=7)
    image[side // 2, 4:-4] = 0  # one object through all the blocks
    family = make("threshold", kind="instances+semantic", extent=4, radius=2)
    expected = predict_array(family, image)
    source = of_array(image, family.spec)
    found = assemble(predict_source(family, source, settings_for(family, {}, whole=0)), source.shape)
    labels, truth = found["instances"].map, expected["instances"].map  # type: ignore[union-attr]
    assert labels.max() == truth.max() > 3
    pairs = np.unique(np.stack([labels.ravel(), truth.ravel()]), axis=1)
    assert pairs.shape[1] == truth.max() + 1
    np.testing.assert_array_equal(found["semantic"].map, expected["semantic"].map)  # type: ignore[union-attr]
    scores = found["instances"].scores  # type: ignore[union-attr]
    assert scores.shape == (labels.max(),)
    assert len(found["instances"].class_index) == labels.max()  # type: ignore[union-attr]


def test_a_detector_says_each_object_once(make: Make, blobs: Blobs) -> None:
    image = np.full((100, 140, 3), 220, np.uint8)
    for y, x in ((10, 10), (28, 30), (50, 60), (60, 100), (90, 30), (30, 120)):
        image[y - 4 : y + 4, x - 4 : x + 4] = 30
    family = make("threshold", kind="boxes", stitch="objects")
    found: Any = predict_array(family, image, overlap=16)["boxes"]
    expected: Any = predict_array(make("threshold", kind="boxes"), image)["boxes"]
    assert len(expected.xyxy) == 6
    order, wanted = (np.lexsort(boxes.xyxy.T[:2]) for boxes in (found, expected))
    np.testing.assert_allclose(found.xyxy[order], expected.xyxy[wanted])
    assert (np.diff(found.scores) <= 1e-6).all()


def test_pictures_are_blended_unactivated(make: Make, blobs: Blobs) -> None:
    family = make(kind="picture", radius=1)
    image = blobs(50, 80)
    found: Any = predict_array(family, image)["picture"]
    np.testing.assert_allclose(found.data[:, :-3, :-3], whole(family, image)[:, :-3, :-3], atol=1e-4)


def test_odd_images_become_rgb(make: Make, blobs: Blobs) -> None:
    family = make("threshold")
    image = blobs(40, 50)
    expected: Any = predict_array(family, image)["semantic"]
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(predict_array(family, opaque)["semantic"].map, expected.map)  # type: ignore[union-attr]
    grey: Any = predict_array(family, image[..., 0])["semantic"]
    assert grey.map.shape == (40, 50)
    for wrong in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 7), np.uint8), np.zeros(5, np.uint8)):
        with pytest.raises(UserError, match=r"shape|picture"):
            predict_array(family, wrong)


def test_the_family_is_as_it_was(make: Make, blobs: Blobs) -> None:
    family = make().train()
    family.layer.eval()  # type: ignore[union-attr]
    predict_array(family, blobs(20, 20))
    assert family.training
    assert not family.layer.training  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options", [{"tile": 0}, {"overlap": -1}, {"overlap": 10_000}, {"batch": 0}, {"threshhold": 0.5}]
)
def test_options_that_cannot_be(make: Make, blobs: Blobs, options: Any) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        predict_array(make(), blobs(20, 20), **options)


def test_a_tile_smaller_than_the_divisor_is_rounded_up(make: Make, blobs: Blobs) -> None:
    family, image = make(), blobs(50, 40)
    small: Any = predict_array(family, image, tile=max(1, family.spec.divisor - 1))["semantic"]
    assert small.map.shape == (50, 40)


def test_the_predict_method_reaches_here(make: Make, blobs: Blobs) -> None:
    family = make("threshold")
    image = blobs(30, 30)
    np.testing.assert_array_equal(family.predict(image, threshold=0.9).map, postprocess_map(family, image, 0.9))


def postprocess_map(family: Family, image: np.ndarray, threshold: float) -> np.ndarray:
    labels = postprocess.components(whole(family, image)[1] >= threshold)
    return (labels > 0).astype(np.uint8)


def test_a_model_of_other_channels_names_them(make: Make) -> None:
    family = make(channels=("dapi", "lap2"), encoding="raw")
    assert predict_array(family, np.zeros((20, 20, 2), np.uint8))["semantic"].map.shape == (20, 20)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"3 channels.*dapi, lap2"):
        predict_array(family, np.zeros((20, 20, 3), np.uint8))
    one = make(channels=("dapi",), encoding="raw")
    grey = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    stored_as_colour: Any = predict_array(one, np.repeat(grey[..., None], 3, 2))["semantic"]
    np.testing.assert_array_equal(stored_as_colour.map, predict_array(one, grey)["semantic"].map)  # type: ignore[union-attr]
