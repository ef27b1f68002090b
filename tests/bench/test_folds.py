"""Cross-validation from the command line: every image judged once, by a model that has not seen its group."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from zoo.cli.main import main
from zoo.data.datasets import open_dataset

RECIPE = """zoo: 1
name: tiny
summary: A tiny network on squares.
family: unet
model:
  encoder: resnet10t
  decoder: {name: unet, arguments: {channels: [8, 8, 8, 8, 8]}}
  classes: [background, square]
  truth: squares
  tile: 64
data:
  train:
    datasets: [{name: FOLDER, split: test}]
    size: [32, 32]
    batch: 2
    samples: 2
    workers: 0
train: {epochs: 1, threads: 1, pictures_every: 0}
"""


def test_folds_from_the_command_line(tmp_path: Path, make_dataset: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, folder = tmp_path / "tiny.yaml", make_dataset()
    recipe.write_text(RECIPE.replace("FOLDER", folder))
    words = ["bench", "--recipe", str(recipe), "--folds", "2", "--out", str(tmp_path / "out"), "--jobs", "0"]
    words += ["--metrics", "dice", "--no-pictures", "--mpp", "native"]
    assert main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "tiny (2 folds)" in said.out
    lines = list(csv.DictReader((tmp_path / "out" / "per_image.csv").read_text().splitlines()))
    own = [line for line in lines if line["weights"] == "tiny (2 folds)"]
    whole = {e.id for e in open_dataset(folder, split="test").index}
    assert sorted(line["image"] for line in own) == sorted(whole)
    (row,) = [r for r in json.loads((tmp_path / "out" / "results.json").read_text())["rows"] if not r["baseline"]]
    assert row["split"] == "test in 2 folds"
    assert "each image judged by the model that has not seen its group" in row["notes"]
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "folds").rglob("last.safetensors")}
    assert len(times) == 2
    assert main(words) == 0  # what is trained is not trained again
    assert all(p.stat().st_mtime_ns == time for p, time in times.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "5"], "--folds comes without --recipe"),
        (["--recipe", "quickstart"], "--recipe comes without --folds"),
        (["--folds", "5", "--recipe", "quickstart", "--weights", "quickstart"], "Leave out --weights"),
        (["--folds", "1", "--recipe", "quickstart"], "1 will not do"),
        (["--folds", "500", "--recipe", "quickstart"], "too few for 500 folds"),
        (["--folds", "2", "--recipe", "quickstart", "--tta", "d4"], "--tta is for weights"),
        (["--weights", "quickstart"], "no datasets"),
    ],
)
def test_what_a_user_mistypes(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
