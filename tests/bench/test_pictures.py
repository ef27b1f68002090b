"""What is drawn is where it is, in the colour of its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from zoo.bench import pictures
from zoo.families.score import Task
from zoo.types import Boxes, Instances, InstancesPrediction, Picture, Sample, Semantic, SemanticPrediction

COLOURS = {"cell": "#ff0000", "dot": "#00ff00"}
SIDE = pictures.SIDE


def task(kind: str = "semantic", truth_classes: tuple[str, ...] = ("cell", "dot")) -> Task:
    classes = ("background", "cell", "dot") if kind == "semantic" else ("cell", "dot")
    return Task("out", kind, "truth", classes, truth_classes, (), colours=COLOURS)


def labels() -> Any:
    found = np.zeros((SIDE, SIDE), np.int32)
    found[10:60, 10:60], found[100:140, 200:260] = 1, 2
    return found


GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)


@pytest.mark.parametrize("kind", ["semantic", "instances"])
def test_classes_and_objects_are_outlined_in_their_colours(kind: str) -> None:
    indices = labels().astype(np.uint8)
    shown: list[Any] = [Instances(labels(), {1: 1, 2: 2})]
    if kind == "semantic":
        shown += [SemanticPrediction(indices, ("background", "cell", "dot"))]
    else:
        shown += [InstancesPrediction(labels(), ("cell", "dot"), np.array([0, 1]))]
    for each in shown:
        ours = not isinstance(each, Instances)
        drawn = pictures.drawn(GREY, each, task(kind), ours=ours)
        assert drawn[10, 30].tolist() == [255, 0, 0]
        assert drawn[100, 230].tolist() == [0, 255, 0]
        inside = drawn[30, 30].astype(int)
        assert inside[0] > inside[1] + 20
        np.testing.assert_array_equal(drawn[300:, 300:], GREY[300:, 300:])


def test_touching_objects_are_told_apart() -> None:
    touching = np.zeros((SIDE, SIDE), np.int32)
    touching[10:60, 10:60], touching[10:60, 60:110] = 1, 2
    drawn = pictures.drawn(GREY, Instances(touching), task("instances"), ours=False)
    assert drawn[30, 59].tolist() == drawn[30, 60].tolist() == [255, 0, 0]


def test_multilabel_truth_and_boxes_and_pictures() -> None:
    planes = np.stack([np.zeros_like(labels(), bool), labels() == 1, labels() == 2])
    own = Task("out", "semantic", "truth", ("background", "cell", "dot"), ("background", "cell", "dot"), ())
    drawn = pictures.drawn(GREY, Semantic(planes, multilabel=True), own, ours=False)
    assert (drawn[10, 30] != GREY[10, 30]).any()
    box = Boxes(np.array([[10, 20, 50, 60]], np.float32), np.array([1]))
    assert (pictures.drawn(GREY, box, own, ours=False)[20, 30] != 128).any()
    other = Picture(np.full((3, SIDE, SIDE), 7, np.uint8), ("r", "g", "b"))
    assert (pictures.drawn(GREY, other, own, ours=False) == 7).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((1000, 500), (420, 210)), ((100, 80), (400, 320)), ((420, 9), (420, 9))]
)
def test_sizes(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert pictures.fitted(np.zeros((*shape, 3), np.uint8)).shape == (*expected, 3)


def test_files_are_written_once_and_are_what_was_drawn(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 235, (1, 30, 40)).astype(np.uint16)  # 16-bit grey
    sample = Sample("a/b c", "set", image, channels=("nuclei",))
    truth = Instances(np.pad(np.ones((10, 10), np.int32), ((5, 15), (5, 25))))
    prediction = SemanticPrediction((truth.map > 0).astype(np.uint8), ("background", "cell"))
    own = Task("semantic", "semantic", "nuclei", ("background", "cell"), ("cell",), (), colours=COLOURS)
    files = pictures.draw(tmp_path, "model", own, sample, truth, prediction)
    assert list(files) == ["image", "truth", "prediction"]
    assert all("/pictures/set/a-b-c." in f"/{file}" for file in files.values())
    read = cv2.imread(str(tmp_path / files["prediction"]))
    assert read.shape == (300, 400, 3)
    stamp = (tmp_path / files["image"]).stat().st_mtime_ns
    pictures.draw(tmp_path, "other", own, sample, truth, prediction)
    assert (tmp_path / files["image"]).stat().st_mtime_ns == stamp


def test_names_are_safe() -> None:
    assert pictures.slug("../a b/ü.tif") == "a-b-.tif"
    assert pictures.slug("///") == "x"
