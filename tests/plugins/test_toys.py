"""Families of other packages go through everything that the zoo's own do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from tester import FamilyTester

import zoo
from zoo import registry
from zoo.bench.run import bench
from zoo.data import open_dataset
from zoo.inference.files import predict_files
from zoo.recipe import Recipe, dump_yaml
from zoo.training.run import train

MODELS: dict[str, dict[str, Any]] = {
    "toy-tiny": {"truth": "squares"},
    "toy-adversarial": {"truth": "clean", "dropout": 0.0},
}


class Toy(FamilyTester):
    options: ClassVar[dict[str, Any]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:  # the package is not installed yet when tests are collected
            metafunc.parametrize("options", [self.options], ids=["tiny"])


class TestTiny(Toy):
    family = "toy-tiny"
    options: ClassVar[dict[str, Any]] = {"width": 4, "truth": "squares", "classes": ("background", "square")}


class TestAdversarial(Toy):
    family = "toy-adversarial"
    options: ClassVar[dict[str, Any]] = {"width": 4, "truth": "clean"}


def values(family: str, squares: str, output: Path) -> dict[str, Any]:
    data = {
        "train": {"datasets": f"{squares}:train", "size": [16, 16], "batch": 4, "samples": 16, "workers": 0},
        "validate": {"datasets": f"{squares}:val", "batch": 2, "workers": 0},
    }
    rate = {"name": "adam", "arguments": {"lr": 0.02}}
    part = {"epochs": 6, "optimizer": rate, "ema": 0.8, "pictures_every": 6}
    return {
        "zoo": 1,
        "name": f"{family}-squares",
        "summary": "A toy.",
        "family": family,
        "model": MODELS[family],
        "output": str(output),
        "data": data,
        "train": part,
    }


@pytest.fixture(scope="module", params=sorted(MODELS))
def run(request: pytest.FixtureRequest, squares: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a toy."""
    output = tmp_path_factory.mktemp("runs") / request.param
    return train(Recipe.model_validate(values(request.param, squares, output)), progress=False)


def test_they_are_found_by_their_entry_points() -> None:
    assert {"toy-tiny", "toy-adversarial"} <= set(registry.names("family"))
    assert zoo.create("toy-tiny", width=4).name == "toy-tiny"


def test_they_predict_what_they_learned(run: Path, squares: str) -> None:
    sample = open_dataset(squares, split="val")[0]
    found = zoo.load(run).predict(np.moveaxis(sample.image, 0, -1), mpp="native")
    if found.kind == "semantic":
        assert (found.map == sample.truth["squares"].map).mean() > 0.9  # type: ignore[union-attr]
    else:
        truth = sample.truth["clean"].data.astype(float)  # type: ignore[union-attr]
        learned = np.abs(found.data - truth).mean()
        assert found.data.dtype == np.uint8
        assert learned < 0.8 * np.abs(truth - truth.mean()).mean()


def test_they_write_files(run: Path, squares: str, tmp_path: Path) -> None:
    sample = open_dataset(squares, split="val")[0]
    (tmp_path / "in").mkdir()
    Image.fromarray(np.moveaxis(sample.image, 0, -1)).save(tmp_path / "in" / "one.png")
    predict_files(zoo.load(run), [tmp_path / "in"], tmp_path / "out", mpp="native", progress=False)
    names = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names & {"one.classes.png", "one.picture.png"}


def test_they_are_judged(run: Path, squares: str, tmp_path: Path) -> None:
    bench([str(run)], [f"{squares}:test"], tmp_path / "out", mpp="native")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert run.name in json.dumps(results)
    assert (tmp_path / "out" / "table.md").is_file()


@pytest.mark.slow
def test_the_command_line_knows_them(squares: str, tmp_path: Path, cli: Any) -> None:
    recipe = values("toy-tiny", squares, tmp_path / "run")
    recipe["train"] = {**recipe["train"], "epochs": 1}
    (tmp_path / "toy.yaml").write_text(dump_yaml(recipe))
    listed = cli("list", "families")
    assert "toy-adversarial" in listed.stdout, listed.stderr
    done = cli("train", tmp_path / "toy.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
