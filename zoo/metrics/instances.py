"""Metrics of instances, all from one sparse table of overlaps.

One pass over the pixels makes the table (`overlap`); every number below is a function of it. Works on 2-D and 3-D maps.

Conventions, for every function here:

- an object is an id > 0 with at least one counted pixel; ids may have gaps, and connectivity plays no role;
- ignored pixels are not counted: areas, overlaps and IoU are those of what remains, and an object that lies wholly in
  them is neither hit nor miss;
- `object_*` count a pair as matched at IoU >= threshold, as StarDist's `matching` does; `dq`, `sq`, `pq` at IoU > 0.5,
  as panoptic quality is defined (Kirillov et al., CVPR 2019);
- no object in either map: every metric is nan. Objects in one map only: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""IoU thresholds of the Data Science Bowl and of COCO."""

_BAND = 1 << 22  # pixels a pass, so that memory does not grow with the image


@dataclass(frozen=True)
class Overlap:
    """Which object of the truth (T of them) shares how many pixels with which of the prediction (P).

    `truth_ids` (T,), `prediction_ids` (P,) int64 ascending; `truth_area` (T,), `prediction_area` (P,) int64 pixels;
    `rows`, `columns` (E,) int64: indices into truth and prediction of each pair that overlaps, ordered by row, then
    column; `area` (E,) int64: pixels that the pair shares, all > 0.
    """

    truth_ids: Ints
    prediction_ids: Ints
    truth_area: Ints
    prediction_area: Ints
    rows: Ints
    columns: Ints
    area: Ints

    @cached_property
    def union(self) -> Ints:
        """(E,) int64: pixels in one or the other of a pair."""
        return self.truth_area[self.rows] + self.prediction_area[self.columns] - self.area

    @cached_property
    def iou(self) -> Floats:
        """(E,) float64: intersection over union of each pair."""
        return self.area / self.union

    def score(self, criterion: str = "iou") -> Floats:
        """Return (E,) float64: the overlap of each pair, over their union ("iou"), over the true object ("iot") or over
        the predicted one ("iop"). Raises `ValueError` for another criterion."""
        if criterion == "iou":
            return self.iou
        if criterion not in ("iot", "iop"):
            raise ValueError(f'criterion "{criterion}" is none of iou, iot, iop')
        sides = (self.truth_area, self.rows) if criterion == "iot" else (self.prediction_area, self.columns)
        return self.area / sides[0][sides[1]]

    @property
    def empty(self) -> bool:
        """True where neither map holds an object."""
        return not len(self.truth_ids) and not len(self.prediction_ids)


