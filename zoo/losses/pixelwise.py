"""Losses that judge each pixel by itself: cross-entropy, focal loss, cross-entropy weighted by a map."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from zoo.losses.common import Mode, Prepared, Reduction, Weights, class_weights, pixel_mean, prepare


def _entropy(ready: Prepared, smoothing: float) -> Tensor:
    """Return (B, 1 or K, *S): cross-entropy of every pixel, or of every plane of it."""
    K = ready.logits.shape[1]
    if ready.index is not None:
        log_p = ready.logits.log_softmax(1)
        hit = log_p.gather(1, ready.index.unsqueeze(1))
        return -((1 - smoothing) * hit + smoothing / K * log_p.sum(1, keepdim=True))
    wanted = ready.planes * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(ready.logits, wanted, reduction="none")


def _pixel_weights(ready: Prepared, weights: Weights) -> Tensor:
    """Return the class weight of every pixel: (B, 1, *S), or (B, K, *S) for planes, where it weighs the positives."""
    K = ready.logits.shape[1]
    if ready.index is not None:
        return class_weights(weights, K, ready.logits)[ready.index].unsqueeze(1)
    if weights is None:
        return torch.ones_like(ready.logits)
    if K == 1 and len(weights) != 1:  # one weight for the background and one for the class
        pair = class_weights(weights, 2, ready.logits)
        return torch.where(ready.planes > 0, pair[1], pair[0])
    each = class_weights(weights, K, ready.logits).view(1, K, *[1] * (ready.logits.ndim - 2))
    return each.expand_as(ready.logits)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    weights: Weights = None,
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return the cross-entropy: over classes ("multiclass"), or of each plane ("binary", "multilabel").

    Shapes and masks: `zoo.losses.common.prepare`. `weights`: one a class (for "binary" two: background and class); the
    mean is divided by the sum of the weights of the true classes, as torch does. `smoothing` in [0, 1) spreads that
    share of the truth evenly over the classes. `reduction`: `zoo.losses.common`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    factor = _pixel_weights(ready, weights)
    return pixel_mean(_entropy(ready, smoothing) * factor, ready.mask, reduction, factor)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    weights: Weights = None,
    gamma: NonNegativeFloat = 2.0,
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return the focal loss, -(1 - p)^gamma log p of the true class, mean over pixels (Lin et al. 2017, eq. 4 and 5).

    Over classes by softmax ("multiclass"), or a plane each by sigmoid. `weights` are the paper's alpha (for "binary"
    two: background and class) and do not enter the divisor. Shapes and masks: `zoo.losses.common.prepare`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    entropy = _entropy(ready, 0.0)
    missed = (1 - torch.exp(-entropy)).clamp_min(1e-12)  # the power has no slope at zero for gamma < 1
    return pixel_mean(missed**gamma * entropy * _pixel_weights(ready, weights), ready.mask, reduction)


def boundary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor,
    mode: Mode = "multiclass",
    weights: Weights = None,
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return the cross-entropy whose pixels count as much as `weight` says (Ronneberger et al. 2015, eq. 1 and 2).

    `weight`: (B, *S) float, at least 1 near borders and 1 elsewhere: `zoo.losses.weight_maps` makes it from instances
    or classes. It does not enter the divisor, so that borders truly count more. The rest as in `cross_entropy`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    factor = _pixel_weights(ready, weights)
    entropy = _entropy(ready, 0.0) * factor * weight.float().unsqueeze(1)
    return pixel_mean(entropy, ready.mask, reduction, factor)
