"""Metrics of immunostains against slow twins, by hand, and on pictures of which the truth is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from zoo.data import open_dataset
from zoo.families.immunostain import Immunostain, amounts, fits, unmixed
from zoo.metrics import function, immunostain, picture
from zoo.metrics.immunostain import POSITIVE, Amounts
from zoo.metrics.shapes import centroid_pairs
from zoo.stain.matrices import DAB, HAEMATOXYLIN, intensity, stain_matrix
from zoo.types import Instances, Picture

RGB = ("red", "green", "blue")


class Both:
    def __init__(self, prediction: Amounts, truth: Amounts, valid: Any = None) -> None:
        self.prediction, self.truth = prediction, truth
        self.valid = np.ones(truth.brown.shape, bool) if valid is None else valid


def made(seed: int, count: int = 6, side: int = 37) -> Amounts:
    rng = np.random.default_rng(seed)
    brown = rng.gamma(1.0, 0.3, (side, side)).astype(np.float32)
    return Amounts(brown, rng.uniform(0, side - 1, (count, 2)), rng.random(count) < 0.6)


def slow_concordance(evidence: Both, side: int) -> float:
    values = []
    for y, x in itertools.product(range(0, 37 - side + 1, side), repeat=2):
        here = evidence.valid[y : y + side, x : x + side]
        if here.sum() >= side * side / 2:
            cells = (a.brown[y : y + side, x : x + side][here] for a in (evidence.prediction, evidence.truth))
            values.append([float(np.mean(c.astype(np.float64))) for c in cells])
    x, y = np.array(values).T
    return float(2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


@pytest.mark.parametrize("side", [1, 5, 8])
def test_concordance_equals_its_slow_twin(side: int) -> None:
    evidence = Both(made(0), made(1), np.random.default_rng(2).random((37, 37)) < 0.7)
    assert immunostain.dab_concordance(evidence, side) == pytest.approx(slow_concordance(evidence, side))
    assert function(f"dab_concordance@{side}")(evidence) == immunostain.dab_concordance(evidence, side)


def test_concordance_sees_what_a_correlation_does_not() -> None:
    truth = made(0)
    twice = Amounts(2 * truth.brown, truth.centres, truth.positive)
    assert immunostain.dab_concordance(Both(truth, truth)) == pytest.approx(1)
    assert immunostain.dab_concordance(Both(twice, truth)) < 0.5
    none = Amounts(np.zeros_like(truth.brown), truth.centres, truth.positive)
    assert math.isnan(immunostain.dab_concordance(Both(none, none)))


def slow_f1(evidence: Both, radius: float) -> float:
    """The most pairs of positive nuclei near enough, by trying every order."""
    sides = []
    for a in (evidence.prediction, evidence.truth):
        inside = [evidence.valid[tuple(np.clip(np.round(c).astype(int), 0, 36))] for c in a.centres]
        sides.append([c for c, p, here in zip(a.centres, a.positive, inside, strict=True) if p and here])
    ours, theirs = sorted(sides, key=len)
    near = np.array([[np.hypot(*(a - b)) <= radius for b in theirs] for a in ours]).reshape(len(ours), len(theirs))
    best = max(sum(near[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(len(theirs)), len(ours)))
    return 2 * best / (len(ours) + len(theirs))


@pytest.mark.parametrize("seed", range(5))
def test_cell_f1_equals_its_slow_twin(seed: int) -> None:
    evidence = Both(made(seed), made(seed + 50, 5), np.random.default_rng(seed).random((37, 37)) < 0.8)
    assert immunostain.positive_cell_f1(evidence, 9.0) == pytest.approx(slow_f1(evidence, 9.0))


def test_areas_shares_and_counts_by_hand() -> None:
    brown = np.zeros((10, 10), np.float32)
    brown[:4] = POSITIVE
    truth = Amounts(brown, np.array([[1.0, 1], [2, 8], [8, 8], [9, 1]]), np.array([True, True, False, False]))
    more = Amounts(np.ones_like(brown), np.array([[1.0, 2], [2, 8], [8, 8]]), np.array([True, True, True]))
    both = Both(more, truth)
    assert immunostain.positive_area_error(both) == pytest.approx(0.6)
    assert immunostain.positive_share_error(both) == pytest.approx(0.5)
    assert immunostain.positive_cell_f1(both) == pytest.approx(4 / 5)
    assert immunostain.positive_counts(both) == (3, 2)
    empty = Amounts(np.zeros_like(brown), np.zeros((0, 2)), np.zeros(0, bool))
    assert math.isnan(immunostain.positive_cell_f1(Both(empty, empty)))
    assert math.isnan(immunostain.positive_share_error(Both(empty, truth)))
    assert immunostain.positive_cell_f1(Both(empty, truth)) == 0
    correlation = function("positive_count_correlation")
    twice = [Both(Amounts(brown, np.ones((2 * n, 2)), np.ones(2 * n, bool)), _many(brown, n)) for n in (0, 3, 1, 5)]
    assert correlation(twice) == pytest.approx(1)
    assert math.isnan(correlation(twice[:2]))


def _many(brown: Any, count: int) -> Amounts:
    return Amounts(brown, np.ones((count, 2)), np.ones(count, bool))


def test_stains_are_taken_apart_as_they_were_mixed() -> None:
    blue, brown = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1.5, 5))
    amount = np.stack([blue, brown]).astype(np.float32)
    rgb = intensity(np.tensordot(stain_matrix(HAEMATOXYLIN, DAB).T, amount, axes=1))
    for found, true in zip(unmixed(rgb), amount, strict=True):
        np.testing.assert_allclose(found, true, atol=0.03)


def test_positive_cells_of_the_phantom_are_found() -> None:
    """The classical rule against the layout that the picture was rendered from."""
    data = open_dataset("phantom-stains", split="val", arguments={"marker": "Ki67", "size": 192, "val": 3})
    hits = total = 0
    for sample in (data[i] for i in range(len(data))):
        stained, cells = sample.truth["ihc"], sample.truth["cells"]
        assert isinstance(stained, Picture)
        assert isinstance(cells, Instances)
        brown = [k for k, kind in (cells.classes or {}).items() if kind == 2]
        true = np.asarray(ndimage.center_of_mass(cells.map > 0, cells.map, brown)).reshape(-1, 2)
        found = amounts(stained.data)
        ours = found.centres[found.positive]
        hits, total = hits + 2 * len(centroid_pairs(ours, true, 8)), total + len(ours) + len(true)
    assert hits / total > 0.85


def test_empty_fields_and_other_pictures() -> None:
    white = np.full((3, 40, 40), 245, np.uint8)
    found = Immunostain(picture.pair(white, white, channels=RGB))
    assert len(found.truth.centres) == 0
    assert immunostain.positive_area_error(found) == 0
    assert math.isnan(immunostain.positive_cell_f1(found))
    assert fits(found.both)
    assert not fits(picture.pair(white[:1], white[:1], channels=("DAPI",)))
