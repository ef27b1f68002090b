"""Matching of boxes: by hand and by its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.metrics import boxes, function


def make(*rows: tuple[float, ...], classes: tuple[int, ...] | None = None, **more: object) -> boxes.Boxes:
    xyxy = np.array(rows, np.float32).reshape(-1, 4)
    return boxes.Boxes(xyxy, np.array(classes or [0] * len(rows), np.int64), **more)  # type: ignore[arg-type]


def test_a_box_of_half_the_size_matches_at_the_threshold() -> None:
    counts = boxes.matching(make((0, 0, 2, 4)), make((0, 0, 4, 4)))
    assert counts == boxes.Counts(1, 0, 0)
    assert boxes.matching(make((0, 0, 2, 4)), make((0, 0, 4, 4)), 0.51) == boxes.Counts(0, 1, 1)


def test_the_higher_score_chooses_first() -> None:
    truth = make((0, 0, 10, 10))
    prediction = make((0, 0, 10, 10), (0, 0, 10, 9), scores=np.array([0.3, 0.9]))
    assert boxes.matching(prediction, truth) == boxes.Counts(1, 1, 0)
    two = make((0, 0, 10, 10), (0, 1, 10, 10))
    assert boxes.matching(prediction, two) == boxes.Counts(2, 0, 0)


def test_classes_must_agree_and_a_crowd_swallows() -> None:
    assert boxes.matching(make((0, 0, 4, 4)), make((0, 0, 4, 4), classes=(1,))) == boxes.Counts(0, 1, 1)
    crowd = make((0, 0, 100, 100), crowd=np.array([True]))
    assert boxes.matching(make((5, 5, 9, 9), (90, 90, 120, 120)), crowd) == boxes.Counts(0, 1, 0)


def test_intersections_equal_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 12, (2, 6, 2, 2)), axis=2)
    one, other = corners.reshape(2, 6, 4)
    shared, iou = boxes.pairwise(one, other)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            masks = []
            for x0, y0, x1, y1 in (a, b):
                mask = np.zeros((12, 12), bool)
                mask[y0:y1, x0:x1] = True
                masks.append(mask)
            both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
            assert shared[i, j] == both
            assert iou[i, j] == pytest.approx(both / either if either else 0)


def test_f1_and_nothing_at_all() -> None:
    assert boxes.box_f1(boxes.Counts(3, 1, 2)) == pytest.approx(6 / 9)
    assert math.isnan(boxes.box_f1(boxes.matching(make(), make())))
    assert boxes.box_f1(boxes.matching(make(), make((0, 0, 1, 1)))) == 0


def test_precision_recall_and_thresholds_of_a_pair() -> None:
    pair = boxes.Pair(make((0, 0, 2, 4), (20, 20, 24, 24)), make((0, 0, 4, 4)))
    assert boxes.box_precision(pair) == pytest.approx(1 / 2)
    assert boxes.box_recall(pair) == 1
    assert boxes.box_f1(pair, 0.6) == 0
    nothing = boxes.Pair(make(), make())
    assert math.isnan(boxes.box_precision(nothing))
    assert boxes.box_precision(boxes.Pair(make(), make((0, 0, 1, 1)))) == 0


def test_count_error_is_summed_over_classes() -> None:
    truth = make((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), classes=(1, 1, 2), crowd=np.array([False, False, True]))
    prediction = make((0, 0, 1, 1), (9, 9, 10, 10), classes=(1, 3))
    assert boxes.box_count_error(boxes.Pair(prediction, truth)) == 2
    assert math.isnan(boxes.box_count_error(boxes.Pair(make(), make())))


def test_attribute_f1_by_hand() -> None:
    rows = tuple((10.0 * k, 0.0, 10.0 * k + 5, 5.0) for k in range(5))
    truth = make(*rows, attributes=np.array([[1, 0], [1, 2], [0, 2], [1, -1], [0, 1]]))
    prediction = make(*rows[:4], attributes=np.array([[1, 0], [0, 2], [1, 0], [1, 2]]))
    # the fifth box is missed. Attribute 0 (binary): TP 2, FP 1, FN 1. Attribute 1, three known pairs: F1 2/3 of 0 and 2
    assert boxes.attribute_f1(boxes.Pair(prediction, truth)) == pytest.approx(2 / 3)
    assert math.isnan(boxes.attribute_f1(boxes.Pair(prediction, make(*rows))))
    missing = make(*rows[:4], attributes=np.full((4, 2), -1))
    assert boxes.attribute_f1(boxes.Pair(missing, truth)) == 0


def slow_confusion(pair: boxes.Pair, kinds: int) -> np.ndarray:
    """Two rounds of greedy matching, box by box: within classes, then whatever the class."""
    ours, theirs = pair.prediction, pair.truth
    assert ours.scores is not None
    crowd = np.zeros(len(theirs.xyxy), bool) if theirs.crowd is None else theirs.crowd
    found = np.zeros((kinds + 1, kinds + 1), np.int64)
    free_p, free_t = set(range(len(ours.xyxy))), set(np.flatnonzero(~crowd).tolist())
    for same in (True, False):
        for i in sorted(free_p, key=lambda i: -ours.scores[i]):  # type: ignore[index]
            best, most = None, 0.5
            for j in sorted(free_t):
                iou = boxes.pairwise(ours.xyxy[i], theirs.xyxy[j])[1][0, 0]
                if (not same or ours.classes[i] == theirs.classes[j]) and iou >= most and (best is None or iou > most):
                    best, most = j, iou
            if best is not None:
                found[theirs.classes[best] - 1, ours.classes[i] - 1] += 1
                free_p.discard(i)
                free_t.discard(best)
    for i in free_p:
        area = np.prod(ours.xyxy[i, 2:] - ours.xyxy[i, :2])
        inside = boxes.pairwise(ours.xyxy[i], theirs.xyxy)[0][0] / area >= 0.5
        if not (inside & crowd).any():
            found[kinds, ours.classes[i] - 1] += 1
    for j in free_t:
        found[theirs.classes[j] - 1, kinds] += 1
    return found


@pytest.mark.parametrize("seed", range(6))
def test_confusion_equals_its_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (7, 2))
    true = np.concatenate([corner, corner + rng.uniform(8, 30, (7, 2))], 1)
    crowd = rng.random(7) < 0.2
    far = rng.uniform(0, 60, (3, 2))
    near = np.concatenate([true + rng.normal(0, 2, true.shape), np.concatenate([far, far + 9], 1)])
    prediction = boxes.Boxes(near, rng.integers(1, 4, len(near)), rng.random(len(near)))
    pair = boxes.Pair(prediction, boxes.Boxes(true, rng.integers(1, 4, 7), None, crowd), classes=("a", "b", "c"))
    table = boxes.confusion(pair)
    assert np.array_equal(table, slow_confusion(pair, 3))
    assert np.trace(table[:3, :3]) == boxes.matching(prediction, pair.truth).hits


def test_shares_of_a_differential_count() -> None:
    truth = make((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5), (6, 6, 7, 7), classes=(1, 1, 2, 2))
    prediction = make((0, 0, 1, 1), (9, 9, 10, 10), classes=(1, 3))
    pair = boxes.Pair(prediction, truth, classes=("a", "b", "c"))
    assert boxes.counted(pair).tolist() == [[1, 0, 1], [2, 2, 0]]
    both = [pair, pair]  # shares 1/2 0 1/2 against 1/2 1/2 0
    assert function("differential_error")(both) == pytest.approx(1 / 3)
    assert function("differential_error@b")(both) == pytest.approx(1 / 2)
    assert function("differential_error@a")(both) == 0
    assert math.isnan(function("differential_error@d")(both))
    assert math.isnan(function("differential_error")([boxes.Pair(make(), truth, classes=("a", "b", "c"))]))


def test_attributes_are_pooled_over_images() -> None:
    """One image with a rare value has no weight of its own: everything is counted together."""
    rows = tuple((10.0 * k, 0.0, 10.0 * k + 5, 5.0) for k in range(3))

    def pair(said: list[list[int]], known: list[list[int]]) -> boxes.Pair:
        ours, theirs = make(*rows, attributes=np.array(said)), make(*rows, attributes=np.array(known))
        return boxes.Pair(ours, theirs, attributes=("size", "shape"))

    images = [pair([[1, 0], [1, 1], [0, 2]], [[1, 0], [0, 1], [0, -1]]), pair([[1, 0]] * 3, [[0, 0], [1, 0], [1, 2]])]
    size = 2 * 3 / (5 + 3)  # five said, three known to be 1
    shape = np.mean([2 * 3 / (4 + 3), 1.0, 0.0])
    assert function("attribute_f1_pooled@size")(images) == pytest.approx(size)
    assert function("attribute_f1_pooled@shape")(images) == pytest.approx(shape)
    assert function("attribute_f1_pooled")(images) == pytest.approx(np.mean([size, shape]))
    assert math.isnan(function("attribute_f1_pooled@colour")(images))
    nothing = boxes.Pair(make(*rows), make(*rows), attributes=("size",))
    assert math.isnan(function("attribute_f1_pooled")([nothing]))
