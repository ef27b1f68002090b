"""What a StarDist network minimises, on probabilities and distances (Schmidt et al. 2018, section 2.2).

All take predictions and targets (B, C, *S) on the grid; -1 in a target means "not annotated". Predicted probabilities
are in [0, 1], distances in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

EPS = 1e-7
Kind = Literal["mae", "mse", "iou"]


def probability(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy with soft targets, a mean over the annotated pixels of the batch."""
    known = target >= 0
    p = predicted.clamp(EPS, 1 - EPS)
    terms = -(target * p.log() + (1 - target) * (1 - p).log())
    return torch.where(known, terms, torch.zeros_like(terms)).sum() / known.sum().clamp_min(1)


def distance(predicted: Tensor, target: Tensor, weight: Tensor, kind: Kind = "mae", background: float = 1e-4) -> Tensor:
    """Return the loss of distances (B, R, *S), weighted by `weight` (B, 1, *S) and normalised by its mean.

    mae, mse: mean over rays; iou: 1 - sum of min^2 over sum of max^2, rays of wrong sign counting against it.
    `background` times the mean |distance| where the weight is small keeps the rest from running away.
    """
    if kind == "iou":
        small, large = torch.minimum(target, predicted), torch.maximum(target, predicted)
        agreement = predicted.sign() * small**2
        error = 1 - agreement.mean(1, keepdim=True) / ((large**2).mean(1, keepdim=True) + EPS)
    else:
        off = (target - predicted).abs() if kind == "mae" else (target - predicted) ** 2
        error = off.mean(1, keepdim=True)
    found = weight * error / (weight.mean() + EPS)
    if background:
        found = found + background * (1 - weight) * predicted.abs().mean(1, keepdim=True)
    return found.mean()


def distance_sum(
    predicted: Tensor, target: Tensor, weight: Tensor, kinds: Mapping[Kind, float], background: float = 1e-4
) -> Tensor:
    """Return the weighted sum of several losses of distances (see `distance`); the background counts once."""
    terms = [share * distance(predicted, target, weight, kind, 0.0) for kind, share in kinds.items()]
    outside = background * ((1 - weight) * predicted.abs().mean(1, keepdim=True)).mean() if background else 0.0
    return torch.stack(terms).sum() + outside


def classes(predicted: Tensor, target: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Return the cross-entropy of classes (B, K + 1, *S); pixels that are not annotated count as error 0."""
    q = predicted / (predicted + EPS).sum(1, keepdim=True)
    q = q.clamp(EPS, 1 - EPS)
    terms = torch.where(target >= 0, target, torch.zeros_like(target)) * q.log()
    if weights is not None:
        terms = terms * torch.as_tensor(weights, dtype=terms.dtype, device=terms.device).view(
            1, -1, *[1] * (terms.ndim - 2)
        )
    return -terms.sum(1).mean()


# --- numbers to look at -----------------------------------------------------------------------------------------------


def divergence(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities minus the entropy of the soft target: 0 where they agree."""
    return probability(predicted, target) - probability(target.clamp_min(0), target)


def relevant_error(predicted: Tensor, target: Tensor, weight: Tensor, kind: Kind = "mae") -> Tensor:
    """Return the weighted error of distances alone, in pixels (mae) or pixels squared (mse)."""
    return distance(predicted, target, weight, kind, 0.0)


def ray_agreement(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted intersection over union of distances, 1 where they agree."""
    p = predicted.clamp_min(0)
    inside = (torch.minimum(target, p) ** 2).mean(1, keepdim=True)
    found = inside / ((torch.maximum(target, p) ** 2).mean(1, keepdim=True) + EPS)
    return (weight * found).mean() / (weight.mean() + EPS)
