"""Folders of images with Pascal VOC files beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cards import DatasetCard
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


def test_an_empty_folder(tmp_path: Path) -> None:
    empty = reader(tmp_path, "ring")
    with pytest.raises(UserError, match="holds no image"):
        empty.index()
