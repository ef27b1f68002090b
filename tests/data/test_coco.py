"""Readers of COCO JSON: miniatures of the published layouts, with each fault in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.data import open_dataset
from zoo.data.integrity import check_dataset
from zoo.errors import DataError, UserError
from zoo.types import Boxes


def picture(path: Path, height: int = 20, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def write(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [{"id": i, "name": name} for i, name in enumerate(categories, 1)]
    numbered = [{"id": i, **a} for i, a in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": named}))


@pytest.fixture
def lisc(tmp_path: Path) -> Path:
    """Return a root with a miniature of LISC in the layout of COCO."""
    base = tmp_path / "lisc"
    for name in ("Baso_35.bmp", "Mono_1.bmp"):
        picture(base / "train2017" / name)
    images = [{"id": 7, "file_name": "C:\\data\\lisc\\train2017\\Baso_35.bmp"}, {"id": 9, "file_name": "/x/Mono_1.bmp"}]
    boxes = [
        {"image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 8]},
        {"image_id": 7, "category_id": 2, "bbox": [5, 5, 0, 8]},
        {"image_id": 7, "category_id": 2, "bbox": [25, -4, 10, 8], "iscrowd": 1},
    ]
    write(base / "annotations" / "instances_train2017.json", images, boxes, ["basophil", "Eosinophil"])
    return tmp_path


def test_boxes_of_a_coco_file(lisc: Path) -> None:
    """Names are matched by their ends, categories whatever their capitals; no area is left out, what leaves is cut."""
    data = open_dataset("lisc", root=lisc, split="train")
    assert [e.id for e in data.index] == ["Baso_35", "Mono_1"]
    cells = data[0].truth["cells"]
    assert isinstance(cells, Boxes)
    assert cells.xyxy.tolist() == [[2, 3, 12, 11], [25, 0, 30, 4]]
    assert cells.classes.tolist() == [1, 2]
    assert cells.crowd is not None
    assert cells.crowd.tolist() == [False, True]
    none = data[1].truth["cells"]
    assert isinstance(none, Boxes)
    assert none.xyxy.shape == (0, 4)


FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image_id": 7, "category_id": 1, "bbox": [40, 3, 10, 8]}, DataError, r"annotations\[0\]: the box .* outside"),
    ({"image_id": 7, "category_id": 1, "bbox": [1, 3, 8]}, DataError, r"bbox: \[1, 3, 8\]. Expected x, y"),
    ({"image_id": 7, "category_id": 1, "bbox": [9, 9, -3, 8]}, DataError, "width and height 0 or more"),
    ({"image_id": 7, "category_id": 1, "bbox": [float("nan"), 9, 3, 8]}, DataError, "width and height 0 or more"),
    ({"image_id": [7], "category_id": 1, "bbox": [9, 9, 3, 8]}, UserError, r"annotations\[0\]: .* that COCO knows"),
    ({"image_id": 7, "category_id": 5, "bbox": [1, 3, 8, 8]}, DataError, "no category has the id 5"),
    ({"image_id": 7, "category_id": 3, "bbox": [1, 3, 8, 8]}, DataError, 'unknown class "Neutrofil". Did you mean N'),
    ({"image_id": 8, "category_id": 1, "bbox": [1, 3, 8, 8]}, UserError, "no image has the id 8"),
]


@pytest.mark.parametrize(("annotation", "error", "words"), FAULTS)
def test_faults_of_a_box_are_named(lisc: Path, annotation: dict[str, Any], error: type[Exception], words: str) -> None:
    file = lisc / "lisc" / "annotations" / "instances_train2017.json"
    images = [{"id": 7, "file_name": "Baso_35.bmp"}]
    write(file, images, [annotation], ["Basophil", "Eosinophil", "Neutrofil"])
    with pytest.raises(error, match=words):
        open_dataset("lisc", root=lisc)[0]


def test_faults_of_a_file_are_named(lisc: Path) -> None:
    file = lisc / "lisc" / "annotations" / "instances_train2017.json"
    twice = [{"id": 7, "file_name": "Baso_35.bmp"}, {"id": 7, "file_name": "Mono_1.bmp"}]
    write(file, twice, [], ["Basophil"])
    with pytest.raises(UserError, match=r"images\[1\]: the id 7 stands for Baso_35.bmp already"):
        open_dataset("lisc", root=lisc)
    boxes = [{"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 1, 2, 2]}] * 2
    write(file, twice[:1], boxes, ["Basophil"])
    with pytest.raises(UserError, match=r"annotations\[1\]: the id 3 stands at annotations\[0\] already"):
        open_dataset("lisc", root=lisc)
    write(file, [{"id": 7, "file_name": "Other.bmp"}], [], ["Basophil"])
    with pytest.raises(UserError, match=r"none of the images .* is here"):
        open_dataset("lisc", root=lisc)
    file.write_text('{"images": [\n {"id": 1,')
    with pytest.raises(UserError, match=r"json:2: not valid JSON"):
        open_dataset("lisc", root=lisc)
    for place in ("images", "annotations", "categories"):
        values = {"images": [], "annotations": [], "categories": []}
        file.write_text(json.dumps(values | {place: ["Baso_35.bmp"]}))
        with pytest.raises(UserError, match=rf"{place}\[0\]: Baso_35.bmp is nothing that COCO knows"):
            open_dataset("lisc", root=lisc)
    file.write_text("[]")
    with pytest.raises(UserError, match='no list "images"'):
        open_dataset("lisc", root=lisc)
    file.unlink()
    with pytest.raises(UserError, match="holds no annotations"):
        open_dataset("lisc", root=lisc)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"truth": "cell"}, 'truth: no "cell". Did you mean cells?'),
        ({"attributes": {"shape": "s"}}, 'attributes: cells has no "shape". Write it to truths.cells.attributes.'),
    ],
)
def test_arguments_that_the_card_does_not_know_are_named(lisc: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        open_dataset("lisc", root=lisc, arguments=arguments)


def test_what_is_named_and_not_here_is_said(lisc: Path) -> None:
    """A file of annotations whose name is mistyped, and images that a copy lacks: both were passed over untold."""
    (lisc / "lisc" / "train2017" / "Mono_1.bmp").unlink()
    report = check_dataset("lisc", root=lisc)
    notes = [finding.what for finding in report.findings if finding.where == "lisc"]
    assert notes == [
        "split val: annotations/instances_val2017.json is not here. Copy it, or mend the card.",
        "1 of the 2 images of instances_train2017.json are not here: /x/Mono_1.bmp.",
    ]
    assert report.ok


def test_leukemia_attri_in_miniature(tmp_path: Path) -> None:
    base = tmp_path / "leukemia-attri" / "h_100x_c1"
    for name in ("4_15_1000_ALL.png", "4_16_1000_ALL.png"):
        picture(base / "Images" / "train" / name)
    picture(base / "Images" / "test" / "5_1_1000_AML.png")
    keys = {"cell_size": 2, "nuclear_chromatio": 1, "nuclear_shape": "0", "nucleolus": 4, "cytoplasm": None}
    boxes = [
        {"image_id": 1, "category_id": 2, "bbox": [2, 2, 9, 9], **keys},
        {"image_id": 1, "category_id": 1, "bbox": [4, 2, 9, 9], **dict.fromkeys(keys, 4)},
    ]
    images = [{"id": i, "file_name": n} for i, n in ((1, "4_15_1000_ALL.png"), (2, "4_99_1000_ALL.png"))]
    write(base / "json_labels" / "train.json", images, boxes, ["none", "myeloblast"])
    write(base / "json_labels" / "test.json", [{"id": 1, "file_name": "5_1_1000_AML.png"}], [], ["none"])
    data = open_dataset("leukemia-attri", root=tmp_path)
    assert [(e.id, e.group, e.center, e.split) for e in data.index] == [
        ("4_15_1000_ALL", "patient-4", "h_100x_c1", "train"),
        ("5_1_1000_AML", "patient-5", "h_100x_c1", "test"),
    ]
    cells = data[0].truth["cells"]
    assert isinstance(cells, Boxes)
    assert cells.classes.tolist() == [2, 1]
    assert cells.attributes is not None
    assert cells.attributes.tolist() == [[2, 1, 0, -1, -1, -1, -1], [-1] * 7]
    with pytest.raises(UserError, match="no subset L_40X_C2"):
        open_dataset("leukemia-attri", root=tmp_path, arguments={"subset": "L_40X_C2"})


def test_bccd_says_the_same_in_both_formats(data_root: Path, tmp_path: Path) -> None:
    card = tmp_path / "zoo-dataset.yaml"
    card.write_text(
        "zoo: 1\nname: bccd-coco\nsummary: The same boxes.\nlicence: {name: MIT, allows: [research]}\n"
        f"folder: {data_root / 'bccd'}\n"
        "reader: {name: coco, arguments: {annotations: {train: coco/train.json}, images: BCCD/JPEGImages}}\n"
        "truths: {cells: {kind: boxes, classes: [RBC, WBC, Platelets]}}\n"
    )
    ours, theirs = open_dataset(tmp_path, split="train"), open_dataset("bccd", split="train", root=data_root)
    assert {e.id for e in ours.index} == {e.id for e in theirs.index}
    for item in [entry.id for entry in ours.index][::50]:
        one = ours[ours.position(item)].truth["cells"]
        other = theirs[theirs.position(item)].truth["cells"]
        assert isinstance(one, Boxes)
        assert isinstance(other, Boxes)
        assert sorted(map(tuple, one.xyxy.tolist())) == sorted(map(tuple, other.xyxy.tolist()))
