"""COCO's numbers against torchmetrics and a slow twin, and over resamples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from zoo.metrics import boxes, coco, function, pooled


def scene(seed: int, images: int = 6, classes: int = 2) -> list[boxes.Pair]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        corner = rng.uniform(0, 200, (int(rng.integers(0, 7)), 2))
        size = rng.uniform(8, 90, corner.shape)
        true = np.concatenate([corner, corner + size], 1)
        kinds = rng.integers(1, classes + 1, len(true))
        kept = rng.random(len(true)) < 0.85
        ours = true[kept] + rng.normal(0, 3, (int(kept.sum()), 4))
        extra = np.concatenate([c := rng.uniform(0, 200, (2, 2)), c + 20], 1)
        named = np.concatenate([kinds[kept], rng.integers(1, classes + 1, 2)])
        scores = rng.random(len(named)).round(3)
        prediction = boxes.Boxes(np.concatenate([ours, extra]), named, scores)
        found.append(boxes.Pair(prediction, boxes.Boxes(true, kinds), classes=("one", "two", "three")[:classes]))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_torchmetrics(seed: int) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    images = scene(seed)
    recalls = [float(r) for r in np.linspace(0, 1, 101)]  # its own are rounded to 32 bits, which moves ties
    metric = MeanAveragePrecision(backend="pycocotools", rec_thresholds=recalls)
    for pair in images:
        ours, truth = pair.prediction, pair.truth
        metric.update(
            [
                {
                    "boxes": torch.tensor(ours.xyxy),
                    "scores": torch.tensor(ours.scores),
                    "labels": torch.tensor(ours.classes),
                }
            ],
            [{"boxes": torch.tensor(truth.xyxy), "labels": torch.tensor(truth.classes)}],
        )
    theirs = metric.compute()
    stats = coco.evaluate(images)
    for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75"), ("AR100", "mar_100"), ("AR1", "mar_1")):
        assert stats[name] == pytest.approx(float(theirs[key]), abs=1e-6)


def slow_ap50(images: list[boxes.Pair], kind: int) -> float:
    """Rank all boxes, match greedily, interpolate at 101 recalls."""
    total = sum(int((p.truth.classes == kind).sum()) for p in images)
    chosen = [(n, i) for n, p in enumerate(images) for i in np.flatnonzero(p.prediction.classes == kind)]
    ranked = sorted((-images[n].prediction.scores[i], n, i) for n, i in chosen)  # type: ignore[index]
    taken: set[Any] = set()
    hits = []
    for _, n, i in ranked:
        pair = images[n]
        rows = [j for j in np.flatnonzero(pair.truth.classes == kind) if (n, j) not in taken]
        iou = boxes.pairwise(pair.prediction.xyxy[i], pair.truth.xyxy[rows])[1][0] if rows else np.zeros(0)
        good = len(iou) > 0 and iou.max() >= 0.5
        if good:
            taken.add((n, rows[int(iou.argmax())]))
        hits.append(good)
    hit = np.cumsum(hits)
    precision, recall = hit / np.arange(1, len(hit) + 1), hit / total
    return float(np.mean([precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]))


def test_equals_its_slow_twin() -> None:
    images = scene(4, classes=1)
    assert coco.evaluate(images)["AP50"] == pytest.approx(slow_ap50(images, 1), abs=1e-9)
    assert coco.Evaluation(images).per_class()[1][1] == pytest.approx(slow_ap50(images, 1), abs=1e-9)


def test_a_resample_is_the_evaluation_of_its_images() -> None:
    images = scene(2)
    chosen = np.array([0, 0, 3, 5, 1, 1])
    expected = coco.evaluate([images[i] for i in chosen])
    assert coco.Evaluation(images).stats(chosen) == pytest.approx(expected, nan_ok=True)
    resampled = pooled.coco_ap.resampler(images)
    assert resampled(chosen) == pytest.approx(expected["AP"])
    assert function("coco_ap")(images) == pytest.approx(coco.evaluate(images)["AP"])


def test_a_class_by_its_name_is_that_class_alone() -> None:
    images = scene(3)
    every = coco.Evaluation(images).per_class()
    for kind, name in ((1, "one"), (2, "two")):
        assert function(f"coco_ap50@{name}")(images) == pytest.approx(slow_ap50(images, kind), abs=1e-9)
        assert function(f"coco_ap@{name}")(images) == pytest.approx(every[kind][0])
        assert function(f"coco_ap75@{name}")(images) == pytest.approx(every[kind][2])
    assert math.isnan(function("coco_ap50@three")(images))
    chosen = np.array([0, 0, 3, 5])
    resampled = function("coco_ap50@two").resampler(images)  # type: ignore[attr-defined]
    assert resampled(chosen) == pytest.approx(slow_ap50([images[i] for i in chosen], 2), abs=1e-9)


def test_sizes_and_numbers_of_boxes_are_cocos() -> None:
    images = scene(1)
    stats = coco.evaluate(images)
    for name, stat in (("ap_small", "APsmall"), ("ap_medium", "APmedium"), ("ap_large", "APlarge"), ("ar1", "AR1")):
        assert function(f"coco_{name}")(images) == pytest.approx(stats[stat], nan_ok=True)


def test_nothing_to_find_and_nothing_found() -> None:
    none = boxes.Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    one = boxes.Boxes(np.array([[0.0, 0, 9, 9]]), np.array([1]), np.array([0.5]))
    assert math.isnan(coco.evaluate([boxes.Pair(one, none)])["AP"])
    assert coco.evaluate([boxes.Pair(none, one)])["AP"] == 0
    crowd = boxes.Boxes(one.xyxy, one.classes, None, np.array([True]))
    assert coco.evaluate([boxes.Pair(one, crowd), boxes.Pair(one, one)])["AP"] == pytest.approx(1)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    coco.evaluate(scene(0))
    assert capsys.readouterr().out == ""