def overlap(prediction: Any, truth: Any, ignore: Any = None) -> Overlap:
    """Return the table of overlaps of two label maps.

    `prediction`, `truth`: integer arrays of one shape, 0 background, ids from 1 (below 2**31); `ignore`: bool of that
    shape, True where nothing is counted. Memory grows with the number of overlapping pairs, not with T x P. Raises
    `ValueError` for differing shapes or negative ids.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {true.shape} differ in shape")
    keys, counts, stride = _pairs(predicted.ravel(), true.ravel(), None if ignore is None else np.ravel(ignore))
    true_of, predicted_of = keys // stride, keys % stride
    truth_ids, truth_area = _areas(true_of, counts)
    prediction_ids, prediction_area = _areas(predicted_of, counts)
    both = (true_of > 0) & (predicted_of > 0)
    return Overlap(
        truth_ids,
        prediction_ids,
        truth_area,
        prediction_area,
        np.searchsorted(truth_ids, true_of[both]),
        np.searchsorted(prediction_ids, predicted_of[both]),
        counts[both],
    )


def _pairs(predicted: NDArray[Any], true: NDArray[Any], ignore: NDArray[Any] | None) -> tuple[Ints, Ints, int]:
    """Return each (truth, prediction) pair as one number, how many pixels have it, and the base of that number.

    Labels come in runs along a row, so only the runs are sorted: some 50 times fewer than the pixels.
    """
    if not predicted.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 1
    if predicted.min() < 0 or true.min() < 0:
        raise ValueError("label maps hold negative ids; expected 0 for background and ids from 1")
    stride = int(predicted.max()) + 1
    found: list[tuple[Ints, Ints]] = []
    for start in range(0, predicted.size, _BAND):
        band = slice(start, start + _BAND)
        keys = true[band].astype(np.int64)
        keys *= stride
        keys += predicted[band]
        if ignore is not None:
            keys[ignore[band]] = 0
        starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        lengths = np.diff(starts, append=len(keys))
        found.append(_sum_by(keys[starts], lengths))
    keys, counts = (
        found[0] if len(found) == 1 else _sum_by(*(np.concatenate(part) for part in zip(*found, strict=True)))
    )
    return keys, counts, stride


def _sum_by(keys: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Return the distinct keys, ascending, and the sum of the values of each."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1]) if len(keys) else order
    return ordered[starts], np.add.reduceat(values[order], starts) if len(keys) else values


def _areas(ids: Ints, counts: Ints) -> tuple[Ints, Ints]:
    foreground = ids > 0
    return _sum_by(ids[foreground], counts[foreground])


# --- matching ---------------------------------------------------------------------------------------------------------


def match(table: Overlap, threshold: float = 0.5, *, strict: bool = False, criterion: str = "iou") -> Ints:
    """Return the pairs of a one-to-one matching, as indices into the table's pairs, ascending.

    A pair may match at IoU >= `threshold` (> where `strict`; `criterion`: see `Overlap.score`). Of all matchings the
    one with most pairs is taken. Above an IoU of 0.5 there is one; elsewhere pairs compete, and of equals the greatest
    sum of IoU over all partners decides, those below the threshold included, as StarDist has it. `threshold` is in
    (0, 1]; raises `ValueError` outside.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside (0, 1]")
    score = table.score(criterion)
    good = score > threshold if strict else score >= threshold
    chosen = np.flatnonzero(good)
    if not _compete(table.rows[chosen], table.columns[chosen]):
        return chosen
    pairs = min(len(table.truth_ids), len(table.prediction_ids))
    taken = _assign(table, good + score / (2 * pairs))
    return taken[good[taken]]


def _compete(rows: Ints, columns: Ints) -> bool:
    """Return whether two of the pairs share an object."""
    return any(len(side) and int(np.bincount(side).max()) > 1 for side in (rows, columns))


def _assign(table: Overlap, weight: Floats) -> Ints:
    """Return the one-to-one matching of greatest total weight (a weight > 0 a pair), as indices, ascending."""
    return assign_sparse(table.rows, table.columns, weight, (len(table.truth_ids), len(table.prediction_ids)))


def assign_sparse(rows: Ints, columns: Ints, weight: Floats, shape: tuple[int, int]) -> Ints:
    """Return which of the pairs (row, column) make the one-to-one matching of greatest total weight, ascending.

    `weight` (E,) > 0; `shape`: how many rows and columns there are. Memory grows with the pairs. A pair that weighs
    more than the best rivals of its row and of its column together is in every such matching, which decides nearly all
    of a slide in a few passes; what is left is solved a connected component at a time.
    """
    left = np.arange(len(weight))
    taken: list[Ints] = []
    while len(left):
        row, column, w = rows[left], columns[left], weight[left]
        sure = w > _rival(row, w, shape[0]) + _rival(column, w, shape[1])
        if not sure.any():
            break
        taken.append(left[sure])
        gone_row, gone_column = np.zeros(shape[0], bool), np.zeros(shape[1], bool)
        gone_row[row[sure]] = gone_column[column[sure]] = True
        left = left[~(gone_row[row] | gone_column[column])]
    if len(left):
        taken.append(left[_solve(rows[left], columns[left], weight[left])])
    return np.sort(np.concatenate(taken)) if taken else left


