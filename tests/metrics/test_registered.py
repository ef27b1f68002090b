"""Every metric is listed, described and callable by name."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zoo import registry
from zoo.errors import UserError
from zoo.families.score import check_metrics
from zoo.metrics import (
    METRICS,
    boxes,
    calibration,
    calls,
    function,
    immunostain,
    instances,
    labels,
    picture,
    semantic,
    shapes,
    surface,
    types,
)

WORST_IS_NOT_NEEDED = {
    "robustness_index",
    "picture_fid",
    "picture_kid",
    "cell_count_pearson",
    "positive_count_correlation",
}
"""Numbers of features alone, of an encoder that must be named, or of images that must differ: tested elsewhere."""


def test_the_registry_and_the_descriptions_agree() -> None:
    assert sorted(METRICS) == registry.names("metric")


def perfect_cells() -> calls.Cells:
    positive = np.array([[True, False], [False, True], [True, True], [False, False], [False, False]])
    value = positive.astype(np.float32)
    return calls.Cells(("CD3e", "SMA"), 200 * value, value.astype(np.float64), value, positive)


def evidence_of_a_perfect_prediction() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    label = np.kron(np.arange(9).reshape(3, 3), np.ones((6, 6), int))
    image = rng.integers(0, 256, (3, 16, 16), np.uint8)
    found = np.array([[0, 1], [1, 0], [1, 1], [0, 0]])
    places = np.array([[0.0, 0, 4, 4], [2, 2, 9, 9], [10, 10, 70, 70], [80, 80, 200, 200]])
    box = boxes.Boxes(places, np.arange(1, 5), scores=np.array([0.9, 0.8, 0.7, 0.6]), attributes=found)
    table = instances.overlap(label, label)
    brown = rng.random((16, 16)).astype(np.float32)
    cells = immunostain.Amounts(brown, rng.uniform(0, 15, (6, 2)), np.arange(6) < 4)
    features = rng.normal(size=(6, 4))
    return {
        "semantic": semantic.confusion(label, label, 9),
        "surface": surface.surfaces(label, label, range(1, 9)),
        "calibration": calibration.reliability(np.eye(9)[label].transpose(2, 0, 1), label),
        "instances": table,
        "shapes": shapes.shapes(label, label),
        "types": types.typed(table, np.arange(8) % 3, np.arange(8) % 3, 3),
        "picture": picture.pair(image, image, channels=("red", "green", "blue")),
        "immunostain": SimpleNamespace(prediction=cells, truth=cells, valid=np.ones((16, 16), bool)),
        "boxes": boxes.Pair(box, box, classes=tuple("abcd"), attributes=("first", "second")),
        "cells": perfect_cells(),
        "features": features,
        "labels": labels.Named("a", "a"),
    }


@pytest.mark.parametrize("name", sorted(set(METRICS) - WORST_IS_NOT_NEEDED))
def test_a_perfect_prediction_scores_best(name: str) -> None:
    about = METRICS[name]
    evidence = evidence_of_a_perfect_prediction()[about.kind]
    metric = function(name)
    if about.kind == "features":
        value = metric(evidence, evidence, size=None) if name == "kid" else metric(evidence, evidence)
        assert value <= 1e-9  # the unbiased kernel distance of a set to itself is below 0
        return
    value = metric([evidence, evidence]) if about.pooled else metric(evidence)
    best = (about.best or float("inf")) if about.better == "max" else 0.0
    assert value == pytest.approx(best)


def test_names_with_an_argument() -> None:
    assert "object_f1@0.7" in METRICS
    assert "object_f1@1.7" not in METRICS
    assert "dice@0.7" not in METRICS
    assert METRICS["object_f1@0.7"].summary.endswith("(threshold 0.7)")
    table = instances.overlap(np.array([[1, 1, 1, 0]]), np.array([[1, 1, 1, 1]]))  # IoU 0.75
    assert function("object_f1@0.75")(table) == 1
    assert function("object_f1@0.8")(table) == 0
    assert function("object_f1_pooled@0.8")([table, table]) == 0
    image = np.random.default_rng(0).integers(0, 9, (2, 5, 5), np.uint8)
    both = picture.pair(image, image, channels=("DAPI", "CD3"))
    assert function("pearson@CD3")(both) == pytest.approx(1)
    assert np.isnan(function("pearson@CD8")(both))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dicee", 'no metric "dicee". Did you mean dice'),
        ("dice@0.5", 'no metric "dice@0.5"'),
        ("object_f1@two", "expected a number above 0, at most 1"),
        ("object_f1@0", "expected a number above 0"),
        ("pearson@", "the channel is missing"),
        ("coco_ap50@", "the class is missing"),
        ("picture_fid", "needs an encoder"),
        ("picture_kid@", "the encoder is missing"),
    ],
)
def test_what_a_user_mistypes(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_metrics([name])
    assert said in str(caught.value)


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, zoo.metrics; print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
