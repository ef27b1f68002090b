"""What a validation says: the procedure's losses over batches, and metrics over whole images, exact on any number of
devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from zoo import registry
from zoo.cards import DatasetCard
from zoo.errors import DataError, UserError
from zoo.families import score
from zoo.families.base import Family, Maps, Procedure
from zoo.families.score import Task
from zoo.metrics import METRICS
from zoo.recipe import Loading
from zoo.training import feed
from zoo.types import (
    Batch,
    Geometry,
    Label,
    LabelPrediction,
    Meta,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Truth,
)

Gather = Callable[[Any], list[Any]]
"""Returns the objects of every rank, in the order of ranks."""

LOSS = "loss/"
"""Begins the names of a loss's terms, which may be called as a metric is."""
HIGHER = ("dice", "iou", "f1", "precision", "recall", "accuracy", "psnr", "ssim", "pq", "ap", "score", "aji")


def lower_is_better(monitor: str, mode: str) -> bool:
    """Return whether smaller values of a validation number are better: a metric says so itself (`METRICS`)."""
    if mode != "auto":
        return mode == "min"
    if monitor.startswith(LOSS):
        return True
    last = monitor.rpartition("/")[2]
    if last in METRICS:
        return METRICS[last].better == "min"
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


PIXELS = ("dice", "iou", "pixel_f1", "pixel_precision", "pixel_recall", "pixel_accuracy")
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "semantic": PIXELS,
    "instances": (*PIXELS, "object_f1", "pq"),
    "boxes": ("box_f1",),
    "picture": ("mae", "psnr"),
    "label": ("accuracy",),
    "cells": ("cell_auc", "cell_pearson"),
}
"""What a validation gives for each kind of prediction."""

POOLED: Mapping[str, tuple[str, ...]] = {
    "boxes": ("coco_ap", "coco_ap50"),
    "cells": ("cell_auc", "cell_pearson"),
}
"""Numbers that are no mean over images."""

HIGHEST_PSNR = 100.0
"""Decibels of a picture without any error, so that a mean stays finite."""


def judged(family: Family, card: DatasetCard) -> list[Task]:
    """Return what of a family is judged on a dataset: what the benchmark judges, and labels.

    Raises `UserError` where the dataset lacks a class of the model.
    """
    found = [replace(task, metrics=NUMBERS[task.kind]) for task in score.tasks(family, card)]
    for name, output in family.spec.outputs.items():
        truth = card.truths.get(output.truth or "")
        if output.kind == "label" and truth is not None and truth.kind == "label":
            found.append(Task(name, "label", str(output.truth), output.classes, truth.classes, NUMBERS["label"]))
    return found


def compare(tally: Tally, task: Task, prediction: Prediction, truth: Truth) -> None:
    """Add what one image says: each number as the benchmark computes it, so that their means agree."""
    if isinstance(prediction, LabelPrediction) and isinstance(truth, Label):
        found = {"accuracy": float(prediction.value == truth.value)}
    else:
        pooled = POOLED.get(task.kind, ())
        named = tuple(name for name in task.metrics if name in METRICS and not METRICS[name].pooled)
        both = score.judge(replace(task, metrics=(*named, *pooled)), prediction, truth)
        found = dict(both.scores)
        for name, record in both.records.items():
            tally.add(f"{task.output}/{name}", [record])
    if isinstance(prediction, PicturePrediction) and isinstance(truth, Picture):
        pair = score.pictures(prediction, truth)
        off = np.abs(pair.prediction[:, pair.valid] - pair.truth[:, pair.valid])
        found["mae"] = float(off.mean() / pair.spread) if off.size and pair.spread else math.nan
        found["psnr"] = min(HIGHEST_PSNR, found["psnr"])
    for name, value in found.items():
        told = not math.isnan(value)
        tally.add(f"{task.output}/{name}", np.array([value if told else 0.0, told]))


def numbers(tally: Tally, outputs: int) -> dict[str, float]:
    """Return metrics by name (with several outputs OUTPUT/NAME), the loss as `loss`, its terms as loss/TERM.

    Each is a mean over the images that have the number, or COCO's over all of them; nan where none has.
    """
    found: dict[str, float] = {}
    for key, value in sorted(tally.sums.items()):
        if key.startswith(LOSS):
            name = "loss" if key == f"{LOSS}total" else key
        else:
            name = key if outputs > 1 else key.rpartition("/")[2]
        if isinstance(value, list):
            found[name] = float(registry.get("metric", key.rpartition("/")[2]).value(value))
            continue
        total, count = value
        found[name] = float(total / count) if count else math.nan
    return found


