"""Pairs of pictures: readers of published layouts and of one's own folders, and how far pairs lie off each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.cli.main import main
from zoo.data import open_dataset
from zoo.data.registration import Alignment, align, offsets
from zoo.errors import DataError, UserError
from zoo.types import Picture

CARD = """zoo: 1
name: mine
summary: Two folders.
reader: {name: pairs, arguments: {image: he, pictures: {ihc: ihc}, group_pattern: "^(s[0-9]+)_"}}
licence: {name: CC0-1.0, allows: [research]}
truths:
  ihc: {kind: picture, channels: [red, green, blue]}
"""


def picture(seed: int, shape: tuple[int, int] = (40, 48)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def folders(base: Path, names: list[str], *sides: str) -> None:
    for number, side in enumerate(sides):
        for i, name in enumerate(names):
            path = base / side / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(100 * number + i)).save(path)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    base = tmp_path / "mine"
    folders(base, ["s1_a", "s1_b", "s2_a"], "he", "ihc")
    (base / "zoo-dataset.yaml").write_text(CARD)
    return base


def test_two_folders(mine: Path) -> None:
    found = open_dataset(str(mine), split="all")
    assert [e.id for e in found.index] == ["s1_a", "s1_b", "s2_a"]
    assert [e.group for e in found.index] == ["s1", "s1", "s2"]
    sample = found[1]
    truth = sample.truth["ihc"]
    assert isinstance(truth, Picture)
    assert np.array_equal(np.moveaxis(sample.image, 0, -1), picture(1))
    assert np.array_equal(np.moveaxis(truth.data, 0, -1), picture(101))


@pytest.mark.parametrize(
    ("name", "sides", "count"),
    [
        ("mist-her2", {"HER2/TrainValAB/trainA": "train", "HER2/TrainValAB/valA": "test"}, 2),
        ("bci", {"HE/train": "train", "HE/test": "test"}, 2),
    ],
)
def test_published_layouts(
    name: str, sides: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = name.partition("-")[0]
    for side in sides:
        other = side[:-1] + "B" if side.endswith("A") else side.replace("HE/", "IHC/")
        folders(tmp_path / folder, ["67M2100642_15_18", "67M2100642_15_19"], side, other)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    for split in ("train", "test"):
        found = open_dataset(name, split=split)
        assert len(found) == count
        assert len(found[0].truth) == 1
    if name.startswith("mist"):
        assert {e.group for e in found.index} == {"67M2100642"}


def test_what_is_wrong_with_pairs(mine: Path) -> None:
    extra = mine / "he" / "s9_a.png"
    Image.fromarray(picture(5)).save(extra)
    with pytest.raises(UserError, match=r"4 images and 3 pictures .* s9_a has no partner"):
        open_dataset(str(mine), split="all")
    extra.unlink()
    Image.fromarray(picture(5, (41, 48))).save(mine / "ihc" / "s1_a.png")
    with pytest.raises(DataError, match="41 x 48 pixels, but its image"):
        open_dataset(str(mine), split="all")[0]
    tifffile.imwrite(mine / "ihc" / "s1_b.tif", picture(6).astype(np.uint16) * 200)
    (mine / "ihc" / "s1_b.png").unlink()
    with pytest.raises(DataError, match="holds uint16"):
        open_dataset(str(mine), split="all")[1]
    tifffile.imwrite(mine / "ihc" / "s2_a.tif", np.zeros((40, 48, 5), np.uint8), planarconfig="contig")
    (mine / "ihc" / "s2_a.png").unlink()
    with pytest.raises(DataError, match="5 channels"):
        open_dataset(str(mine), split="all")[2]


def test_a_strip_that_lacks_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deepliif" / "train").mkdir(parents=True)
    Image.fromarray(picture(0, (32, 5 * 32))).save(tmp_path / "deepliif" / "train" / "one.png")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(DataError, match="Expected 6 square tiles"):
        open_dataset("deepliif", split="train")[0]


def test_a_white_tile_has_nothing_to_be_found_by() -> None:
    white = np.full((3, 128, 128), 250, np.uint8)
    found = offsets(white, white)
    assert found.looked == 0
    assert len(found.moved) == 0


@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-7, 2)])
def test_a_known_shift_is_measured(shift: tuple[int, int]) -> None:
    import cv2

    rough = np.random.default_rng(0).normal(size=(240, 240)).astype(np.float32)
    rough = cv2.GaussianBlur(rough, (0, 0), 3)
    grey = np.clip(140 + 400 * rough, 20, 240).astype(np.uint8)
    whole = np.stack([grey] * 3)
    image, other = whole[:, 20:212, 20:212], whole[:, 20 - shift[0] : 212 - shift[0], 20 - shift[1] : 212 - shift[1]]
    found = offsets(image, other, window=64, reach=12)
    assert len(found.moved) == found.looked > 0
    np.testing.assert_allclose(np.median(found.moved, axis=0), shift, atol=0.3)


def test_the_phantom_is_off_by_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"size": 192, "val": 3, "marker": "Ki67"}
    for offset in (0, 6):
        dataset = open_dataset("phantom-stains", split="val", arguments={**arguments, "offset": offset})
        values = align(dataset, "ihc", window=80, reach=16).values()
        assert values["found"] >= 0.5 * values["windows"] > 0
        assert abs(values["median_pixels"] - offset) < 1
    status = main(["data", "align", "phantom-stains", "size=128", "val=1", "--split", "val"])
    said = capsys.readouterr().out
    assert status == 0
    assert "ihc against the image, 1 pair" in said
    assert main(["data", "align", "phantom-nuclei"]) == 2
    assert "no picture of the same field. Expected paired pictures" in capsys.readouterr().err


def test_blank_pairs_cannot_be_compared_which_is_said() -> None:
    white = np.full((3, 128, 128), 255, np.uint8)
    lines = Alignment("white", "ihc", 24, {"one": offsets(white, white)}).lines()
    assert lines[1].strip().startswith("nothing could be compared")
    assert len(lines) == 2
