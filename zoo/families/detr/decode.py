"""From the raw maps of one image to boxes in pixels of its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.errors import UserError, suggest
from zoo.families.base import Maps
from zoo.families.detr.attributes import by_attribute
from zoo.families.detr.options import DetrOptions
from zoo.postprocess.boxes import top_boxes
from zoo.types import BoxesPrediction, Geometry


def boxes(
    maps: Maps,
    geometry: Geometry,
    options: DetrOptions,
    threshold: float | Mapping[str, float] | None = None,
    top: int | None = None,
) -> BoxesPrediction:
    """Return the boxes of one image, strongest first, cut to its edges.

    `maps`: activated, of one image. `threshold`: the least score of a box, in place of that of each class, or of the
    classes that it names; what is below it comes as `weaker`. Raises `UserError` for no number from 0 to 1.
    """
    maps = {name: value.detach() for name, value in maps.items()}
    probability = maps["logits"][..., options.unused :].float()
    scores, classes, corners, queries = (
        found[0] for found in top_boxes(probability, maps["boxes"].float(), maps["size"], top or options.top)
    )
    said = None
    if "attributes" in maps and options.attributes is not None:
        said = _values(maps["attributes"][0], options)[queries].cpu().numpy()
    scale_y, scale_x = geometry.scale
    top_left = np.array([geometry.offset[1], geometry.offset[0]] * 2)
    height, width = geometry.shape
    xyxy = (corners.cpu().double().numpy() + top_left) / np.array([scale_x, scale_y] * 2)
    every = BoxesPrediction(
        np.clip(xyxy, 0, [width, height, width, height]).astype(np.float32),
        tuple(options.classes or ()),
        classes.cpu().numpy().astype(np.int64),
        scores.cpu().numpy().astype(np.float32),
        said,
        {} if options.attributes is None else dict(options.attributes.values or {}),
    )
    kept = _picked(every, _kept(every, options.overlap))
    least = np.asarray(thresholds(options, threshold))
    counts = kept.scores >= least[kept.class_index]
    return replace(_picked(kept, np.flatnonzero(counts)), weaker=_picked(kept, np.flatnonzero(~counts)))


def thresholds(options: DetrOptions, threshold: float | Mapping[str, float] | None) -> list[float]:
    """Return the least score of each class. Raises `UserError`."""
    classes = options.classes or ()
    given = (
        threshold if isinstance(threshold, Mapping) else {} if threshold is None else dict.fromkeys(classes, threshold)
    )
    for name, value in given.items():
        if name not in classes:
            raise UserError(f'threshold: no class "{name}". {suggest(name, classes)}'.rstrip())
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"threshold: {value} will not do. Expected a number from 0 to 1, or one a class.")
    return [given.get(name, own) for name, own in zip(classes, options.thresholds(), strict=True)]


def _values(logits: Tensor, options: DetrOptions) -> Tensor:
    """Return (Q, A), the strongest value of each attribute."""
    values = (options.attributes and options.attributes.values) or {}
    return torch.stack([part.argmax(-1) for part in by_attribute(logits, [len(v) for v in values.values()])], -1)


def _kept(found: BoxesPrediction, overlap: float | None) -> NDArray[np.intp]:
    """Return which boxes have an area, and do not overlap a stronger one of their class too much."""
    keep = np.flatnonzero((found.xyxy[:, 2:] > found.xyxy[:, :2]).all(1))
    if overlap is None or not len(keep):
        return keep
    from torchvision.ops import batched_nms

    own = [torch.from_numpy(a[keep]) for a in (found.xyxy, found.scores, found.class_index)]
    return np.sort(keep[batched_nms(*own, overlap).numpy()])


def _picked(found: BoxesPrediction, rows: NDArray[np.intp]) -> BoxesPrediction:
    return replace(
        found,
        xyxy=found.xyxy[rows],
        class_index=found.class_index[rows],
        scores=found.scores[rows],
        attributes=None if found.attributes is None else found.attributes[rows],
    )
