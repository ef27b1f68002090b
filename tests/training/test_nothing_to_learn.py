"""A split whose truths say nothing is refused before training; one object somewhere is enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from zoo.errors import UserError
from zoo.recipe import Recipe
from zoo.training.run import train

COUNT = 20


def folder(path: Path, kind: str, with_object: int | None) -> Path:
    """A dataset of `COUNT` images; only the mask of number `with_object` has anything in it."""
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / "images" / f"{index:02}.png")
        mask = np.zeros((32, 32), np.uint8)
        if index == with_object:
            mask[4:12, 4:12] = 1
        Image.fromarray(mask).save(path / "masks" / f"{index:02}.png")
    classes = ["background", "cell"] if kind == "semantic" else ["cell"]
    card = {
        "zoo": 1, "name": "mine", "summary": "Mine.", "licence": {"name": "own", "allows": []},
        "reader": {"name": "folder", "arguments": {"masks": {"cells": {}}}},
        "truths": {"cells": {"kind": kind, "classes": classes}},
    }  # fmt: skip
    (path / "zoo-dataset.yaml").write_text(yaml.safe_dump(card))
    return path


def recipe(dataset: Path, output: Path) -> Recipe:
    """The smallest U-Net, one step."""
    return Recipe.model_validate(
        {
            "zoo": 1,
            "name": "small",
            "summary": "Small.",
            "output": str(output),
            "family": "unet",
            "model": {"encoder": "resnet10t", "decoder": {"name": "unet", "arguments": {"channels": [8, 8, 8]}}},
            "data": {
                "train": {"datasets": [f"{dataset}:all"], "size": [32, 32], "batch": 2, "samples": 2, "workers": 0}
            },
            "train": {"epochs": 1},
        }
    )


def test_what_is_validated_on_and_trained_on_too_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data", "semantic", 0)
    values = recipe(data, tmp_path / "run").values()
    values["data"]["train"]["datasets"][0]["limit"] = 12
    values["data"]["validate"] = {"datasets": [{"name": str(data), "split": "all"}], "batch": 4, "workers": 0}
    train(Recipe.model_validate(values))
    said = capfd.readouterr().err
    assert (
        "beware: 12 of 20 images to validate on (00, 01, 02 ...), or their patients or slides, are trained on" in said
    )

    values["data"]["train"]["datasets"][0] |= {"limit": None, "fold": 0}
    values["data"]["validate"]["datasets"][0]["fold"] = 0
    train(Recipe.model_validate(values | {"output": str(tmp_path / "other")}))
    assert "beware" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["semantic", "instances"])
def test_empty_truths_are_refused(tmp_path: Path, kind: str) -> None:
    data = folder(tmp_path / "data", kind, None)
    with pytest.raises(UserError, match=r"truths of all 20 images .* are empty.*zoo data check"):
        train(recipe(data, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_one_object_that_a_first_look_misses_is_enough(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", "instances", 7)
    assert (train(recipe(data, tmp_path / "run"), progress=False) / "last.safetensors").is_file()
