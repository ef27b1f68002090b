"""What a head's loss is (Graham et al. 2022, section 3.3; details of the published training step)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo import registry
from zoo.families.cerberus.targets import IGNORE

SMOOTH = 1e-3
"""What Dice's numerator and denominator begin with."""


def objects_loss(
    logits: Tensor, target: Tensor, weight: Tensor, *, has: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of inside, contour and background, each pixel times its weight.

    `logits` (B, 3, H, W); `target`, `weight` (B, H, W). A mean over the pixels, then over the annotated samples; zero
    where there is none.
    """
    annotated = _annotated(has, logits)
    if not bool(annotated.any()):
        return logits.sum() * 0
    loss: Tensor = registry.get("loss", "boundary_cross_entropy")(
        logits[annotated],
        target[annotated],
        weight=weight[annotated],
        valid=None if valid is None else valid[annotated],
        ignore=IGNORE,
    )
    return loss


def classes_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    has: Tensor | None = None,
    valid: Tensor | None = None,
    entropy: float = 1.0,
    overlap: float = 1.0,
) -> Tensor:
    """Return cross-entropy plus Dice of the classes of objects, of pixels that have one.

    `entropy`, `overlap`: factors of the two.

    `logits` (B, 1 + K, H, W); `target` (B, H, W), 0 none. The cross-entropy of a pixel counts as much as its class's
    weight and not at all where it has none, yet the mean is over all pixels, then over the annotated samples. Dice is
    that of the whole batch, summed (not averaged) over the K classes.
    """
    annotated = _annotated(has, logits)
    if not bool(annotated.any()):
        return logits.sum() * 0
    logits, target = logits[annotated], target[annotated]
    valid = None if valid is None else valid[annotated]
    K = logits.shape[1] - 1
    table = torch.zeros(256, device=target.device)  # none and unknown count for nothing, but in the mean
    table[1 : K + 1] = torch.tensor(class_weights or (1.0,) * K, dtype=torch.float32)
    loss: Tensor = entropy * registry.get("loss", "boundary_cross_entropy")(
        logits, target, weight=table[target.long()], valid=valid, ignore=IGNORE
    )
    classed = (target > 0) & (target != IGNORE)
    if valid is not None:
        classed = classed & valid
    if not bool(classed.any()):
        return loss
    missed: Tensor = registry.get("loss", "dice")(
        logits, target, background=False, smooth=SMOOTH, valid=classed, ignore=IGNORE, reduction="batch"
    )
    return loss + overlap * K * missed


def patch_loss(logits: Tensor, target: Tensor, *, has: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the classes of patches that have one: `logits` (B, K), `target` (B,)."""
    target = target.reshape(len(logits))
    annotated = _annotated(has, logits) & (target != IGNORE)
    if not bool(annotated.any()):
        return logits.sum() * 0
    entropy = torch.nn.functional.cross_entropy(logits[annotated].float(), target[annotated].long())
    return entropy


def _annotated(has: Tensor | None, logits: Tensor) -> Tensor:
    return torch.ones(len(logits), dtype=torch.bool, device=logits.device) if has is None else has.to(logits.device)
