"""A run from recipe to folder: what is in it, what stops it, and what is said."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.data.loading import Loader
from zoo.errors import DataError, Interrupted, UserError, ZooError
from zoo.nn import precision
from zoo.recipe import Recipe, load_recipe
from zoo.training import checkpoint, estimate, loop, setup
from zoo.training.run import dry_run, resume, train
from zoo.weights import store


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, squares: str) -> Path:
    """A finished run of ten epochs."""
    data = {
        "train": {"datasets": f"{squares}:train", "size": [16, 16], "batch": 4, "samples": 16, "workers": 0},
        "validate": {"datasets": f"{squares}:val", "batch": 2, "workers": 0},
    }
    recipe = Recipe.model_validate(
        {
            "zoo": 1,
            "name": "toy",
            "summary": "A toy.",
            "family": "toy-tiny",
            "output": str(tmp_path_factory.mktemp("runs") / "{name}-{seed}"),
            "data": data,
            "train": {
                "epochs": 10,
                "ema": 0.8,
                "keep": 3,
                "monitor": "dice",
                "pictures_every": 5,
                "optimizer": {"name": "adamw", "arguments": {"lr": 0.02}},
                "loggers": ["tensorboard"],
            },
        }
    )
    return train(recipe, progress=False, command=["zoo", "train", "toy"])


def test_the_folder_holds_what_scripts_rely_on(finished: Path) -> None:
    assert finished.name == "toy-0"
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        "recipe.yaml",
        "last.safetensors",
        "best.safetensors",
        "checkpoints",
        "metrics.csv",
        "pictures",
        "environment.json",
    }
    assert len(list((finished / "checkpoints").glob("best-*.safetensors"))) == 3
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["command"] == ["zoo", "train", "toy"]
    assert environment["threads"] == torch.get_num_threads()
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert list((finished / "tensorboard").glob("events*"))


def test_it_learns_and_the_table_says_so(finished: Path) -> None:
    table = rows(finished)
    assert [int(r["epoch"]) for r in table] == list(range(1, 11))
    assert [int(r["batch"]) for r in table] == list(range(4, 41, 4))
    assert float(table[-1]["train/cross_entropy"]) < 0.5 * float(table[0]["train/cross_entropy"])
    assert float(table[-1]["validation/dice"]) > 0.8


def test_metadata_tells_what_was_seen_and_neither_time_nor_path(finished: Path, squares: str) -> None:
    _, meta = store.read_tensors(finished / "best.safetensors")
    (seen,) = json.loads(meta["trained_on"])
    assert (seen["dataset"], seen["split"]) == ("toy-squares", "train")
    assert "square-000" in seen["images"]
    assert "square-003" not in seen["images"]
    assert seen["groups"] == ["train-0", "train-1", "train-2"]
    (validated,) = json.loads(meta["validated_on"])
    assert validated["images"] == ["square-003", "square-007", "square-011"]
    text = json.dumps(meta)
    assert str(finished) not in text
    assert squares not in text
    assert meta["recipe_hash"] == load_recipe(finished).content_hash()


def test_the_resolved_recipe_says_what_the_data_decided(finished: Path) -> None:
    recipe = load_recipe(finished)
    assert recipe.model["classes"] == ["background", "square"]
    assert recipe.model["truth"] == "squares"


def test_best_weights_are_those_of_the_best_validation(finished: Path) -> None:
    best = max(rows(finished), key=lambda r: (float(r["validation/dice"]), int(r["epoch"])))  # of equal ones the newest
    kept = finished / "checkpoints" / f"best-{int(best['epoch']):04d}.safetensors"
    assert kept.read_bytes() == (finished / "best.safetensors").read_bytes()


def test_the_run_folder_loads_and_the_average_is_what_is_kept(finished: Path) -> None:
    family = zoo.load(finished)
    state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
    assert state["clock"]["done"]
    tensors, _ = store.read_tensors(finished / "best.safetensors")
    assert torch.equal(family.state_dict()["stem.weight"], tensors["stem.weight"])


def test_pictures_show_image_truth_and_prediction(finished: Path) -> None:
    assert sorted(p.name for p in (finished / "pictures").iterdir()) == ["0005.png", "0010.png"]
    picture = np.asarray(Image.open(finished / "pictures" / "0010.png"))
    assert picture.shape == (24 + 26 + 28 + 3 * 8, 3 * (28 + 8), 3)  # all three images, framed, three panels each
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    before = (finished / "last.safetensors").read_bytes()
    assert resume(finished, progress=False) == finished
    assert (finished / "last.safetensors").read_bytes() == before


def test_an_existing_run_is_refused(finished: Path, recipe: Any) -> None:
    with pytest.raises(UserError, match=r"a run is already there.*zoo train --resume .*output=DIR"):
        train(recipe(output=finished), progress=False)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, recipe: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no empty folder"):
        train(recipe(output=tmp_path), progress=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write anywhere")
def test_an_unwritable_folder_is_said_before_training(tmp_path: Path, recipe: Any) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        train(recipe(output=tmp_path / "run"), progress=False)
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_said_before_training(tmp_path: Path, recipe: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train(recipe(output=tmp_path / "file" / "run"), progress=False)


def test_a_disk_that_fills_while_training_loses_nothing(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = checkpoint.save, []

    def save(path: Path, state: dict[str, Any]) -> int:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, state)

    monkeypatch.setattr(checkpoint, "save", save)
    run = tmp_path / "run"
    with pytest.raises(
        ZooError, match=r"run: cannot be written \(No space left on device\)\. Make room, then go"
    ) as said:
        train(recipe(output=run), progress=False)
    assert said.value.status == 1
    assert str(said.value).endswith(f"zoo train --resume {run}")
    resume(run, progress=False)
    assert (run / "best.safetensors").is_file()


def test_too_little_disk_is_said_before_training(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"the disk has 1 kB free. Expected at least \d+ MB"):
        train(recipe(output=tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_version_is_refused(tmp_path: Path, recipe: Any) -> None:
    folder = train(recipe(output=tmp_path / "run", epochs=1), progress=False)
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "format": 99}))
    with pytest.raises(UserError, match=r"format 99. Expected 1"):
        resume(folder, progress=False)
    (folder / "environment.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        resume(folder, progress=False)
    (folder / "environment.json").unlink()
    with pytest.raises(UserError, match="not a run folder"):
        resume(folder, progress=False)
    with pytest.raises(UserError, match=rf"there is no such run folder. Did you mean {folder}"):
        resume(folder.with_name("rnu"), progress=False)


def test_a_broken_checkpoint_is_said(tmp_path: Path, recipe: Any) -> None:
    folder = train(recipe(output=tmp_path / "run", epochs=1), progress=False)
    (folder / "checkpoints" / "last.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="the checkpoint cannot be read"):
        resume(folder, progress=False)


def test_interrupting_saves_and_says_how_to_go_on(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.StageWork.step

    def patched(self: loop.StageWork, batch: Any) -> None:
        if self.clock.batches == 6:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batch)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop.StageWork, "step", patched)
        with pytest.raises(Interrupted) as caught:
            train(recipe(output=tmp_path / "run"), progress=False)
    assert str(caught.value) == f"stopped after batch 7. Go on with: zoo train --resume {tmp_path / 'run'}"
    assert caught.value.status == 130
    assert signal.getsignal(signal.SIGINT) is handler
    resume(tmp_path / "run", progress=False)
    whole = train(recipe(output=tmp_path / "whole"), progress=False)
    assert (whole / "last.safetensors").read_bytes() == (tmp_path / "run" / "last.safetensors").read_bytes()


def test_a_loss_that_is_no_number_stops_with_an_explanation(tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(ZooError) as caught:
        train(recipe(model={"explode": 1}, output=tmp_path / "run"), progress=False)
    words = str(caught.value)
    assert words.startswith("training stopped: cross_entropy = nan in batch 1 (learning rate 0.00")
    assert "Try a smaller learning rate" in words
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_item_reaches_the_user_in_its_own_words(tmp_path: Path, recipe: Any, workers: int) -> None:
    made = recipe(output=tmp_path / "run", workers=workers, arguments={"broken": 6}, validate=False)
    with pytest.raises(DataError) as caught:
        train(made, progress=False)
    first, second = str(caught.value).splitlines()
    assert first == "toy-squares: square-006: the square has five corners. Expected four."
    assert re.search(r"What else is broken says: zoo data check \S*squares\d+\. ", second)
    assert second.endswith(f"Go on with: zoo train --resume {tmp_path / 'run'}")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()


def test_early_stopping(tmp_path: Path, recipe: Any) -> None:
    made = recipe(
        output=tmp_path / "run",
        epochs=20,
        optimizer={"name": "sgd", "arguments": {"lr": 1e-9}},
        early_stop={"patience": 2, "min_delta": 0.5},
    )
    assert len(rows(train(made, progress=False))) == 3


def test_the_number_of_batches_may_end_a_run_within_an_epoch(tmp_path: Path, recipe: Any) -> None:
    table = rows(train(recipe(output=tmp_path / "run", batches=7), progress=False))
    assert [r["batch"] for r in table] == ["5", "7"]
    assert table[-1]["validation/loss"]


def test_an_unknown_monitor_is_said_before_training(tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(UserError, match=r'validation gives no "dicee". Expected one of .*dice'):
        train(recipe(output=tmp_path / "run", monitor="dicee"), progress=False)


def test_waiting_for_validations_that_never_come_is_refused(tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(UserError, match="early_stop waits for validations"):
        train(recipe(output=tmp_path / "run", validate=False, early_stop={"patience": 1}), progress=False)


def test_without_validation_there_are_last_weights_only(tmp_path: Path, recipe: Any) -> None:
    folder = train(recipe(output=tmp_path / "run", validate=False), progress=False)
    assert not (folder / "best.safetensors").exists()
    assert zoo.load(folder) is not None


def test_stages_freeze_and_start_from_one_another(tmp_path: Path, values: Any) -> None:
    made = values(output=tmp_path / "run", epochs=1)
    part = made.pop("train")
    rate = {"name": "sgd", "arguments": {"lr": 0.1}}
    made["stages"] = [
        {"name": "head", "train": {**part, "optimizer": rate}, "freeze": ["stem", "norm", "body"]},
        {"name": "all", "train": {**part, "optimizer": rate, "ema": 0.5}},
    ]
    states: dict[str, dict[str, torch.Tensor]] = {}
    begin = loop.StageWork.__init__

    def record(self: loop.StageWork, run: Any, stage: Any) -> None:
        begin(self, run, stage)
        states[stage.name] = {k: v.clone() for k, v in run.family.state_dict().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageWork, "__init__", record)
        folder = train(Recipe.model_validate(made), progress=False)
    first, second = states["head"], states["all"]
    moved = {k for k in first if not torch.equal(first[k], second[k])}
    assert moved == {"head.weight", "head.bias"}  # neither weights nor running statistics of what stands still
    tensors, _ = store.read_tensors(folder / "last.safetensors")
    assert not torch.equal(tensors["stem.weight"], second["stem.weight"])
    assert [r["stage"] for r in rows(folder)] == ["head", "all"]
    assert [int(r["batch"]) for r in rows(folder)] == [5, 10]


def test_freezing_what_is_not_there_is_refused(tmp_path: Path, values: Any) -> None:
    made = values(output=tmp_path / "run")
    made["stages"] = [{"name": "one", "train": made.pop("train"), "freeze": ["stm"]}]
    with pytest.raises(UserError, match=r'no parameter begins with "stm". Did you mean stem'):
        train(Recipe.model_validate(made), progress=False)


def test_what_an_encoder_has_seen_the_model_has_seen(tmp_path: Path) -> None:
    """Else a benchmark finds no leak, and weights are given away that may not be."""
    from zoo.training.setup import record_of

    model = {"encoder": "mobilenetv4_conv_small", "encoder_weights": "nuclei-unet-mobile", "classes": ["background"]}
    values = {"zoo": 1, "name": "n", "summary": "S.", "family": "unet", "model": model, "train": {"epochs": 1}}
    data = {"train": {"datasets": ["phantom-nuclei"]}}
    found = record_of(Recipe.model_validate({**values, "data": data}))
    assert found.started_from == ["nuclei-unet-mobile"]
    assert {"phantom-nuclei", "dsb2018-fluorescence", "dsb2018-he"} <= {entry["dataset"] for entry in found.trained_on}
    deep = {"encoder": {"name": "resnet18", "arguments": {"weights": "imagenet"}}, "classes": ["background"]}
    plain = record_of(Recipe.model_validate({**values, "data": data, "model": deep}))
    assert plain.started_from == []
    assert {entry["dataset"] for entry in plain.trained_on} == {"phantom-nuclei"}


def test_weights_to_start_from(finished: Path, tmp_path: Path, recipe: Any) -> None:
    still = {"optimizer": {"name": "sgd", "arguments": {"lr": 1e-12, "momentum": 0.0}}, "epochs": 1}
    folder = train(recipe(output=tmp_path / "run", weights=str(finished), **still), progress=False)
    one, meta = store.read_tensors(folder / "last.safetensors")
    other, _ = store.read_tensors(finished / "best.safetensors")
    torch.testing.assert_close(one["body.weight"], other["body.weight"])
    assert json.loads(meta["started_from"])
    with pytest.raises(UserError, match=r"only .* of the model's .* entries"):
        train(recipe("toy-adversarial", output=tmp_path / "other", weights=str(finished)), progress=False)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, values: Any) -> None:
    def weights(name: str, seed: int) -> bytes:
        made = Recipe.model_validate({**values(output=tmp_path / name, epochs=1), "seed": seed})
        tensors, _ = store.read_tensors(train(made, progress=False) / "last.safetensors")
        return b"".join(tensors[k].numpy().tobytes() for k in sorted(tensors))

    torch.manual_seed(5)
    one = weights("a", 0)
    torch.manual_seed(6)
    assert weights("b", 0) == one
    assert weights("c", 1) != one


def test_further_streams_reach_the_step(tmp_path: Path, values: Any) -> None:
    made = values(output=tmp_path / "run", epochs=2)
    made["data"]["streams"] = {"large": {**made["data"]["train"], "size": [20, 20], "samples": 4}}
    table = rows(train(Recipe.model_validate(made), progress=False))
    assert float(table[-1]["train/large/cross_entropy"]) > 0


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_half_precision_trains_and_keeps_full_weights(tmp_path: Path, recipe: Any, precision: str) -> None:
    folder = train(recipe(output=tmp_path / "run", precision=precision, epochs=1), progress=False)
    tensors, _ = store.read_tensors(folder / "last.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}


def test_a_processor_without_bfloat16_trains_in_32_bits_and_says_so(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(name: str, asked: str, has: bool) -> bytes:
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
        folder = train(recipe(output=tmp_path / name, precision=asked, epochs=1), progress=True)
        assert ("no bfloat16" in "".join(capsys.readouterr())) == (asked != "32" and not has)
        return (folder / "last.safetensors").read_bytes()[-4000:]

    full = weights("full", "32", has=False)
    assert weights("emulated", "bf16", has=False) == full
    assert weights("real", "bf16", has=True) != full
    report = dry_run(recipe(output=tmp_path / "dry", precision="bf16", epochs=3), accelerator="cpu", steps=3)
    assert report.arithmetic == "bf16"
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    report = dry_run(recipe(output=tmp_path / "dry", precision="bf16", epochs=3), accelerator="cpu", steps=3)
    assert "no bfloat16" in str(report)


def test_augmentation_on_the_device(tmp_path: Path, values: Any) -> None:
    made = values(output=tmp_path / "run", epochs=1, augment="light")
    made["data"]["train"]["augment_on"] = "device"
    one = train(Recipe.model_validate(made), progress=False)
    made["output"] = str(tmp_path / "other")
    other = train(Recipe.model_validate(made), progress=False)
    made["output"], made["data"]["train"]["augment"] = str(tmp_path / "none"), "none"
    none = train(Recipe.model_validate(made), progress=False)
    weights = [store.read_tensors(f / "last.safetensors")[0]["body.weight"] for f in (one, other, none)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_batch_that_fits_is_found_and_written_down(tmp_path: Path, recipe: Any) -> None:
    folder = train(recipe(output=tmp_path / "run", find_batch=True, epochs=1, samples=10), progress=False)
    written = load_recipe(folder)
    assert written.data.train.batch == 8  # 2, 4, 8; 16 would be more than an epoch
    assert not written.all_stages[0].train.find_batch
    assert json.loads((folder / "environment.json").read_text())["batch_found"] == 8


def test_a_dry_run_of_a_slow_network_does_two_steps(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    step = estimate.Trial.step
    monkeypatch.setattr(estimate.Trial, "step", lambda self, batch: seconds.append(step(self, batch)) or seconds[-1])
    monkeypatch.setattr(estimate, "PATIENCE", 0.0)
    report = dry_run(recipe(output=tmp_path / "run"), accelerator="cpu", steps=5)
    assert len(seconds) == 2
    assert report.seconds_a_batch == pytest.approx(seconds[1] + report.seconds_waiting)


def test_a_dry_run_writes_nothing_and_says_what_a_run_costs(tmp_path: Path, recipe: Any) -> None:
    report = dry_run(recipe(output=tmp_path / "run", epochs=3), accelerator="cpu", steps=3)
    assert not (tmp_path / "run").exists()
    assert (report.batches_an_epoch, report.epochs) == (5, 3)
    assert report.seconds_a_batch > 0
    assert report.memory > 10**7
    folder = train(recipe(output=tmp_path / "run", epochs=3), progress=False)
    written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert written <= report.disk
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == [
        "parameters",
        "epoch",
        "run",
        "batch",
        "memory",
        "arithmetic",
        "disk",
    ]
    assert max(map(len, lines)) <= 80


def test_a_strategy_that_is_none_is_refused(recipe: Any) -> None:
    with pytest.raises(UserError, match=r'"deepspeed" will not do. Expected auto, ddp, or fsdp, which spreads'):
        train(recipe(), strategy="deepspeed", progress=False)
    with pytest.raises(UserError, match="Did you mean ddp"):
        train(recipe(), strategy="dpp", progress=False)


def test_threads_are_recorded_kept_and_given_back(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    during: list[int] = []
    step = loop.StageWork.step

    def patched(self: loop.StageWork, batch: Any) -> None:
        during.append(torch.get_num_threads())
        step(self, batch)
        if len(during) == 2:
            self.run.stop.asked = True

    monkeypatch.setattr(loop.StageWork, "step", patched)
    with pytest.raises(Interrupted):
        train(recipe(output=tmp_path / "run", threads=before + 1), progress=False)
    assert torch.get_num_threads() == before
    resume(tmp_path / "run", progress=False)
    assert set(during) == {before + 1}
    assert torch.get_num_threads() == before


def test_loader_is_told_rank_and_world(recipe: Any) -> None:
    """The contract that training rests on: two ranks' slices make up one process's batch."""
    from zoo.training.feed import open_loader

    made = setup.resolve(recipe(batch=4, samples=8))
    family = setup.create(made)
    whole: Loader = open_loader(made.data.train, family, seed=0, training=True)
    halves = [open_loader(made.data.train, family, seed=0, training=True, rank=r, world=2) for r in range(2)]
    for one, a, b in zip(whole.epoch(1), halves[0].epoch(1), halves[1].epoch(1), strict=True):
        assert torch.equal(one.inputs["image"], torch.cat([a.inputs["image"], b.inputs["image"]]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train.size=[64, 64]"], True),
        (["data.train.size=[96, 96]"], False),
        (["data.train.size=[64, 64]", "model.tile=64", "model.margin=16"], False),
        (["data.train.size=[64, 64]", "model.encoder={name: resnet18, arguments: {output_stride: 16}}"], False),
    ],
)
def test_patches_that_are_all_border_to_the_coarsest_level_are_told(words: list[str], said: bool) -> None:
    recipe = setup.resolve(load_recipe("quickstart", words))
    told = setup.narrow(recipe, setup.create(recipe))
    assert (told is not None) == said
    if told:
        assert "64 pixels are 2 pixels wide" in told
        assert "tiles of 256" in told
