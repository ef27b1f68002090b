"""FID, KID, PHV, the robustness index, cells and thresholds: twins, libraries, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import linalg

from zoo.metrics import cells, features, operating


def sets(seed: int, n: int = 30, m: int = 24, d: int = 6) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(0.3, 1.4, (m, d)) @ rng.normal(size=(d, d))


def slow_fid(a: Any, b: Any) -> float:
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real))


@pytest.mark.parametrize(("n", "d"), [(30, 6), (5, 9)])
def test_fid_is_the_textbook_formula(n: int, d: int) -> None:
    a, b = sets(0, n, n + 2, d)
    assert features.fid(a, b) == pytest.approx(slow_fid(a, b), rel=1e-5)
    assert features.fid(a, a) == pytest.approx(0, abs=1e-9)
    assert features.fid(a, b) == pytest.approx(features.fid(b, a))
    assert features.fid(a + 2, a) == pytest.approx(4 * d)
    with pytest.raises(ValueError, match="at least 2"):
        features.fid(a[:1], b)


def slow_kid(a: Any, b: Any) -> float:
    def k(x: Any, y: Any) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return float(sum(within) - 2 * np.mean([k(x, y) for x in a for y in b]))


def test_kid_is_the_unbiased_estimate() -> None:
    a, b = sets(1, 12, 9)
    assert features.kid(a, b, size=None) == pytest.approx(slow_kid(a, b))
    drawn = features.kid_of(a, b, subsets=7, size=5, seed=3)
    assert drawn == features.kid_of(a, b, subsets=7, size=5, seed=3)
    assert drawn.deviation > 0


def test_phv_counts_channels_beyond_the_threshold() -> None:
    one, other = np.array([[0.0, 0.02, 0.5, 0.01]]), np.zeros((1, 4))
    assert features.phv(one, other, 0.01) == 0.5  # 0.01 itself is not beyond
    with pytest.raises(ValueError, match="differ in shape"):
        features.phv(one, other[:, :2])


def test_features_are_collected_in_order_whatever_the_batch() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.random((3, 4, 4)) for _ in range(5)] + [rng.random((3, 2, 6)) for _ in range(2)]
    found = features.collect(pictures, lambda batch: batch.mean((2, 3)), batch=3)
    np.testing.assert_allclose(found, [p.mean((1, 2)) for p in pictures], rtol=1e-6)


def slow_robustness(x: Any, biological: Any, centre: Any, slide: Any, k: int) -> float:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    so = os = 0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if slide[j] != slide[i]]
        order = sorted(others, key=lambda j: float(((x[i] - x[j]) ** 2).sum()))
        for j in order[:k]:
            so += biological[j] == biological[i] and centre[j] != centre[i]
            os += biological[j] != biological[i] and centre[j] == centre[i]
    return so / (so + os)


def test_the_robustness_index_equals_its_slow_twin() -> None:
    rng = np.random.default_rng(2)
    n = 40
    biological, centre, slide = rng.integers(0, 3, n), rng.integers(0, 2, n), np.arange(n) // 4
    x = rng.normal(size=(n, 5)) + np.eye(5)[biological] + 0.8 * np.eye(5)[3 + centre]
    found = features.robustness_index(x, biological, centre, slide, k=7)
    assert found == pytest.approx(slow_robustness(x, biological, centre, slide, 7))


def test_cells_are_added_up_over_tiles_and_small_ones_dropped() -> None:
    labels = np.zeros((2, 6, 6), int)
    labels[0, :3], labels[1, :1], labels[1, 5, :2] = 5, 5, 8
    pictures = np.full((2, 1, 6, 6), -0.9, np.float32)
    pictures[0, 0, :3] = 2.0  # clipped to 0.9: full intensity
    found = cells.expression(pictures, labels)
    assert found.ids.tolist() == [5]
    assert found.area.tolist() == [24]
    assert found.mean[0, 0] == pytest.approx(255 * 18 / 24)


def test_a_gate_lies_between_two_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 300), rng.normal(60, 6, 200)])
    gate = cells.gate(values)
    assert 12 < gate.threshold < 45
    density = [
        math.exp(-((gate.threshold - m) ** 2) / (2 * v)) / math.sqrt(v)
        for m, v in zip(gate.means, gate.variances, strict=True)
    ]
    assert density[0] == pytest.approx(density[1], rel=1e-6)
    assert ((gate.high > 0.5) == (values > gate.threshold)).mean() > 0.99
    logged = cells.gate(np.expm1(values / 20), log=True)
    assert np.log1p(logged.threshold) * 20 == pytest.approx(gate.threshold, abs=1.0)


def test_cell_classifier_and_its_scores_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    means = rng.gamma(2, 20, (200, 3))
    labels = np.stack([means[:, 0] + rng.normal(0, 15, 200) > 40, np.zeros(200, bool)], 1).astype(int)
    classifier = cells.cell_classifier(means, labels)
    probability = classifier(means)
    scaler = StandardScaler().fit(means)
    theirs = LogisticRegression(class_weight="balanced").fit(scaler.transform(means), labels[:, 0])
    expected = theirs.predict_proba(scaler.transform(means))[:, 1]
    np.testing.assert_allclose(probability[:, 0], expected, atol=1e-4)
    scores = cells.marker_scores(probability, labels)
    called = probability[:, 0] > 0.5
    assert scores[0] == pytest.approx(
        [
            roc_auc_score(labels[:, 0], probability[:, 0]),
            balanced_accuracy_score(labels[:, 0], called),
            f1_score(labels[:, 0], called),
        ]
    )
    assert np.isnan(scores[1]).all()
    assert (classifier.weight[1] == 0).all()


def test_golden_threshold_finds_the_peak_and_grid_takes_the_middle() -> None:
    chosen, best = operating.golden_threshold(lambda t: -((t - 0.7) ** 2), 0.9)
    assert chosen == pytest.approx(0.7, abs=0.01)
    assert best == pytest.approx(0, abs=1e-3)
    assert operating.grid_threshold([0.2, 0.3, 0.4, 0.5], [0.1, 0.8, 0.8, 0.8]) == (0.4, 0.8)
    assert operating.grid_threshold([0.2, 0.3], [math.nan, 0.1]) == (0.3, 0.1)
    with pytest.raises(ValueError, match="no threshold"):
        operating.grid_threshold([0.2], [math.nan])
