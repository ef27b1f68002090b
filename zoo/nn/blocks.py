"""Small convolutional blocks."""

from __future__ import annotations

from typing import Literal

from torch import nn

from zoo.nn.norms import InstanceNorm2d

Norm = Literal["batch", "group", "instance", "none"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return a normalisation of (B, channels, H, W); "group" has groups of 16 channels, or of the largest that fits."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        size = max(s for s in range(1, 17) if channels % s == 0)
        return nn.GroupNorm(channels // size, channels)
    return InstanceNorm2d(channels, affine=True) if norm == "instance" else nn.Identity()


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation: (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm: Norm = "batch", groups: int = 1
    ) -> None:
        convolution = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=norm in ("none", "instance")
        )
        super().__init__(convolution, norm_layer(norm, outputs), nn.ReLU(inplace=True))
