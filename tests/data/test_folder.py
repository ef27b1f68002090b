"""A user's own folder: every kind of mask, every mistake in one, and the card that `zoo data init` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from zoo.data.datasets import open_dataset
from zoo.data.init import init_folder
from zoo.errors import DataError, UserError
from zoo.types import Instances, Semantic

HEIGHT, WIDTH = 20, 30


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def mask(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix.startswith(".tif"):
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)


def card(folder: Path, kind: str, classes: list[str], masks: dict[str, Any] | None = None, **more: Any) -> Path:
    arguments = {"masks": {"tissue": masks or {}}, **more.pop("arguments", {})}
    values = {
        "zoo": 1, "name": "mine", "summary": "Mine.", "reader": {"name": "folder", "arguments": arguments},
        "licence": {"name": "own", "allows": []}, "truths": {"tissue": {"kind": kind, "classes": classes}}, **more,
    }  # fmt: skip
    (folder / "zoo-dataset.yaml").write_text(yaml.safe_dump(values))
    return folder


def stripes(*values: int) -> np.ndarray:
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    for position, value in enumerate(values):
        out[:, position * 5 : position * 5 + 5] = value
    return out


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".bmp"])
def test_semantic_masks(tmp_path: Path, suffix: str) -> None:
    image(tmp_path / "images" / "a" / "1.png")
    image(tmp_path / "images" / "a" / "2.npy")
    mask(tmp_path / "masks" / "a" / f"1{suffix}", stripes(0, 128, 255))
    values = {"values": {0: "background", 128: "stroma", 255: "tumour"}}
    data = open_dataset(card(tmp_path, "semantic", ["background", "tumour", "stroma"], values))
    assert [e.id for e in data.index] == ["a/1", "a/2"]
    tissue = data[0].truth["tissue"]
    assert isinstance(tissue, Semantic)
    assert (tissue.map == stripes(0, 2, 1)).all()
    assert tissue.ignore is None
    assert data[1].truth == {}
    assert data[1].image.shape == (3, HEIGHT, WIDTH)


def test_unknown_values_are_named_or_ignored(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    mask(tmp_path / "masks" / "1.png", stripes(0, 1, 7, 9))
    with pytest.raises(DataError, match=r"1\.png: .* 7 \(100 pixels\), 9 \(100 pixels\)\. Expected 0, 1\."):
        open_dataset(card(tmp_path, "semantic", ["background", "gland"]))[0]
    tissue = open_dataset(card(tmp_path, "semantic", ["background", "gland"], {"unknown": "ignore"}))[0].truth["tissue"]
    assert isinstance(tissue, Semantic)
    assert tissue.ignore == 255
    assert (tissue.map == stripes(0, 1, 255, 255)).all()
    with pytest.raises(UserError, match=r'no class "glnd". Did you mean gland'):
        open_dataset(card(tmp_path, "semantic", ["background", "gland"], {"values": {1: "glnd"}}))


def test_size_mismatch_and_fractions(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    mask(tmp_path / "masks" / "1.png", stripes(0, 1)[:, :-1])
    with pytest.raises(DataError, match=r"has 20 x 29 pixels, its image 1\.png has 20 x 30"):
        open_dataset(card(tmp_path, "semantic", ["background", "gland"]))[0]
    (tmp_path / "masks" / "1.png").unlink()
    mask(tmp_path / "masks" / "1.npy", stripes(0, 1) + 0.5)
    for kind in ("semantic", "instances"):
        with pytest.raises(DataError, match="holds fractions"):
            open_dataset(card(tmp_path, kind, ["background", "gland"]))[0]


def test_instances_as_ids_and_as_folders(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    image(tmp_path / "images" / "2.png")
    ids = stripes(0, 3, 0, 9).astype(np.uint32) * 30_000
    mask(tmp_path / "masks" / "1.tif", ids)
    for number, value in enumerate((1, 255, 0)):
        mask(tmp_path / "masks" / "2" / f"{number}.png", stripes(*[0] * number, value, value))
    data = open_dataset(card(tmp_path, "instances", ["nucleus"]))
    first, second = data[0].truth["tissue"], data[1].truth["tissue"]
    assert isinstance(first, Instances)
    assert isinstance(second, Instances)
    assert np.unique(first.map).tolist() == [0, 90_000, 270_000]
    assert (second.map == stripes(1, 1, 2)).all()
    mask(tmp_path / "masks" / "2" / "0.png", stripes(1, 2))
    with pytest.raises(DataError, match="unknown values 2"):
        data[1]


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.float32])
def test_label_files_of_any_type(tmp_path: Path, dtype: Any) -> None:
    """Whole numbers are ids in whatever type a program stored them, with gaps as they are."""
    image(tmp_path / "images" / "1.png")
    mask(tmp_path / "masks" / "1.tif", (stripes(0, 3, 0, 9).astype(np.int64) ** 3).astype(dtype))
    truth = open_dataset(card(tmp_path, "instances", ["nucleus"]))[0].truth["tissue"]
    assert isinstance(truth, Instances)
    assert np.unique(truth.map).tolist() == [0, 27, 729]


def test_masks_beside_the_images_and_groups(tmp_path: Path) -> None:
    for number, name in enumerate(("p1_0_0", "p1_0_1", "p2_0_0")):
        image(tmp_path / f"{name}.png", number)
        mask(tmp_path / f"{name}_mask.png", stripes(0, 1))
    more = {"arguments": {"images": ".", "group_pattern": r"^(p\d+)_"}}
    data = open_dataset(card(tmp_path, "semantic", ["background", "g"], {"folder": ".", "suffix": "_mask"}, **more))
    assert [(e.id, e.group) for e in data.index] == [("p1_0_0", "p1"), ("p1_0_1", "p1"), ("p2_0_0", "p2")]
    assert "tissue" in data[2].truth
    for pattern, what in (("(", "no regular expression"), ("p1", "has no bracket")):
        with pytest.raises(UserError, match=what):
            open_dataset(card(tmp_path, "semantic", ["b", "g"], arguments={"group_pattern": pattern}))


def test_split_folders_duplicates_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        open_dataset(card(tmp_path, "semantic", ["background", "g"]))
    image(tmp_path / "images" / "train" / "1.png")
    image(tmp_path / "images" / "test" / "1.png")
    with pytest.raises(UserError, match=r"none of the 2 images has a mask. Expected masks/test/1\.png"):
        open_dataset(card(tmp_path, "semantic", ["background", "g"]))
    mask(tmp_path / "masks" / "test" / "1.png", stripes(1))
    data = open_dataset(card(tmp_path, "semantic", ["background", "g"]), split="test")
    assert [e.id for e in data.index] == ["test/1"]
    image(tmp_path / "images" / "test" / "1.bmp")
    with pytest.raises(UserError, match=r"the same id stands for two images: test/1 \(.*1\.bmp, .*1\.png\)"):
        open_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="zoo data init"):
        open_dataset(tmp_path / "empty")


def test_channels_and_spacing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    planes = np.random.default_rng(0).integers(0, 4000, (HEIGHT, WIDTH, 2)).astype(np.uint16)
    np.save(tmp_path / "images" / "1.npy", planes)
    mask(tmp_path / "masks" / "1.png", stripes(1))
    more: dict[str, Any] = {"channels": ["dapi", "cd3"], "spacing": {"um": 0.5, "provenance": "published"}}
    sample = open_dataset(card(tmp_path, "semantic", ["background", "g"], **more))[0]
    assert (sample.image == planes.transpose(2, 0, 1)).all()
    assert sample.spacing == (0.5, 0.5)
    with pytest.raises(DataError, match=r"2 channels. The card names 3: a, b, c"):
        open_dataset(card(tmp_path, "semantic", ["background", "g"], channels=["a", "b", "c"]))[0]
    tif = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "images" / "0.tif", np.zeros((9, 9, 3), np.uint8), **tif)
    stated = open_dataset(card(tmp_path, "semantic", ["background", "g"]))[0].spacing
    assert stated == pytest.approx((0.25, 0.25))


# --- GeoJSON ----------------------------------------------------------------------------------------------------------


def square(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(name: str | None, coordinates: Any, kind: str = "Polygon", thing: str = "annotation") -> dict[str, Any]:
    classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": thing, **classification}}


def geojson(path: Path, *features: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


def test_qupath_geojson_as_semantic_masks(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    geojson(
        tmp_path / "masks" / "1.geojson",
        feature("Stroma", [square(5, 5, 8, 8)]),  # small, so on top of the tumour around it
        feature("Tumor", [square(2, 2, 12, 12), square(9, 9, 11, 11)]),  # with a hole
        feature("Tumor", [[square(15, 0, 16, 3)], [square(20, 0, 50, 2)]], "MultiPolygon"),  # leaves the image
        feature("Ignore*", [square(0, 18, 30, 20)]),
        feature("Region*", [square(0, 0, 30, 20)]),
        feature("Tumor", [3, 3], "Point"),
    )
    tissue = open_dataset(card(tmp_path, "semantic", ["background", "tumor", "stroma"]))[0].truth["tissue"]
    assert isinstance(tissue, Semantic)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:12, 2:12] = 1
    expected[9:11, 9:11] = 0
    expected[5:8, 5:8] = 2
    expected[0:3, 15:16] = expected[0:2, 20:30] = 1
    expected[18:] = 255
    assert (tissue.map == expected).all()
    assert tissue.ignore == 255


def test_qupath_geojson_as_instances(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    geojson(tmp_path / "masks" / "1.geojson", feature("B", [square(1, 1, 4, 4)]), feature("A", [square(6, 6, 9.4, 9)]))
    cells = open_dataset(card(tmp_path, "instances", ["A", "B"]))[0].truth["tissue"]
    assert isinstance(cells, Instances)
    assert cells.classes is not None
    assert {cells.classes[int(cells.map[y, x])] for y, x in ((2, 2), (7, 7))} == {1, 2}
    assert (cells.map > 0).sum() == 9 + 9  # the tenth column's centre, 9.5, lies outside
    with pytest.raises(DataError, match=r'unknown class "B". Expected one of A, C'):
        open_dataset(card(tmp_path, "instances", ["A", "C"]))[0]
    geojson(tmp_path / "masks" / "1.geojson", feature(None, [square(1, 1, 4, 4)]))
    with pytest.raises(DataError, match="without classification"):
        open_dataset(card(tmp_path, "instances", ["A", "B"]))[0]
    one = open_dataset(card(tmp_path, "instances", ["A"]))[0].truth["tissue"]
    assert isinstance(one, Instances)
    assert one.classes is None
    assert one.map.max() == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no features"),
        ('{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1]]]}}', "coordinates"),
        ('{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}', "coordinates"),
    ],
)
def test_broken_geojson(tmp_path: Path, text: str, what: str) -> None:
    image(tmp_path / "images" / "1.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.geojson").write_text(text)
    with pytest.raises(DataError, match=what):
        open_dataset(card(tmp_path, "instances", ["A"]))[0]


# --- zoo data init ----------------------------------------------------------------------------------------------------


def made(folder: Path, **arguments: Any) -> list[str]:
    text, report = init_folder(folder, **arguments)
    (folder / "zoo-dataset.yaml").write_text(text)
    return report


def test_init_of_tiles_with_semantic_masks(tmp_path: Path) -> None:
    folder = tmp_path / "My Slides (2)"
    for slide in ("008", "009", "S3", "S4"):
        for tile in range(3):
            image(folder / "images" / f"{slide}_x{tile}_y0.png", tile)
            mask(folder / "masks" / f"{slide}_x{tile}_y0.png", stripes(0, 255))
    report = "\n".join(made(folder, um=0.5))
    assert "12 images, 12 with masks, 0 unreadable" in report
    assert "masks: semantic, 2 values (0, 255)" in report
    assert "groups: 4 assumed, what stands before the tile's coordinates" in report
    data = open_dataset(folder)
    assert data.card.name == "my-slides-2"
    assert {e.group for e in data.index} == {"008", "009", "S3", "S4"}
    tissue = data[0].truth["objects"]
    assert isinstance(tissue, Semantic)
    assert (tissue.map == stripes(0, 1)).all()
    assert data[0].spacing == (0.5, 0.5)
    parts = [open_dataset(folder, split=s) for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == 12
    assert len({e.group for p in parts for e in p.index}) == sum(len({e.group for e in p.index}) for p in parts)


def test_init_of_numbers_keeps_them_as_names(tmp_path: Path) -> None:
    for number in range(8):
        image(tmp_path / f"00{number}.png", number)
    report = "\n".join(made(tmp_path))
    assert "masks: none found" in report
    assert "um per pixel: not known, no file states it. Give --um NUMBER" in report
    assert "every image is its own group" in report
    ids = [e.id for s in ("train", "val", "test") for e in open_dataset(tmp_path, split=s).index]
    assert sorted(ids) == [f"00{number}" for number in range(8)]
    assert open_dataset(tmp_path)[0].truth == {}


def test_init_of_instances_beside_the_images(tmp_path: Path) -> None:
    for number in range(6):
        image(tmp_path / f"a_{number}.png", number)
        mask(tmp_path / f"a_{number}_anno.png", stripes(*range(1 + number)))
    report = "\n".join(made(tmp_path, truth="glands"))
    assert "masks: instances, numbers count from 1 in each mask" in report
    glands = open_dataset(tmp_path)[5].truth["glands"]
    assert isinstance(glands, Instances)
    assert glands.map.max() == 5
    assert "masks: semantic" in "\n".join(made(tmp_path, kind="semantic"))


def test_init_of_geojson_and_binary_folders(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "g" / "images" / f"{number}.png")
        geojson(tmp_path / "g" / "masks" / f"{number}.geojson", feature("Tumor", [square(1, 1, 4, 4)]))
        image(tmp_path / "d" / "images" / f"{number}.png")
        geojson(tmp_path / "d" / "masks" / f"{number}.geojson", feature("T", [square(1, 1, 4, 4)], thing="detection"))
        image(tmp_path / "b" / "images" / f"{number}.png")
        mask(tmp_path / "b" / "masks" / str(number) / "0.png", stripes(1))
        image(tmp_path / "s" / f"{number}.png")
        geojson(tmp_path / "s" / f"{number}.geojson", feature("Tumor", [square(1, 1, 4, 4)]))
    kinds = {}
    for name in "gdbs":
        made(tmp_path / name)
        kinds[name] = open_dataset(tmp_path / name)[1].truth["objects"].kind
    assert kinds == {"g": "semantic", "d": "instances", "b": "instances", "s": "semantic"}
    assert open_dataset(tmp_path / "g").card.truths["objects"].classes == ("background", "Tumor")


def test_objects_without_classification_are_no_class(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    shapes = [feature(name, [square(x, 1, 4, 4)]) for x, name in ((1, "Tumor"), (8, "Stroma"), (15, None))]
    geojson(tmp_path / "masks" / "1.geojson", *shapes)
    report = "\n".join(made(tmp_path))
    assert "(not classified): 1" in report
    assert "Classify those without a name in QuPath" in report
    data = open_dataset(tmp_path)
    assert data.card.truths["objects"].classes == ("background", "Stroma", "Tumor")
    with pytest.raises(DataError, match=r"without classification\. Expected one of Stroma, Tumor\. Classify it"):
        data[0]


def test_init_reads_um_per_pixel_and_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for slide in "abc":
            for tile in range(2):
                options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
                path = tmp_path / "images" / split / f"{slide}{split}_{tile}.tif"
                tifffile.imwrite(path, np.zeros((9, 9, 3), np.uint8), **options)
    report = "\n".join(made(tmp_path))
    assert "um per pixel: 0.5, as every file states" in report
    assert "splits: test, train, by sub-folder" in report
    data = open_dataset(tmp_path, split="test")
    assert {e.group for e in data.index} == {"atest", "btest", "ctest"}


def test_init_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        init_folder(tmp_path / "none")
    with pytest.raises(UserError, match="holds no image"):
        init_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(
        UserError, match=r"none of 1 image can be read\. The first: .*a\.png: the image cannot be decoded"
    ):
        init_folder(tmp_path)
    image(tmp_path / "b.png")
    report = init_folder(tmp_path)[1]
    assert "1 image, 0 with masks, 1 unreadable" in report[0]
    image(tmp_path / "b.bmp")
    with pytest.raises(UserError, match=r'the id "b" is also that of b\.(bmp|png)'):
        init_folder(tmp_path)
    (tmp_path / "b.bmp").unlink()
    with pytest.raises(UserError, match="um per pixel will not do"):
        init_folder(tmp_path, um=-1)
    with pytest.raises(UserError, match=r"--masks mask: .* has no such folder"):
        init_folder(tmp_path, masks="mask")
    with pytest.raises(UserError, match="matches no image, as b"):
        init_folder(tmp_path, group_pattern=r"slide(\d+)")
    image(tmp_path / "slide7.png")
    assert "groups: 1 by the given" in (said := "\n".join(init_folder(tmp_path, group_pattern=r"slide(\d+)")[1]))
    assert "b and others (1 in all) do not match and stand alone" in said


def test_init_says_why_masks_will_not_do(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / "images" / f"img_{number}.png", number)
        mask(tmp_path / "masks" / f"mask_{number}.png", stripes(0, 1))
    report = "\n".join(init_folder(tmp_path)[1])
    assert "No file of masks/ (mask_0.png) has the name of an image (img_0)" in report
    for number in range(3):
        (tmp_path / "masks" / f"mask_{number}.png").unlink()
        mask(tmp_path / "masks" / f"img_{number}.png", stripes(0))
    with pytest.raises(UserError, match="every pixel of every mask is 0"):
        init_folder(tmp_path)
    for number in range(3):
        Image.fromarray(np.dstack([stripes(0, 9)] * 2 + [stripes(8)])).save(tmp_path / "masks" / f"img_{number}.png")
    with pytest.raises(UserError, match="Masks of colours have none: save the number of each colour's class"):
        init_folder(tmp_path)


def test_suffixes_in_capitals_and_names_of_other_tongues(tmp_path: Path) -> None:
    folder = tmp_path / "Größe Übung"
    for number in range(3):
        image(folder / "Bilder" / "Müller 1" / f"Schnitt {number}.PNG", number)
        mask(folder / "Masken" / "Müller 1" / f"Schnitt {number}.PNG", stripes(0, 1))
    assert "3 images, 3 with masks" in made(folder)[0]
    data = open_dataset(folder)
    assert data.card.name == "grosse-ubung"
    assert isinstance(data[2].truth["objects"], Semantic)


def test_folders_of_images_and_masks_in_each_sub_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(2):
            image(tmp_path / "s" / split / "images" / f"{number}.png", number)
            mask(tmp_path / "s" / split / "masks" / f"{number}.png", stripes(0, 1))
    report = "\n".join(made(tmp_path / "s"))
    assert "4 images, 4 with masks" in report
    assert "splits: train, val, by sub-folder" in report
    data = open_dataset(tmp_path / "s", split="val")
    assert [e.id for e in data.index] == ["val/0", "val/1"]
    assert isinstance(data[0].truth["objects"], Semantic)

    for name in "abc":  # as the 2018 Data Science Bowl: a folder an image, a mask an object
        image(tmp_path / "b" / name / "images" / f"{name}.png")
        mask(tmp_path / "b" / name / "masks" / "x.png", stripes(0, 255))
        mask(tmp_path / "b" / name / "masks" / "y.png", stripes(0, 0, 255))
    assert "3 images, 3 with masks" in made(tmp_path / "b")[0]
    found = open_dataset(tmp_path / "b")[1].truth["objects"]
    assert isinstance(found, Instances)
    assert found.map.max() == 2
