"""Metrics of what single cells express, measured on a predicted picture (virtual immunofluorescence).

Steps of MIPHEI-ViT's evaluation (arXiv 2505.10294): mean intensities per nucleus, a gate that calls a cell positive,
a classifier on the means, and its scores per marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Expression:
    """`ids` (N,) int64 ascending, `area` (N,) int64 pixels, `mean` (N, C) float32 in [0, 255]."""

    ids: NDArray[np.int64]
    area: NDArray[np.int64]
    mean: NDArray[np.float32]


def expression(pictures: Sequence[Any], nuclei: Sequence[Any], *, limit: float = 0.9, min_area: int = 20) -> Expression:
    """Return the mean intensity of each nucleus in each channel.

    `pictures`: tiles (C, H, W) float, values clipped to +-`limit` and mapped to [0, 1]; `nuclei`: their label maps
    (H, W), ids unique over the slide, so that a nucleus cut by a border is added up over tiles. Sums of a tile, times
    255, are truncated to integers; nuclei of at most `min_area` (<=) pixels are dropped.
    """
    sums: dict[int, NDArray[np.int64]] = {}
    areas: dict[int, int] = {}
    for picture, labels in zip(pictures, nuclei, strict=True):
        p = (np.clip(np.asarray(picture, np.float32), -limit, limit) + np.float32(limit)) / np.float32(2 * limit)
        flat = np.asarray(labels).ravel()
        names, index = np.unique(flat, return_inverse=True)
        count = np.bincount(index)
        totals = np.stack([np.bincount(index, plane.ravel().astype(np.float64)) for plane in p], 1)
        scaled = (totals.astype(np.float32) * np.float32(255)).astype(np.int64)
        for name, row, area in zip(names.tolist(), scaled, count.tolist(), strict=True):
            if name:
                sums[name] = sums.get(name, 0) + row
                areas[name] = areas.get(name, 0) + area
    kept = [i for i in sorted(sums) if areas[i] > min_area]
    area = np.asarray([areas[i] for i in kept], np.int64)
    total = np.asarray([sums[i] for i in kept], np.float32).reshape(len(kept), -1)
    return Expression(
        np.asarray(kept, np.int64), area, np.asarray(total / area[:, None].astype(np.float32), np.float32)
    )


@dataclass(frozen=True)
class Gate:
    """Two Gaussians over values: `means` and `variances` (2,) ascending each, `threshold` where their densities cross,
    `high` (N,) the posterior of the component with the higher mean."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    threshold: float
    high: NDArray[np.float64]


def gate(values: Any, *, seed: int = 42, log: bool = False) -> Gate:
    """Return a two-component Gaussian gate of one marker.

    `log`: fit log(1 + value), the threshold being given back on the scale of the values. The threshold ignores the
    mixture's weights and sorts means and variances independently, as the published gate does:
    (m1 v2 - m2 v1 + s1 s2 sqrt((m1 - m2)² + 2 (v2 - v1) ln(s2 / s1))) / (v2 - v1).
    """
    from sklearn.mixture import GaussianMixture

    x = np.asarray(values, np.float64).ravel()
    x = np.log1p(x) if log else x
    mixture = GaussianMixture(2, random_state=seed).fit(x[:, None])
    high = mixture.predict_proba(x[:, None])[:, int(mixture.means_.ravel().argmax())]
    m1, m2 = np.sort(mixture.means_.ravel())
    v1, v2 = np.sort(mixture.covariances_.ravel())
    if np.isclose(v1, v2):
        threshold = (m1 + m2) / 2
    else:
        root = (m1 - m2) ** 2 + (v2 - v1) * np.log(v2 / v1)
        threshold = (m1 * v2 - m2 * v1 + np.sqrt(v1 * v2 * root)) / (v2 - v1)
    return Gate(np.array([m1, m2]), np.array([v1, v2]), float(np.expm1(threshold) if log else threshold), high)


