"""Metrics of a set of images: what one image adds (`record`), and the number of many such records (`value`).

A mean over images weighs an image with two objects as one with two hundred; a pooled number counts objects or pixels.
Records are small, so that a bootstrap over groups can take the number again and again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoo.metrics import boxes, calibration, coco, features, immunostain, instances, labels, semantic, types


@dataclass(frozen=True)
class Pooled:
    """`record(evidence) -> what one image adds`; `value(records) -> the number`; `additive`: records are arrays or
    numbers whose sum is all that `value` looks at; `drawn`: whether drawing records with replacement says how sure the
    number is (it does not where equal records bias it); `shows`: what it can show and what it cannot, where that is
    not plain. Calling it takes the evidence of several images."""

    record: Callable[[Any], Any]
    value: Callable[[Sequence[Any]], float]
    additive: bool = True
    make: Callable[[Any], Pooled] | None = None
    prepare: Callable[[Sequence[Any]], Callable[[Any], float]] | None = None
    drawn: bool = True
    shows: str = ""

    def __call__(self, evidence: Sequence[Any]) -> float:
        """Return the number of several images."""
        return self.value([self.record(one) for one in evidence])

    def resampler(self, records: Sequence[Any]) -> Callable[[Any], float]:
        """Return a function from indices into `records` (repeats allowed) to the number of those images."""
        if self.prepare is not None:
            return self.prepare(records)
        if self.additive:
            stacked = np.asarray(records, np.float64)
            return lambda indices: self.value([stacked[indices].sum(0)])
        return lambda indices: self.value([records[i] for i in indices])

    def at(self, argument: Any) -> Pooled:
        """Return the same metric with its argument."""
        if self.make is None:
            raise ValueError("the metric takes no argument")
        return self.make(argument)


def _sum(records: Sequence[Any]) -> Any:
    return np.sum(np.asarray(records, np.float64), axis=0)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _dice_record(evidence: Any) -> Any:
    """Return (3, K) counts: hits, truth and prediction of each foreground class."""
    table, background = evidence if isinstance(evidence, tuple) else (evidence, 0)
    hits, true, predicted = semantic.rates(table)
    chosen = semantic.foreground_of(table, background)
    return np.stack([hits[chosen], true[chosen], predicted[chosen]])


def _dice_value(records: Sequence[Any]) -> float:
    hits, true, predicted = _sum(records)
    told = true + predicted > 0
    return float(np.mean(2 * hits[told] / (true + predicted)[told])) if told.any() else float("nan")


dice_pooled = Pooled(_dice_record, _dice_value)


def _reliability_record(table: calibration.Reliability) -> Any:
    return np.stack([table.count.astype(np.float64), table.confidence, table.right])


def _ece_value(records: Sequence[Any]) -> float:
    count, confidence, right = _sum(records)
    return float(np.abs(right - confidence).sum() / count.sum()) if count.sum() else float("nan")


ece_pooled = Pooled(_reliability_record, _ece_value)


# --- images ---------------------------------------------------------------------------------------------------------

balanced_accuracy = Pooled(lambda one: one, labels.balanced, additive=False)

# --- objects ----------------------------------------------------------------------------------------------------------


def _counts(found: instances.Matching) -> tuple[float, ...]:
    return (found.hits, found.wrong, found.missed, found.iou_sum)


def _matching(counts: Any) -> instances.Matching:
    return instances.Matching(int(counts[0]), int(counts[1]), int(counts[2]), float(counts[3]))


def _object_f1(threshold: float) -> Pooled:
    def record(table: instances.Overlap) -> Any:
        return _counts(instances.matching(table, threshold))

    return Pooled(record, lambda records: _matching(_sum(records)).f1, make=_object_f1)


object_f1_pooled = replace(_object_f1(0.5), make=_object_f1)

pq_pooled = Pooled(
    lambda table: _counts(instances.matching(table, strict=True)),
    lambda records: types.panoptic(_matching(_sum(records))),
)

mpq_pooled = Pooled(
    lambda found: [_counts(counts) for counts in types.by_class(found)],
    lambda records: types.mean([types.panoptic(_matching(counts)) for counts in _sum(records)]),
)


# --- boxes ------------------------------------------------------------------------------------------------------------


def _itself(evidence: boxes.Pair) -> boxes.Pair:
    return evidence


def _coco(stat: str) -> Pooled:
    def prepare(records: Sequence[Any]) -> Callable[[Any], float]:
        matched = coco.Evaluation(records)
        return lambda indices: matched.stats(indices)[stat]

    make = functools.partial(_coco_of_class, stat) if stat in _BY_CLASS else None
    return Pooled(_itself, functools.partial(_coco_value, stat), additive=False, prepare=prepare, make=make)


def _coco_value(stat: str, records: Sequence[Any]) -> float:
    return coco.evaluate(records)[stat]


_BY_CLASS = ("AP", "AP50", "AP75")


def _coco_of_class(stat: str, name: str) -> Pooled:
    """Return the same number of one class alone; nan where the truth has no box of it."""
    place = _BY_CLASS.index(stat)

    def prepare(records: Sequence[Any]) -> Callable[[Any], float]:
        kind = next((k for pair in records if (k := pair.number_of(name)) is not None), None)
        matched = coco.Evaluation(records if kind is not None else [], kind)
        return lambda indices: matched.average(indices)[place]

    def value(records: Sequence[Any]) -> float:
        return prepare(records)(None)

    return Pooled(_itself, value, additive=False, prepare=prepare)


coco_ap, coco_ap50, coco_ap75 = (_coco(stat) for stat in _BY_CLASS)
coco_ap_small, coco_ap_medium, coco_ap_large = (_coco(f"AP{size}") for size in ("small", "medium", "large"))
coco_ar1, coco_ar10, coco_ar100 = (_coco(f"AR{most}") for most in (1, 10, 100))


def _share_error(name: str | None = None) -> Pooled:
    def record(evidence: boxes.Pair) -> Any:
        kind = None if name is None else evidence.number_of(name)
        if name is not None and kind is None:
            return np.zeros((2, 2), np.int64)
        counts = boxes.counted(evidence)
        if kind is None:
            return counts
        return np.stack([counts[:, kind - 1], counts.sum(1) - counts[:, kind - 1]], 1)

    def value(records: Sequence[Any]) -> float:
        return boxes.share_error(_sum(records), None if name is None else 1)

    return Pooled(record, value, make=_share_error)


differential_error = _share_error()


def _attribute_f1(name: str | None = None) -> Pooled:
    """Return the macro F1 of attributes over all matched boxes of all images (`zoo.metrics.boxes.attribute_f1`)."""

    def record(evidence: boxes.Pair) -> Any:
        pairs = boxes.attribute_pairs(evidence)
        if name is None:
            return pairs
        place = evidence.attributes.index(name) if name in evidence.attributes else None
        return pairs[..., :0] if place is None else pairs[..., place : place + 1]

    def value(records: Sequence[Any]) -> float:
        told = [r for r in records if r.size]
        if not told:
            return float("nan")
        p, t = np.concatenate(told, 1)
        found = [boxes.attribute_value(p[:, a], t[:, a]) for a in range(t.shape[1])]
        known = [v for v in found if not np.isnan(v)]
        return float(np.mean(known)) if known else float("nan")

    return Pooled(record, value, additive=False, make=_attribute_f1)


attribute_f1_pooled = _attribute_f1()


# --- pictures ---------------------------------------------------------------------------------------------------------


_ALIKE = """It shows whether the set of pictures looks like the true set to that encoder; two encoders give two
quantities, and a random one (ENCODER:none) knows no tissue. It cannot show whether any picture fits its own input:
pictures that were exchanged among themselves have the same distance."""
_FID = f"{_ALIKE} With few images it is biased upwards: compare only sets of one size."
_KID = f"{_ALIKE} Its estimate has no bias, and may be negative."
_COUNTS = """It shows whether fields with more positive nuclei get more. It cannot show whether as many are painted
(twice as many everywhere has 1 too), nor whether they are the same nuclei (positive_cell_f1)."""


def _by_features(distance: Callable[[Any, Any], float], shows: str, encoder: str | None = None) -> Pooled:
    """Return a distance of the features of all predicted pictures to those of all true ones, by a named encoder.

    The evidence has `of(encoder)`, which gives (2, D); fewer than two pictures have no distance.
    """

    def record(evidence: Any) -> Any:
        if encoder is None:
            raise ValueError("the encoder is missing. Expected METRIC@ENCODER")
        return evidence.of(encoder)

    def value(records: Sequence[Any]) -> float:
        if len(records) < 2:
            return float("nan")
        stacked = np.asarray(records, np.float64)
        return distance(stacked[:, 0], stacked[:, 1])

    make = functools.partial(_by_features, distance, shows)
    return Pooled(record, value, additive=False, make=make, drawn=False, shows=shows)


picture_fid = _by_features(features.fid, _FID)
picture_kid = _by_features(functools.partial(features.kid, size=None), _KID)

positive_count_correlation = Pooled(
    immunostain.positive_counts, immunostain.count_correlation, additive=False, shows=_COUNTS
)
