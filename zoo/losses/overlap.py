"""Losses that judge the overlap of whole regions: Dice, Tversky, Lovász."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from zoo.losses.common import Mode, Prepared, Reduction, Weights, class_weights, over_samples, prepare

Absent = Literal["count", "skip"]


def _sums(ready: Prepared, reduction: Reduction, squared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return true-positive, prediction and truth sums, (B, K), or (1, K) where the batch is pooled."""
    p, t = ready.probabilities * ready.mask, ready.planes * ready.mask
    both, predicted, true = (
        value.flatten(2).sum(2) for value in (p * t, p * p if squared else p, t * t if squared else t)
    )
    if reduction == "batch":
        return both.sum(0, keepdim=True), predicted.sum(0, keepdim=True), true.sum(0, keepdim=True)
    return both, predicted, true


def _over_classes(
    loss: Tensor,
    true: Tensor,
    ready: Prepared,
    weights: Weights,
    background: bool,
    absent: Absent,
    reduction: Reduction,
) -> Tensor:
    """Return the weighted mean over classes, then over samples, of (B or 1, K) losses."""
    K = loss.shape[1]
    share = class_weights(None if K == 1 else weights, K, loss).expand_as(loss)
    if not background and K > 1 and ready.index is not None:
        share = share * (torch.arange(K, device=loss.device) > 0)
    if absent == "skip":
        share = share * (true > 0)
    total = share.sum(1)
    each = (loss * share).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
    if reduction == "batch":
        return each.squeeze(0) * ready.there.amax()
    return over_samples(each * ready.there, reduction)


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    weights: Weights = None,
    background: bool = True,
    absent: Absent = "count",
    smooth: NonNegativeFloat = 1.0,
    squared: bool = False,
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return one minus the soft Dice coefficient, (2 TP + s) / (P + T + s) a class, mean over classes, in [0, 1].

    `background`: whether class 0 counts in "multiclass". `absent`: whether a class without a true pixel counts (its
    loss then is what it predicts there, softened by `smooth`) or is skipped. `squared`: squares in the denominator
    (Milletari et al. 2016). `weights`: one a class; without effect in "binary", where there is one. `reduction`:
    "sample" computes the coefficient a sample, "batch" over the pooled pixels. Shapes and masks:
    `zoo.losses.common.prepare`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    both, predicted, true = _sums(ready, reduction, squared)
    loss = 1 - (2 * both + smooth) / (predicted + true + smooth).clamp_min(1e-7)
    return _over_classes(loss, true, ready, weights, background, absent, reduction)


def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    alpha: NonNegativeFloat = 0.3,
    beta: NonNegativeFloat = 0.7,
    gamma: PositiveFloat = 1.0,
    weights: Weights = None,
    background: bool = True,
    absent: Absent = "count",
    smooth: NonNegativeFloat = 1.0,
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return one minus the Tversky index, TP / (TP + alpha FP + beta FN) a class (Salehi et al. 2017, eq. 3).

    `gamma`: power of each class's loss (the focal Tversky loss of Abraham and Khan 2019 writes 1 / gamma). Alpha = beta
    = 0.5 is Dice (with half of its `smooth`). The rest as in `dice`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    both, predicted, true = _sums(ready, reduction)
    index = (both + smooth) / (both + alpha * (predicted - both) + beta * (true - both) + smooth).clamp_min(1e-7)
    loss = (1 - index).clamp_min(1e-7) ** gamma if gamma != 1 else 1 - index
    return _over_classes(loss, true, ready, weights, background, absent, reduction)


def _lovasz_slope(sorted_truth: Tensor) -> Tensor:
    """Return the gradient of the Lovász extension of the Jaccard loss (Berman et al. 2018, algorithm 1)."""
    total = sorted_truth.sum()
    intersection = total - sorted_truth.cumsum(0)
    union = total + (1 - sorted_truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def _lovasz_softmax(p: Tensor, t: Tensor, share: Tensor, absent: Absent) -> Tensor:
    """Return the Lovász-softmax of (K, N) probabilities and truths."""
    losses, weights = [], []
    for plane, truth, weight in zip(p, t, share, strict=True):
        if float(weight) == 0 or (absent == "skip" and not bool(truth.any())):
            continue
        errors, order = (truth - plane).abs().sort(descending=True)
        losses.append(errors @ _lovasz_slope(truth[order]) * weight)
        weights.append(weight)
    return torch.stack(losses).sum() / torch.stack(weights).sum() if losses else p.sum() * 0


def _lovasz_hinge(logits: Tensor, t: Tensor) -> Tensor:
    """Return the Lovász hinge of (N,) logits and truths."""
    errors, order = (1 - logits * (2 * t - 1)).sort(descending=True)
    return F.relu(errors) @ _lovasz_slope(t[order])


def lovasz(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode = "multiclass",
    weights: Weights = None,
    background: bool = True,
    absent: Absent = "skip",
    valid: Tensor | None = None,
    has: Tensor | None = None,
    ignore: int | None = None,
    reduction: Reduction = "sample",
) -> Tensor:
    """Return the Lovász-softmax ("multiclass") or the mean Lovász hinge of the planes (Berman et al. 2018).

    `absent`: whether classes without a true pixel count ("multiclass"). The rest as in `dice`.
    """
    ready = prepare(logits, target, mode, valid, has, ignore)
    K = logits.shape[1]
    share = class_weights(None if K == 1 else weights, K, ready.logits)
    if not background and K > 1 and ready.index is not None:
        share = share * (torch.arange(K, device=share.device) > 0)
    p = ready.probabilities if ready.index is not None else ready.logits
    mask = ready.mask.expand_as(p).bool()

    def one(chosen: slice) -> Tensor:
        if ready.index is not None:
            inside = mask[chosen, 0]
            values, truths = (x[chosen].movedim(1, -1)[inside].T for x in (p, ready.planes))
            return _lovasz_softmax(values, truths, share, absent)
        planes = [
            _lovasz_hinge(p[chosen, k][mask[chosen, k]], ready.planes[chosen, k][mask[chosen, k]]) * share[k]
            if bool(mask[chosen, k].any())
            else p[chosen, k].sum() * 0
            for k in range(K)
        ]
        return torch.stack(planes).sum() / share.sum()

    if reduction == "batch":
        return one(slice(None))
    return over_samples(torch.stack([one(slice(b, b + 1)) for b in range(len(p))]), reduction)
