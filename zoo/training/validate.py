"""What a validation says: the procedure's losses over batches, and metrics over whole images, exact on any number of
devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo import registry
from zoo.data.truths import as_semantic
from zoo.errors import UserError
from zoo.families.base import Family, Maps, Output, Procedure
from zoo.metrics import boxes, instances, picture
from zoo.metrics.semantic import confusion, confusion_multilabel, from_confusion
from zoo.recipe import Loading
from zoo.training import feed
from zoo.types import (
    Batch,
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Label,
    LabelPrediction,
    Meta,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Semantic,
    SemanticPrediction,
    Truth,
)

Gather = Callable[[Any], list[Any]]
"""Returns the objects of every rank, in the order of ranks."""

LOSS = "loss/"
"""Begins the names of a loss's terms, which may be called as a metric is."""
HIGHER = ("dice", "iou", "f1", "precision", "recall", "accuracy", "psnr", "ssim", "pq", "ap", "score", "aji")


def lower_is_better(monitor: str, mode: str) -> bool:
    """Return whether smaller values of a validation number are better."""
    if mode != "auto":
        return mode == "min"
    last = monitor.rpartition("/")[2]
    return not any(word in last.split("_") for word in HIGHER) or "loss" in last


class Tally:
    """Sums that make metrics: they add up over images and ranks, so that an uneven last batch changes nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def add(self, key: str, value: Any) -> None:
        """Add a number or an array under a key."""
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def merge(self, gather: Gather) -> None:
        """Replace the sums by those of all ranks together."""
        everything, self.sums = gather(self.sums), {}
        for sums in everything:
            for key, value in sums.items():
                self.add(key, value)


def compare(
    tally: Tally, name: str, output: Output, prediction: Prediction, truth: Truth, classes: Any, merge: Any = None
) -> None:
    """Add what one prediction says against its truth; `classes` are those of the dataset's truth, `merge` says which
    of them become which class of the model."""
    match prediction, truth:
        case SemanticPrediction(), Semantic() | Instances():
            _semantic(tally, name, prediction, truth, classes, merge)
        case InstancesPrediction(), Instances():
            _foreground(tally, name, prediction.map > 0, truth.map > 0, truth.ignore)
            found = instances.matching(instances.overlap(prediction.map, truth.map, truth.ignore))
            tally.add(f"{name}/objects", np.array([found.hits, found.wrong, found.missed, found.iou_sum], np.float64))
        case BoxesPrediction(), Boxes():
            tally.add(f"{name}/boxes", _boxes(prediction, truth, classes))
        case PicturePrediction(), Picture():
            _picture(tally, name, prediction.data, truth.data, truth.valid)
        case LabelPrediction(), Label():
            table = confusion([prediction.value], [truth.value], len(output.classes))
            tally.add(f"{name}/labels", table)


def _semantic(
    tally: Tally, name: str, prediction: SemanticPrediction, truth: Semantic | Instances, classes: Any, merge: Any
) -> None:
    wanted = as_semantic(truth, classes, prediction.classes, merge)
    if not prediction.multilabel and not wanted.multilabel:
        table = confusion(prediction.map, wanted.map, len(prediction.classes), wanted.ignore)
        tally.add(f"{name}/pixels", table)
    elif prediction.multilabel and wanted.multilabel:
        tally.add(f"{name}/pixels", confusion_multilabel(prediction.map, wanted.map))


def _foreground(tally: Tally, name: str, predicted: NDArray[Any], true: NDArray[Any], ignore: Any) -> None:
    labels = true.astype(np.uint8)
    if ignore is not None:
        labels = np.where(ignore, np.uint8(2), labels)
    tally.add(f"{name}/pixels", confusion(predicted, labels, 2, 2))


def _boxes(prediction: BoxesPrediction, truth: Boxes, classes: Any) -> NDArray[np.float64]:
    """Return hits, wrong and missed boxes; classes are compared by name, a truth's index counts from 1."""
    named = np.array([list(classes).index(n) + 1 if n in classes else -1 for n in prediction.classes], np.int64)
    guessed = boxes.Boxes(prediction.xyxy, named[prediction.class_index], prediction.scores)
    found = boxes.matching(guessed, boxes.Boxes(truth.xyxy, truth.classes, crowd=truth.crowd))
    return np.array([found.hits, found.wrong, found.missed], np.float64)


def _picture(tally: Tally, name: str, predicted: NDArray[Any], true: NDArray[Any], valid: Any) -> None:
    both = picture.pair(predicted, true, valid)
    if both.valid.any() and both.spread:
        error = np.abs(both.prediction[:, both.valid] - both.truth[:, both.valid]).mean() / both.spread
        tally.add(f"{name}/mae", np.array([error, 1.0]))
        tally.add(f"{name}/psnr", np.array([min(100.0, picture.psnr(both)), 1.0]))


