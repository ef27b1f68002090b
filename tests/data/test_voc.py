"""Folders of images with Pascal VOC files beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cards import DatasetCard
from zoo.data import open_dataset
from zoo.data.readers.voc import VocReader
from zoo.errors import DataError, UserError
from zoo.types import Boxes

XML = """<annotation><object><name>{name}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax>
<ymax>12</ymax></bndbox>
</object></annotation>"""


def reader(folder: Path, *classes: str) -> VocReader:
    card = DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": "rings",
            "summary": "For tests.",
            "reader": "voc",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "truths": {"cells": {"kind": "boxes", "classes": classes}},
        }
    )
    return VocReader(card, folder, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sig-train-pos/a.jpeg", "sig-train-pos/b.jpeg", "sig-train-neg/c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / name)
    (tmp_path / "sig-train-pos" / "a.xml").write_text(XML.format(name="ring"), encoding="utf-8")
    return tmp_path


def test_boxes_none_and_not_annotated(folder: Path) -> None:
    found = reader(folder, "signet ring")
    samples = {entry.id: found.read(entry) for entry in found.index()}
    assert set(samples) == {"a", "b", "c"}
    boxes = samples["a"].truth["cells"]
    assert isinstance(boxes, Boxes)
    assert boxes.xyxy.tolist() == [[2, 3, 10, 12]]
    assert samples["a"].image.shape == (3, 20, 30)
    assert samples["b"].truth == {}
    assert len(samples["c"].truth["cells"].xyxy) == 0  # type: ignore[union-attr]


def test_classes_are_looked_up_where_there_are_several(folder: Path) -> None:
    found = reader(folder, "ring", "other")
    assert found.read(found.index()[1]).truth["cells"].classes.tolist() == [1]  # type: ignore[union-attr]
    wrong = reader(folder, "rung", "other")
    with pytest.raises(DataError, match='unknown class "ring"'):
        wrong.read(wrong.index()[1])


def annotated(folder: Path, xml: str) -> Boxes:
    """Return what is read of the image with a given annotation."""
    (folder / "sig-train-pos" / "a.xml").write_text(xml, encoding="utf-8")
    found = reader(folder, "ring", "other")
    boxes = found.read(found.index()[1]).truth["cells"]
    assert isinstance(boxes, Boxes)
    return boxes


def thing(*corners: object, name: str = "ring", more: str = "") -> str:
    words = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False))
    return f"<object><name>{name}</name>{more}<bndbox>{words}</bndbox></object>"


def test_a_file_without_boxes_is_an_image_without_boxes(folder: Path) -> None:
    """It was looked at and nothing was there, which is not the same as no file: such an image teaches."""
    none = annotated(folder, "<annotation><filename>a.jpeg</filename></annotation>")
    assert none.xyxy.shape == (0, 4)
    assert none.classes.shape == (0,)
    assert none.attributes is not None
    assert none.attributes.shape == (0, 1)


def test_boxes_without_area_are_left_out_and_those_that_leave_are_cut(folder: Path) -> None:
    rows = (
        thing(5, 5, 5, 9)
        + thing(5, 5, 9, 5)
        + thing(-3, 2, 8, 40)
        + thing(0, 0, 30, 20, more="<truncated>1</truncated>")
    )
    boxes = annotated(folder, f"<annotation>{rows}</annotation>")
    assert boxes.xyxy.tolist() == [[0, 2, 8, 20], [0, 0, 30, 20]]
    assert boxes.attributes is not None
    assert boxes.attributes.tolist() == [[-1], [1]]


def test_paths_inside_a_file_do_not_matter(folder: Path) -> None:
    """Annotation tools write where the image lay on their machine; the image is the one beside the file."""
    where = "<folder>C:/data/x</folder><filename>other.png</filename><path>/mnt/x/other.png</path>"
    assert annotated(folder, f"<annotation>{where}{thing(2, 3, 10, 12)}</annotation>").xyxy.tolist() == [[2, 3, 10, 12]]


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (f"<annotation>{thing(2, 3, 10, 12)}", r"a.xml:1: the file is no Pascal VOC annotation .* Copy it again"),
        ("", r"a.xml:1: the file is no Pascal VOC"),
        ("<html><body/></html>", "<html> is no Pascal VOC annotation. Expected <annotation>"),
        (
            f"<annotation>{thing(2, 3, 9, 9)}{thing(9, 3, 2, 9)}</annotation>",
            "object 2: the box .* ends before it begins",
        ),
        (f"<annotation>{thing(40, 3, 50, 9)}</annotation>", "object 1: the box .* lies outside the image of 20 x 30"),
        (f"<annotation>{thing(2, 3, 10)}</annotation>", "object 1: no four corners. Expected <bndbox>"),
        (f"<annotation>{thing(2, 'x', 10, 9)}</annotation>", "object 1: no four corners"),
        ("<annotation><object><name>ring</name></object></annotation>", "object 1: no four corners"),
        (f"<annotation>{thing(2, 3, 9, 9, name='rin')}</annotation>", 'unknown class "rin". Did you mean ring'),
    ],
)
def test_faults_are_named(folder: Path, xml: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        annotated(folder, xml)


def test_images_of_one_name_are_refused(folder: Path) -> None:
    """Ids are names: the second image of a name could never be told from the first."""
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "sig-train-neg" / "a.jpeg")
    (folder / "zoo-dataset.yaml").write_text(
        "zoo: 1\nname: rings\nsummary: For tests.\nlicence: {name: CC0-1.0, allows: [research]}\nreader: voc\n"
        "truths: {cells: {kind: boxes, classes: [ring]}}\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match=r"a \("):
        open_dataset(folder)


def test_an_empty_folder(tmp_path: Path) -> None:
    empty = reader(tmp_path, "ring")
    with pytest.raises(UserError, match="holds no image"):
        empty.index()
