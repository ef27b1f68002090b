"""`zoo data sample`: every kind of truth as a file that other tools open, and a sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.cli.main import main
from zoo.data.datasets import open_dataset
from zoo.data.samples import write_samples
from zoo.types import Boxes, Instances, Picture

KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "phantom-multitask": (
        {"size": 64},
        {"png", "nuclei.tif", "nuclei.json", "glands.tif", "lumina.tif", "tissue.tif", "patch.json"},
    ),
    "phantom-stains": (
        {"size": 64},
        {"png", "ihc.png", "cells.tif", "cells.json", "nuclei.tif", "nuclei.json", "misalignment.json"},
    ),
    "phantom-mif": ({"size": 64}, {"png", "mif.ome.tif", "cells.tif", "cells.json", "nuclei.tif", "nuclei.json"}),
    "phantom-smear": (
        {"size": 96},
        {"png", "cells.json", "objects.tif", "objects.json", "cell.tif", "nuclei.tif", "nuclei.json"},
    ),
    "phantom-volume": ({"size": [6, 32, 32]}, {"tif", "nuclei.tif"}),
    "phantom-slide": ({"size": [40, 56]}, {"tif", "regions.tif", "diagnosis.json"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_pictures_and_truths_are_written(tmp_path: Path, name: str) -> None:
    arguments, ends = KINDS[name]
    paths = list(write_samples(name, tmp_path, split="val", count=2, arguments=arguments, sheet=True))
    assert all(path.is_file() for path in paths)
    ids = ("val-0000", "val-0001")
    assert {p.name for p in paths} == {f"{i}.{end}" for i in ids for end in ends} | {f"{name}.sheet.png"}
    with Image.open(tmp_path / f"{name}.sheet.png") as sheet:
        assert sheet.width > 400
        assert np.asarray(sheet).std() > 20


def test_what_is_written_is_what_the_dataset_gives(tmp_path: Path) -> None:
    arguments = {"size": 96, "leukocytes": 3}
    list(write_samples("phantom-smear", tmp_path, split="val", count=1, arguments=arguments))
    item = open_dataset("phantom-smear", split="val", arguments=arguments)[0]
    with Image.open(tmp_path / "val-0000.png") as picture:
        assert (np.moveaxis(np.asarray(picture), -1, 0) == item.image).all()
    boxes, objects = item.truth["cells"], item.truth["objects"]
    assert isinstance(boxes, Boxes)
    assert isinstance(objects, Instances)
    assert (tifffile.imread(tmp_path / "val-0000.objects.tif") == objects.map).all()
    written = json.loads((tmp_path / "val-0000.cells.json").read_text())
    assert [row["xyxy"] for row in written] == boxes.xyxy.tolist()
    assert {row["class"] for row in written if row["attributes"]} <= {
        "neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "blast"
    }  # fmt: skip
    list(write_samples("phantom-mif", tmp_path, split="val", count=1, arguments={"size": 64}))
    item = open_dataset("phantom-mif", split="val", arguments={"size": 64})[0]
    truth = item.truth["mif"]
    assert isinstance(truth, Picture)
    with tifffile.TiffFile(tmp_path / "val-0000.mif.ome.tif") as file:
        assert (file.asarray() == truth.data).all()
        assert all(f'Name="{channel}"' in (file.ome_metadata or "") for channel in truth.channels)


def test_the_command_takes_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "data",
        "sample",
        "phantom-nuclei",
        "difficulty=hard",
        "size=48",
        "--count",
        "1",
        "--sheet",
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "phantom-nuclei.sheet.png")
    with Image.open(tmp_path / "train-0000.png") as picture:
        assert picture.size == (48, 48)
    assert main([*words[:3], "dificulty=hard", *words[4:]]) == 2
    assert "difficulty" in capsys.readouterr().err
    assert main(["data", "sample", "size=48", "--out", str(tmp_path)]) == 2
    assert "no dataset" in capsys.readouterr().err


def test_a_slide_is_written_in_bands(tmp_path: Path) -> None:
    arguments = {"size": [36, 48], "overview": 16, "um": 1.0}
    paths = list(write_samples("phantom-slide", tmp_path, split="val", count=1, arguments=arguments))
    with tifffile.TiffFile(paths[0]) as file:
        page = file.pages[0]
        assert page.shape == (576, 768, 3)  # type: ignore[union-attr]
        assert page.is_tiled  # type: ignore[union-attr]
        picture = file.asarray()
    whole = open_dataset("phantom-slide", split="val", arguments=arguments)[0]
    assert (np.moveaxis(picture, -1, 0) == whole.image).all()
