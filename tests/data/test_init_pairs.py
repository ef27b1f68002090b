"""A card for a user's own pairs of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.cards import CARD_NAME
from zoo.data import open_dataset
from zoo.data.init import init_folder
from zoo.data.init_pairs import init_pairs
from zoo.errors import UserError
from zoo.types import Picture


def put(path: Path, side: int = 24, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (side, side) if grey else (side, side, 3)
    seed = sum(map(ord, "/".join(path.parts[-3:])))
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)).save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for slide in range(4):
        for k in range(2):
            for folder in ("he", "ihc"):
                put(tmp_path / folder / f"slide{slide}_{k}.png")
    return tmp_path


def opened(folder: Path, images: str, pictures: list[str], split: str = "all", **told: Any) -> Any:
    text, _ = init_pairs(folder, images, pictures, **told)
    (folder / CARD_NAME).write_text(text, encoding="utf-8")
    return open_dataset(folder, split=split)


def test_two_folders_become_a_dataset_of_pairs(pairs: Path) -> None:
    data = opened(pairs, "he", ["ihc"], um=0.5)
    assert len(data) == 8
    first = data[0]
    picture = first.truth["ihc"]
    assert isinstance(picture, Picture)
    assert np.array_equal(np.moveaxis(picture.data, 0, -1), np.asarray(Image.open(pairs / "ihc" / "slide0_0.png")))
    assert np.array_equal(np.moveaxis(first.image, 0, -1), np.asarray(Image.open(pairs / "he" / "slide0_0.png")))
    assert first.spacing == (0.5, 0.5)
    assert first.group == "slide0"
    groups = [{e.group for e in open_dataset(pairs, split=s).index} for s in ("train", "val", "test")]
    assert sorted(g for some in groups for g in some) == ["slide0", "slide1", "slide2", "slide3"]


def test_splits_in_the_names_of_folders(tmp_path: Path) -> None:
    for split, count in (("test", 1), ("train", 3)):
        for folder in "AB":
            for k in range(count):
                put(tmp_path / f"{split}{folder}" / f"s{k}_1.png")
    assert len(opened(tmp_path, "{split}A", ["{split}B"], "train")) == 3
    assert len(open_dataset(tmp_path, split="test")) == 1
    assert set(open_dataset(tmp_path)[0].truth) == {"picture"}


def test_splits_as_folders_inside_and_grey_pictures(tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(tmp_path / "he" / split / "a.png")
        put(tmp_path / "mif" / split / "a.png", grey=True)
    picture = opened(tmp_path, "he", ["mif"], "val")[0].truth["mif"]
    assert isinstance(picture, Picture)
    assert picture.data.shape == (1, 24, 24)
    assert picture.channels == ("channel-1",)
    assert picture.encoding == "linear"


def test_the_report_says_what_lacks_a_partner(pairs: Path) -> None:
    (pairs / "ihc" / "slide1_1.png").unlink()
    put(pairs / "ihc" / "other.png")
    _, report = init_pairs(pairs, "he", ["ihc"])
    assert "  ihc: without a partner: other, slide1_1. Remove or complete them." in report


@pytest.mark.parametrize(
    ("images", "pictures", "words"),
    [
        ("he", ["ich"], r"ich: there is no such folder\. Did you mean ihc\?"),
        ("eh", ["ihc"], r"eh: there is no such folder\. Expected one of empty, he, ihc, strange"),
        ("he", ["he"], "none of them that of the images"),
        ("he", [], "expected one folder or more"),
        ("{split}A", ["{split}B"], r"no folder fits \{split\}A\. Expected, say, trainA"),
        ("he", ["strange"], "no file has the name of one in he"),
        ("he", ["empty"], "holds no image"),
    ],
)
def test_folders_that_are_no_pairs_are_named(pairs: Path, images: str, pictures: list[str], words: str) -> None:
    put(pairs / "strange" / "x.png")
    (pairs / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        init_pairs(pairs, images, pictures)


def test_a_folder_of_pairs_taken_for_single_images_says_so(pairs: Path) -> None:
    _, report = init_folder(pairs)
    assert "he and ihc have files of the same names. Of pairs, say: --images he --pictures ihc" in report
    put(pairs / "he" / "more.png")
    assert not [line for line in init_folder(pairs)[1] if "same names" in line]