@dataclass(frozen=True)
class CellClassifier:
    """One linear layer on unscaled means: `weight` (M, C), `bias` (M,); a marker of a single class has zeros."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, means: Any) -> NDArray[np.float64]:
        """Return (N, M) probabilities."""
        logits = np.asarray(means, np.float64) @ self.weight.T + self.bias
        found: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
        return found


def cell_classifier(means: Any, labels: Any, *, seed: int = 42) -> CellClassifier:
    """Return a logistic regression for each marker on the scaled means of all (L2, C = 1, balanced classes).

    `means` (N, C), `labels` (N, M) 0 or 1. The scaling is folded into the layer.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = np.asarray(means), np.asarray(labels)
    center, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1)
    weight, bias = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    for marker in range(y.shape[1]):
        if len(np.unique(y[:, marker])) < 2:
            continue
        fitted = LogisticRegression(C=1.0, class_weight="balanced", random_state=seed).fit(
            (x - center) / scale, y[:, marker]
        )
        weight[marker] = fitted.coef_[0] / scale
        bias[marker] = fitted.intercept_[0] - float((fitted.coef_[0] * center / scale).sum())
    return CellClassifier(weight, bias)


def marker_scores(probability: Any, labels: Any) -> NDArray[np.float64]:
    """Return (M, 3): ROC AUC, balanced accuracy and F1 of the positive class of each marker; positive at > 0.5.

    `probability`, `labels`: (N, M). A marker of a single class has nan.
    """
    from scipy.stats import rankdata

    p, y = np.asarray(probability, np.float64), np.asarray(labels, bool)
    found = np.full((p.shape[1], 3), np.nan)
    for m in range(p.shape[1]):
        true, called = y[:, m], p[:, m] > 0.5
        positive, negative = int(true.sum()), int((~true).sum())
        if not positive or not negative:
            continue
        rank = rankdata(p[:, m])[true].sum()
        hits = int((true & called).sum())
        found[m] = (
            (rank - positive * (positive + 1) / 2) / (positive * negative),
            (hits / positive + int((~true & ~called).sum()) / negative) / 2,
            2 * hits / (positive + int(called.sum())),
        )
    return found


PARENTS = {
    "CD3e": "CD45",
    "CD20": "CD45",
    "CD68": "CD45",
    "CD4": "CD3e",
    "CD8a": "CD3e",
    "CD45RO": "CD3e",
    "FOXP3": "CD4",
    "CD163": "CD68",
}
"""A cell cannot carry a marker whose parent it does not carry."""
APART = {"Pan-CK": "CD45", "E-cadherin": "CD45"}
"""Markers of epithelium, which a cell with the other one does not carry."""


def positivity(
    means: Any, markers: Sequence[str], *, how: Literal["posterior", "crossing"] = "posterior", seed: int = 42
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores in [0, 1] and calls, (N, M) each, of cells by a two-component gate a marker.

    `means`: (N, M) of all slides together. "posterior" (ORION): fitted on positive means, positive where the higher
    component is likelier than not; a child's call falls where its parent's score is below 0.25 (`PARENTS`), epithelial
    ones where CD45 is called. "crossing" (HEMIT): fitted on log(1 + mean), positive above the crossing of the
    Gaussians, nothing else. A marker that takes fewer than two values is nowhere positive.
    """
    x = np.asarray(means, np.float64)
    score, positive = np.zeros(x.shape), np.zeros(x.shape, bool)
    for m in range(x.shape[1]):
        fitted = x[:, m] > 0 if how == "posterior" else np.ones(len(x), bool)
        if len(np.unique(x[fitted, m])) < 2:
            continue
        found = gate(x[fitted, m], seed=seed, log=how == "crossing")
        score[fitted, m] = found.high
        positive[:, m] = score[:, m] > 0.5 if how == "posterior" else x[:, m] > found.threshold
    if how == "posterior":
        at = {name: i for i, name in enumerate(markers)}
        for child, parent in PARENTS.items():
            if child in at and parent in at:
                positive[:, at[child]] &= score[:, at[parent]] >= 0.25
        for name, other in APART.items():
            if name in at and other in at:
                positive[:, at[name]] &= ~positive[:, at[other]]
    return score, positive
