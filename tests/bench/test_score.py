"""What answers to what, and what the numbers are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zoo.cards import DatasetCard
from zoo.errors import DataError, UserError
from zoo.families import build, score
from zoo.families.score import Task
from zoo.types import (
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Picture,
    PicturePrediction,
    Semantic,
    SemanticPrediction,
)

ALL = ("dice", "iou", "pixel_f1", "object_f1")


def card(**truths: Any) -> DatasetCard:
    values = {"zoo": 1, "name": "x", "summary": "x", "reader": "folder", "licence": {"name": "x", "allows": []}}
    return DatasetCard.model_validate({**values, "truths": truths})


def task(classes: tuple[str, ...], truth_classes: tuple[str, ...], metrics: tuple[str, ...] = ALL, **more: Any) -> Task:
    return Task("out", more.pop("kind", "semantic"), "truth", classes, truth_classes, metrics, **more)


def squares() -> Any:
    labels = np.zeros((12, 12), np.int32)
    labels[1:4, 1:4], labels[6:10, 6:10] = 1, 2
    return labels


def test_a_semantic_map_is_judged_against_instances() -> None:
    predicted = (squares() == 2).astype(np.uint8)
    prediction = SemanticPrediction(predicted, ("background", "cell"))
    found = score.score(task(("background", "cell"), ("cell",)), prediction, Instances(squares()))
    assert found["dice"] == pytest.approx(2 * 16 / (16 + 25))
    assert found["iou"] == pytest.approx(16 / 25)
    assert found["object_f1"] == pytest.approx(2 / 3)


def test_objects_of_a_semantic_truth_are_components_of_each_class() -> None:
    truth = np.zeros((10, 10), np.uint8)
    truth[:, :5], truth[2:6, 1:4] = 1, 2  # a nucleus inside a cell
    wrong = truth.copy()
    wrong[truth == 2] = 1
    classes = ("background", "cell", "nucleus")
    whole = score.score(task(classes, classes), SemanticPrediction(truth, classes), Semantic(truth))
    assert whole == dict.fromkeys(ALL, 1.0)
    found = score.score(task(classes, classes), SemanticPrediction(wrong, classes), Semantic(truth))
    assert found["object_f1"] == pytest.approx(2 / 3)  # the cell is found, the nucleus is missed
    assert found["dice"] == pytest.approx((2 * 38 / (38 + 50) + 0) / 2)


def test_ignored_pixels_count_nowhere() -> None:
    classes = ("background", "cell")
    truth = (squares() > 0).astype(np.uint8)
    truth[squares() == 1] = 9
    predicted = (squares() == 2).astype(np.uint8)
    found = score.score(task(classes, classes), SemanticPrediction(predicted, classes), Semantic(truth, ignore=9))
    assert found == dict.fromkeys(ALL, 1.0)
    unsure = Instances(squares(), ignore=squares() == 1)
    assert score.score(task(classes, ("cell",)), SemanticPrediction(predicted, classes), unsure)["object_f1"] == 1


def test_instances_are_judged_as_objects_and_as_pixels_of_their_classes() -> None:
    metrics = ("object_f1", "pq", "dice")
    prediction = InstancesPrediction(squares(), ("a", "b"), np.array([0, 0]))
    truth = Instances(squares(), {1: 1, 2: 2})
    found = score.score(task(("a", "b"), ("a", "b"), metrics, kind="instances"), prediction, truth)
    assert found["object_f1"] == found["pq"] == 1
    assert found["dice"] == pytest.approx((2 * 9 / (9 + 25) + 0) / 2)
    shuffled = InstancesPrediction(squares(), ("background", "b", "a"), np.array([2, 1]))
    assert score.score(task(("a", "b"), ("a", "b"), metrics, kind="instances"), shuffled, truth)["dice"] == 1


def test_multilabel_maps() -> None:
    planes = np.stack([squares() > 0, squares() == 2])
    classes = ("tissue", "tumour")
    prediction = SemanticPrediction(planes, classes, multilabel=True)
    found = score.score(task(classes, classes), prediction, Semantic(planes, multilabel=True))
    assert found == dict.fromkeys(ALL, 1.0)


def test_nothing_in_either_is_not_defined() -> None:
    empty = np.zeros((6, 6), np.uint8)
    classes = ("background", "cell")
    found = score.score(task(classes, classes), SemanticPrediction(empty, classes), Semantic(empty))
    assert all(math.isnan(value) for value in found.values())


def test_pictures_and_boxes() -> None:
    data = np.random.default_rng(0).integers(0, 256, (2, 12, 12), np.uint8)
    of = task((), (), ("psnr", "ssim"), kind="picture")
    swapped = PicturePrediction(data[::-1], ("b", "a"))
    assert score.score(of, swapped, Picture(data, ("a", "b")))["psnr"] == math.inf
    with pytest.raises(DataError, match="encoded"):
        score.score(of, swapped, Picture(data, ("a", "b"), encoding="linear"))
    box = np.array([[0, 0, 4, 4]], np.float32)
    predicted = BoxesPrediction(box, ("a", "b"), np.array([1]), np.array([0.9], np.float32))
    found = score.score(task(("a", "b"), ("a", "b"), ("box_f1",), kind="boxes"), predicted, Boxes(box, np.array([2])))
    assert found == {"box_f1": 1.0}


def test_what_cannot_be_compared_is_said() -> None:
    prediction = SemanticPrediction(np.zeros((4, 4), np.uint8), ("background", "cell"))
    with pytest.raises(DataError, match="shape"):
        score.score(task(("background", "cell"), ("cell",)), prediction, Instances(squares()))
    with pytest.raises(DataError, match="cannot be judged"):
        score.score(task((), ()), prediction, Picture(np.zeros((1, 4, 4)), ("a",)))
    with pytest.raises(UserError, match="Did you mean dice"):
        score.check_metrics(["dicee"])


# --- pairing ----------------------------------------------------------------------------------------------------------


def darkness(**options: Any) -> Any:
    return build.create("darkness", options)


def test_an_output_answers_to_its_key_or_to_the_only_truth_that_fits() -> None:
    family = darkness(says=["semantic", "instances", "clean"])
    own = card(
        squares={"kind": "instances", "classes": ["square"]},
        other={"kind": "semantic", "classes": ["background", "square"]},
        clean={"kind": "picture", "channels": ["red"]},
    )
    assert {t.output: t.truth for t in score.tasks(family, own)} == {
        "semantic": "squares",
        "instances": "squares",
        "clean": "clean",
    }
    only = card(masks={"kind": "semantic", "classes": ["background", "square"]})
    assert {t.output: t.truth for t in score.tasks(family, only)} == {"semantic": "masks"}
    two = card(
        one={"kind": "semantic", "classes": ["background", "square"]},
        two={"kind": "semantic", "classes": ["background", "square"]},
    )
    assert score.tasks(family, two) == []


def test_a_model_of_several_truths_is_judged_by_its_own_keys() -> None:
    """Glands are not judged on nuclei because a dataset has nothing else."""
    tasks = {"gland": {"kind": "objects", "truth": "glands"}, "nuclei": {"kind": "objects"}}
    family = build.create("cerberus", {"encoder": "test_resnet", "widths": [8] * 5, "tasks": tasks})
    found = score.tasks(family, card(nuclei={"kind": "instances", "classes": ["nucleus"]}))
    assert {t.output: t.truth for t in found} == {"nuclei": "nuclei"}


def test_a_model_of_one_class_is_judged_on_all_foreground() -> None:
    family = darkness()
    several = card(squares={"kind": "instances", "classes": ["red one", "blue one"]})
    (found,) = score.tasks(family, several)
    assert "all of red one, blue one" in found.note
    prediction = SemanticPrediction((squares() > 0).astype(np.uint8), ("background", "square"))
    assert score.score(found, prediction, Instances(squares(), {1: 1, 2: 2}))["dice"] == 1
    (named,) = score.tasks(family, card(squares={"kind": "instances", "classes": ["square", "circle"]}))
    assert score.score(named, prediction, Instances(squares(), {1: 1, 2: 2}))["dice"] == pytest.approx(18 / 34)
    (merged,) = score.tasks(darkness(merge={"square": ["blue one"]}), several)
    assert score.score(merged, prediction, Instances(squares(), {1: 1, 2: 2}))["dice"] == pytest.approx(32 / 41)


def test_metrics_that_do_not_fit_are_left_out() -> None:
    plain = card(squares={"kind": "instances", "classes": ["square"]})
    (found,) = score.tasks(darkness(), plain, ["psnr", "iou"])
    assert found.metrics == ("iou",)
    assert score.tasks(darkness(), plain, ["psnr"]) == []
