"""Queries of training that begin near a truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.losses.detection import Match, Objects
from zoo.nn.boxes import to_centres, to_corners


def noisy_queries(
    labels: Tensor, boxes: Tensor, *, groups: int, noise: float, classes: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return labels (B, groups * N) and boxes (B, groups * N, 4) of noisy copies of truths (Li et al. 2022, DN-DETR,
    section 4.4; corners as in DINO).

    `labels` (B, N) and `boxes` (B, N, 4) are padded truths. Each corner moves by up to `noise` half sizes; a share of
    `noise` / 2 of the labels becomes any of `classes`, which begin at label `first`. Draws from torch's global random
    state.
    """
    labels, places = labels.repeat(1, groups), boxes.repeat(1, groups, 1)
    wrong = torch.rand(labels.shape, device=labels.device) < noise / 2
    labels = torch.where(wrong, torch.randint_like(labels, first, first + classes), labels)
    half = torch.cat([places[..., 2:], places[..., 2:]], -1) / 2
    moved = to_corners(places) + (torch.rand_like(places) * 2 - 1) * noise * half
    low, high = moved[..., :2], moved[..., 2:]
    corners = torch.cat([torch.minimum(low, high), torch.maximum(low, high)], -1).clamp(0, 1)
    return labels, to_centres(corners).clamp(1e-4, 1 - 1e-4)


def noisy_matches(truths: Sequence[Objects], groups: int, size: int) -> tuple[list[Match], Tensor]:
    """Return which of `groups` times `size` noisy queries of each image learns which truth, and (B, groups * size)
    bool: which of them stand for one."""
    device = truths[0].labels.device
    first = torch.arange(groups, device=device) * size
    real = torch.zeros(len(truths), groups, size, dtype=torch.bool, device=device)
    found: list[Match] = []
    for i, truth in enumerate(truths):
        own = torch.arange(len(truth), device=device)
        found.append(((first[:, None] + own).flatten(), own.repeat(groups)))
        real[i, :, : len(truth)] = True
    return found, real.flatten(1)
