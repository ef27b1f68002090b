"""Differences of pictures at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _blurred(x: Tensor, taps: Tensor) -> Tensor:
    """Return the picture blurred by the same taps both ways, mirrored at its borders."""
    channels, reach = x.shape[1], len(taps) // 2
    taps = taps.to(x)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    x = F.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def gaussian_pyramid(x: Tensor, levels: int = 5) -> list[Tensor]:
    """Return `levels` + 1 pictures, finest first: each blurred by [1, 4, 6, 4, 1] / 16 before it is halved.

    The first is of full size and blurred already; the last is the last but one, every second pixel of it.
    """
    found = []
    for _ in range(levels):
        x = _blurred(x, torch.tensor([1.0, 4, 6, 4, 1]) / 16)
        found.append(x)
        x = x[:, :, ::2, ::2]
    return [*found, x]


def level_l1(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference at each level, (levels,)."""
    return torch.stack([F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)])


def gaussian_pyramid_l1(fake: Tensor, real: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the mean over levels of `weights` (finest first) times the mean absolute difference; a scalar.

    Divided by the number of levels, not by the sum of weights. Source: Li et al., MICCAI 2023, section 2.3.
    """
    depth = len(weights) - 1
    each = level_l1(gaussian_pyramid(fake, depth), gaussian_pyramid(real, depth))
    return (each * each.new_tensor(weights)).mean()


def octaves(x: Tensor, count: int = 4, blurs: int = 4, sigma: float = 1.0, size: int = 3) -> list[Tensor]:
    """Return `count` pictures: the picture itself, then each after `blurs` Gaussian blurs and a halving.

    Source: Liu et al., CVPR Workshops 2022 (PyramidPix2pix), section 4.2.
    """
    place = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-place.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).float()
    found = [x]
    for _ in range(count - 1):
        for _ in range(blurs):
            x = _blurred(x, taps)
        x = x[:, :, ::2, ::2]
        found.append(x)
    return found
