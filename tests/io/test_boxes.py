"""What is written of boxes: names of classes and attributes in every file, and words on the overlay."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from zoo.io import overlay
from zoo.io.coco import write_coco
from zoo.io.overlay import MOST_WORDS, Rectangles
from zoo.io.writers import BoxesWriter, Target
from zoo.types import BoxesPrediction


def written(folder: Path, count: int = 2) -> BoxesWriter:
    boxes = np.array([[2, 3, 30, 40], [50, 10, 90, 44]] * count, np.float32)[:count]
    said = np.array([[1, 0], [0, -1]] * count)[:count]
    values = {"size": ("small", "large"), "shape": ("round", "lobed")}
    kinds, scores = np.arange(count) % 2, np.linspace(0.9, 0.4, count, dtype=np.float32)
    writer = BoxesWriter(Target(lambda ending: folder / f"a.{ending}", (60, 100), 0.25))
    writer.put(0, BoxesPrediction(boxes, ("RBC", "WBC"), kinds, scores, said, values))
    writer.end(None)
    return writer


def test_every_file_names_classes_and_attributes(tmp_path: Path) -> None:
    writer = written(tmp_path)
    found = json.loads((tmp_path / "a.boxes.json").read_text())["boxes"]
    assert found[0] == {
        "xyxy": [2, 3, 30, 40],
        "class": "RBC",
        "score": 0.9,
        "attributes": {"size": "large", "shape": "round"},
    }
    assert found[1]["attributes"] == {"size": "small"}
    with (tmp_path / "a.boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["shape"] for row in rows] == ["round", ""]
    feature = next(writer.features()).as_dict()["properties"]
    assert feature["metadata"] == {"size": "large", "shape": "round"}
    assert feature["measurements"]["Area um^2"] == 28 * 37 / 16
    assert write_coco(tmp_path / "coco.json", [("sub/a.png", tmp_path / "a.boxes.json")]) == 2
    whole = json.loads((tmp_path / "coco.json").read_text())
    assert whole["categories"] == [{"id": 1, "name": "RBC"}, {"id": 2, "name": "WBC"}]
    assert whole["annotations"][1]["bbox"] == [50, 10, 40, 34]
    assert whole["annotations"][1]["category_id"] == 2
    assert whole["annotations"][0]["attributes"]["size"] == "large"


def test_words_are_drawn_where_boxes_are_few(tmp_path: Path) -> None:
    picture = np.full((60, 100, 3), 250, np.uint8)
    layers, entries = written(tmp_path).layers()
    rectangles = layers[0]
    assert isinstance(rectangles, Rectangles)
    assert rectangles.words[0] == "RBC 0.90\nsize: large\nshape: round"
    bare = Rectangles(rectangles.xyxy, rectangles.colours)
    with_words, without = overlay.draw(picture, layers, entries), overlay.draw(picture, [bare], entries)
    assert with_words.shape == without.shape
    assert not np.array_equal(with_words, without)
    cell = (slice(50, 100), slice(950, 990))  # at the right edge, where words began and ran out of the picture
    layer = Rectangles(np.array([[95, 5, 99, 10]]), np.array([[200, 30, 30]], np.uint8), ("RBC 0.90\nsize: large",))
    shown = overlay.draw(picture, [layer], [])
    red = (shown == (200, 30, 30)).all(-1)
    assert (shown[cell][10:-10, 10:-10] == 250).all()  # the words hide no cell
    assert red[:, :940].any()
    layers, entries = written(tmp_path, MOST_WORDS + 1).layers()
    many = layers[0]
    assert isinstance(many, Rectangles)
    plain = overlay.draw(picture, [Rectangles(many.xyxy, many.colours)], entries)
    assert np.array_equal(overlay.draw(picture, layers, entries), plain)