def _rival(side: Ints, weight: Floats, count: int) -> Floats:
    """Return for each pair the largest weight of another pair at the same row or column, 0 where there is none."""
    first = np.zeros(count)
    np.maximum.at(first, side, weight)
    at_top = weight == first[side]
    tops = np.bincount(side[at_top], minlength=count)
    second = np.zeros(count)
    np.maximum.at(second, side[~at_top], weight[~at_top])
    return np.where(at_top & (tops[side] == 1), second[side], first[side])


def _solve(rows: Ints, columns: Ints, weight: Floats) -> Ints:
    """Return the matching of greatest weight, as indices of pairs, one connected component after another."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, row = np.unique(rows, return_inverse=True)
    _, column = np.unique(columns, return_inverse=True)
    height, nodes = int(row.max()) + 1, int(row.max()) + int(column.max()) + 2
    graph = coo_array((np.ones(len(row)), (row, height + column)), shape=(nodes, nodes))
    _, of = connected_components(graph, directed=False)
    order = np.argsort(of[row], kind="stable")
    starts = np.flatnonzero(np.diff(of[row][order], prepend=-1))
    parts = (order[i:j] for i, j in zip(starts, [*starts[1:], len(order)], strict=True))
    return np.concatenate([part[_solve_one(row[part], column[part], weight[part])] for part in parts])


def _solve_one(rows: Ints, columns: Ints, weight: Floats) -> Ints:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    _, row = np.unique(rows, return_inverse=True)
    _, column = np.unique(columns, return_inverse=True)
    height, width = int(row.max()) + 1, int(column.max()) + 1
    # Every row also has a column of its own for "not matched", so that a full matching exists; all costs stay above 0,
    # because a sparse 0 would mean "no pair".
    ceiling = float(weight.max()) + 1
    own = np.arange(height)
    cost = np.concatenate([ceiling - weight, np.full(height, ceiling)])
    where = (np.concatenate([row, own]), np.concatenate([column, width + own]))
    found_row, found = min_weight_full_bipartite_matching(csr_array((cost, where), shape=(height, width + height)))
    real = found < width
    return np.flatnonzero(np.isin(row * width + column, found_row[real] * width + found[real]))


@dataclass(frozen=True)
class Report:
    """Who was assigned to whom: `pairs` (N, 2) of (true id, predicted id), `scores` (N,), `hits` indices of those that
    reach the threshold."""

    pairs: Ints
    scores: Floats
    hits: Ints


def report(table: Overlap, threshold: float = 0.5, *, criterion: str = "iou") -> Report:
    """Return the assignment of every object that has a partner to be had, those below the threshold included.

    What `stardist.matching(..., report_matches=True)` reports: an optimal assignment of all objects of the smaller
    side, pairs without any overlap among them. Dense: memory is T x P; for pictures, not for slides.
    """
    from scipy.optimize import linear_sum_assignment

    score = np.zeros((len(table.truth_ids), len(table.prediction_ids)))
    score[table.rows, table.columns] = table.score(criterion)
    cost = -(score >= threshold).astype(float) - score / (2 * max(1, min(score.shape)))
    rows, columns = linear_sum_assignment(cost)
    pairs = np.stack([table.truth_ids[rows], table.prediction_ids[columns]], 1)
    return Report(pairs, score[rows, columns], np.flatnonzero(score[rows, columns] >= threshold))


@dataclass(frozen=True)
class Matching:
    """What a matching counts: `hits` matched pairs, `wrong` predictions and `missed` objects of the truth without a
    partner, `iou_sum` the sum of IoU over the matched pairs."""

    hits: int
    wrong: int
    missed: int
    iou_sum: float

    def __add__(self, other: Matching) -> Matching:
        """Return the counts of two images together."""
        return Matching(
            self.hits + other.hits,
            self.wrong + other.wrong,
            self.missed + other.missed,
            self.iou_sum + other.iou_sum,
        )

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _over(2 * self.hits, 2 * self.hits + self.wrong + self.missed)

    @property
    def precision(self) -> float:
        """TP / (TP + FP); 0 where nothing is predicted and something is there, nan where both are empty."""
        return _over(self.hits, self.hits + self.wrong) if self.hits + self.wrong else self.f1

    @property
    def recall(self) -> float:
        """TP / (TP + FN); 0 where something is predicted and nothing is there, nan where both are empty."""
        return _over(self.hits, self.hits + self.missed) if self.hits + self.missed else self.f1

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN), which StarDist and the Data Science Bowl call average precision."""
        return _over(self.hits, self.hits + self.wrong + self.missed)

    @property
    def quality(self) -> float:
        """Mean IoU of the matched pairs (segmentation quality); nan where nothing matches."""
        return _over(self.iou_sum, self.hits)


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom else float("nan")


