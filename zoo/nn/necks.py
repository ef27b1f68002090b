"""Necks: from the single-scale maps of a plain vision transformer to a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.blocks import Norm, norm_layer


class SimplePyramid(nn.Module):
    """The simple feature pyramid of a plain transformer, from its last map only (Li et al. 2022, ViTDet, section 3).

    A finer level comes from 2 x 2 transposed convolutions (GELU and norm between), the level of the patch from the map
    itself, a coarser one from max pooling; each ends in a 1 x 1 and a 3 x 3 convolution with norms. Strides need not be
    a power of two away from the patch (14): the level is then resized, bilinearly, to the size asked for.
    """

    def __init__(
        self, inputs: int, patch: int, strides: Sequence[int], channels: int | Sequence[int] = 256, norm: Norm = "group"
    ) -> None:
        super().__init__()
        self.patch, self.strides = patch, tuple(strides)
        self.channels = (channels,) * len(self.strides) if isinstance(channels, int) else tuple(channels)
        self.levels = nn.ModuleList(
            self._level(inputs, s, c, norm) for s, c in zip(self.strides, self.channels, strict=True)
        )

    def _level(self, inputs: int, stride: int, outputs: int, norm: Norm) -> nn.Sequential:
        steps = round(math.log2(self.patch / stride))
        parts: list[nn.Module] = []
        width = inputs
        for step in range(steps):
            narrow = max(width // 2, outputs)
            parts.append(nn.ConvTranspose2d(width, narrow, 2, 2))
            if step < steps - 1:
                parts += [norm_layer(norm, narrow), nn.GELU()]
            width = narrow
        parts += [nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(-steps)]
        parts += [nn.Conv2d(width, outputs, 1, bias=norm == "none"), norm_layer(norm, outputs)]
        parts += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=norm == "none"), norm_layer(norm, outputs)]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Return a map (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) a level for a picture of `size`.

        `x`: (B, inputs, ceil(H / patch), ceil(W / patch)). The grid covers a multiple of the patch; what lies outside
        the picture is cut off.
        """
        covered = x.shape[-2] * self.patch, x.shape[-1] * self.patch
        found = []
        for stride, level in zip(self.strides, self.levels, strict=True):
            grid = (-(-covered[0] // stride), -(-covered[1] // stride))
            made = level(x)
            if tuple(made.shape[-2:]) != grid:
                made = F.interpolate(made, size=grid, mode="bilinear", align_corners=False)
            found.append(made[..., : -(-size[0] // stride), : -(-size[1] // stride)])
        return found
