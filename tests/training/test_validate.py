"""Metrics of a validation: sums that make exact numbers, on any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.families.score import Task
from zoo.metrics import METRICS
from zoo.training.validate import NUMBERS, POOLED, Tally, compare, lower_is_better, numbers
from zoo.types import (
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Label,
    LabelPrediction,
    Picture,
    PicturePrediction,
    Semantic,
    SemanticPrediction,
)

CLASSES = ("background", "gland")


def asked(kind: str, name: str, classes: tuple[str, ...] = CLASSES, theirs: tuple[str, ...] | None = None) -> Task:
    return Task(name, kind, name, classes, classes if theirs is None else theirs, NUMBERS[kind])


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 3))
def test_any_sharing_among_processes_gives_the_same_numbers(seed: int, images: int, world: int) -> None:
    rng = np.random.default_rng(seed)
    whole, ranks = Tally(), [Tally() for _ in range(world)]
    for i in range(images):
        shape = tuple(rng.integers(3, 9, 2))
        guess, truth = rng.integers(0, 2, (2, *shape)).astype(np.uint8)
        for tally in (whole, ranks[i % world]):
            compare(tally, asked("semantic", "glands"), SemanticPrediction(guess, CLASSES), Semantic(truth))
            tally.add("loss/total", np.array([2.0 * i, 1.0]))
    everything = [dict(r.sums) for r in ranks]
    for rank in ranks:
        rank.merge(lambda _: everything)
        found, expected = numbers(rank, 1), numbers(whole, 1)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, nan_ok=True)
    assert numbers(whole, 1)["loss"] == pytest.approx(np.mean([2.0 * i for i in range(images)]))


def test_dice_is_the_mean_over_images_that_have_one() -> None:
    tally = Tally()
    one, none = np.ones((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    half = np.concatenate([one[:2], none[:2]])
    for guess, truth in ((half, one), (none, half), (none, none), (one, one)):
        compare(tally, asked("semantic", "t"), SemanticPrediction(guess, CLASSES), Semantic(truth))
    assert numbers(tally, 1)["dice"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert "t/dice" in numbers(tally, 2)


def test_where_no_image_has_a_number_it_is_not_a_number() -> None:
    tally = Tally()
    none = np.zeros((4, 4), np.uint8)
    compare(tally, asked("semantic", "t"), SemanticPrediction(none, CLASSES), Semantic(none))
    assert np.isnan(numbers(tally, 1)["dice"])
    assert numbers(tally, 1)["pixel_accuracy"] == 1


def test_a_term_of_the_loss_may_be_called_as_a_metric_is() -> None:
    tally = Tally()
    guess, truth = np.ones((2, 4, 4), np.uint8)
    compare(tally, asked("semantic", "t"), SemanticPrediction(guess, CLASSES), Semantic(truth))
    for name in ("dice", "pixels", "boxes", "total"):
        tally.add(f"loss/{name}", np.array([0.5, 2.0]))
    found = numbers(tally, 1)
    assert found["dice"] == 1.0
    assert [found[n] for n in ("loss/dice", "loss/pixels", "loss/boxes", "loss")] == [0.25] * 4


def test_pixels_that_are_ignored_do_not_count() -> None:
    tally = Tally()
    truth = Semantic(np.array([[1, 1, 255, 255]], np.uint8), ignore=255)
    guess = SemanticPrediction(np.array([[1, 1, 1, 0]], np.uint8), CLASSES)
    compare(tally, asked("semantic", "t"), guess, truth)
    assert numbers(tally, 1)["dice"] == 1.0


def test_objects() -> None:
    truth = np.zeros((8, 8), np.int32)
    truth[:4, :4], truth[5:, 5:] = 1, 2
    guess = np.where(truth == 1, 1, 0).astype(np.int32)
    tally = Tally()
    prediction = InstancesPrediction(guess, ("nucleus",), np.zeros(1, np.int64))
    compare(tally, asked("instances", "n", ("nucleus",)), prediction, Instances(truth))
    found = numbers(tally, 1)
    assert found["object_f1"] == pytest.approx(2 / 3)
    assert found["pq"] == pytest.approx(2 / 3)
    assert found["dice"] == pytest.approx(2 * 16 / (16 + 25))


def test_boxes_are_matched_by_the_name_of_their_class() -> None:
    where = np.array([[0, 0, 4, 4], [6, 6, 9, 9]], np.float32)
    truth = Boxes(where, np.array([1, 2]))
    prediction = BoxesPrediction(where, ("white", "red"), np.array([1, 0]), np.array([0.9, 0.8], np.float32))
    tally = Tally()
    compare(tally, asked("boxes", "b", ("white", "red"), ("red", "white")), prediction, truth)
    assert numbers(tally, 1)["box_f1"] == 1


def test_pictures_and_labels() -> None:
    tally = Tally()
    truth = Picture(np.full((3, 4, 4), 100, np.uint8), ("r", "g", "b"))
    guess = PicturePrediction(np.full((3, 4, 4), 110, np.uint8), ("r", "g", "b"))
    compare(tally, asked("picture", "p", ()), guess, truth)
    found = numbers(tally, 1)
    assert found["mae"] == pytest.approx(10 / 255)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    tally = Tally()
    for value in (0, 1, 1):
        compare(tally, asked("label", "l", ("a", "b")), LabelPrediction(1, ("a", "b")), Label(value))
    assert numbers(tally, 1)["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("monitor", "mode", "lower"),
    [
        ("loss", "auto", True),
        ("dice", "auto", False),
        ("glands/object_f1", "auto", False),
        ("dice_loss", "auto", True),
        ("mae", "auto", True),
        ("psnr", "auto", False),
        ("hausdorff_95", "auto", True),
        ("coco_ap50", "auto", False),
        ("boxes/coco_ap50", "auto", False),
        ("pearson", "auto", False),
        ("loss/dice", "auto", True),
        ("loss", "max", False),
        ("dice", "min", True),
    ],
)
def test_which_way_is_better(monitor: str, mode: str, lower: bool) -> None:
    assert lower_is_better(monitor, mode) is lower


def test_what_a_validation_gives_is_better_as_its_metric_says() -> None:
    """A run that keeps its worst weights as its best would look like any other."""
    for name in {*POOLED, *(n for names in NUMBERS.values() for n in names)} & set(METRICS):
        assert lower_is_better(name, "auto") is (METRICS[name].better == "min"), name
