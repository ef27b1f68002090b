"""How well single cells are read off a predicted picture: metrics of the evidence kind "cells".

Evidence is one image's nuclei: what each shows in the prediction, what it is called by it, what it truly carries. All
metrics pool the cells of all images, because one image has few positive cells of a rare marker. `NAME@MARKER` is one
marker's number; without a marker it is the mean over the markers that have one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.pooled import Pooled

NUCLEAR = ("hoechst", "dapi", "dna")
"""Channels in which every nucleus shines: no cell is called by them."""
MIN_AREA = 20
"""Nuclei of at most so many pixels are left out, as published."""


@dataclass(frozen=True)
class Cells:
    """`markers` M names; `mean` (N, M) float32 of a nucleus in the predicted plane of that marker; `probability` (N, M)
    that it is positive, None where nothing calls; `truth` (N, M) float32 what it carries; `positive` (N, M) whether
    that counts as positive, None where no threshold is known. nan: not predicted, not annotated, not called."""

    markers: tuple[str, ...]
    mean: NDArray[np.float32]
    probability: NDArray[np.float64] | None
    truth: NDArray[np.float32]
    positive: NDArray[np.bool_] | None


def means(picture: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the labels (N,) of the nuclei of more than `MIN_AREA` pixels, ascending, and their means (N, C)."""
    ids, index = np.unique(labels.ravel(), return_inverse=True)
    area = np.bincount(index)
    total = np.stack([np.bincount(index, plane.ravel().astype(np.float64)) for plane in picture], 1)
    kept = (ids > 0) & (area > MIN_AREA)
    return ids[kept].astype(np.int64), total[kept] / area[kept, None]


def called(found: NDArray[np.float64], channels: Sequence[str], calling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the probability (N, K) of each marker that `calling` calls, from means (N, C) of `channels`.

    `calling`: "channels" that it looks at, "markers", "weight" (K, C), "bias" (K,).
    """
    seen = found[:, [list(channels).index(name) for name in calling["channels"]]]
    logits = seen @ np.asarray(calling["weight"], np.float64).T + np.asarray(calling["bias"], np.float64)
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return probability


def cells(
    picture: NDArray[Any],
    channels: Sequence[str],
    labels: NDArray[Any],
    values: Mapping[int, NDArray[Any]],
    names: Sequence[str],
    *,
    positive: float | None = None,
    calling: Mapping[str, Any] | None = None,
) -> Cells:
    """Return the evidence of one image.

    `picture` (C, H, W) of `channels`; `labels` (H, W) nuclei; `values`: label -> what it carries of each of `names`; a
    nucleus without values is not annotated. `positive`: from which value a cell is positive. Markers are those that
    both sides name, without the nuclear stain. Raises `ValueError` where there is none, or sizes differ.
    """
    if picture.shape[1:] != labels.shape:
        raise ValueError(f"the prediction has {picture.shape[1:]} pixels and the nuclei {labels.shape}")
    markers = tuple(name for name in names if name in channels and name.lower() not in NUCLEAR)
    if not markers:
        raise ValueError(f"the prediction has none of the markers {', '.join(names)}")
    ids, mean = means(picture, labels)
    there = np.array([int(i) in values for i in ids], bool)
    ids, mean = ids[there], mean[there]
    truth = np.array([values[int(i)] for i in ids], np.float32).reshape(len(ids), len(names))
    truth = truth[:, [list(names).index(name) for name in markers]]
    probability = None
    if calling is not None and all(name in channels for name in calling["channels"]):
        said = called(mean, channels, calling)
        probability = np.full(truth.shape, np.nan)
        for place, name in enumerate(markers):
            if name in calling["markers"]:
                probability[:, place] = said[:, list(calling["markers"]).index(name)]
    own = mean[:, [list(channels).index(name) for name in markers]].astype(np.float32)
    return Cells(markers, own, probability, truth, None if positive is None else truth >= positive)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _chosen(markers: Sequence[str], marker: str | None) -> list[int]:
    return [i for i, name in enumerate(markers) if marker is None or name == marker]


def _mean(values: NDArray[np.float64]) -> float:
    told = values[np.isfinite(values)]
    return float(told.mean()) if len(told) else float("nan")


def _counts(marker: str | None, found: Cells) -> NDArray[np.float64]:
    """Return (M, 4): true positives, false positives, false negatives, true negatives; nan where nothing calls."""
    chosen = _chosen(found.markers, marker)
    if found.probability is None or found.positive is None:
        return np.full((max(len(chosen), 1), 4), np.nan)
    p = found.probability[:, chosen]
    known = ~np.isnan(p) & ~np.isnan(found.truth[:, chosen])
    yes, true = p > 0.5, found.positive[:, chosen]
    pairs = (yes & true, yes & ~true, ~yes & true, ~yes & ~true)
    counts = np.stack([(one & known).sum(0) for one in pairs], 1).astype(np.float64)
    counts[np.isnan(p).all(0) & (len(p) > 0)] = np.nan
    return counts if chosen else np.full((1, 4), np.nan)


def f1_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 of the positive class from (M, 4) counts; nan where no cell is positive."""
    hits, wrong, missed, _ = counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(hits + missed > 0, 2 * hits / (2 * hits + wrong + missed), np.nan))


