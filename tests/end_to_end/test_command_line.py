"""The command line as a user types it: check, train, resume, predict, bench.

The main road runs in processes of its own; what leaves it runs inside the test's process, which imports torch once.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from zoo.cli.main import main

RECIPE = """zoo: 1
name: tiny
summary: Two batches of synthetic nuclei.
family: unet
model:
  encoder: resnet10t
  decoder: {name: unet, arguments: {channels: [16, 16, 8, 8, 8]}}
  merge: {nucleus: [epithelial, lymphocyte, fibroblast]}
  classes: [background, nucleus]
  instances: {min_size: 4}
  tile: 64
  margin: 16
data:
  train:
    datasets: {name: phantom-nuclei, arguments: {size: 96}, limit: 4}
    size: [64, 64]
    batch: 2
    augment: light
    workers: 0
  validate:
    datasets: {name: phantom-nuclei, split: val, arguments: {size: 96}, limit: 2}
    batch: 1
    workers: 0
train: {epochs: 2, threads: 1, pictures_every: 0, monitor: semantic/dice}
"""


class Done(NamedTuple):
    """What a command said."""

    stdout: str
    stderr: str


def zoo(folder: Path, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `zoo WORDS...` in a folder that is not the checkout."""
    command = [sys.executable, "-m", "zoo.cli", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ZOO_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


Inside = Callable[..., Done]


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Inside:
    """Run `zoo WORDS...` in the user's folder, in this process."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    def run(*words: object, status: int = 0) -> Done:
        capfd.readouterr()
        found = main([str(word) for word in words])
        done = Done(*capfd.readouterr())
        assert found == status, f"{words}: {found}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a recipe and a trained run."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = zoo(folder, "train", "tiny.yaml", "output=runs/whole", "--quiet")
    assert done.stdout.splitlines()[-1] == "runs/whole"
    return folder


def test_check_before_training(inside: Inside, place: Path) -> None:
    assert inside("check", "tiny.yaml", "runs/whole").stdout.splitlines() == ["tiny.yaml: ok", "runs/whole: ok"]


def test_a_run_folder_holds_what_it_promises(place: Path) -> None:
    run = place / "runs" / "whole"
    for name in (
        "recipe.yaml",
        "last.safetensors",
        "best.safetensors",
        "metrics.csv",
        "environment.json",
        "checkpoints",
    ):
        assert (run / name).exists(), name
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) > 2
    told = json.loads((run / "environment.json").read_text())
    assert told["command"][-3:] == ["tiny.yaml", "output=runs/whole", "--quiet"]


def test_a_second_run_into_the_same_folder_is_refused(inside: Inside, place: Path) -> None:
    before = sha256(place / "runs" / "whole" / "last.safetensors")
    done = inside("train", "tiny.yaml", "output=runs/whole", "--quiet", status=2)
    assert "runs/whole" in done.stderr
    assert "--resume" in done.stderr
    assert sha256(place / "runs" / "whole" / "last.safetensors") == before


def test_the_resolved_recipe_repeats_the_run(inside: Inside, place: Path) -> None:
    inside("train", "runs/whole/recipe.yaml", "output=runs/again", "--quiet")
    assert sha256(place / "runs/again/last.safetensors") == sha256(place / "runs/whole/last.safetensors")


def test_a_stopped_run_goes_on_to_the_same_weights(place: Path) -> None:
    code = (
        "import sys, signal, os\n"
        "from zoo.training import loop\n"
        "step = loop.StageWork.step\n"
        "def patched(self, batch):\n"
        "    step(self, batch)\n"
        "    if self.clock.batches == 3:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "loop.StageWork.step = patched\n"
        "from zoo.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", "tiny.yaml", "output=runs/stopped", "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=place, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 130, done.stderr
    assert "zoo train --resume runs/stopped" in done.stderr
    zoo(place, "train", "--resume", "runs/stopped", "--quiet")
    assert sha256(place / "runs/stopped/last.safetensors") == sha256(place / "runs/whole/last.safetensors")


def test_predict_writes_what_it_promises_and_skips_broken_images(inside: Inside, place: Path) -> None:
    images = place / "images" / "deep"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (80, 110, 3), dtype=np.uint8)
    Image.fromarray(picture).save(images / "good.png")
    data = (images / "good.png").read_bytes()
    (images / "broken.png").write_bytes(data[: len(data) // 2])
    done = zoo(place, "predict", "runs/whole", "images", "--out", "predicted", "--mpp", "native", "--quiet", status=1)
    assert "broken.png" in done.stderr
    failures = json.loads((place / "predicted" / "failures.json").read_text())
    assert len(failures) == 1
    found = {p.name for p in (place / "predicted" / "deep").iterdir()}
    assert {"good.labels.tif", "good.geojson", "good.overlay.png"} <= found
    (images / "broken.png").unlink()
    again = inside("predict", "runs/whole", "images", "--out", "predicted", "--mpp", "native", "--quiet")
    assert "already there" in again.stdout
    assert not (place / "predicted" / "failures.json").exists()


def test_bench_writes_a_table_and_refuses_leaks(inside: Inside, place: Path) -> None:
    common = ["bench", "--weights", "runs/whole", "--limit", "2", "--mpp", "native", "--no-pictures", "--out"]
    done = zoo(place, *common, "judged", "--datasets", "phantom-nuclei:test")
    assert "dice" in done.stdout.lower()
    assert "otsu" in done.stdout.lower()
    assert done.stdout.splitlines()[-1] == "report judged/report.html"
    for name in ("results.json", "table.md", "report.html", "per_image.parquet", "per_image.csv"):
        assert (place / "judged" / name).is_file(), name
    refused = inside(*common, "leak", "--datasets", "phantom-nuclei:train", status=2)
    assert "--allow-leakage" in refused.stderr
    assert not (place / "leak").exists()


def test_nothing_is_written_where_a_recipe_is_wrong(inside: Inside, place: Path) -> None:
    done = inside("train", "tiny.yaml", "train.optimizer=adamm", "output=runs/wrong", status=2)
    assert "Did you mean adam" in done.stderr
    assert not (place / "runs" / "wrong").exists()


def test_an_unwritable_folder_is_said_before_training(inside: Inside, place: Path) -> None:
    (place / "file").write_text("not a folder")
    done = inside("train", "tiny.yaml", "output=file/run", "--quiet", status=2)
    assert "file: cannot be written" in done.stderr


@pytest.mark.parametrize("image", ["absent.png", "empty"])
def test_nothing_to_predict(inside: Inside, place: Path, image: str) -> None:
    (place / "empty").mkdir(exist_ok=True)
    done = inside("predict", "runs/whole", image, "--out", "none", "--mpp", "native", status=2)
    assert image in done.stderr
    assert not (place / "none").exists()
