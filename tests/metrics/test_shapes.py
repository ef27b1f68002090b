"""Distances between objects and GlaS's own scores, against slow twins and by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from zoo.metrics import instances, shapes

pairs_of_maps = hnp.arrays(np.int32, (2, 6, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 5]))


def points(labels: Any) -> dict[int, list[tuple[int, int]]]:
    return {int(i): [tuple(p) for p in np.argwhere(labels == i).tolist()] for i in np.unique(labels) if i}


def slow_hausdorff(a: Any, b: Any) -> float:
    def directed(x: Any, y: Any) -> float:
        return max(min(math.dist(p, q) for q in y) for p in x)

    return max(directed(a, b), directed(b, a))


def slow_partner(one: Any, others: dict[int, Any]) -> int | None:
    shared = {j: len(set(one) & set(other)) for j, other in others.items()}
    return min((j for j in shared if shared[j] == max(shared.values())), default=None) if max(shared.values()) else None


def slow_object_hausdorff(prediction: Any, truth: Any) -> float:
    ours, theirs = points(prediction), points(truth)
    if not ours and not theirs:
        return math.nan
    if not ours or not theirs:
        return math.hypot(*truth.shape)
    total = 0.0
    for own, others in ((theirs, ours), (ours, theirs)):
        area = sum(len(p) for p in own.values())
        for pixels in own.values():
            partner = slow_partner(pixels, others)
            far = (
                slow_hausdorff(pixels, others[partner])
                if partner is not None
                else min(slow_hausdorff(pixels, other) for other in others.values())
            )
            total += len(pixels) / area * far
    return total / 2


def slow_glas(prediction: Any, truth: Any) -> tuple[int, int, int]:
    ours, theirs = points(prediction), points(truth)
    hit: set[int] = set()
    wrong = 0
    for pixels in ours.values():
        partner = slow_partner(pixels, theirs) if theirs else None
        covered = partner is not None and len(set(pixels) & set(theirs[partner])) >= len(theirs[partner]) / 2
        if covered and partner not in hit:
            hit.add(int(partner or 0))
        else:
            wrong += 1
    return len(hit), wrong, len(theirs) - len(hit)


@given(pairs_of_maps)
def test_glas_scores_equal_their_slow_twins(pair: Any) -> None:
    prediction, truth = pair
    found = shapes.shapes(prediction, truth)
    assert shapes.object_hausdorff(found) == pytest.approx(slow_object_hausdorff(prediction, truth), nan_ok=True)
    counts = instances.glas_matching(found.table)
    assert (counts.hits, counts.wrong, counts.missed) == slow_glas(prediction, truth)


def test_glas_matching_is_by_coverage_of_the_true_object() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])
    half = np.array([[7, 7, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert instances.glas_f1(instances.overlap(half, truth)) == 1  # covers half of it, at the tie
    third = np.array([[7, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    assert instances.glas_f1(instances.overlap(third, truth)) == 0
    flood = np.full((1, 10), 3)
    assert instances.glas_f1(instances.overlap(flood, truth)) == 1  # its IoU is 0.4: others would call it a miss
    assert instances.object_f1(instances.overlap(flood, truth)) == 0
    two = np.array([[7, 7, 9, 9, 0, 0, 0, 0, 0, 0]])  # both cover half: one hit, one false alarm
    counts = instances.glas_matching(instances.overlap(two, truth))
    assert (counts.hits, counts.wrong, counts.missed) == (1, 1, 0)


def test_object_hausdorff_by_hand() -> None:
    truth, prediction = np.zeros((10, 30), int), np.zeros((10, 30), int)
    truth[2:6, 2:6], truth[2:4, 20:22] = 1, 2
    prediction[2:6, 4:8] = 5  # shifted by 2; object 2 has no partner: its nearest is 5
    far = 14.0  # columns 4..7 against 20..21: from the column 21 to 7
    lonely = max(21 - 7, math.hypot(20 - 4, 5 - 3))
    expected = ((16 * 2 + 4 * lonely) / 20 + 2) / 2
    assert far <= lonely
    assert shapes.object_hausdorff(shapes.shapes(prediction, truth)) == pytest.approx(expected)


def test_distance_metrics_of_nothing() -> None:
    empty, full = np.zeros((3, 4), int), np.ones((3, 4), int)
    assert math.isnan(shapes.object_hausdorff(shapes.shapes(empty, empty)))
    assert math.isnan(shapes.centroid_f1(shapes.shapes(empty, empty)))
    assert shapes.object_hausdorff(shapes.shapes(empty, full)) == 5
    assert shapes.centroid_f1(shapes.shapes(full, empty)) == 0


def slow_pairs(ours: Any, theirs: Any, radius: float) -> tuple[int, float]:
    """Most pairs, then the smallest sum of distances, over every matching."""
    if len(theirs) > len(ours):
        return slow_pairs(theirs, ours, radius)
    best = (0, 0.0)
    for order in itertools.permutations(range(len(ours)), len(theirs)):
        d = [math.dist(theirs[t], ours[p]) for t, p in enumerate(order)]
        near = [x for x in d if x <= radius]
        best = max(best, (len(near), -sum(near)))
    return best


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 5), st.integers(0, 5))
def test_centroids_are_matched_best(seed: int, p: int, t: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.uniform(0, 10, (p, 2)), rng.uniform(0, 10, (t, 2))
    found = shapes.centroid_pairs(ours, theirs, 4)
    count, cost = slow_pairs(ours, theirs, 4)
    assert len(found) == count
    assert sum(math.dist(theirs[a], ours[b]) for a, b in found) == pytest.approx(-cost)
    assert len(set(found[:, 0])) == len(set(found[:, 1])) == count


def test_centroids_and_the_radius_at_a_tie() -> None:
    truth, prediction = np.zeros((9, 20), int), np.zeros((9, 20), int)
    truth[3:6, 3:6], prediction[3:6, 6:9] = 4, 2
    found = shapes.shapes(prediction, truth)
    np.testing.assert_allclose(found.truth.centroids, [ndimage.center_of_mass(truth)])
    assert shapes.centroid_f1(found, radius=3) == 1
    assert shapes.centroid_f1(found, radius=2.9) == 0
    assert shapes.centroid_f1(found) == 1


def test_gaps_volumes_and_ignored_pixels() -> None:
    truth = np.zeros((4, 6, 6), np.int64)
    truth[1:3, 1:3, 1:3] = 2_000_000_000
    assert shapes.object_hausdorff(shapes.shapes(truth, truth)) == 0
    moved = np.roll(truth, 1, 0)
    assert shapes.object_hausdorff(shapes.shapes(moved, truth)) == 1
    extra = truth.copy()
    extra[:, 5] = 7
    ignore = np.zeros(truth.shape, bool)
    ignore[:, 5] = True
    found = shapes.shapes(extra, truth, ignore)
    assert shapes.centroid_f1(found) == 1
    assert shapes.object_hausdorff(found) == 0