def matching(table: Overlap, threshold: float = 0.5, *, strict: bool = False, criterion: str = "iou") -> Matching:
    """Return the counts of the matching at a threshold (see `match`); agrees with `stardist.matching.matching`."""
    pairs = match(table, threshold, strict=strict, criterion=criterion)
    wrong, missed = len(table.prediction_ids) - len(pairs), len(table.truth_ids) - len(pairs)
    return Matching(len(pairs), wrong, missed, float(table.score(criterion)[pairs].sum()))


def object_f1(table: Overlap, threshold: float = 0.5) -> float:
    """Return the object F1, 2 TP / (2 TP + FP + FN), a pair being matched at IoU >= threshold."""
    return matching(table, threshold).f1


def object_precision(table: Overlap, threshold: float = 0.5) -> float:
    """Return TP / (TP + FP), a pair being matched at IoU >= threshold."""
    return matching(table, threshold).precision


def object_recall(table: Overlap, threshold: float = 0.5) -> float:
    """Return TP / (TP + FN), a pair being matched at IoU >= threshold."""
    return matching(table, threshold).recall


def object_accuracy(table: Overlap, threshold: float = 0.5) -> float:
    """Return TP / (TP + FP + FN), a pair being matched at IoU >= threshold: StarDist's average precision."""
    return matching(table, threshold).accuracy


