"""Metrics of semantic maps, all from one table of counts.

One pass over the pixels makes a confusion matrix; every number below is a function of it. Matrices add up, so a data
set is pooled by summing matrices, and averaged over images by taking the metric of each.

Conventions, for every function here:

- rows are the truth, columns the prediction;
- a class that is neither in the truth nor in the prediction has no Dice, no IoU (nan), and does not enter a mean; a
  class in one of the two only counts 0;
- a mean runs over foreground classes; with no foreground in either map it is nan, never 0 and never 1;
- pixels whose truth is the ignore index are not counted at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def confusion(prediction: Any, truth: Any, classes: int, ignore: int | None = None) -> Counts:
    """Return counts of pixels by class: element (t, p) has truth t and prediction p.

    `prediction`, `truth`: integer (or bool) arrays of one shape, any number of axes, values 0 to `classes` - 1;
    `truth` may hold `ignore`, whose pixels are left out. Returns (classes, classes) int64. Raises `ValueError` where
    shapes differ or a value is out of range.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {true.shape} differ in shape")
    if not predicted.size:
        return np.zeros((classes, classes), np.int64)
    left_out = None if ignore is None else true == ignore
    if left_out is not None and left_out.any():
        true = np.where(left_out, true.dtype.type(0), true)
    for name, values in (("prediction", predicted), ("truth", true)):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name} holds the value {low if low < 0 else high}; {classes} classes are 0 to {classes - 1}"
            )
    # classes² + 1 bins: the last one swallows the ignored pixels. The narrow type keeps the passes in cache.
    narrow = np.min_scalar_type(classes * classes)
    index = true.astype(narrow) * narrow.type(classes)
    index += predicted.astype(narrow, copy=False)
    if left_out is not None:
        index[left_out] = classes * classes
    bins = np.bincount(index.ravel(), minlength=classes * classes + 1)
    return bins[: classes * classes].reshape(classes, classes).astype(np.int64, copy=False)


def confusion_multilabel(prediction: Any, truth: Any, ignore: Any = None) -> Counts:
    """Return counts a class of a multi-label map, classes being independent of each other.

    `prediction`, `truth`: (K, ...) bool; `ignore`: (...) or (K, ...) bool, True where a pixel is not counted.
    Returns (K, 2, 2) int64: [k, t, p] counts pixels whose plane k is t in the truth and p in the prediction.
    """
    predicted, true = np.asarray(prediction, bool), np.asarray(truth, bool)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {true.shape} differ in shape")
    counted = np.ones(true.shape, bool) if ignore is None else ~np.broadcast_to(np.asarray(ignore, bool), true.shape)
    planes = len(true)
    table = np.empty((planes, 2, 2), np.int64)
    for k in range(planes):
        t, p, c = true[k], predicted[k], counted[k]
        both, in_truth, in_prediction = (int(np.count_nonzero(m)) for m in (t & p & c, t & c, p & c))
        neither = int(np.count_nonzero(c)) - in_truth - in_prediction + both
        table[k] = [[neither, in_prediction - both], [in_truth - both, both]]
    return table


def rates(matrix: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return true positives, truth pixels and predicted pixels, a class each, of either kind of table."""
    counts = np.asarray(matrix, np.float64)
    if counts.ndim == 3:
        return counts[:, 1, 1], counts[:, 1, :].sum(1), counts[:, :, 1].sum(1)
    return np.diagonal(counts).copy(), counts.sum(1), counts.sum(0)


def foreground_of(matrix: Any, background: int | None) -> NDArray[np.bool_]:
    counts = np.asarray(matrix)
    chosen = np.ones(len(counts), bool)
    if background is not None and counts.ndim == 2:
        chosen[background] = False
    return chosen


def _divide(over: Any, under: Any) -> NDArray[np.float64]:
    top, bottom = np.asarray(over, np.float64), np.asarray(under, np.float64)
    quotient: NDArray[np.float64] = np.full(bottom.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom > 0)
    return quotient


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def dice_per_class(matrix: Any) -> NDArray[np.float64]:
    """Return Dice, 2 |P n T| / (|P| + |T|), a class: (K,) float64, nan where a class is in neither map."""
    hits, true, predicted = rates(matrix)
    return _divide(2 * hits, true + predicted)


def iou_per_class(matrix: Any) -> NDArray[np.float64]:
    """Return IoU (Jaccard), |P n T| / |P u T|, a class: (K,) float64, nan where a class is in neither map."""
    hits, true, predicted = rates(matrix)
    return _divide(hits, true + predicted - hits)


def dice(matrix: Any, background: int | None = 0) -> float:
    """Return the mean Dice of the foreground classes that are in the truth or in the prediction; nan where none is.

    `background`: the class left out of a (K, K) table, None for none; a (K, 2, 2) multi-label table has no background.
    """
    return _mean(dice_per_class(matrix)[foreground_of(matrix, background)])


def iou(matrix: Any, background: int | None = 0) -> float:
    """Return the mean IoU of the foreground classes that are in the truth or in the prediction; nan where none is."""
    return _mean(iou_per_class(matrix)[foreground_of(matrix, background)])


def _pooled(matrix: Any, background: int | None) -> tuple[float, float, float]:
    chosen = foreground_of(matrix, background)
    hits, true, predicted = (float(part[chosen].sum()) for part in rates(matrix))
    return hits, true, predicted


def pixel_f1(matrix: Any, background: int | None = 0) -> float:
    """Return the pixel F1, 2 TP / (2 TP + FP + FN), counts pooled over the foreground classes (micro average).

    A foreground pixel of the wrong class is one FP and one FN. With one foreground class this is its Dice.
    """
    hits, true, predicted = _pooled(matrix, background)
    return float(_divide(2 * hits, true + predicted))


def pixel_precision(matrix: Any, background: int | None = 0) -> float:
    """Return TP / (TP + FP) over the pixels predicted as foreground; nan where none is."""
    hits, _, predicted = _pooled(matrix, background)
    return float(_divide(hits, predicted))


def pixel_recall(matrix: Any, background: int | None = 0) -> float:
    """Return TP / (TP + FN) over the foreground pixels of the truth; nan where there are none."""
    hits, true, _ = _pooled(matrix, background)
    return float(_divide(hits, true))


def pixel_accuracy(matrix: Any, background: int | None = 0) -> float:  # noqa: ARG001 - one signature for all
    """Return the share of counted pixels (multi-label: pixel-and-class pairs) that are right, background included."""
    counts = np.asarray(matrix, np.float64)
    right = counts[:, 0, 0].sum() + counts[:, 1, 1].sum() if counts.ndim == 3 else np.trace(counts)
    return float(_divide(right, counts.sum()))


def from_confusion(matrix: Any, background: int | None = 0) -> dict[str, Any]:
    """Return every number of a table of counts, (K, K) or multi-label (K, 2, 2).

    Keys: `dice`, `iou`, `pixel_f1`, `pixel_precision`, `pixel_recall`, `pixel_accuracy` (floats, as the functions of
    those names say) and `dice_per_class`, `iou_per_class` ((K,) float64, the background's included).
    """
    return {
        "dice": dice(matrix, background),
        "iou": iou(matrix, background),
        "pixel_f1": pixel_f1(matrix, background),
        "pixel_precision": pixel_precision(matrix, background),
        "pixel_recall": pixel_recall(matrix, background),
        "pixel_accuracy": pixel_accuracy(matrix, background),
        "dice_per_class": dice_per_class(matrix),
        "iou_per_class": iou_per_class(matrix),
    }
