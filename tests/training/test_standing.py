"""What does not learn is written once, and a run that goes on from it equals one that was not stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo.errors import Interrupted, UserError
from zoo.fetch import checksum
from zoo.recipe import Recipe
from zoo.training import checkpoint, loop, standing
from zoo.training.run import resume, train
from zoo.training.standing import Standing


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    for layer in (net[0], net[1]):
        layer.requires_grad_(False)
    return net


def written(folder: Path, module: nn.Module) -> Standing:
    still = Standing(Standing.path_of(folder, 0))
    still.write(module)
    return still


def test_what_stands_still_is_left_out_and_put_back(tmp_path: Path) -> None:
    net = network()
    names = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(standing.candidates(net)) == names
    still = written(tmp_path, net)
    state = net.state_dict()
    left = still.without(state)
    assert set(left) == set(state) - names
    still.restore(left)
    assert all(torch.equal(left[k], v) for k, v in state.items())
    assert left.keys() == state.keys()


def test_what_moved_all_the_same_is_in_the_checkpoint(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, float("nan"), 1.0, 2.0]))
    still = written(tmp_path, net)
    assert "0.bias" not in still.without(net.state_dict())  # not a number, but the same one
    with torch.no_grad():
        net[0].bias[0] = -0.0
    net.train()(torch.rand(2, 3, 8, 8))  # a norm whose weights stand still has moving statistics
    left = still.without(net.state_dict())
    assert {"0.bias", "1.running_mean", "1.num_batches_tracked"} <= set(left)
    assert "1.weight" not in left
    still.restore(left)
    assert torch.signbit(left["0.bias"][0])
    assert standing.same(left["1.running_mean"], net[1].running_mean)


def test_where_all_learns_no_file_is_written(tmp_path: Path) -> None:
    net = network().requires_grad_(True)
    still = written(tmp_path, net)
    assert still.record() is None
    assert not list(tmp_path.iterdir())
    assert still.without(net.state_dict()).keys() == net.state_dict().keys()


def staged(values: Any, output: Path, **more: Any) -> dict[str, Any]:
    """A head learns, then all, then the head again, with a running average."""
    made: dict[str, Any] = values(output=output, model={"dropout": 0.3}, epochs=1, ema=0.9, checkpoint_every=2, **more)
    part = made.pop("train")
    still = ["stem", "norm", "body"]
    made["stages"] = [
        {"name": "head", "train": part, "freeze": still},
        {"name": "all", "train": part},
        {"name": "again", "train": part, "freeze": still},
    ]
    return made


def test_killed_in_any_stage_and_resumed_equals_unbroken(tmp_path: Path, values: Any, scenario: Any) -> None:
    actions = [f"train:{tmp_path}/whole"]
    for batch in (3, 5, 8, 10, 13):
        actions += [f"kill:{tmp_path}/kill{batch}:{batch}", f"resume:{tmp_path}/kill{batch}"]
    results, said = scenario(tmp_path, staged(values, tmp_path / "run"), *actions)
    whole, *rest = results
    assert whole["status"] == 0, said
    assert [r["signal"] for r in rest[::2]] == [signal.SIGKILL] * 5, said
    for result in rest[1::2]:
        assert result["status"] == 0, said
        assert (result["last"], result["best"]) == (whole["last"], whole["best"]), result["action"]
        assert not list(Path(result["action"].split(":")[1]).rglob("still-*"))  # a finished run needs none


def stop_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    step = loop.StageWork.step

    def patched(self: loop.StageWork, given: Any) -> None:
        step(self, given)
        if self.clock.batches + 1 == batch:
            self.run.stop.asked = True

    monkeypatch.setattr(loop.StageWork, "step", patched)


def test_a_checkpoint_holds_what_learns_and_names_the_rest(
    tmp_path: Path, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            train(Recipe.model_validate(staged(values, folder)), progress=False)
    state = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert set(state["family"]) == set(state["average"]["values"]) == {"head.weight", "head.bias"}
    (file,) = (folder / "checkpoints").glob("still-*")
    assert state["standing"] == {"file": "still-00.safetensors", "sha256": checksum(file)}
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\1\2\3\4")
    with pytest.raises(UserError, match="it has changed since the checkpoint was written"):
        resume(folder, progress=False)
    file.unlink()
    with pytest.raises(UserError, match="the checkpoint needs this file, which is not there"):
        resume(folder, progress=False)
    file.write_bytes(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Interrupted):
            resume(folder, progress=False)
    state = checkpoint.load(folder / "checkpoints" / "last.pt")
    assert state["standing"] is None
    assert "stem.weight" in state["family"]
    assert not list((folder / "checkpoints").glob("still-*"))
    assert resume(folder, progress=False) == folder


def test_a_checkpoint_of_the_format_before_is_read(
    tmp_path: Path, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Recipe.model_validate(staged(values, tmp_path / name)) for name in ("one", "other")]
    whole = train(made[0], progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Standing, "write", lambda *_: None)
        patch.setattr(checkpoint, "FORMAT", 1)
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            train(made[1], progress=False)
    folder = tmp_path / "other"
    resume(folder, progress=False)
    assert (folder / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_large_weights_are_written_sparingly_but_always_at_the_end(
    tmp_path: Path, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `last.safetensors` taken for large and slow, it is written first, after each stage, and when stopped."""
    train(Recipe.model_validate(staged(values, tmp_path / "whole")), progress=False)
    monkeypatch.setattr(checkpoint.Sparing, "LARGE", -1)
    monkeypatch.setattr(checkpoint.Sparing, "SHARE", 1_000_000)
    written: list[int] = []
    real = loop.Run.save_weights

    def counted(self: loop.Run, path: Path, average: Any) -> None:
        if path == self.folder.last:
            written.append(self.clock.batches)
        real(self, path, average)

    monkeypatch.setattr(loop.Run, "save_weights", counted)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            train(Recipe.model_validate(staged(values, folder)), progress=False)
    resume(folder, progress=False)
    assert written == [2, 5, 7, 8, 10, 15]  # first, a stage's end, stopped; resumed: first, stages' ends
    assert checksum(folder / "last.safetensors") == checksum(tmp_path / "whole" / "last.safetensors")


def test_writing_is_due_where_it_takes_a_twentieth_of_the_time(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    sparing = checkpoint.Sparing(path)
    sparing.took, sparing.ended = 3.0, 100.0
    assert sparing.due(101.0)  # there is none yet
    path.write_bytes(b"small")
    assert sparing.due(101.0)
    with path.open("wb") as file:
        file.truncate(checkpoint.Sparing.LARGE + 1)
    assert not sparing.due(159.0)
    assert sparing.due(160.0)