def balanced_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of sensitivity and specificity from (M, 4) counts; nan where one class is missing."""
    hits, wrong, missed, rest = counts.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((hits / (hits + missed) + rest / (rest + wrong)) / 2)


def _from_counts(number: Callable[[NDArray[np.float64]], NDArray[np.float64]], marker: str | None = None) -> Pooled:
    def value(records: Sequence[Any]) -> float:
        return _mean(number(np.nansum(np.asarray(records, np.float64), axis=0)))

    make = functools.partial(_from_counts, number)
    return Pooled(functools.partial(_counts, marker), value, make=make)


def _moments(marker: str | None, found: Cells) -> NDArray[np.float64]:
    """Return (M, 6): n, and sums of x, y, xx, yy, xy of prediction and truth."""
    chosen = _chosen(found.markers, marker)
    x, y = found.mean[:, chosen].astype(np.float64), found.truth[:, chosen].astype(np.float64)
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = np.where(known, x, 0), np.where(known, y, 0)
    parts = (known.sum(0), x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0))
    return np.stack(parts, 1).astype(np.float64) if chosen else np.zeros((1, 6))


def correlation(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Pearson's correlation from (M, 6) moments; nan where something does not vary."""
    n, x, y, xx, yy, xy = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        under = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
        return np.asarray(np.where(under > 1e-9 * np.maximum(n * n, 1), (n * xy - x * y) / under, np.nan))


def _pearson(marker: str | None = None) -> Pooled:
    def value(records: Sequence[Any]) -> float:
        return _mean(correlation(np.sum(np.asarray(records, np.float64), axis=0)))

    return Pooled(functools.partial(_moments, marker), value, make=_pearson)


@dataclass(frozen=True)
class _Scores:
    """Scores and labels of one image, (N, M), nan and False where they are not known."""

    score: NDArray[np.float64]
    positive: NDArray[np.bool_]


def _scores(by_calls: bool, marker: str | None, found: Cells) -> _Scores:
    chosen = _chosen(found.markers, marker)
    source = found.probability if by_calls else found.mean
    if source is None or found.positive is None or not chosen:
        return _Scores(np.full((len(found.mean), max(len(chosen), 1)), np.nan), np.zeros((len(found.mean), 1), bool))
    score = np.where(np.isnan(found.truth[:, chosen]), np.nan, source[:, chosen])
    return _Scores(score.astype(np.float64), found.positive[:, chosen])


def weighted_auc(score: NDArray[np.float64], positive: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve of scores (N,) sorted ascending; a pair of equal scores counts half.

    `weight`: how often each counts. nan without both classes.
    """
    ends = np.flatnonzero(np.diff(score, append=np.inf) > 0)
    hits = np.diff(np.cumsum(weight * positive)[ends], prepend=0.0)
    others = np.diff(np.cumsum(weight * ~positive)[ends], prepend=0.0)
    below = np.cumsum(others) - others
    under = float(hits.sum() * others.sum())
    return float((hits * (below + others / 2)).sum() / under) if under > 0 else float("nan")


def _area(by_calls: bool, marker: str | None = None) -> Pooled:
    def prepare(records: Sequence[_Scores]) -> Callable[[Any], float]:
        sizes = [len(r.score) for r in records]
        image = np.repeat(np.arange(len(records)), sizes)
        columns = max((r.score.shape[1] for r in records), default=0)
        ready = []
        for m in range(columns):
            score = np.concatenate([r.score[:, m] for r in records])
            true = np.concatenate([r.positive[:, min(m, r.positive.shape[1] - 1)] for r in records])
            kept = np.flatnonzero(~np.isnan(score))
            order = kept[np.argsort(score[kept], kind="stable")]
            ready.append((score[order], true[order], image[order]))

        def again(indices: Any) -> float:
            often = np.bincount(np.asarray(indices, np.int64), minlength=len(records)).astype(np.float64)
            return _mean(np.array([weighted_auc(s, t, often[i]) for s, t, i in ready]))

        return again

    def value(records: Sequence[_Scores]) -> float:
        return prepare(records)(np.arange(len(records)))

    record = functools.partial(_scores, by_calls, marker)
    return Pooled(record, value, additive=False, prepare=prepare, make=functools.partial(_area, by_calls))


def _tally(marker: str | None, found: Cells) -> NDArray[np.float64]:
    """Return (M, 2): cells called positive and truly positive ones of one image."""
    counts = _counts(marker, found)
    return np.stack([counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]], 1)


def _count_pearson(marker: str | None = None) -> Pooled:
    def value(records: Sequence[Any]) -> float:
        told = np.asarray(records, np.float64)
        x, y = told[..., 0], told[..., 1]
        parts = (np.full(x.shape[1], float(len(x))), x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0))
        return _mean(correlation(np.stack(parts, 1))) if len(told) else float("nan")

    return Pooled(functools.partial(_tally, marker), value, additive=False, make=_count_pearson)


cell_f1 = _from_counts(f1_of)
cell_balanced_accuracy = _from_counts(balanced_of)
cell_auc = _area(False)
cell_auc_called = _area(True)
cell_pearson = _pearson()
cell_count_pearson = _count_pearson()
