"""Zoom and mosaic: pictures, masks and boxes stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.augment import Augment
from zoo.data.compose import Mosaic, Zoom
from zoo.data.crop import take_valid, with_valid
from zoo.errors import UserError
from zoo.schema import Component
from zoo.types import Boxes, Instances, Label, Sample, Semantic


def field(seed: int, shape: tuple[int, int] = (40, 60)) -> Sample:
    """Return a grey field with bright rectangles, that are boxes, objects and a mask too."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for label, (y, x) in enumerate(((4, 5), (20, 34)), 1):
        labels[y : y + int(rng.integers(6, 12)), x : x + int(rng.integers(6, 20))] = label
    image = np.where(labels > 0, 200, 90).astype(np.uint8)[None].repeat(3, 0)
    rows = [(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in (np.nonzero(labels == i) for i in (1, 2))]
    boxes = Boxes(np.asarray(rows, np.float32), np.array([1, 2]), np.array([[0], [1]]))
    truth = {
        "cells": boxes,
        "objects": Instances(labels, {1: 1, 2: 2}),
        "cell": Semantic((labels > 0).astype(np.uint8)),
    }
    return with_valid(Sample(f"s{seed}", "d", image, truth=truth))


def agree(sample: Sample, zoom: float = 1.0) -> None:
    """Raise where a box does not lie around what is bright, to a pixel or two of interpolation."""
    boxes, objects = sample.truth["cells"], sample.truth["objects"]
    assert isinstance(boxes, Boxes)
    assert isinstance(objects, Instances)
    for x0, y0, x1, y1 in boxes.xyxy:
        inside = objects.map[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        if (x1 - x0) > 3 and (y1 - y0) > 3:
            assert (inside > 0).mean() > 0.5
            assert (sample.image[0, int(y0 + 1) : int(y1 - 1), int(x0 + 1) : int(x1 - 1)] > 140).mean() > 0.6
    covered = np.zeros(sample.shape, bool)
    for x0, y0, x1, y1 in np.rint(boxes.xyxy).astype(int):
        covered[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = True
    largest = 12 * 20 * zoom**2
    for label in np.unique(objects.map[~covered]):  # only slivers of less than a quarter lose their box
        assert not label or (objects.map[~covered] == label).sum() < 0.25 * largest


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.floats(0.4, 2.0))
def test_zoom(seed: int, factor: float) -> None:
    sample = field(seed)
    found = Zoom((factor, factor))(sample, np.random.default_rng(seed))
    assert found.shape == sample.shape
    agree(found, factor)
    found, valid = take_valid(found)
    covered = min(1.0, round(40 * factor) / 40) * min(1.0, round(60 * factor) / 60)
    assert valid.mean() == pytest.approx(covered, abs=0.02)
    assert set(np.unique(found.image[:, ~valid]).tolist()) <= {90, 200}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 500))
def test_mosaic(seed: int) -> None:
    others = [field(seed + i, (30, 50)) for i in (1, 2, 3)]
    found = Mosaic((0.5, 1.0)).mix(field(seed), others, np.random.default_rng(seed))
    assert found.shape == (40, 60)
    agree(found)
    boxes, objects = found.truth["cells"], found.truth["objects"]
    assert isinstance(boxes, Boxes)
    assert isinstance(objects, Instances)
    assert boxes.attributes is not None
    assert len(boxes.attributes) == len(boxes.classes) == len(boxes.xyxy)
    assert (boxes.xyxy >= 0).all()
    assert (boxes.xyxy[:, 2:] <= [60, 40]).all()
    assert set(np.unique(objects.map)) - {0} <= set(objects.classes or {})


def test_what_one_of_four_lacks_is_not_annotated() -> None:
    sample, bare = field(0), with_valid(Sample("bare", "d", field(1).image))
    sample = sample.with_(truth={**sample.truth, "type": Label(1)})
    found = Mosaic().mix(sample, [bare, field(2), field(3)], np.random.default_rng(0))
    assert "cells" not in found.truth
    assert "type" not in found.truth


def test_a_chain_draws_partners_by_its_seed() -> None:
    chain = Augment([Component(name="mosaic", arguments={"p": 1.0}), Component(name="zoom")])
    asked: list[int] = []

    def partner(rng: np.random.Generator) -> Sample:
        asked.append(int(rng.integers(9)))
        return field(asked[-1])

    one, two = chain(field(0), 5, partner), chain(field(0), 5, partner)
    assert asked[:3] == asked[3:]
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(chain(field(0), 6, partner).image, one.image)
    assert len(chain(field(0), 5).truth) == 4  # nobody to mix with
    with pytest.raises(UserError, match="scale"):
        Augment([Component(name="zoom", arguments={"scale": [0, 9]})])
