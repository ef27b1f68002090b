"""Cerberus's network: decoders that add what the encoder saw, dense heads, the head that names a patch.

Graham et al. 2022, "One model is all you need", section 3; the details are those of the released network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nn.blocks import ConvNormAct


class Unit(nn.Module):
    """3x3 convolution with bias, batch norm, ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Decoder(nn.Module):
    """From the deepest map to the finest level: doubled, the level added, two units; level by level.

    `widths`: channels of the levels, finest first. `forward(deepest, levels)`: `deepest` (B, widths[-1], h, w) is twice
    as coarse as the coarsest of `levels`, level i (B, widths[i], H / 2**i, W / 2**i). Returns (B, widths[0], H, W).
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        falling = list(range(len(widths)))[::-1]
        self.blocks = nn.ModuleList(
            nn.Sequential(Unit(widths[i], widths[i]), Unit(widths[i], widths[max(i - 1, 0)])) for i in falling
        )

    def forward(self, deepest: Tensor, levels: Sequence[Tensor]) -> Tensor:
        x = deepest
        for block, level in zip(self.blocks, reversed(levels), strict=True):
            x = block(F.interpolate(x, size=level.shape[-2:], mode="bilinear", align_corners=False) + level)
        return x


class DenseHead(nn.Sequential):
    """1x1 convolution, norm, ReLU, 1x1 convolution: (B, inputs, H, W) -> raw logits (B, planes, H, W)."""

    def __init__(self, inputs: int, planes: int, width: int = 96) -> None:
        super().__init__(Unit(inputs, width, 1), nn.Conv2d(width, planes, 1))


class PatchHead(nn.Module):
    """The class of the tissue around a point, from the mean of the deepest map over a window.

    `window`: cells of the deepest map on a side (published: 9, which is 144 pixels); None = the whole map.
    """

    def __init__(
        self, inputs: int, planes: int, window: int | None, dropout: float = 0.3, linear: bool = False
    ) -> None:
        super().__init__()
        self.window = window
        if linear:
            self.layers = nn.Sequential(nn.Conv2d(inputs, planes, 1))
        else:
            middle = max(inputs // 2, planes)
            self.layers = nn.Sequential(
                nn.BatchNorm2d(inputs),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Conv2d(inputs, middle, 1),
                nn.BatchNorm2d(middle),
                nn.ReLU(),
                nn.Conv2d(middle, planes, 1),
            )

    def middle(self, deepest: Tensor) -> Tensor:
        """Return the logits (B, planes, 1, 1) of the middle window, where the window begins at int((size - w) / 2).

        As published, the map is cut only where both sides differ from the window; else its mean is taken whole.
        """
        if self.training and len(deepest) < 2 and len(self.layers) > 1:  # norms see one value a picture
            raise UserError("cerberus: a patch head learns from batches of 2 or more. Raise data.train.batch.")
        window, (height, width) = self.window, deepest.shape[-2:]
        if window is not None and height != window and width != window:
            top, left = max(0, int((height - window) * 0.5)), max(0, int((width - window) * 0.5))
            deepest = deepest[..., top : top + window, left : left + window]
        result: Tensor = self.layers(deepest.mean((2, 3), keepdim=True))
        return result

    def everywhere(self, deepest: Tensor) -> Tensor:
        """Return the logits (B, planes, h, w) of the window around every cell; at the border, of what there is.

        For a head that has a window.
        """
        assert self.window is not None
        before, after = self.window // 2, (self.window - 1) // 2
        padded = F.pad(deepest, (before, after, before, after))
        there = F.pad(torch.ones_like(deepest[:1, :1]), (before, after, before, after))
        summed = F.avg_pool2d(padded, self.window, 1) / F.avg_pool2d(there, self.window, 1)
        result: Tensor = self.layers(summed)
        return result


def lateral(inputs: int, outputs: int, made: bool) -> nn.Module:
    """Return what brings a level to a decoder's width: nothing where it has it, units on the picture (`made`)."""
    if made:
        return ConvNormAct(inputs, outputs)
    return nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)


def initialise(module: nn.Module) -> None:
    """Set convolutions as published: normal of the fan out (He et al. 2015), biases as torch does."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