def numbers(tally: Tally, outputs: int) -> dict[str, float]:
    """Return metrics by name (with several outputs OUTPUT/NAME), the loss as `loss`, its terms as loss/TERM."""
    found: dict[str, float] = {}
    for key, value in sorted(tally.sums.items()):
        if key.startswith(LOSS):
            found["loss" if key == f"{LOSS}total" else key] = float(value[0] / value[1])
            continue
        output, _, what = key.rpartition("/")
        prefix = "" if outputs == 1 else f"{output}/"
        if what == "pixels":
            for metric, result in from_confusion(value).items():
                if np.ndim(result) == 0:
                    found[prefix + metric] = float(result)
        elif what == "labels":
            found[f"{prefix}accuracy"] = float(np.trace(value) / max(1, value.sum()))
        elif what == "objects":
            hits, wrong, missed, iou = map(float, value)
            under = 2 * hits + wrong + missed
            found[f"{prefix}object_f1"] = 2 * hits / under if under else math.nan
            found[f"{prefix}pq"] = 2 * iou / under if under else math.nan
        elif what == "boxes":
            found[f"{prefix}box_f1"] = boxes.box_f1(boxes.Counts(*map(int, value)))
        elif what in ("mae", "psnr"):
            found[prefix + what] = float(value[0] / value[1])
    return found


class Validation:
    """The validation of a stage. Build it once: it keeps the loader's workers and the truths."""

    def __init__(self, loading: Loading, family: Family, *, seed: int, rank: int, world: int, gather: Gather) -> None:
        self.loading, self.gather = loading, gather
        self.whole = loading.size is None
        self.loader = feed.open_loader(loading, family, seed=seed, training=False, rank=rank, world=world)
        self.truths: dict[tuple[str, str], Mapping[str, Truth]] = {}
        self.places = {
            (dataset.card.name, entry.id): (d, i)
            for d, dataset in enumerate(self.loader.datasets)
            for i, entry in enumerate(dataset.index)  # type: ignore[attr-defined]
        }

    def close(self) -> None:
        """End the loader's workers."""
        self.loader.close()

    def sample(self, meta: Meta) -> Sample:
        """Return the source of an item."""
        dataset, index = self.places[(meta.dataset, meta.id)]
        return self.loader.datasets[dataset][index]

    def truth(self, meta: Meta) -> Mapping[str, Truth]:
        """Return the truths of a whole image, remembered where the recipe caches in memory."""
        key = (meta.dataset, meta.id)
        if key in self.truths:
            return self.truths[key]
        found = self.sample(meta).truth
        if self.loading.cache == "memory":
            self.truths[key] = found
        return found

    def run(
        self, family: Family, procedure: Procedure, progress: float, *, autocast: Any = None, most: int | None = None
    ) -> dict[str, float]:
        """Return the losses' means over items and the metrics over images; `most` stops after so many batches."""
        tally = Tally()
        context = autocast or nullcontext
        was_training = family.training
        family.eval()
        try:
            with torch.inference_mode():
                for number, batch in enumerate(self.loader.epoch(0)):
                    if most is not None and number >= most:
                        break
                    with context():
                        terms, maps = losses(family, procedure, batch.to(family.device), progress, self.whole)
                    for name, value in terms.items():
                        tally.add(LOSS + name, np.array([float(value) * len(batch), len(batch)]))
                    self._score(tally, family, batch, maps)
        finally:
            family.train(was_training)
        tally.merge(self.gather)
        return numbers(tally, len(family.spec.outputs))

    def _score(self, tally: Tally, family: Family, batch: Batch, maps: Maps | None) -> None:
        found = decoded(family, maps, batch) if maps is not None else None
        for i, meta in enumerate(batch.meta):
            predictions = self.tiled(family, meta) if found is None else found[i]
            dataset, _ = self.places[(meta.dataset, meta.id)]
            truths = self.loader.datasets[dataset].card.truths
            for name, output in family.spec.outputs.items():
                truth = self.truth(meta).get(output.truth or "")
                if name in predictions and truth is not None:
                    classes = truths[str(output.truth)].classes
                    merge = getattr(family.options, "merge", None)
                    compare(tally, name, output, predictions[name], truth, classes, merge)

    def tiled(self, family: Family, meta: Meta) -> dict[str, Prediction]:
        """Return the predictions for a whole image, whatever the loader gives."""
        sample = self.sample(meta)
        image = np.moveaxis(sample.image, 0, -1)
        mpp = sample.spacing[-1] if sample.spacing else "native"
        predictions: dict[str, Prediction] = registry.get("engine", "predict")(family, image, mpp=mpp)
        return predictions


def losses(
    family: Family, procedure: Procedure, batch: Batch, progress: float, want_maps: bool
) -> tuple[Mapping[str, Any], Maps | None]:
    """Return the procedure's validation losses and, where wanted, the raw maps of the same batch.

    Where the procedure computes its loss from `forward` as the base class does and `infer` is `forward`, it is
    computed once.
    """
    plain = type(procedure).validation_loss is Procedure.validation_loss and type(family).infer is Family.infer
    if plain:
        maps = family.forward(family.prepare(batch.inputs))
        terms = family.loss(maps, batch, progress)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}, maps if want_maps else None
    terms = procedure.validation_loss(family, batch, progress)
    if not want_maps:
        return terms, None
    generator = torch.Generator().manual_seed(0)
    return terms, family.infer(family.prepare(batch.inputs), rng=generator)


def decoded(family: Family, maps: Maps, batch: Batch) -> list[dict[str, Prediction]]:
    """Return each image's predictions from the raw maps of a batch of whole images."""
    return family.decode(family.activate(maps), [meta.geometry for meta in batch.meta])


def monitored(values: Mapping[str, float], monitor: str) -> float:
    """Return the number that says which weights are best. Raises `UserError` with the names that there are."""
    if monitor not in values:
        raise UserError(
            f'train.monitor: validation gives no "{monitor}". Expected one of {", ".join(values) or "(nothing)"}. '
            "Change `monitor` in the recipe."
        )
    return values[monitor]
