"""COCO's AP and AR, by the reference implementation (pycocotools).

Conventions are COCO's: IoU >= threshold at 0.5, 0.55 ... 0.95; precision at 101 recalls, interpolated; at most 1, 10 or
100 boxes an image and class; areas small < 32², medium 32² to 96², large > 96² square pixels; crowd boxes are neither
hit nor miss. A mean runs over the classes that the truth holds; a number without any is nan (COCO writes -1).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.boxes import Pair

STATS = (
    "AP",
    "AP50",
    "AP75",
    "APsmall",
    "APmedium",
    "APlarge",
    "AR1",
    "AR10",
    "AR100",
    "ARsmall",
    "ARmedium",
    "ARlarge",
)
"""Names of the twelve numbers, in COCO's order."""


class Evaluation:
    """Images matched once; numbers of them, or of any resample of them.

    `only`: the one class that is looked at, boxes of every size and 100 of an image, which is all that `average` needs.
    """

    def __init__(self, images: Sequence[Pair], only: int | None = None) -> None:
        self.images, self.only = len(images), only
        known = sorted({int(c) for pair in images for c in pair.truth.classes})
        self.classes = known if only is None else [k for k in known if k == only]
        self._found = self._evaluate(images) if self.classes else None
        if self._found is not None:
            shape = (len(self.classes), len(self._found.params.areaRng), self.images)
            self._matched = np.empty(shape, object)
            self._matched.ravel()[:] = self._found.evalImgs

    def _evaluate(self, images: Sequence[Pair]) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = _dataset(images, self.classes)
            truth.createIndex()
            detections = _detections(images, set(self.classes))
            found = COCOeval(truth, truth.loadRes(detections) if detections else _empty(truth), "bbox")
            found.params.imgIds = list(range(1, self.images + 1))
            if self.only is not None:
                found.params.maxDets = [100]
                found.params.areaRng, found.params.areaRngLbl = found.params.areaRng[:1], ["all"]
            found.evaluate()
        return found

    def _accumulate(self, chosen: NDArray[Any] | None) -> Any:
        found = self._found
        assert found is not None
        indices = np.arange(self.images) if chosen is None else np.asarray(chosen)
        found.evalImgs = list(self._matched[:, :, indices].ravel())
        found.params.imgIds = found._paramsEval.imgIds = list(range(1, len(indices) + 1))
        with contextlib.redirect_stdout(io.StringIO()):
            found.accumulate()
        return found

    def stats(self, chosen: NDArray[Any] | None = None) -> dict[str, float]:
        """Return name -> number (`STATS`) of the images `chosen` by index, repeats allowed; None = all."""
        if self._found is None:
            return dict.fromkeys(STATS, float("nan"))
        found = self._accumulate(chosen)
        with contextlib.redirect_stdout(io.StringIO()):
            found.summarize()
        return {name: _number(value) for name, value in zip(STATS, found.stats, strict=True)}

    def average(self, chosen: NDArray[Any] | None = None) -> tuple[float, float, float]:
        """Return AP, AP50 and AP75, means over the classes, of the images `chosen` as in `stats`."""
        if self._found is None:
            return (float("nan"),) * 3
        precision = self._accumulate(chosen).eval["precision"][:, :, :, 0, -1]  # threshold, recall, class
        return _average(precision), _average(precision[0]), _average(precision[5])

    def per_class(self) -> dict[int, tuple[float, float, float]]:
        """Return class -> (AP, AP50, AP75)."""
        if self._found is None:
            return {}
        precision = self._accumulate(None).eval["precision"][:, :, :, 0, -1]  # threshold, recall, class
        return {
            k: tuple(_average(p) for p in (precision[:, :, i], precision[0, :, i], precision[5, :, i]))  # type: ignore[misc]
            for i, k in enumerate(self.classes)
        }


def evaluate(images: Sequence[Pair]) -> dict[str, float]:
    """Return COCO's twelve numbers (`STATS`) of a set of images, nan where there is nothing to find."""
    return Evaluation(images).stats()


def _number(value: float) -> float:
    return float(value) if value > -1 else float("nan")


def _average(values: NDArray[Any]) -> float:
    told = values[values > -1]
    return float(told.mean()) if told.size else float("nan")


def _xywh(box: NDArray[Any]) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _dataset(images: Sequence[Pair], classes: Sequence[int]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, pair in enumerate(images, 1):
        truth = pair.truth
        crowd = np.zeros(len(truth.xyxy), bool) if truth.crowd is None else truth.crowd
        for box, kind, many in zip(truth.xyxy, truth.classes, crowd, strict=True):
            if int(kind) not in classes:
                continue
            xywh = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(kind),
                    "bbox": xywh,
                    "area": xywh[2] * xywh[3],
                    "iscrowd": int(many),
                }
            )
    return {
        "info": {},
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": k} for k in classes],
        "annotations": annotations,
    }


def _detections(images: Sequence[Pair], known: set[int]) -> list[dict[str, Any]]:
    """Return what was predicted; classes that the truth never has count for nothing, as in COCO."""
    found: list[dict[str, Any]] = []
    for number, pair in enumerate(images, 1):
        for ours in (pair.prediction, *([pair.weaker] if pair.weaker is not None else [])):
            scores = np.ones(len(ours.xyxy)) if ours.scores is None else ours.scores
            found += [
                {"image_id": number, "category_id": int(kind), "bbox": _xywh(box), "score": float(score)}
                for box, kind, score in zip(ours.xyxy, ours.classes, scores, strict=True)
                if int(kind) in known
            ]
    return found


def _empty(truth: Any) -> Any:
    from pycocotools.coco import COCO

    none = COCO()
    none.dataset = {**truth.dataset, "annotations": []}
    none.createIndex()
    return none
