"""The transfer recipes of Cerberus, run as a user runs them, from weights that stand in for a finished training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli.main import main
from zoo.families import build
from zoo.recipe import load_recipe

SMALL = ["data.train.samples=2", "data.train.batch=2", "data.train.workers=0", "data.train.size=[160,160]"]
BOXES = """<annotation><size><width>160</width><height>140</height><depth>3</depth></size>
<object><name>ring_cell_cancer</name><bndbox><xmin>20</xmin><ymin>30</ymin><xmax>60</xmax><ymax>64</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the recipe that transfer starts from, untrained."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    recipe = load_recipe("colon-cerberus-resnet18")
    tasks = {
        "gland": {"classes": ["gland"]},
        "lumen": {"classes": ["lumen"]},
        "tissue": {"classes": ["background", "stroma", "epithelium", "lumen", "vessel", "fat"]},
    }
    options = recipe.model | {"tasks": {n: t | tasks.get(n, {}) for n, t in recipe.model["tasks"].items()}}
    torch.manual_seed(0)
    build.save(build.create("cerberus", options), path)
    return path


def test_classes_of_nuclei(tmp_path: Path, trained: Path) -> None:
    words = ["stages.0.train.epochs=1", f"stages.0.train.weights={trained}", "data.train.datasets.0.limit=2"]
    out = tmp_path / "run"
    assert main(["train", "nuclei-class-cerberus-resnet18", *words, *SMALL, f"output={out}"]) == 0
    old, new = zoo.load(trained), zoo.load(out)
    image = {"image": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)}
    with torch.no_grad():
        before, after = old.forward(old.prepare(image)), new.forward(new.prepare(image))
    for task in ("gland", "lumen", "nuclei", "tissue"):
        assert torch.equal(before[task], after[task]), task
    assert new.spec.outputs["nuclei"].classes == ("epithelial", "lymphocyte", "fibroblast")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", str(out), str(tmp_path / "a.png"), "--out", str(tmp_path / "p"), "--mpp", "native"]) == 0
    assert (tmp_path / "p" / "a.nuclei.objects.csv").is_file()


def test_signet_rings_from_boxes(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "digestpath-signet"
    (folder / "sig-train-pos").mkdir(parents=True)
    (folder / "sig-train-neg").mkdir()
    rng = np.random.default_rng(1)
    for name in ("sig-train-pos/a", "sig-train-pos/b", "sig-train-neg/c"):
        Image.fromarray(rng.integers(0, 256, (140, 160, 3), dtype=np.uint8)).save(folder / f"{name}.jpeg")
        if "pos" in name:
            (folder / f"{name}.xml").write_text(BOXES, encoding="utf-8")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    out = tmp_path / "run"
    words = [f"stages.0.train.weights={trained}", "stages.0.train.epochs=1", "stages.1.train.epochs=1"]
    words += ["data.train.mpp=0.25", *SMALL]
    assert main(["train", "signet-cerberus-resnet18", *words, f"output={out}"]) == 0
    new = zoo.load(out)
    assert new.spec.outputs["signet"].classes == ("signet ring",)
    assert (
        main(["predict", str(out), str(folder / "sig-train-pos/a.jpeg"), "--out", str(tmp_path / "p"), "--mpp", "0.25"])
        == 0
    )
    assert (tmp_path / "p" / "a.labels.tif").is_file()
