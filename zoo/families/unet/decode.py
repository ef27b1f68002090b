"""From probabilities to a class map and to objects, at the scale of the source image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo import postprocess
from zoo.families.unet.options import Objects, UNetOptions
from zoo.types import Geometry, InstancesPrediction, Prediction, SemanticPrediction

Planes = NDArray[np.float32]


def decode(
    planes: Tensor, geometry: Geometry, options: UNetOptions, classes: tuple[str, ...], mode: str
) -> dict[str, Prediction]:
    """Return the predictions of one image from its activated (K, h, w) planes on the model's grid."""
    probability: Planes = postprocess.to_source(planes, geometry).numpy()
    if mode == "multilabel":
        chosen = probability >= options.threshold
        return {"semantic": SemanticPrediction(chosen, classes, probability, multilabel=True)}
    edge = None
    if mode == "binary":
        probability = np.concatenate([1 - probability, probability])
        index = (probability[1] >= options.threshold).astype(np.uint8)
    else:
        if options.boundary:
            edge = np.asarray(probability.argmax(0) == len(classes))
            probability = fold(probability)
        index = probability.argmax(0).astype(np.uint8)
    found: dict[str, Prediction] = {}
    objects = options.instances
    if objects is None or objects.semantic:
        found["semantic"] = SemanticPrediction(index, classes, probability)
    if objects is not None:
        area = float(np.prod(geometry.scale))
        found["instances"] = instances(index, probability, edge, objects, classes, area)
    return found


def fold(probability: Planes) -> Planes:
    """Return (K, …) probabilities from (K + 1, …): the boundary's share goes to the classes that objects have there.

    A boundary pixel belongs to an object, so its share is split among the foreground classes in proportion to theirs
    (evenly where they have none).
    """
    front, edge = probability[1:-1], probability[-1]
    total = front.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 1e-6, front / total, np.float32(1 / len(front)))
    return np.concatenate([probability[:1], front + share * edge]).astype(np.float32)


def instances(
    index: NDArray[np.uint8],
    probability: Planes,
    edge: NDArray[np.bool_] | None,
    objects: Objects,
    classes: tuple[str, ...],
    area: float,
) -> InstancesPrediction:
    """Return the objects of a class map; `area`: model pixels in a pixel of the source."""
    front = index > 0
    smallest = objects.min_size / area
    if edge is None:
        labels = postprocess.remove_small(postprocess.components(front), smallest)
    else:
        labels = postprocess.separate(front, edge, smallest, min_seed=min(smallest / 4, 8 / area))
    if objects.fill_holes:
        labels = postprocess.fill_holes(labels)
    if labels.max(initial=0):
        of = postprocess.majority(labels, probability[1:])
        score = postprocess.means(labels, 1 - probability[0])
    else:
        of, score = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return InstancesPrediction(labels, classes[1:], of, np.clip(score, 0, 1).astype(np.float32))
