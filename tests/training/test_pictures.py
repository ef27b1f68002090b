"""Panels of every kind of truth and prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.families import build
from zoo.families.base import Output
from zoo.recipe import Loading
from zoo.training.pictures import GAP, as_rgb, draw_panels, rendered, stacked, thinned
from zoo.training.validate import Validation
from zoo.types import Boxes, Instances, Label, LabelPrediction, Picture, Semantic, SemanticPrediction

IMAGE = np.full((20, 30, 3), 128, np.uint8)
MASK = np.zeros((20, 30), np.uint8)
MASK[5:10, 5:10] = 1


@pytest.mark.parametrize(
    "shown",
    [
        Semantic(MASK),
        Semantic(np.where(MASK, 1, 255).astype(np.uint8), ignore=255),
        Semantic(np.stack([MASK > 0, MASK < 0]), multilabel=True),
        SemanticPrediction(MASK, ("background", "gland")),
        Instances(7 * MASK.astype(np.int32)),
    ],
)
def test_a_map_tints_its_pixels_and_no_others(shown: Any) -> None:
    panel = rendered(IMAGE, shown, Output("semantic", ("background", "gland")))
    changed = (panel != IMAGE).any(-1)
    assert np.array_equal(changed, MASK > 0)


def test_a_class_has_the_colour_that_the_family_names() -> None:
    panel = rendered(IMAGE, Semantic(MASK), Output("semantic", ("background", "gland"), colours={"gland": "#ff0000"}))
    assert panel[7, 7].tolist() == [191, 64, 64]


def test_boxes_pictures_labels() -> None:
    panel = rendered(IMAGE, Boxes(np.array([[2, 3, 9, 12]], np.float32), np.array([1])), Output("boxes"))
    assert (panel[3, 2:9] != 128).any()
    assert (panel[6, 6] == 128).all()
    data = np.random.default_rng(0).integers(0, 255, (3, 20, 30), dtype=np.uint8)
    assert np.array_equal(rendered(IMAGE, Picture(data, ("r", "g", "b")), Output("picture")), as_rgb(data))
    for shown in (Label(1), LabelPrediction(1, ("few", "many"))):
        assert (rendered(IMAGE, shown, Output("label", ("few", "many"))) > 128).any()


def test_other_dtypes_are_stretched() -> None:
    ramp = np.linspace(0, 4000, 600, dtype=np.uint16).reshape(1, 20, 30)
    shown = as_rgb(ramp)
    assert shown.shape == (20, 30, 3)
    assert (shown.min(), shown.max()) == (0, 255)


def test_rows_of_different_widths_stand_below_each_other() -> None:
    whole = stacked([IMAGE, IMAGE[:, :10]])
    assert whole.shape == (40, 30, 3)
    assert thinned(IMAGE, 10).shape == (7, 10, 3)


@pytest.mark.parametrize("batch", [1, 3])
def test_so_many_images_are_drawn_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    model = {"encoder": "resnet10t", "decoder": {"name": "unet", "arguments": {"channels": [4] * 5}}}
    model |= {"classes": ["background", "gland"], "channels": ["red", "green", "blue"], "truth": "glands"}
    family = build.create("unet", {**model, "encoding": "rgb8"})
    sources = [{"name": "phantom-glands", "split": "val", "limit": 3}]
    loading = Loading.model_validate({"datasets": sources, "batch": batch, "workers": 0})
    validation = Validation(loading, family, seed=0, rank=0, world=1, gather=lambda sums: [sums])
    draw_panels(family, validation, tmp_path / "x.png", most=2, side=64)
    validation.close()
    side = validation.loader.datasets[0][0].shape[0]
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.height == 2 * (len(range(0, side, -(-side // 64))) + 2 * GAP)
