"""Metrics of objects that have classes.

Conventions, for every function here: classes are numbers from 0; an object whose class is not known (-1) is neither hit
nor miss of any class, and a prediction matched to one is left out; a class in neither map has no value, and a mean runs
over the classes that have one; pairs are matched as in `zoo.metrics.instances`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.instances import Ints, Matching, Overlap, match, matching


@dataclass(frozen=True)
class Typed:
    """A table of overlaps with the class of each object of the truth (T,) and of the prediction (P,), -1 = not known,
    and how many classes there are."""

    table: Overlap
    truth: Ints
    prediction: Ints
    classes: int


def typed(table: Overlap, truth: Any, prediction: Any, classes: int) -> Typed:
    """Return the evidence: classes in the order of the table's ids. Raises `ValueError` where the numbers differ."""
    true, predicted = np.asarray(truth, np.int64), np.asarray(prediction, np.int64)
    if (len(true), len(predicted)) != (len(table.truth_ids), len(table.prediction_ids)):
        raise ValueError(
            f"{len(true)} and {len(predicted)} classes for {len(table.truth_ids)} true and "
            f"{len(table.prediction_ids)} predicted objects"
        )
    return Typed(table, true, predicted, classes)


def _pick(table: Overlap, truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> Overlap:
    """Return the table of some of the objects."""
    rows, columns = np.cumsum(truth) - 1, np.cumsum(prediction) - 1
    kept = truth[table.rows] & prediction[table.columns]
    return replace(
        table,
        truth_ids=table.truth_ids[truth],
        prediction_ids=table.prediction_ids[prediction],
        truth_area=table.truth_area[truth],
        prediction_area=table.prediction_area[prediction],
        rows=rows[table.rows[kept]],
        columns=columns[table.columns[kept]],
        area=table.area[kept],
    )


def _known(found: Typed) -> Typed:
    """Return the evidence without objects of unknown class and without the predictions matched to them."""
    if (found.truth >= 0).all():
        return found
    pairs = match(found.table, strict=True)
    unknown = pairs[found.truth[found.table.rows[pairs]] < 0]
    prediction = np.ones(len(found.prediction), bool)
    prediction[found.table.columns[unknown]] = False
    truth = found.truth >= 0
    return Typed(_pick(found.table, truth, prediction), found.truth[truth], found.prediction[prediction], found.classes)


def by_class(found: Typed, threshold: float = 0.5, *, strict: bool = True) -> list[Matching]:
    """Return the counts of each class, objects of a class being matched among themselves."""
    known = _known(found)
    tables = (_pick(known.table, known.truth == k, known.prediction == k) for k in range(known.classes))
    return [matching(table, threshold, strict=strict) for table in tables]


def panoptic(counts: Matching) -> float:
    """Return PQ of counts matched at IoU > 0.5; nan where there was nothing."""
    under = counts.hits + (counts.wrong + counts.missed) / 2
    return counts.iou_sum / under if under else float("nan")


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers; nan where none is."""
    told = [v for v in values if not np.isnan(v)]
    return float(np.mean(told)) if told else float("nan")


def mpq(found: Typed) -> float:
    """Return the mean over classes present of the panoptic quality of each, matched within the class at IoU > 0.5.

    Per image, as PanNuke reports it (Gamper et al., 2020); `mpq_pooled` is the number over a set of images.
    """
    return mean([panoptic(counts) for counts in by_class(found)])


def typed_object_f1(found: Typed) -> float:
    """Return the mean over classes present of 2 TP / (2 TP + FP + FN), a hit being a pair of that class at IoU >= 0.5.

    Detection and classification in one number: a nucleus found with the wrong class is a miss and a false alarm.
    """
    return mean([counts.f1 for counts in by_class(found, strict=False)])


def type_f1(found: Typed) -> float:
    """Return the F1 of the classes of matched objects, mean over the classes present among them.

    Objects are matched whatever their class at IoU >= 0.5; of the pairs whose true class is known, F1 of class c is
    2 n(c, c) / (pairs of true class c + pairs of predicted class c). Detection plays no role: see `typed_object_f1`.
    """
    pairs = match(found.table)
    true, predicted = found.truth[found.table.rows[pairs]], found.prediction[found.table.columns[pairs]]
    true, predicted = true[true >= 0], predicted[true >= 0]
    values = []
    for k in range(found.classes):
        under = int((true == k).sum() + (predicted == k).sum())
        values.append(2 * int(((true == k) & (predicted == k)).sum()) / under if under else float("nan"))
    return mean(values)
