"""Metrics of boxes at one IoU threshold. (COCO's AP and AR: `zoo.metrics.coco`.)

Conventions: boxes are half-open `x0, y0, x1, y1`; a prediction matches a true box of its own class at IoU >= threshold;
predictions choose in order of falling score (input order among equals), each the best true box that is still free, as
COCO's evaluation does; a crowd box is neither hit nor miss and swallows the predictions that lie in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: `xyxy` (N, 4), `classes` (N,); `scores` (N,) of predictions, `crowd` (N,) bool of truths;
    `attributes` (N, A) integer, -1 = missing."""

    xyxy: NDArray[Any]
    classes: NDArray[Any]
    scores: NDArray[Any] | None = None
    crowd: NDArray[Any] | None = None
    attributes: NDArray[Any] | None = None


@dataclass(frozen=True)
class Pair:
    """What was predicted for one image and what is there: the evidence of every metric of boxes.

    `weaker`: predictions below the score from which one counts, which only metrics over all scores (COCO's) look at.
    `classes`: names of classes 1, 2, ...; `attributes`: names of the attributes, in their order.
    """

    prediction: Boxes
    truth: Boxes
    weaker: Boxes | None = None
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def number_of(self, name: str) -> int | None:
        """Return the number of a class by its name, None where there is no such class."""
        return self.classes.index(name) + 1 if name in self.classes else None


@dataclass(frozen=True)
class Counts:
    """`hits` matched pairs, `wrong` predictions and `missed` true boxes without a partner; `pairs` (hits, 2): indices
    (prediction, truth) of the pairs; `swallowed`: predictions that lie in a crowd and count for nothing."""

    hits: int
    wrong: int
    missed: int
    pairs: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    swallowed: tuple[int, ...] = field(default=(), compare=False)


