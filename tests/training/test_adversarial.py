"""Adversarial training on two processes and in half precision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.recipe import Recipe
from zoo.training.run import train
from zoo.weights import store


def values(**changes: Any) -> dict[str, Any]:
    """Return a small recipe of stain translation on the phantom."""
    source = {"name": "phantom-stains", "arguments": {"size": 64, "train": 4, "val": 2, "marker": "Ki67"}}
    made: dict[str, Any] = {
        "zoo": 1,
        "name": "stains",
        "summary": "For tests.",
        "family": "translation",
        "model": {
            "generator": {"width": 4, "blocks": 1},
            "discriminator": {"width": 4, "layers": 2, **changes.pop("discriminator", {})},
            "objective": ["gan", {"name": "l1", "weight": 10}],
            "truth": "ihc",
        },
        "data": {
            "train": {
                "datasets": [{**source, "split": "train"}],
                "size": [64, 64],
                "batch": 2,
                "samples": 4,
                "workers": 0,
            },
            "validate": {"datasets": [{**source, "split": "val"}], "batch": 2, "workers": 0},
        },
        "train": {"epochs": 2, "pictures_every": 0, **changes},
    }
    return made


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, script: Any) -> None:
    """Both players' gradients are synchronised: a sample on each of two equals two samples on one."""
    made = values(optimizer={"name": "sgd", "arguments": {"lr": 1e-3}})
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    done = script("distributed.py", tmp_path / "recipe.json", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    train(Recipe.model_validate({**made, "output": str(tmp_path / "one")}), accelerator="cpu", progress=False)
    one, _ = store.read_tensors(tmp_path / "one" / "last.safetensors")
    two, _ = store.read_tensors(tmp_path / "two" / "last.safetensors")
    assert any(name.startswith("judge.") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_half_precision_on_two_processes_learns(tmp_path: Path, script: Any) -> None:
    made = values(precision="bf16", discriminator={"pool": 3}, epochs=3)
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    done = script("distributed.py", tmp_path / "recipe.json", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "two" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    losses = [float(row.split(",")[names.index("validation/loss")]) for row in rows[1:]]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
