"""From the raw maps of one image to boxes in pixels of its source."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo.families.base import Maps
from zoo.families.detr.attributes import by_attribute
from zoo.families.detr.options import DetrOptions
from zoo.postprocess.boxes import top_boxes
from zoo.types import BoxesPrediction, Geometry


def boxes(
    maps: Maps, geometry: Geometry, options: DetrOptions, threshold: float | None = None, top: int | None = None
) -> BoxesPrediction:
    """Return the boxes of one image, strongest first, cut to its edges.

    `maps`: activated, of one image. `threshold`: the least score of a box, in place of that of each class.
    """
    maps = {name: value.detach() for name, value in maps.items()}
    probability = maps["logits"][..., options.unused :].float()
    scores, classes, corners, queries = (
        found[0] for found in top_boxes(probability, maps["boxes"].float(), maps["size"], top or options.top)
    )
    least = torch.tensor(options.thresholds() if threshold is None else [threshold] * probability.shape[-1])
    keep = scores.cpu() >= least[classes.cpu()]
    said = None
    if "attributes" in maps and options.attributes is not None:
        said = _values(maps["attributes"][0], options)[queries][keep.to(queries.device)].cpu().numpy()
    scale_y, scale_x = geometry.scale
    top_left = np.array([geometry.offset[1], geometry.offset[0]] * 2)
    xyxy = (corners.cpu().double().numpy() + top_left) / np.array([scale_x, scale_y] * 2)
    height, width = geometry.shape
    xyxy = np.clip(xyxy, 0, [width, height, width, height])[keep.numpy()].astype(np.float32)
    found = BoxesPrediction(
        xyxy,
        tuple(options.classes or ()),
        classes.cpu().numpy()[keep.numpy()].astype(np.int64),
        scores.cpu().numpy()[keep.numpy()].astype(np.float32),
        said,
        {} if options.attributes is None else dict(options.attributes.values or {}),
    )
    kept = _kept(found, options.overlap)
    return kept


def _values(logits: Tensor, options: DetrOptions) -> Tensor:
    """Return (Q, A), the strongest value of each attribute."""
    values = (options.attributes and options.attributes.values) or {}
    return torch.stack([part.argmax(-1) for part in by_attribute(logits, [len(v) for v in values.values()])], -1)


def _kept(found: BoxesPrediction, overlap: float | None) -> BoxesPrediction:
    """Return boxes without an area left out, and without those that overlap a stronger one of their class too much."""
    keep = np.flatnonzero((found.xyxy[:, 2:] > found.xyxy[:, :2]).all(1))
    if overlap is not None and len(keep):
        from torchvision.ops import batched_nms

        own = [torch.from_numpy(a[keep]) for a in (found.xyxy, found.scores, found.class_index)]
        keep = keep[batched_nms(*own, overlap).numpy()]
    attributes = None if found.attributes is None else found.attributes[keep]
    return BoxesPrediction(
        found.xyxy[keep],
        found.classes,
        found.class_index[keep],
        found.scores[keep],
        attributes,
        found.attribute_values,
    )
