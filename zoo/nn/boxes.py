"""Boxes as tensors: centre and size, or corners; overlaps; the inverse of the sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Return (..., 4) x0, y0, x1, y1 of (..., 4) centre x, centre y, width, height."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """Return (..., 4) centre x, centre y, width, height of (..., 4) x0, y0, x1, y1."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of corners (..., 4) that broadcast against each other (Rezatofighi et al. 2019).

    Boxes must have a positive area somewhere in their common hull, or the numbers are nan.
    """
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0)
    inside = shared[..., 0] * shared[..., 1]
    union = _area(one) + _area(other) - inside
    hull = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    around = hull[..., 0].clamp_min(0) * hull[..., 1].clamp_min(0)
    iou = inside / union
    return iou, iou - (around - union) / around


def pairwise_overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU (N, M) of corners (N, 4) and (M, 4)."""
    return overlaps(one[:, None], other[None])


def inverse_sigmoid(x: Tensor, smallest: float = 1e-5) -> Tensor:
    """Return the logit of x in [0, 1]; what is nearer than `smallest` to 0 or 1 counts as that far from it."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp_min(smallest) / (1 - x).clamp_min(smallest))


def short_side(width: int, height: int, side: int, longest: int | None = None) -> tuple[int, int]:
    """Return (width, height) of a picture scaled so that its shorter side is `side` and the longer at most `longest`.

    A longer side that would be more lowers the shorter one, rounded; the other side is cut to whole pixels (Carion et
    al. 2020).
    """
    low, high = min(width, height), max(width, height)
    if longest is not None and high / low * side > longest:
        side = round(longest * low / high)
    if width < height:
        return side, int(side * height / width)
    return (int(side * width / height), side) if height < width else (side, side)
