"""From activated maps to predictions, at the scale of the source image.

Objects are made on the model's grid, where the rules' sizes hold; the label map then goes to the source's pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo import postprocess, registry
from zoo.families.cerberus.objects import Labels
from zoo.families.cerberus.options import CerberusOptions, Task
from zoo.types import Geometry, InstancesPrediction, LabelPrediction, Prediction, SemanticPrediction

Planes = NDArray[np.float32]


def decode(maps: Mapping[str, Tensor], geometry: Geometry, options: CerberusOptions) -> dict[str, Prediction]:
    """Return task -> prediction of one image from its activated maps, each (C, h, w) on the model's grid."""
    native = all(scale == 1.0 for scale in geometry.scale)
    planes = {
        name: (postprocess.to_source(value, geometry) if native else value).float().numpy()
        for name, value in maps.items()
    }
    labels = label_maps(planes, options)
    found: dict[str, Prediction] = {}
    for name, task in options.tasks.items():
        if task.kind == "objects":
            made = _objects(labels[name], planes, name, task, options)
            found[name] = made if native else _to_source(made, geometry)
        elif task.kind == "patch":
            found[name] = patch(maps[name], geometry, task)
    return found


def label_maps(planes: Mapping[str, Planes], options: CerberusOptions) -> dict[str, Labels]:
    """Return the instances of every objects task, those outside the objects that they belong inside removed."""
    make = registry.get("postprocess", "cerberus_instances")
    suppress = registry.get("postprocess", "cerberus_inside")
    found: dict[str, Labels] = {
        name: make(planes[name][1], planes[name][2], task.rule_of(name))
        for name, task in options.tasks.items()
        if task.kind == "objects"
    }
    inside = {name: options.tasks[name].inside for name in found}
    return {name: suppress(own, found[of]) if (of := inside[name]) else own for name, own in found.items()}


def _objects(
    labels: Labels, planes: Mapping[str, Planes], name: str, task: Task, options: CerberusOptions
) -> InstancesPrediction:
    labels = postprocess.relabel(labels)
    named = options.classes_of(name)
    kinds = None if named is None else planes[named[0]].argmax(0).astype(np.uint8)
    told = registry.get("postprocess", "cerberus_records")(labels, kinds, thin=True)
    classes = named[1].foreground if named is not None else task.foreground or (name,)
    index = np.zeros(len(told.ids), np.int64)
    if named is not None and len(told.ids):
        likely = postprocess.majority(labels, planes[named[0]][1:])
        index = np.where(told.types > 0, told.types.astype(np.int64) - 1, likely)
    sure = planes[name][1] + planes[name][2]
    scores = postprocess.means(labels, sure) if len(told.ids) else np.zeros(0, np.float32)
    rings = tuple(np.concatenate([c, c[:1]]) + 0.5 for c in told.contours)
    return InstancesPrediction(labels, classes, index, np.clip(scores, 0, 1).astype(np.float32), rings)


def _to_source(made: InstancesPrediction, geometry: Geometry) -> InstancesPrediction:
    """Return objects in pixels of the source: a pixel belongs to what its centre lies in; what gets none is dropped."""
    rows, columns = (
        np.clip(((np.arange(size) + 0.5) * scale - offset).astype(np.int64), 0, have - 1)
        for size, scale, offset, have in zip(
            geometry.shape, geometry.scale, geometry.offset, made.map.shape, strict=True
        )
    )
    labels = made.map[rows[:, None], columns[None]]
    count = len(made.class_index)
    there = np.bincount(labels.ravel(), minlength=count + 1)[1:] > 0
    labels = postprocess.relabel(labels)
    told = registry.get("postprocess", "cerberus_records")(labels, None, thin=True)
    rings = tuple(np.concatenate([c, c[:1]]) + 0.5 for c in told.contours)
    scores = None if made.scores is None else made.scores[there]
    return InstancesPrediction(labels, made.classes, made.class_index[there], scores, rings)


def patch(planes: Tensor, geometry: Geometry, task: Task) -> Prediction:
    classes = task.classes or ()
    if task.output == "label":
        mean = planes.float().mean((1, 2)).numpy()
        return LabelPrediction(int(mean.argmax()), classes, mean)
    probability = postprocess.to_source(planes, geometry).float().numpy()
    return SemanticPrediction(probability.argmax(0).astype(np.uint8), classes, probability)
