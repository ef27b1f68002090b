"""What `zoo data check` must find, each planted on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from zoo.data.datasets import open_dataset
from zoo.data.integrity import alike, check_dataset, leakage, perceptual, prints_of
from zoo.data.seams import components, edges_of, touching
from zoo.errors import UserError


def field(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A smooth random picture, so that neighbouring pixels are alike as in tissue."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    for axis in (0, 1):
        kernel = np.hanning(25) / np.hanning(25).sum()
        noise = np.apply_along_axis(np.convolve, axis, noise, kernel, "same")
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return np.rint(noise * 255).astype(np.uint8)


def add(folder: Path, name: str, picture: np.ndarray, value: int = 1) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:8] = value
    Image.fromarray(picture).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def card(folder: Path, splits: dict[str, list[str]] | str, **arguments: Any) -> Path:
    values = {
        "zoo": 1, "name": "mine", "summary": "Mine.", "licence": {"name": "own", "allows": []}, "splits": splits,
        "reader": {"name": "folder", "arguments": {"masks": {"tissue": {}}, **arguments}},
        "truths": {"tissue": {"kind": "semantic", "classes": ["background", "gland"]}},
    }  # fmt: skip
    (folder / "zoo-dataset.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def messages(folder: Path) -> tuple[bool, str]:
    report = check_dataset(folder)
    json.dumps(report.values())
    return report.ok, "\n".join(report.lines(width=10_000))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for number in range(4):
        add(tmp_path, f"p{number // 2}_{number}", field(number))
    return card(tmp_path, {"train": ["p0_0", "p0_1"], "test": ["p1_2", "p1_3"]}, group_pattern=r"^(p\d)_")


def test_a_clean_dataset(clean: Path) -> None:
    report = check_dataset(clean)
    assert report.ok
    assert report.findings == []
    assert report.sizes == {"64 x 64": 4}
    train = report.splits["train"]
    assert (train.images, train.groups, train.annotated["tissue"]) == (2, 1, 2)
    assert train.foreground == {"tissue": 0.125}
    assert train.classes == {"tissue": {"background": 2 * 56 * 64, "gland": 2 * 8 * 64}}
    assert "  all: 4 images, 2 groups" in report.lines()
    assert all(len(line) <= 40 for line in report.lines(width=40))


def test_broken_and_absent_items(clean: Path) -> None:
    (clean / "images" / "p0_0.png").write_bytes((clean / "images" / "p0_0.png").read_bytes()[:300])
    add(clean, "p0_1", field(1), value=7)
    (clean / "images" / "p1_3.png").unlink()
    shutil.copy(clean / "images" / "p1_2.png", clean / "images" / "p1_2.bmp")
    done: list[int] = []
    report = check_dataset(clean, progress=lambda k, n: done.append(k))
    text = "\n".join(report.lines(width=10_000))
    assert not report.ok
    assert done == [1, 2, 3]
    assert "error: p0_0: " in text
    assert "truncated" in text
    assert "unknown values 7 (512 pixels). Expected 0, 1." in text
    assert "error: split test: 1 of its 2 images are not here: p1_3. Complete the copy." in text
    assert "error: p1_2: the id stands for two images" in text
    with pytest.raises(UserError, match="the same id stands for two images"):
        open_dataset(clean)


def test_a_split_without_foreground(clean: Path) -> None:
    add(clean, "p1_2", field(2), value=0)
    add(clean, "p1_3", field(3), value=0)
    ok, text = messages(clean)
    assert not ok
    assert "error: split test: tissue: no pixel is foreground" in text
    assert "split train: tissue" not in text
    for name in ("p1_2", "p1_3"):
        (clean / "masks" / f"{name}.png").unlink()
    ok, text = messages(clean)
    assert ok
    assert "note: split test: tissue: no image carries this truth." in text


def test_leaks_by_id_group_content_and_look(clean: Path) -> None:
    card(clean, {"train": ["p0_0", "p1_2"], "test": ["p1_2", "p1_3"]}, group_pattern=r"^(p\d)_")
    ok, text = messages(clean)
    assert ok  # nothing is broken, but it leaks
    assert "leak: train and test: share 1 image (p1_2)" in text
    add(clean, "p1_3", field(0))
    brighter = np.clip(field(1).astype(int) + 6, 0, 255).astype(np.uint8)
    add(clean, "p1_2", brighter)
    card(clean, {"train": ["p0_0", "p0_1"], "test": ["p1_2", "p1_3"]})
    report = check_dataset(clean)
    assert [f.level for f in report.findings] == ["leak", "leak", "note"]
    assert "the same pixels: mine/p0_0 = mine/p1_3" in report.leaks[0].what
    assert "of alike looks: mine/p0_1 = mine/p1_2" in report.leaks[1].what
    card(clean, {"train": ["p0_0", "p1_2"], "test": ["p0_1"]}, group_pattern=r"^(p\d)_")
    assert "share 1 group (p0), with 1 image of test." in messages(clean)[1]


def test_neighbouring_tiles_leak(tmp_path: Path) -> None:
    whole = field(0, 128, 128)
    for number, (i, j) in enumerate(((0, 0), (0, 64), (64, 0), (64, 64))):
        add(tmp_path, f"t{number}", whole[i : i + 64, j : j + 64])
    add(tmp_path, "other", field(9))
    card(tmp_path, {"train": ["t0", "t3"], "test": ["t1", "other"]})
    text = messages(tmp_path)[1]
    assert "2 pairs of neighbouring tiles of one picture: mine/t0 | mine/t1, mine/t1 | mine/t3." in text


def test_leakage_between_datasets(clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    add(other, "x", field(2))
    add(other, "y", field(20))
    card(other, {})
    found = leakage(prints_of(open_dataset(clean)), prints_of(open_dataset(other)), ("mine", "other"))
    assert [str(f) for f in found] == ["leak: mine and other: 1 pair with the same pixels: mine/p1_2 = mine/x."]


def test_seams_find_tiles_of_one_picture_and_no_others() -> None:
    tiles = {}
    for seed in range(3):
        whole = field(seed, 180, 240).transpose(2, 0, 1)
        for i in range(3):
            for j in range(3):
                tiles[f"{seed}-{i}{j}"] = whole[:, i * 60 : i * 60 + 60, j * 80 : j * 80 + 80]
    edges = {name: e for name, tile in tiles.items() if (e := edges_of(tile)) is not None}
    seams = touching(edges)
    assert {(s.first, s.second, s.side) for s in seams} == {
        (f"{k}-{i}{j}", f"{k}-{i + (side == 'below')}{j + (side == 'right')}", side)
        for k in range(3) for side in ("right", "below")
        for i in range(3 - (side == "below")) for j in range(3 - (side == "right"))
    }  # fmt: skip
    fields = components(list(tiles), [(s.first, s.second) for s in seams])
    assert [len(f) for f in fields] == [9] * 3
    assert edges_of(np.zeros((3, 5, 40), np.uint8)) is None
    flat = {name: edges_of(np.full((3, 30, 30), 200, np.uint8)) for name in "ab"}
    assert touching({k: e for k, e in flat.items() if e}) == []


def test_perceptual_hashes() -> None:
    one = field(5).transpose(2, 0, 1)
    same = perceptual(one)
    assert same is not None
    for changed in (one // 2 + 40, np.repeat(np.repeat(one, 2, 1), 2, 2)):
        found = perceptual(changed.astype(np.uint8))
        assert found is not None
        assert all((a ^ b).bit_count() <= 3 for a, b in zip(same, found, strict=True))
    other = perceptual(field(6).transpose(2, 0, 1))
    assert other is not None
    assert all((a ^ b).bit_count() > 12 for a, b in zip(same, other, strict=True))
    assert perceptual(np.full((3, 40, 40), 7, np.uint8)) is None
    assert alike([], []) == []


def test_generated_images_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.data.integrity._GENERATED", 2)
    read: list[int] = []
    report = check_dataset("phantom-nuclei", progress=lambda done, total: read.append(total))
    assert report.ok
    assert not report.leaks
    assert len(read) == 2 * (len(report.splits) - 1)
    assert report.splits["train"].annotated["nuclei"] == 2
    assert any("generated" in f.what for f in report.findings)


@pytest.mark.data
def test_the_leaks_of_published_data_are_found(data_root: Path) -> None:
    report = check_dataset("wbc-1", root=data_root)
    assert report.ok
    assert not report.leaks
    assert any("112 = 139" in f.what for f in report.findings)
    strays = check_dataset("wbc-2", root=data_root)
    assert strays.ok
    entries = {e.id: e for e in open_dataset("glas", root=data_root).index}
    by_split = {s: {e.group for e in entries.values() if e.split == s} for s in ("train", "testB")}
    assert by_split["testB"] <= by_split["train"]
