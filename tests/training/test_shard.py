"""Weights spread over two processes on a CPU learn what whole ones do, and are kept whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.training import setup, shard
from zoo.training.run import resume, train
from zoo.weights import store

PARTS = ("weights", "moments", "averages")


def apart(one: Path, two: Path) -> float:
    """Return the largest difference between what two runs kept."""
    a, b = (store.read_tensors(run / "last.safetensors")[0] for run in (one, two))
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def stored(run: Path) -> list[dict[str, int]]:
    """Return the bytes that each process of a run held at its end."""
    return [json.loads((run / f"stored-{rank}.json").read_text()) for rank in range(2)]


def check_halves(whole: Path, spread: Path) -> None:
    """Each of two processes held about half, and both together what a process of the other run did."""
    wanted, own = stored(whole)[0], stored(spread)
    for part in PARTS:
        assert sum(rank[part] for rank in own) == pytest.approx(wanted[part], rel=0.02), part
        assert max(rank[part] for rank in own) < 0.6 * wanted[part], part


def test_three_players_learn_what_they_do_whole(tmp_path: Path, values: Any, scenario: Any) -> None:
    """Two players share a loss, gradients wait for a second batch, and pictures are drawn by one process; a run that
    began whole is broken off while they wait, and goes on spread."""
    made = values("toy-adversarial", batch=4, samples=12, epochs=2, accumulate=2, ema=0.9, clip=0.1, pictures_every=1)
    actions = [f"pair:{tmp_path}/ddp", f"fsdp:{tmp_path}/fsdp", f"pair:{tmp_path}/both:2", f"fsdp-over:{tmp_path}/both"]
    done, said = scenario(tmp_path, made, *actions)
    assert [r["status"] for r in done] == [0, 0, 130, 0], said
    assert "Warning" not in said
    assert apart(tmp_path / "ddp", tmp_path / "fsdp") < 1e-5
    assert apart(tmp_path / "ddp", tmp_path / "both") < 1e-5
    check_halves(tmp_path / "ddp", tmp_path / "fsdp")
    assert len(list((tmp_path / "fsdp" / "pictures").iterdir())) == 2


def transformer() -> dict[str, Any]:
    """Return a recipe for a transformer told what an encoder that stands still says of the picture."""
    small = {"size": 16, "layers": 2, "heads": 2, "head_width": 16, "width": 288, "learned_variance": False}
    dataset = {"name": "phantom-nuclei", "split": "train", "limit": 3, "arguments": {"size": 48}}
    loading = {"datasets": [dataset], "size": [16, 16], "batch": 4, "workers": 0}
    return {
        "zoo": 1,
        "name": "tiny",
        "summary": "For tests.",
        "family": "diffusion",
        "model": {
            "network": {"name": "pixcell", "arguments": small},
            "embedding": {},
            "condition_encoder": "mobilenetv3_small_050",
            "condition_encoder_weights": "none",
        },
        "data": {"train": {**loading, "samples": 12}, "validate": {**loading, "batch": 2}},
        "train": {
            "epochs": 2,
            "optimizer": {"name": "adamw", "arguments": {"lr": 1e-2}},
            "accumulate": 2,
            "ema": 0.9,
            "clip": 1.0,
            "pictures_every": 0,
        },
    }


def test_a_transformer_goes_on_bit_for_bit(tmp_path: Path, scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off with gradients that wait; a copy of what was kept then goes on on one device."""
    monkeypatch.setenv("LARGE", "1000")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    actions = [f"pair:{tmp_path}/ddp", f"fsdp:{whole}", f"fsdp:{broken}:2", f"again:{tmp_path}/one:{broken}"]
    done, said = scenario(tmp_path, transformer(), *actions, f"fsdp-resume:{broken}")
    assert [r["status"] for r in done] == [0, 0, 130, 0, 0], said
    assert said.count("Go on with: zoo train --resume") == 1  # one process speaks
    assert "Warning" not in said
    assert done[2]["last"] != done[1]["last"]
    assert (done[4]["last"], done[4]["best"]) == (done[1]["last"], done[1]["best"])
    assert done[3]["last"] not in (done[1]["last"], done[2]["last"])
    assert apart(tmp_path / "ddp", whole) < 1e-5
    assert [rank["blocks"] for rank in stored(whole)] == [2, 2]
    check_halves(tmp_path / "ddp", whole)


def test_losses_of_different_parts(tmp_path: Path, script: Any) -> None:
    """A head that only one process's loss depends on counts as zero in the other, one of neither gets no gradient;
    what would leave processes waiting for each other ends both instead."""
    done = script("uneven.py", tmp_path / "meeting")
    assert done.returncode == 0, done.stderr
    second, first = map(json.loads, done.stdout.splitlines())
    assert first["gradients"] == second["gradients"]
    gradients = first["gradients"]
    assert gradients["heads.first.weight"] == gradients["heads.second.weight"] == [3.5] * 6  # half of what comes in
    assert gradients["heads.first.bias"] == gradients["heads.second.bias"] == [0.5] * 3
    assert gradients["heads.neither.weight"] is gradients["heads.neither.bias"] is None
    assert gradients["blocks.1.0.bias"] == [3.0] * 2
    assert "still" not in first["cut"]
    assert len(first["cut"]) == 10
    for what, words in (("blocks", "depend on a block"), ("players", "moved another player")):
        assert words in first[what]
        assert "--strategy ddp" in first[what]
        assert second[what] == "1"


def test_what_cannot_be_spread_is_refused_before_anything_is_written(tmp_path: Path, recipe: Any) -> None:
    run = tmp_path / "run"
    where: dict[str, Any] = {"strategy": "fsdp", "accelerator": "cpu", "progress": False}
    with pytest.raises(UserError, match=r"--strategy fsdp: there is one device.*--devices 2"):
        train(recipe(output=run), **where)
    with pytest.raises(UserError, match=r"stages: train: train.precision=16 .* Expected bf16 or 32"):
        train(recipe(output=run, precision="16"), devices=2, **where)
    assert not run.exists()
    train(recipe(output=run, epochs=1), progress=False)
    with pytest.raises(UserError, match="there is one device"):
        resume(run, **where)


def test_a_family_that_cannot_be_cut_is_refused(recipe: Any) -> None:
    from zoo.families.detr.teacher import MeanTeacher

    made = setup.create(setup.resolve(recipe()))
    shard.refuse_family(made, [made.procedure()])
    with pytest.raises(UserError, match=r"procedure MeanTeacher copies the model's weights.*--strategy ddp"):
        shard.refuse_family(made, [MeanTeacher()])
    made.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match="scale is a single number, which cannot be cut"):
        shard.refuse_family(made, [made.procedure()])


def test_blocks_are_large_repeated_and_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "LARGE", 20)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))

    net = nn.Module()
    net.deep = nn.ModuleList([Block(4), Block(4), Block(1)])
    net.layers = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net.other = nn.Sequential(nn.Sequential(Block(3), Block(3)), nn.Sequential(Block(4)))
    net.other[1][0].inner[1].weight = net.deep[1].inner[1].weight
    net.frozen = nn.ModuleList([Block(4), Block(4)])
    learns = [name for name, _ in net.named_parameters() if not name.startswith("frozen")]
    assert shard.blocks_of(net, learns) == [net.deep[0], net.other[0]]
    assert shard.blocks_of(net, []) == []
