"""Training of the family diffusion: goes on bit for bit, on one process and on two; a frozen base stays as it was."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.families import build
from zoo.recipe import Recipe
from zoo.training import setup
from zoo.training.run import train
from zoo.weights import store

NETWORK = {"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1, 2]}}


def loading(side: int, batch: int, **more: Any) -> dict[str, Any]:
    dataset = {"name": "phantom-nuclei", "split": "train", "limit": 3, "arguments": {"size": 48}}
    return {"datasets": [dataset], "size": [side, side], "batch": batch, "workers": 0, **more}


def recipe(**model: Any) -> dict[str, Any]:
    """Return two stages of rising size, with everything that must not be forgotten over an interruption."""
    training = {
        "epochs": 2,
        "optimizer": {"name": "adamw", "arguments": {"lr": 1e-3}},
        "accumulate": 2,
        "ema": 0.9,
        "precision": "bf16",
        "clip": 1.0,
        "checkpoint_every": 2,
        "pictures_every": 0,
        "procedure": {"name": "denoising", "arguments": {"cache": "disk"}},
    }
    small = {"train": loading(16, 2, samples=6, augment=["flips", "rotate90"]), "validate": loading(16, 2)}
    large = {"train": loading(32, 2, samples=4, augment=["flips"]), "validate": loading(32, 2)}
    return {
        "zoo": 1,
        "name": "tiny",
        "summary": "For tests.",
        "family": "diffusion",
        "model": {
            "network": NETWORK,
            "mask": {"truth": "nuclei"},
            "embedding": {},
            "condition_encoder": "mobilenetv3_small_050",
            "condition_encoder_weights": "none",
            "dropout": 0.3,
            **model,
        },
        "data": small,
        "stages": [{"name": "small", "train": training}, {"name": "large", "train": training, "data": large}],
    }


def test_killed_and_resumed_equals_unbroken(tmp_path: Path, scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the encoder says of a crop comes fresh, from memory or from the disk: the same to the bit."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    actions = [f"train:{tmp_path}/whole"]
    for batch in (3, 8):
        actions += [f"kill:{tmp_path}/kill{batch}:{batch}", f"resume:{tmp_path}/kill{batch}"]
    (whole, *rest), said = scenario(tmp_path, recipe(), *actions)
    assert whole["status"] == 0, said
    assert [r["signal"] for r in rest[::2]] == [signal.SIGKILL] * 2, said
    for result in rest[1::2]:
        assert result["status"] == 0, said
        assert (result["last"], result["best"]) == (whole["last"], whole["best"])
    assert list((tmp_path / "cache" / "diffusion").rglob("*.npy"))


@pytest.mark.slow
def test_two_processes_go_on_as_well(tmp_path: Path, scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    actions = [f"pair:{tmp_path}/whole", f"pair:{tmp_path}/broken:4", f"pair-resume:{tmp_path}/broken"]
    (whole, broken, resumed), said = scenario(tmp_path, recipe(), *actions)
    assert (whole["status"], broken["status"], resumed["status"]) == (0, 130, 0), said
    assert broken["last"] != whole["last"] == resumed["last"]


def test_a_frozen_part_stays_bit_by_bit(tmp_path: Path) -> None:
    """A stage that freezes the way down: what stands still is what the first stage left, averaged weights included."""
    made = recipe(embedding=None, condition_encoder=None)
    made["stages"][1]["freeze"] = ["network.down", "network.stem"]
    first = train(
        Recipe.model_validate({**made, "output": f"{tmp_path}/a", "stages": made["stages"][:1]}), progress=False
    )
    both = train(Recipe.model_validate({**made, "output": f"{tmp_path}/b"}), progress=False)
    before, after = (store.read_tensors(run / "last.safetensors")[0] for run in (first, both))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert not [name for name in moved if name.startswith(("network.down", "network.stem"))]


def test_training_a_controlnet_leaves_the_base_bit_by_bit(tmp_path: Path) -> None:
    size = {"size": 16, "layers": 2, "heads": 2, "head_width": 8, "learned_variance": False}
    nuclei = {"truth": "nuclei", "merge": {"nucleus": ["epithelial", "lymphocyte", "fibroblast"]}}
    made = recipe(network={"name": "pixcell-control", "arguments": size}, mask=nuclei)
    weights = str(tmp_path / "base.safetensors")
    training = {**made["stages"][0]["train"], "epochs": 1, "weights": weights}
    made |= {"train": training, "stages": [], "output": str(tmp_path / "run")}
    resolved = setup.resolve(Recipe.model_validate(made))
    family = setup.create(resolved)
    for parameter in family.parameters():  # of zeros at the end, as it begins, nothing would learn
        torch.nn.init.normal_(parameter, 0, 0.1)
    build.save(family, Path(weights))
    before, _ = store.read_tensors(Path(weights))
    after, _ = store.read_tensors(train(resolved, progress=False) / "last.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("network.control.controlnet_blocks") for name in moved)
    assert not [name for name in moved if name.startswith("network.base.")]
