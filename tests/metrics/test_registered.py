"""Every metric is listed, described and callable by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from zoo import registry
from zoo.metrics import METRICS, boxes, instances, picture, semantic


def test_the_registry_and_the_descriptions_agree() -> None:
    assert sorted(METRICS) == registry.names("metric")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_perfect_prediction_scores_best(name: str) -> None:
    rng = np.random.default_rng(0)
    label = np.kron(np.arange(9).reshape(3, 3), np.ones((6, 6), int))
    image = rng.integers(0, 256, (3, 16, 16), np.uint8)
    box = boxes.Boxes(np.array([[0.0, 0, 4, 4], [2, 2, 9, 9]]), np.array([1, 2]))
    evidence: dict[str, Any] = {
        "semantic": semantic.confusion(label, label, 9),
        "instances": instances.overlap(label, label),
        "picture": picture.pair(image, image),
        "boxes": boxes.matching(box, box),
    }
    value = registry.get("metric", name)(evidence[METRICS[name].kind])
    assert value == pytest.approx(METRICS[name].best or float("inf"))


def test_listing_imports_nothing_heavy() -> None:
    code = "import sys, zoo.metrics; print(sorted({'numpy', 'torch', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