def object_ap(table: Overlap, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Return the mean over IoU thresholds of TP / (TP + FP + FN): the score of the Data Science Bowl 2018.

    A pair is matched at IoU >= threshold; the default thresholds are 0.5, 0.55 ... 0.95. One threshold gives what
    StarDist's papers call AP: `object_accuracy`.
    """
    return float(np.mean([matching(table, t).accuracy for t in thresholds]))


def count_error(table: Overlap) -> float:
    """Return |P - T|, the absolute error of the number of objects; nan where there is none in either."""
    return float("nan") if table.empty else float(abs(len(table.prediction_ids) - len(table.truth_ids)))


def glas_matching(table: Overlap) -> Matching:
    """Return the counts of the GlaS challenge (Sirinukunwattana et al., MedIA 2017, section 4.1).

    A predicted object belongs to the true object that it shares most pixels with (the lowest id of equals); it is a hit
    where it covers at least half (>=) of that object's area, else it is wrong. A true object that no prediction hits is
    missed. Where two halves hit the same object, the lower id is the hit, so that hits are pairs. `iou_sum` is 0.
    """
    best = best_partner(table.columns, table.area, table.rows)
    good = best[2 * table.area[best] >= table.truth_area[table.rows[best]]]
    hits = len(np.unique(table.rows[good]))
    return Matching(hits, len(table.prediction_ids) - hits, len(table.truth_ids) - hits, 0.0)


def glas_f1(table: Overlap) -> float:
    """Return the object F1 of the GlaS challenge, 2 TP / (2 TP + FP + FN), by its own rule (`glas_matching`)."""
    return glas_matching(table).f1


def dq(table: Overlap) -> float:
    """Return detection quality: the object F1 at IoU > 0.5."""
    return matching(table, strict=True).f1


def sq(table: Overlap) -> float:
    """Return segmentation quality: the mean IoU of the pairs matched at IoU > 0.5; nan where nothing matches."""
    return matching(table, strict=True).quality


def pq(table: Overlap) -> float:
    """Return panoptic quality: the sum of IoU over pairs matched at IoU > 0.5, over TP + FP / 2 + FN / 2.

    Kirillov et al., CVPR 2019. DQ times SQ where anything matches, 0 where nothing does.
    """
    found = matching(table, strict=True)
    return _over(found.iou_sum, found.hits + (found.wrong + found.missed) / 2)


# --- metrics over areas -----------------------------------------------------------------------------------------------


def best_partner(groups: Ints, score: NDArray[Any], tie: Ints) -> Ints:
    """Return for each group the pair with the highest score (lowest `tie` among equals), as indices into the pairs."""
    order = np.lexsort((tie, -score, groups))
    ordered = groups[order]
    return order[np.flatnonzero(np.diff(ordered, prepend=-1))]


def _jaccard(table: Overlap, pairs: Ints) -> float:
    """Return shared pixels over joint pixels of the pairs, objects without a partner joining the latter."""
    lonely_truth = int(table.truth_area.sum() - table.truth_area[np.unique(table.rows[pairs])].sum())
    lonely = int(table.prediction_area.sum() - table.prediction_area[np.unique(table.columns[pairs])].sum())
    return _over(int(table.area[pairs].sum()), int(table.union[pairs].sum()) + lonely_truth + lonely)


def aji(table: Overlap) -> float:
    """Return the aggregated Jaccard index (Kumar et al., IEEE TMI 2017).

    Each object of the truth takes the prediction of highest IoU (the lowest id of equals), which several may take; the
    sum of their intersections over the sum of their unions, to which predictions that none took add their area.
    """
    return _jaccard(table, best_partner(table.rows, table.iou, table.columns))


def aji_plus(table: Overlap) -> float:
    """Return AJI with a one-to-one matching, that of the greatest sum of IoU (Graham et al., HoVer-Net, 2019)."""
    return _jaccard(table, _assign(table, table.iou))


def object_dice(table: Overlap) -> float:
    """Return the object-level Dice of the GlaS challenge (Sirinukunwattana et al., MedIA 2017, section 4.2).

    (sum_i g_i Dice(G_i, S(G_i)) + sum_j s_j Dice(G(S_j), S_j)) / 2: each object and the object of the other map that
    shares most pixels with it (the lowest id of equals), weighted by its share of its own map's area; an object that
    shares none has Dice 0.
    """
    if table.empty:
        return float("nan")
    one = 2 * table.area / (table.truth_area[table.rows] + table.prediction_area[table.columns])
    total = 0.0
    for own, other, area in (
        (table.rows, table.columns, table.truth_area),
        (table.columns, table.rows, table.prediction_area),
    ):
        best = best_partner(own, table.area, other)
        total += float((area[own[best]] * one[best]).sum()) / max(1, int(area.sum()))
    return total / 2


def from_overlap(table: Overlap, threshold: float = 0.5) -> dict[str, float]:
    """Return every number of a table: `object_f1`, `object_precision`, `object_recall`, `object_accuracy` at the
    threshold, `dq`, `sq`, `pq`, `aji`, `aji_plus`, `object_dice`, `object_ap`, `glas_f1`."""
    at, strictly = matching(table, threshold), matching(table, strict=True)
    return {
        "object_f1": at.f1,
        "object_precision": at.precision,
        "object_recall": at.recall,
        "object_accuracy": at.accuracy,
        "dq": strictly.f1,
        "sq": strictly.quality,
        "pq": _over(strictly.iou_sum, strictly.hits + (strictly.wrong + strictly.missed) / 2),
        "aji": aji(table),
        "aji_plus": aji_plus(table),
        "object_dice": object_dice(table),
        "object_ap": object_ap(table),
        "glas_f1": glas_f1(table),
    }
