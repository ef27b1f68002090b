"""Resampling by two with a blur, after Zhang, ICML 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlurDownsample(nn.Module):
    """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)): [1, 2, 1] both ways, mirrored borders, every second pixel."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(taps, taps).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class BlurUpsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W): [1, 3, 3, 1] both ways: bilinear interpolation between centres."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger map."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
