"""Augmentation: image and truths move together, a seed decides, any number of channels goes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo import registry
from zoo.data.augment import PRESETS, Augment
from zoo.data.crop import VALID, take_valid, with_valid
from zoo.errors import UserError
from zoo.schema import Component
from zoo.types import Boxes, Instances, Picture, Sample, Semantic

MOVES = ("flips", "rotate90", "affine", "elastic")


def blocks(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    """A label map of large blocks: classes 0..3."""
    coarse = rng.integers(0, 4, (3, 3))
    rows, columns = (np.arange(n) * 3 // n for n in shape)
    return coarse[np.ix_(rows, columns)].astype(np.uint8)


def labelled(seed: int, shape: tuple[int, int] = (48, 64), channels: int = 3) -> Sample:
    """A sample whose image shows its label map, so that both can be compared after any movement."""
    rng = np.random.default_rng(seed)
    classes = blocks(rng, shape)
    known = {100_003 * k: k for k in (1, 2, 3) if (classes == k).any()}
    ids = classes.astype(np.int32) * 100_003  # ids that neither 16 bits nor a small table holds
    image = np.repeat(classes[None] * np.uint8(80), channels, axis=0)
    truth: dict[str, Any] = {
        "tissue": Semantic(classes, ignore=255),
        "layers": Semantic(np.stack([classes == k for k in range(4)]), multilabel=True),
        "cells": Instances(ids, known, ignore=np.zeros(shape, bool)),
        "other": Picture(image[:1].astype(np.float32), ("stain",), encoding="linear"),
        "boxes": Boxes(np.array([[4, 6, 30, 26], [40, 20, 60, 40]], np.float32), np.array([1, 2])),
    }
    return Sample(str(seed), "toy", image, channels=tuple(f"c{i}" for i in range(channels)), truth=truth)


def one(name: str, **arguments: Any) -> Augment:
    return Augment([Component(name=name, arguments=arguments)])


@pytest.mark.parametrize("name", MOVES)
@given(seed=st.integers(0, 10_000))
def test_truths_move_with_the_image(name: str, seed: int) -> None:
    sample = with_valid(labelled(seed % 7))
    moved, valid = take_valid(one(name)(sample, seed))
    tissue, layers, cells, other = (moved.truth[k] for k in ("tissue", "layers", "cells", "other"))
    assert isinstance(tissue, Semantic)
    assert isinstance(layers, Semantic)
    assert isinstance(cells, Instances)
    assert isinstance(other, Picture)
    # maps agree with each other exactly
    assert (tissue.map[~valid] == 255).all()
    assert not (tissue.map[valid] == 255).any()
    assert (cells.map[valid] == tissue.map[valid].astype(np.int64) * 100_003).all()
    assert (cells.map[~valid] == 0).all()
    assert cells.ignore is not None
    assert (cells.ignore == ~valid).all()
    assert all((layers.map[k][valid] == (tissue.map[valid] == k)).all() for k in range(4))
    assert cells.map.dtype == np.int32
    assert set(cells.classes or {}) == set(np.unique(cells.map).tolist()) - {0}
    # and with the image, but for pixels that interpolation mixes at the borders of blocks
    agree = np.abs(moved.image[0].astype(int) - 80 * tissue.map.astype(int)) <= 40
    assert agree[valid].mean() > 0.93
    assert np.allclose(other.data[0][valid], moved.image[0][valid].astype(float), atol=1.0)
    assert np.array_equal(valid, np.ones_like(valid) if other.valid is None else other.valid)


@pytest.mark.parametrize("name", ["flips", "rotate90"])
@given(seed=st.integers(0, 10_000))
def test_right_angles_are_exact_and_boxes_follow(name: str, seed: int) -> None:
    sample = labelled(1)
    marked = np.zeros((48, 64), np.uint8)
    marked[6:26, 4:30] = 1
    sample = sample.with_(truth={**sample.truth, "marked": Semantic(marked)}, spacing=(0.5, 0.25))
    moved = one(name)(sample, seed)
    tissue, boxes, box = (moved.truth[k] for k in ("tissue", "boxes", "marked"))
    assert isinstance(tissue, Semantic)
    assert isinstance(boxes, Boxes)
    assert isinstance(box, Semantic)
    assert (moved.image[0] == tissue.map * 80).all()
    rows, columns = np.nonzero(box.map)
    assert boxes.xyxy[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert moved.spacing == ((0.5, 0.25) if moved.shape == (48, 64) else (0.25, 0.5))


@given(seed=st.integers(0, 10_000))
def test_affine_boxes_hold_their_object(seed: int) -> None:
    sample = labelled(1)
    marked = np.zeros((48, 64), np.uint8)
    marked[16:30, 20:44] = 1
    truth = {"box": Boxes(np.array([[20, 16, 44, 30]], np.float32), np.array([3])), "marked": Semantic(marked)}
    moved = one("affine", rotate=30)(sample.with_(truth=truth), seed)
    box, shown = moved.truth["box"], moved.truth["marked"]
    assert isinstance(box, Boxes)
    assert isinstance(shown, Semantic)
    rows, columns = np.nonzero(shown.map)
    assert box.classes.tolist() == [3]
    x0, y0, x1, y1 = box.xyxy[0]
    assert x0 - 1 <= columns.min() <= columns.max() + 1 <= x1 + 1
    assert y0 - 1 <= rows.min() <= rows.max() + 1 <= y1 + 1


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_presets_take_any_number_of_channels(preset: str, channels: int) -> None:
    sample = with_valid(labelled(3, channels=channels))
    augment = Augment(preset)
    augment.check(sample.channels)
    found = [augment(sample, seed) for seed in range(6)]
    again = [augment(sample, seed) for seed in reversed(range(6))][::-1]
    for first, second in zip(found, again, strict=True):
        assert first.image.dtype == np.uint8
        assert first.image.shape[0] == channels
        assert sorted(first.image.shape[1:]) == [48, 64]
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.truth["tissue"].map, second.truth["tissue"].map)  # type: ignore[union-attr]
    different = len({f.image.tobytes() for f in found})
    assert different == 1 if preset == "none" else different > 3


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_fluorescence_keeps_the_dtype(dtype: Any) -> None:
    sample = labelled(2, channels=2)
    sample = sample.with_(image=sample.image.astype(dtype) * 100)
    for seed in range(5):
        assert Augment("fluorescence")(sample, seed).image.dtype == dtype


def test_a_seed_is_enough_in_another_process() -> None:
    sample = with_valid(labelled(3))
    augment = Augment("he-strong")
    copy = pickle.loads(pickle.dumps(augment))
    for seed in range(4):
        assert np.array_equal(augment(sample, seed).image, copy(sample, seed).image)


def test_the_sample_that_came_in_is_not_changed() -> None:
    sample = with_valid(labelled(3))
    before = pickle.dumps(sample)
    for preset in PRESETS:
        for seed in range(4):
            Augment(preset)(sample, seed)
    assert pickle.dumps(sample) == before


@pytest.mark.parametrize("name", sorted(set(registry.names("augmentation")) - {"albumentations"}))
def test_every_registered_augmentation_works_by_name(name: str) -> None:
    rng = np.random.default_rng(0)
    sample = with_valid(labelled(3)).with_(image=rng.integers(0, 255, (3, 48, 64), np.uint8))
    augment = one(name)
    if name == "restained":  # takes the place of the image where a sample brings a copy
        copy = Picture(255 - sample.image, ("red", "green", "blue"))
        sample = sample.with_(truth={**sample.truth, "restained": copy})
    other = sample.with_(image=255 - sample.image)
    found = [augment(sample, seed, lambda _: other).image for seed in range(12)]
    assert any(image.shape != sample.image.shape or (image != sample.image).any() for image in found)
    assert augment.steps[0].name == name


def test_any_transform_of_albumentations_by_name() -> None:
    sample = with_valid(labelled(3))
    augment = one("albumentations", transform="GridDistortion", num_steps=4, distort_limit=[-0.3, 0.3])
    moved = augment(sample, 1)
    tissue, cells = moved.truth["tissue"], moved.truth["cells"]
    assert isinstance(tissue, Semantic)
    assert isinstance(cells, Instances)
    assert (moved.image != sample.image).any()
    inside = tissue.map != 255
    assert (cells.map[inside] == tissue.map[inside].astype(np.int64) * 100_003).all()


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (Component(name="flip"), "Did you mean flips"),
        (Component(name="affine", arguments={"rotat": 3}), "Did you mean rotate"),
        (Component(name="blur", arguments={"sigma": [2, 1]}), "smaller first"),
        (Component(name="flips", arguments={"p": 2}), "from 0 to 1"),
        (Component(name="albumentations", arguments={"transform": "GridDistort"}), "Did you mean GridDistortion"),
        (Component(name="albumentations", arguments={"transform": "RandomGamma", "gama": 1}), "no argument"),
        (Component(name="albumentations"), "transform"),
    ],
)
def test_mistakes_are_named_before_anything_starts(component: Component, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Augment([component])


def test_colour_steps_of_a_list_need_colour() -> None:
    augment = one("stain-jitter")
    with pytest.raises(UserError, match="works on 3 colour channels"):
        augment.check(("dapi",))
    with pytest.raises(UserError, match="works on planes"):
        one("affine").check(("ct",), "CZYX")
    with pytest.raises(UserError, match="Did you mean light"):
        Augment("lightt")


def test_volumes_can_be_flipped_and_turned() -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 255, (1, 5, 8, 9), np.uint8)
    sample = Sample("a", "b", volume, axes="CZYX", channels=("ct",), truth={"organ": Semantic(volume[0])})
    for seed in range(6):
        moved = Augment("light")(sample, seed)
        assert (moved.image[0] == moved.truth["organ"].map).all()  # type: ignore[union-attr]


def test_valid_key_is_not_a_name_that_a_dataset_can_have() -> None:
    assert not VALID.isprintable()


@pytest.mark.parametrize("seed", range(5))
def test_a_hole_is_empty_everywhere(seed: int) -> None:
    """Image, pictures and objects are empty in one rectangle of at most the share asked for; maps are not annotated."""
    sample = labelled(seed)
    sample = sample.with_(image=np.maximum(sample.image, 1))
    found = one("hole", side=[0.1, 0.5], p=1)(sample, seed)
    hole = (found.image == 0).all(0)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert hole.sum() == len(rows) * len(columns)
    assert len(rows) <= 24
    assert len(columns) <= 32
    tissue, cells, other, layers = (found.truth[k] for k in ("tissue", "cells", "other", "layers"))
    before = sample.truth
    assert isinstance(tissue, Semantic)
    assert isinstance(cells, Instances)
    assert isinstance(other, Picture)
    assert isinstance(layers, Semantic)
    assert (tissue.map[hole] == 255).all()
    assert not cells.map[hole].any()
    assert not other.data[:, hole].any()
    assert np.array_equal(layers.map, before["layers"].map)  # type: ignore[union-attr]
    for key, array in (("tissue", tissue.map), ("cells", cells.map)):
        assert np.array_equal(array[~hole], before[key].map[~hole])  # type: ignore[union-attr]
    assert np.array_equal(found.image[:, ~hole], sample.image[:, ~hole])