class Validation:
    """The validation of a stage. Build it once: it keeps the loader's workers and the truths."""

    def __init__(self, loading: Loading, family: Family, *, seed: int, rank: int, world: int, gather: Gather) -> None:
        self.loading, self.gather = loading, gather
        self.whole = loading.size is None
        self.loader = feed.open_loader(loading, family, seed=seed, training=False, rank=rank, world=world)
        self.truths: dict[tuple[str, str], Mapping[str, Truth]] = {}
        self.tasks = [judged(family, dataset.card) for dataset in self.loader.datasets]
        self.scored = any(self.tasks)  # a generator is judged by its loss alone: nothing is to be drawn for it
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
        self,
        family: Family,
        procedure: Procedure,
        progress: float,
        *,
        autocast: Any = None,
        most: int | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Return the losses' means over items and the metrics over images; `most` stops after so many batches.

        `tell` hears how many items are done, of how many, after each that was judged.
        """
        tally = Tally()
        context = autocast or nullcontext
        was_training = family.training
        done, total = 0, -(-sum(len(drawn) for drawn in self.loader.draws(0)[:most]) // self.loader.world)
        family.eval()
        try:
            with torch.inference_mode():
                for number, batch in enumerate(self.loader.epoch(0)):
                    if most is not None and number >= most:
                        break
                    with context():
                        want = self.whole and self.scored
                        terms, maps = losses(family, procedure, batch.to(family.device), progress, want)
                    for name, value in terms.items():
                        tally.add(LOSS + name, np.array([float(value) * len(batch), len(batch)]))
                    for _ in self._score(tally, family, batch, maps) if self.scored else ():
                        done += 1
                        if tell is not None:
                            tell(done, total)
        finally:
            family.train(was_training)
        tally.merge(self.gather)
        return numbers(tally, len(family.spec.outputs))

    def _score(self, tally: Tally, family: Family, batch: Batch, maps: Maps | None) -> Iterator[None]:
        """Add what each image of a batch says; yields after each, for one may take minutes."""
        found = decoded(family, maps, batch) if maps is not None else None
        for i, meta in enumerate(batch.meta):
            predictions = self.tiled(family, meta) if found is None else found[i]
            dataset, _ = self.places[(meta.dataset, meta.id)]
            for task in self.tasks[dataset]:
                truth = self.truth(meta).get(task.truth)
                if task.output in predictions and truth is not None:
                    compare(tally, task, predictions[task.output], truth)
            yield

    def samples(self, most: int = 64) -> list[Sample]:
        """Return validation samples with the channels of the model, `most` of them evenly spread; unreadable ones are
        left out."""
        places = [(d, i) for d, dataset in enumerate(self.loader.datasets) for i in range(len(dataset))]
        found = []
        for d, i in places[:: max(1, -(-len(places) // most))]:
            with suppress(DataError):
                found.append(self.loader.datasets[d][i])
        return found

    def maps(self, family: Family, sample: Sample) -> tuple[Maps, Geometry]:
        """Return a whole image's activated maps and their geometry, as prediction makes them."""
        image = np.moveaxis(sample.image, 0, -1)
        found: tuple[Maps, Geometry] = registry.get("engine", "maps")(family, image, mpp=resolution(sample))
        return found

    def tiled(self, family: Family, meta: Meta) -> dict[str, Prediction]:
        """Return the predictions for a whole image, whatever the loader gives."""
        sample = self.sample(meta)
        image = np.moveaxis(sample.image, 0, -1)
        predictions: dict[str, Prediction] = registry.get("engine", "predict")(family, image, mpp=resolution(sample))
        return predictions


def resolution(sample: Sample) -> Any:
    """Return what prediction is told of a sample's um per pixel: a number, one an axis of a volume, or "native"."""
    if sample.spacing is None:
        return "native"
    return sample.spacing if sample.axes == "CZYX" else sample.spacing[-1]


def losses(
    family: Family, procedure: Procedure, batch: Batch, progress: float, want_maps: bool
) -> tuple[Mapping[str, Any], Maps | None]:
    """Return the procedure's validation losses and, where wanted, the raw maps of the same batch.

    Where the procedure computes its loss from `forward` as the base class does and `infer` is `forward`, it is
    computed once.
    """
    plain = type(procedure).validation_loss is Procedure.validation_loss and type(family).infer is Family.infer
    if plain:
        maps = family.forward(family.prepare(family.inputs_of(batch)))
        terms = family.loss(maps, batch, progress)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}, maps if want_maps else None
    terms = procedure.validation_loss(family, batch, progress)
    if not want_maps:
        return terms, None
    generator = torch.Generator().manual_seed(0)
    return terms, family.infer(family.prepare(family.inputs_of(batch)), rng=generator)


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
