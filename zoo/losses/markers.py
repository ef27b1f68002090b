"""Losses of predicted marker pictures (virtual immunofluorescence): MIPHEI-ViT's (arXiv 2505.10294), on values.

Pictures are (B, C, H, W) float, a channel a marker, values as the network paints them (from -0.9, nothing, to 0.9).
`known` is bool, broadcastable to (B, C, H, W): False in padding and where a sample does not carry a marker; None = all
is known. What is not known neither counts nor divides; a batch in which nothing is known costs 0. None of these knows
its weight: published ones are 50 (10 for `l1_l2`), and stand in the recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def contrast_weights(std: Tensor) -> Tensor:
    """Return (C,) weights (1 / std) / min(1 / std) of markers whose pictures spread by `std`: 1 for the widest."""
    return std.max() / std


def foreground_weights(share: Tensor) -> Tensor:
    """Return (C,) weights max((1 - share) / share, 1) of markers whose foreground is that share of the pixels."""
    return ((1 - share) / share.clamp_min(1e-6)).clamp_min(1)


def _filled(known: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if known is None else known.expand_as(like).to(like.dtype)


def _mean(values: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean over what is known."""
    if known is None:
        return values.mean()
    mask = _filled(known, values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


def _channel(weights: Tensor, like: Tensor) -> Tensor:
    return weights.to(like).reshape(1, -1, 1, 1)


def mae(picture: Tensor, target: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference."""
    return _mean((picture - target).abs(), known)


def mse(picture: Tensor, target: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Return the mean squared difference."""
    return _mean((picture - target).square(), known)


def l1_l2(picture: Tensor, target: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Return half the mean absolute plus half the mean squared difference."""
    return (mae(picture, target, known=known) + mse(picture, target, known=known)) / 2


def weighted_mse(picture: Tensor, target: Tensor, *, weights: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean over markers of their weight times their mean squared difference; markers not known are left out.

    `weights`: (C,), of `contrast_weights` in the published training. They are not normalised.
    """
    error = (picture - target).square()
    mask = _filled(known, error)
    count = mask.sum((0, 2, 3))
    each = (error * mask).sum((0, 2, 3)) / count.clamp_min(1)
    return (weights.to(each) * each).sum() / (count > 0).sum().clamp_min(1)


def focal_l1(picture: Tensor, target: Tensor, *, foreground: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean over pixels of the sum over markers of |d|^3, weighted by `foreground` (C,) over its sum."""
    share = _channel(foreground / foreground.sum(), picture)
    return _mean((picture - target).abs().pow(3) * share, known) * picture.shape[1]


def shrinkage(picture: Tensor, target: Tensor, *, foreground: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean over pixels of the sum over markers of d^2 / (1 + exp(10 (0.2 - |d|))), weighted by `foreground`
    over its sum: small differences hardly count (Lu et al., ECCV 2018, eq. 5)."""
    share = _channel(foreground / foreground.sum(), picture)
    off = (picture - target).abs()
    return _mean(off.square() * torch.sigmoid(10 * (off - 0.2)) * share, known) * picture.shape[1]


def weighted_mae(
    picture: Tensor, target: Tensor, *, foreground: Tensor, threshold: float = -0.9, known: Tensor | None = None
) -> Tensor:
    """Return twice the mean absolute difference, pixels whose target is above `threshold` times `foreground` (C,)."""
    factor = torch.where(target > threshold, _channel(foreground, picture), picture.new_ones(()))
    return 2 * _mean((picture - target).abs() * factor, known)


def edge(picture: Tensor, target: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference of the Sobel derivatives across plus that of those down, each marker alone.

    The published code works for one marker only; this is that for any number.
    """
    across = picture.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    off = (picture - target).flatten(0, 1)[:, None]
    slopes = F.conv2d(off, kernels, padding=1).abs().sum(1)
    return _mean(slopes.view_as(picture), known)


def total_variation(picture: Tensor, _target: Tensor | None = None, *, known: Tensor | None = None) -> Tensor:
    """Return the mean absolute step to the next pixel across plus that down; the target does not matter."""
    filled = None if known is None else known.expand_as(picture)
    found = picture.new_zeros(())
    for axis in (2, 3):
        size = picture.shape[axis] - 1
        step = (picture.narrow(axis, 1, size) - picture.narrow(axis, 0, size)).abs()
        both = None if filled is None else filled.narrow(axis, 1, size) & filled.narrow(axis, 0, size)
        found = found + _mean(step, both)
    return found


def foreground_focal(logits: Tensor, mask: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Return the mean of alpha (1 - exp(-b))^gamma b, b the binary cross-entropy: `alpha` is the same for both classes.

    `logits`, `mask` of one shape; `mask` is 1 where there is foreground.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, mask.to(logits), reduction="none")
    return (alpha * (1 - torch.exp(-entropy)).pow(gamma) * entropy).mean()


def foreground_term(
    picture: Tensor, target: Tensor, *, foreground_logits: Tensor, limit: float = 0.9, known: Tensor | None = None
) -> Tensor:
    """Return `foreground_focal` of the logits (B, C, H, W) of a head that says where a marker's value is above
    -`limit`, over what is known; what is painted does not matter."""
    wanted = target > -limit
    if known is None:
        return foreground_focal(foreground_logits, wanted)
    there = known.expand_as(picture)
    return foreground_focal(foreground_logits[there], wanted[there]) if there.any() else foreground_logits.sum() * 0


def bce_dice(logits: Tensor, mask: Tensor, *, positive_weight: float | Tensor = 1.0, smooth: float = 1e-5) -> Tensor:
    """Return the binary cross-entropy, positives times `positive_weight`, plus 1 minus the soft Dice of all pixels of
    the batch together."""
    true = mask.to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, true, pos_weight=torch.as_tensor(positive_weight).to(logits))
    p = logits.sigmoid()
    return entropy + 1 - (2 * (p * true).sum() + smooth) / (p.sum() + true.sum() + smooth)


# --- cells ------------------------------------------------------------------------------------------------------------


def cell_means(picture: Tensor, nuclei: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each nucleus in each channel, (N, C), and its label, (N,): image by image, labels ascending.

    `picture` (B, C, H, W), `nuclei` (B, H, W) integer labels of each image, 0 background.
    """
    labels = nuclei.long().flatten(1)
    above = labels.max() + 1 if labels.numel() else labels.new_ones(())
    places = labels + torch.arange(len(labels), device=labels.device)[:, None] * above
    keys, index = torch.unique(places, return_inverse=True)
    flat = picture.movedim(1, -1).flatten(0, 2)
    total = flat.new_zeros((len(keys), flat.shape[1])).index_add(0, index.flatten(), flat)
    count = torch.bincount(index.flatten(), minlength=len(keys)).to(flat)
    ids = keys % above
    kept = ids > 0
    return (total / count[:, None])[kept], ids[kept]


def cell_mse(picture: Tensor, target: Tensor, *, nuclei: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the nuclei's means; 0 where there is no nucleus.

    `known`: (B, C) or broadcastable to the picture; a marker counts for an image where it is known somewhere.
    """
    if known is not None:
        whole = known.expand_as(picture) if known.ndim == 4 else known[:, :, None, None].expand_as(picture)
        nuclei = torch.where(whole.any(1), nuclei, torch.zeros_like(nuclei))
    ours, _ = cell_means(picture, nuclei)
    theirs, _ = cell_means(target, nuclei)
    if not len(ours):
        return picture.sum() * 0
    off = (ours - theirs).square()
    if known is None:
        return off.mean()
    there, _ = cell_means(whole.to(picture), nuclei)
    return _mean(off, there > 0.5)


class CellClusters(nn.Module):
    """A small frozen network from a nucleus's means (N, C), 0 to 255, to what it is: (N, K) logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, clusters: int, hidden: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        widths = [channels, *[hidden] * (layers - 1), clusters]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.requires_grad_(False)

    def forward(self, means: Tensor) -> Tensor:
        """Return logits of means on the scale 0 to 255."""
        x = (means - self.mean) / self.std
        for number, layer in enumerate(self.layers):
            x = layer(F.relu(x) if number else x)
        return x


def cell_clusters(
    ours: Tensor,
    theirs: Tensor,
    network: Callable[[Tensor], Tensor],
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return how far the clusters of predicted nuclei are from those of true ones, and the predicted probabilities.

    `ours`, `theirs` (N, C) means from 0 to 255; `network`: such means -> logits. As published, probabilities (not
    logits) enter the focal loss against what is probable (> 0.5) of the true means.
    """

    def probability(means: Tensor) -> Tensor:
        return network(means).sigmoid().clamp(eps, 1 - eps)

    found = probability(ours)
    with torch.no_grad():
        wanted = (probability(theirs) > 0.5).to(found)
    return foreground_focal(found, wanted, alpha=alpha, gamma=gamma), found


def cell_cluster(
    picture: Tensor,
    target: Tensor,
    *,
    nuclei: Tensor,
    network: Callable[[Tensor], Tensor],
    limit: float = 0.9,
    known: Tensor | None = None,
) -> Tensor:
    """Return `cell_clusters` of the nuclei's means in painted and true values (from -`limit` to `limit`), brought to 0
    to 255; 0 where there is no nucleus.

    `known` as in `cell_mse`. `network` looks at all markers, so nuclei of an image that lacks one are left out.
    """
    if known is not None:
        complete = known.expand_as(picture).flatten(2).any(2).all(1)
        nuclei = torch.where(complete[:, None, None], nuclei, torch.zeros_like(nuclei))
    ours, _ = cell_means(picture, nuclei)
    theirs, _ = cell_means(target, nuclei)
    if not len(ours):
        return picture.sum() * 0
    units = 255 / (2 * limit)
    return cell_clusters((ours + limit) * units, (theirs + limit) * units, network)[0]


NEEDS: dict[str, tuple[str, ...]] = {
    "mae": (),
    "mse": (),
    "l1_l2": (),
    "weighted_mse": ("weights",),
    "focal_l1": ("foreground",),
    "shrinkage": ("foreground",),
    "weighted_mae": ("foreground",),
    "edge": (),
    "total_variation": (),
    "cell_mse": ("nuclei",),
    "cell_cluster": ("nuclei", "network", "limit"),
    "foreground_focal": ("foreground_logits", "limit"),
}
"""Losses of a picture against a picture, and what each needs besides."""

LOSSES: dict[str, Callable[..., Any]] = {
    "mae": mae,
    "mse": mse,
    "l1_l2": l1_l2,
    "weighted_mse": weighted_mse,
    "focal_l1": focal_l1,
    "shrinkage": shrinkage,
    "weighted_mae": weighted_mae,
    "edge": edge,
    "total_variation": total_variation,
    "cell_mse": cell_mse,
    "cell_cluster": cell_cluster,
    "foreground_focal": foreground_term,
}
"""The same by name."""
