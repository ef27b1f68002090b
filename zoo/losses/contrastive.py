"""Contrast between patches: PatchNCE, and its adaptive, supervised form."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Schedule = Literal["sigmoid", "linear", "lambda", "zero"]
Weighting = Literal["top", "linear", "bell", "uniform"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
_SELF = -10.0
"""Similarity that stands in for a patch's own key among its negatives: it vanishes under any usual temperature."""


def patch_nce(
    queries: Tensor, keys: Tensor, batch: int, temperature: float = 0.07, *, all_negatives: bool = False
) -> Tensor:
    """Return the loss of each patch, (B * P,): cross-entropy of its key among the keys of other patches.

    `queries`, `keys`: (B * P, D) of length 1, image after image; keys carry no gradient. Negatives are the other
    patches of the same image, or of the whole batch (`all_negatives`). Source: Park et al., ECCV 2020, eq. 3.
    """
    keys = keys.detach()
    positive = (queries * keys).sum(1, keepdim=True)
    groups = 1 if all_negatives else batch
    q, k = (t.reshape(groups, -1, t.shape[1]) for t in (queries, keys))
    negatives = q @ k.transpose(1, 2)
    own = torch.eye(negatives.shape[1], dtype=torch.bool, device=q.device)
    negatives = negatives.masked_fill(own, _SELF).flatten(0, 1)
    logits = torch.cat([positive, negatives], 1) / temperature
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, first, reduction="none")


def adaptive_share(schedule: str, epoch: int, constant: int, decay: int) -> float:
    """Return p: how much every patch counts alike, 1 for all and 0 for only as its weight says.

    `epoch` from 1 of `constant` + `decay`. "lambda" keeps 1 for the constant epochs and falls linearly afterwards.
    Source: Li et al., MICCAI 2023, section 2.2.
    """
    total = constant + decay
    t = (epoch - 1) / total
    if schedule == "sigmoid":
        return 1 / (1 + math.exp(10 * (t - 0.5)))
    if schedule == "linear":
        return 1 - t
    if schedule == "lambda":
        knee = 1 - decay / total
        return 1.0 if t < knee else (1 - t) / (1 - knee)
    if schedule == "zero":
        return 1.0
    raise ValueError(f'no schedule "{schedule}". Expected one of {", ".join(SCHEDULES)}')


def similarity_weight(weighting: str, similarity: Tensor) -> Tensor:
    """Return how much a pair of patches of that cosine is believed to show the same tissue."""
    x = similarity
    if weighting == "top":
        return (1 - (x.clamp_min(0) - 1).square()).clamp_min(0).sqrt()
    if weighting == "linear":
        return x.clamp_min(0)
    if weighting == "bell":
        return torch.exp(-(4 * (x - 0.5)).square() / 2) / math.sqrt(2 * math.pi)
    if weighting == "uniform":
        return torch.ones_like(x)
    raise ValueError(f'no weighting "{weighting}". Expected one of {", ".join(WEIGHTINGS)}')


def adaptive_weights(queries: Tensor, keys: Tensor, weighting: str, share: float) -> Tensor:
    """Return (N,) weights of mean 1, without gradient: `share + (1 - share) * weight`, over all patches."""
    similarity = (queries * keys).sum(1).detach()
    weights = share + (1 - share) * similarity_weight(weighting, similarity)
    return weights * (len(weights) / weights.sum().clamp_min(1e-12))
