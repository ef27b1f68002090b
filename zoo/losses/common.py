"""What every loss over a map of classes shares: modes, masks and how pixels and samples become one number.

**Reduction over samples.** `reduction="sample"` (the default everywhere) computes one number a sample over that
sample's own valid pixels and takes their mean over all B samples of the batch; a sample that has no truth, or no valid
pixel, counts as zero and is not left out of the mean. Hence the loss of a batch of 2b is exactly the mean of the losses
of its halves, whatever the halves hold: training on two devices equals training on one. `"batch"` pools the pixels of
the whole batch first, as segmentation_models_pytorch and torch do; `"none"` returns the (B,) numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

Mode = Literal["multiclass", "binary", "multilabel"]
Reduction = Literal["sample", "batch", "none"]
Weights = Tensor | Sequence[NonNegativeFloat] | None


@dataclass(frozen=True)
class Prepared:
    """Raw logits (B, K, *S) in float32, what they should be, and where that is known.

    `index`: (B, *S) int64 class indices, 0 where nothing is known ("multiclass" only). `planes`: (B, K, *S) float32 of
    0 and 1. `mask`: float32 of 0 and 1, (B, 1, *S) or, where planes are annotated apart, (B, K, *S). `there`: (B,)
    float32, 1 where a sample has at least one valid pixel.
    """

    logits: Tensor
    index: Tensor | None
    planes: Tensor
    mask: Tensor
    there: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Return (B, K, *S): softmax over classes, or a sigmoid a plane."""
        return self.logits.sigmoid() if self.index is None else self.logits.softmax(1)


def prepare(
    logits: Tensor, target: Tensor, mode: Mode, valid: Tensor | None, has: Tensor | None, ignore: int | None
) -> Prepared:
    """Return logits, truth and mask in one form.

    `logits` (B, K, *S) raw. `target`: (B, *S) class indices ("multiclass"; "binary": 0 and 1), or (B, K, *S) of 0 and 1
    ("multilabel"). `valid` (B, *S) bool, False in padding. `has` (B,) bool, False where a sample carries no truth.
    `ignore`: the index that means "not annotated here". Raises `ValueError` where shapes do not fit the mode.
    """
    B, K = logits.shape[:2]
    spatial = tuple(logits.shape[2:])
    expected = (B, K, *spatial) if mode == "multilabel" else (B, *spatial)
    if mode == "binary" and K != 1:
        raise ValueError(f"binary logits have {K} channels. Expected 1. Use mode multiclass")
    if tuple(target.shape) != expected:
        raise ValueError(f"the target has shape {tuple(target.shape)}. Expected {expected} for {mode} logits")
    given = target.long() if mode == "multilabel" else target.long().unsqueeze(1)
    known = torch.ones_like(given, dtype=torch.bool) if ignore is None else given != ignore
    if valid is not None:
        known = known & valid.bool().unsqueeze(1)
    if has is not None:
        known = known & has.bool().view(B, *[1] * (known.ndim - 1))
    clean = torch.where(known, given, torch.zeros_like(given))
    if mode == "multiclass":
        index = clean.squeeze(1)
        planes = F.one_hot(index, K).movedim(-1, 1).to(torch.float32)
    else:
        index, planes = None, clean.to(torch.float32)
    mask = known.to(torch.float32)
    return Prepared(logits.float(), index, planes, mask, mask.flatten(1).amax(1))


def class_weights(weights: Weights, classes: int, like: Tensor) -> Tensor:
    """Return (K,) float32 weights, ones where none are given. Raises `ValueError` for a wrong number of them."""
    if weights is None:
        return torch.ones(classes, device=like.device)
    found = torch.as_tensor(weights, dtype=torch.float32, device=like.device)
    if found.shape != (classes,):
        raise ValueError(f"{found.numel()} class weights for {classes} classes. Write one weight a class")
    return found


def over_samples(values: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean of (B,) numbers, or the numbers."""
    return values if reduction == "none" else values.mean()


def pixel_mean(loss: Tensor, mask: Tensor, reduction: Reduction, norm: Tensor | None = None) -> Tensor:
    """Return the mean of a loss over its valid pixels, divided by the sum of `norm` (default: their number).

    `loss`, `norm`: (B, K or 1, *S); `mask`: broadcastable to it. Zero where nothing is valid.
    """
    mask = mask.expand_as(loss)
    weight = mask if norm is None else mask * norm
    total, count = (loss * mask).flatten(1).sum(1), weight.flatten(1).sum(1)
    if reduction == "batch":
        total, count = total.sum(), count.sum()
        return total / torch.where(count > 0, count, torch.ones_like(count))
    return over_samples(total / torch.where(count > 0, count, torch.ones_like(count)), reduction)
