"""Two processes on a CPU do what one does."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.recipe import Recipe
from zoo.training.run import train
from zoo.weights import store


def last_row(folder: Path) -> dict[str, str]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.slow
def test_two_processes_with_half_the_batch_equal_one(tmp_path: Path, values: Any, script: Any) -> None:
    """20 steps: batch 2 on each of two equals batch 4 on one to 1e-5 (no batch statistics, a loss that averages over
    samples, dropout off); three validation images in batches of two leave one process less to do."""
    rate = {"name": "sgd", "arguments": {"lr": 0.1}}
    made = values(
        model={"norm": False, "dropout": 0.0},
        batch=4,
        samples=20,
        epochs=4,
        ema=0.9,
        accumulate=2,
        clip=1.0,
        optimizer=rate,
        augment="light",
        arguments={"vary": 0},
    )
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    done = script("distributed.py", tmp_path / "recipe.json", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    assert "distributed" not in done.stderr  # Lightning's own announcements
    train(Recipe.model_validate({**made, "output": str(tmp_path / "one")}), accelerator="cpu", progress=False)
    one, _ = store.read_tensors(tmp_path / "one" / "last.safetensors")
    two, _ = store.read_tensors(tmp_path / "two" / "last.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)
    untrained = torch.linalg.vector_norm(one["head.weight"] - _initial(made)["head.weight"])
    assert untrained > 0.05
    rows = last_row(tmp_path / "one"), last_row(tmp_path / "two")
    assert (rows[0]["batch"], rows[1]["batch"]) == ("20", "20")
    for name in rows[0]:
        if name.startswith(("train/", "validation/")):
            assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), abs=2e-5), name
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert environment["world"] == 2


@pytest.mark.slow
def test_a_resumed_run_on_two_processes_equals_an_unbroken_one(tmp_path: Path, values: Any, scenario: Any) -> None:
    """Batch statistics, dropout and gradients that wait in each process when the checkpoint is written; only one of
    the two is asked to stop."""
    made = values(model={"dropout": 0.3}, batch=4, samples=20, epochs=2, accumulate=2, checkpoint_every=5)
    actions = [f"pair:{tmp_path}/whole", f"pair:{tmp_path}/broken:6", f"pair-resume:{tmp_path}/broken"]
    (whole, broken, resumed), said = scenario(tmp_path, made, *actions)
    assert (whole["status"], broken["status"], resumed["status"]) == (0, 130, 0), said
    assert said.count("Go on with: zoo train --resume") == 1  # one process speaks
    assert broken["last"] != whole["last"] == resumed["last"]


def _initial(values: dict[str, Any]) -> dict[str, Any]:
    from zoo.training import setup

    return setup.create(setup.resolve(Recipe.model_validate(values))).state_dict()
