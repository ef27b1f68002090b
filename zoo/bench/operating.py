"""Operating points: thresholds chosen on validation data, and carried with the weights.

Choosing a threshold on the data that a table is about makes the table a boast. So they are chosen on a dataset named
for it, recorded in the results, and written into a copy of the weights, whose options then hold them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry
from zoo.bench.leakage import Item, overlap
from zoo.bench.work import Settings, Weights, spacing_of
from zoo.data.datasets import Dataset
from zoo.errors import UserError
from zoo.families import build, score
from zoo.families.base import Family
from zoo.metrics.operating import grid_threshold
from zoo.weights import store


@dataclass(frozen=True)
class Point:
    """What was chosen for weights: option -> value, on which data by which metric, and what every candidate gave."""

    weights: str
    options: dict[str, float]
    dataset: str
    split: str
    metric: str
    value: float
    before: float
    tried: tuple[tuple[dict[str, float], float], ...]
    file: str = ""


def choose(weights: Weights, dataset: Dataset, settings: Settings, out: Path) -> tuple[Weights, Point | None]:
    """Return the weights with their operating point, and how it was chosen; None where the family has no threshold.

    The metric is the first of the settings, else the usual one of the output. The copy lies in `out`/operating.
    """
    family = weights.load(settings)
    candidates = family.operating()
    if not candidates:
        return weights, None
    task = _task(family, dataset, settings)
    metric = task.metrics[0]
    tried: list[tuple[dict[str, float], float]] = []
    for values in product(*candidates.values()):
        options = dict(zip(candidates, values, strict=True))
        tried.append((options, _mean(family, dataset, settings, task, options)))
    index, best = grid_threshold(range(len(tried)), [value for _, value in tried])
    options = tried[int(index)][0]
    before = _mean(family, dataset, settings, task, {})
    point = Point(weights.label, options, dataset.name, dataset.split, metric, best, before, tuple(tried))
    if len(weights.members) == 1:
        point = replace(point, file=str(_write(weights, point, out)))
    return replace(weights, options={**weights.options, **options}), point


def _task(family: Family, dataset: Dataset, settings: Settings) -> score.Task:
    from zoo.metrics import METRICS

    tasks = score.tasks(family, dataset.card, settings.metrics)
    for task in tasks:
        kept = tuple(m for m in task.metrics if not METRICS[m].pooled and METRICS[m].better == "max")
        if kept:
            return replace(task, metrics=kept[:1])
    raise UserError(f"{dataset.name}: nothing by which a threshold could be chosen. Choose another dataset.")


def _mean(family: Family, dataset: Dataset, settings: Settings, task: score.Task, options: dict[str, float]) -> float:
    predict = registry.get("engine", "predict")
    values = []
    for sample in dataset:
        image = sample.image[0] if len(sample.image) == 1 else np.moveaxis(sample.image, 0, -1)
        mpp = spacing_of(sample, settings)
        said: dict[str, Any] = {**settings.options, **options}
        found = predict(family, image, mpp=mpp, seed=settings.seed, **said)
        values.append(score.score(task, found[task.output], sample.truth[task.truth])[task.metrics[0]])
    told = [v for v in values if not math.isnan(v)]
    return float(np.mean(told)) if told else math.nan


def _write(weights: Weights, point: Point, out: Path) -> Path:
    """Write a copy of the weights whose options hold the point; everything else of its metadata stays."""
    tensors, metadata = store.read_tensors(weights.members[0].path)
    options = {**json.loads(metadata["options"]), **point.options}
    build.checked(metadata["family"], options)  # the copy loads, or this says why not
    said = {
        "options": point.options,
        "dataset": point.dataset,
        "split": point.split,
        "metric": point.metric,
        "value": round(point.value, 6),
    }
    changed = {"options": json.dumps(options, sort_keys=True), "operating": json.dumps(said, sort_keys=True)}
    path = out / "operating" / f"{Path(weights.label).stem if '/' in weights.label else weights.label}.safetensors"
    store.write_tensors(path, tensors, {**metadata, **changed})
    return path


def refuse(chosen_on: Dataset, judged_on: Sequence[Dataset]) -> None:
    """Raise `UserError` where thresholds would be chosen on images or groups that are then judged."""
    items: Sequence[Item] = chosen_on.index
    record = {
        "dataset": chosen_on.name,
        "groups": [i.group for i in items if i.group],
        "images": [i.id for i in items],
    }
    for dataset in judged_on:
        if shared := overlap([record], dataset.name, dataset.split, dataset.index):
            raise UserError(
                f"bench: --operating {chosen_on.name}:{chosen_on.split}: {len(shared)} of the images of "
                f"{dataset.name}:{dataset.split}, or their groups, are among those that thresholds would be chosen on "
                f"({', '.join(shared[:3])}). Expected data of their own. Choose a validation split."
            )