def pairwise(one: Any, other: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the intersections (N, M) of two sets of boxes in square pixels, and their IoU (N, M)."""
    a, b = (np.asarray(x, np.float64).reshape(-1, 4) for x in (one, other))
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared: NDArray[np.float64] = size.clip(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(min=0).prod(-1) for x in (a, b))
    joint = area_a[:, None] + area_b[None] - shared
    return shared, np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def matching(prediction: Boxes, truth: Boxes, threshold: float = 0.5) -> Counts:
    """Return the counts of one image (see the module for the rule)."""
    shared, iou = pairwise(prediction.xyxy, truth.xyxy)
    iou[np.asarray(prediction.classes)[:, None] != np.asarray(truth.classes)[None]] = -1
    crowd = np.zeros(len(truth.xyxy), bool) if truth.crowd is None else np.asarray(truth.crowd, bool)
    scores = np.zeros(len(iou)) if prediction.scores is None else np.asarray(prediction.scores)
    free = ~crowd
    wrong = 0
    pairs: list[tuple[int, int]] = []
    swallowed: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, iou[index], -1)
        best = int(candidates.argmax()) if candidates.size else -1
        if best >= 0 and candidates[best] >= threshold:
            free[best] = False
            pairs.append((int(index), best))
        elif _in_crowd(prediction.xyxy[index], shared[index], crowd & (iou[index] >= 0), threshold):
            swallowed.append(int(index))
        else:
            wrong += 1
    return Counts(len(pairs), wrong, int(free.sum()), tuple(pairs), tuple(swallowed))


def _in_crowd(box: NDArray[Any], shared: NDArray[np.float64], crowd: NDArray[np.bool_], threshold: float) -> bool:
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    return bool(crowd.any()) and area > 0 and float(shared[crowd].max()) / area >= threshold


def _counts(evidence: Counts | Pair, threshold: float) -> Counts:
    return evidence if isinstance(evidence, Counts) else matching(evidence.prediction, evidence.truth, threshold)


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom else float("nan")


def box_f1(evidence: Counts | Pair, threshold: float = 0.5) -> float:
    """Return 2 TP / (2 TP + FP + FN); nan where there is no box in either."""
    counts = _counts(evidence, threshold)
    return _over(2 * counts.hits, 2 * counts.hits + counts.wrong + counts.missed)


def box_precision(evidence: Counts | Pair, threshold: float = 0.5) -> float:
    """Return TP / (TP + FP); 0 where nothing is predicted and something is there, nan where both are empty."""
    counts = _counts(evidence, threshold)
    return _over(counts.hits, counts.hits + counts.wrong) if counts.hits + counts.wrong else box_f1(counts)


def box_recall(evidence: Counts | Pair, threshold: float = 0.5) -> float:
    """Return TP / (TP + FN); 0 where something is predicted and nothing is there, nan where both are empty."""
    counts = _counts(evidence, threshold)
    return _over(counts.hits, counts.hits + counts.missed) if counts.hits + counts.missed else box_f1(counts)


def box_count_error(evidence: Pair) -> float:
    """Return the sum over classes of |predicted - true| boxes; crowds are not counted, nan where nothing is in either.

    Every predicted box counts, whatever its score: the family's threshold has chosen them.
    """
    crowd = evidence.truth.crowd
    true = np.asarray(evidence.truth.classes)[slice(None) if crowd is None else ~np.asarray(crowd, bool)]
    predicted = np.asarray(evidence.prediction.classes)
    kinds = set(true.tolist()) | set(predicted.tolist())
    if not kinds:
        return float("nan")
    return float(sum(abs(int((predicted == k).sum()) - int((true == k).sum())) for k in kinds))


def counted(evidence: Pair) -> NDArray[np.int64]:
    """Return (2, K) int64: predicted and true boxes of each class; crowds are not counted."""
    crowd = evidence.truth.crowd
    told = np.asarray(evidence.truth.classes, np.int64)
    told = told if crowd is None else told[~np.asarray(crowd, bool)]
    ours = np.asarray(evidence.prediction.classes, np.int64)
    kinds = len(evidence.classes) or int(max(ours.max(initial=0), told.max(initial=0)))
    return np.stack([np.bincount(c, minlength=kinds + 1)[1 : kinds + 1] for c in (ours, told)])


def share_error(counts: NDArray[Any], kind: int | None = None) -> float:
    """Return how far the shares of classes among predicted boxes lie off those among true ones: the mean over classes
    of |predicted - true|, or that of class `kind` (from 1); nan where either has no box.

    `counts`: (2, K), predicted and true, of everything that a differential count is made of: a slide, a patient, a set.
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum(1, keepdims=True)
    if not total.all():
        return float("nan")
    off = np.abs(np.subtract(*(counts / total)))
    return float(off.mean() if kind is None else off[kind - 1])


def confusion(evidence: Pair, threshold: float = 0.5) -> NDArray[np.int64]:
    """Return (K + 1, K + 1) int64: true class by predicted class; the last row is what is nothing, the last column what
    was not found.

    Boxes are matched within their classes first, as `matching` does, so that the diagonal holds the hits of `box_f1`;
    then what is left is matched whatever its class, by the same rule. Crowds, and predictions in them, are not counted.
    """
    ours, theirs = evidence.prediction, evidence.truth
    kinds = len(evidence.classes) or int(max(np.max(ours.classes, initial=0), np.max(theirs.classes, initial=0)))
    found = np.zeros((kinds + 1, kinds + 1), np.int64)
    pairs = list(matching(ours, theirs, threshold).pairs)
    p, t = (np.setdiff1d(np.arange(len(b.xyxy)), [pair[i] for pair in pairs]) for i, b in enumerate((ours, theirs)))
    one = np.zeros(max(len(p), len(t)), np.int64)
    scores = None if ours.scores is None else ours.scores[p]
    crowd = None if theirs.crowd is None else theirs.crowd[t]
    rest, left = Boxes(ours.xyxy[p], one[: len(p)], scores), Boxes(theirs.xyxy[t], one[: len(t)], None, crowd)
    more = matching(rest, left, threshold)
    pairs += [(int(p[i]), int(t[j])) for i, j in more.pairs]
    for i, j in pairs:
        found[int(theirs.classes[j]) - 1, int(ours.classes[i]) - 1] += 1
    wrong, missed = set(range(len(ours.xyxy))), set(range(len(theirs.xyxy)))
    wrong -= {i for i, _ in pairs} | {int(p[i]) for i in more.swallowed}
    missed -= {j for _, j in pairs} | (set() if theirs.crowd is None else set(np.flatnonzero(theirs.crowd).tolist()))
    for i in wrong:
        found[kinds, int(ours.classes[i]) - 1] += 1
    for j in missed:
        found[int(theirs.classes[j]) - 1, kinds] += 1
    return found


def attribute_pairs(evidence: Pair, threshold: float = 0.5) -> NDArray[np.int64]:
    """Return (2, N, A): predicted and true attributes of matched boxes, -1 = not said or not known; (2, 0, 0) where
    either side has none."""
    ours, theirs = evidence.prediction.attributes, evidence.truth.attributes
    if ours is None or theirs is None:
        return np.zeros((2, 0, 0), np.int64)
    pairs = np.asarray(_counts(evidence, threshold).pairs, np.int64).reshape(-1, 2)
    return np.stack([np.asarray(ours)[pairs[:, 0]], np.asarray(theirs)[pairs[:, 1]]])


def attribute_f1(evidence: Pair, threshold: float = 0.5) -> float:
    """Return the macro F1 of each attribute over matched boxes, averaged over attributes; nan where none is known.

    Boxes are matched by class at IoU >= `threshold`; of each attribute the pairs whose true value is known (not -1)
    count. A binary attribute's F1 is that of its value 1 (present); of an attribute with more values the F1 of each
    value present is averaged. A missing prediction (-1) is wrong.
    """
    p, t = attribute_pairs(evidence, threshold)
    values = [attribute_value(p[:, a], t[:, a]) for a in range(t.shape[1])]
    told = [v for v in values if not np.isnan(v)]
    return float(np.mean(told)) if told else float("nan")


def attribute_value(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the F1 of one attribute over pairs (see `attribute_f1`)."""
    known = truth >= 0
    p, t = prediction[known], truth[known]
    if not len(t):
        return float("nan")
    binary = max(int(t.max()), int(p.max())) <= 1
    kinds = [1] if binary else sorted({*t.tolist(), *(v for v in p.tolist() if v >= 0)})
    found = []
    for k in kinds:
        under = int((t == k).sum() + (p == k).sum())
        if under:
            found.append(2 * int(((t == k) & (p == k)).sum()) / under)
    return float(np.mean(found)) if found else float("nan")
