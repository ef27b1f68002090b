"""What stands on an encoder of the zoo in place of a published backbone: blocks from the coarsest level up to the grid.

Each block enlarges what comes from below to the next finer level, puts the two side by side and convolves twice
(Ronneberger et al. 2015), in 2-D and in 3-D. The last one is resized to the grid where no level lies on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders import Pyramid, build_encoder
from zoo.encoders.listing import info
from zoo.nn.norms import InstanceNorm2d, InstanceNorm3d

MONAI = ("resnet10", "resnet18", "resnet34", "resnet50")
"""Networks of MONAI that serve as 3-D encoders."""


def norm_of(norm: str, channels: int, dims: int) -> nn.Module:
    """Return a normalisation of (B, channels, *S) with `dims` axes."""
    if norm == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    if norm == "group":
        return nn.GroupNorm(channels // max(s for s in range(1, 17) if channels % s == 0), channels)
    if norm == "instance":
        return InstanceNorm2d(channels, affine=True) if dims == 2 else InstanceNorm3d(channels, affine=True)
    return nn.Identity()


class Block(nn.Sequential):
    """Two 3-wide convolutions, each with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: str, dims: int) -> None:
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        bias = norm in ("none", "instance")
        super().__init__(
            convolution(inputs, outputs, 3, padding=1, bias=bias),
            norm_of(norm, outputs, dims),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs, 3, padding=1, bias=bias),
            norm_of(norm, outputs, dims),
            nn.ReLU(inplace=True),
        )


class Upward(nn.Module):
    """Levels, finest first, to one map at the size of the first: (B, `channels`, ...)."""

    def __init__(self, levels: Sequence[int], widths: Sequence[int], norm: str, dims: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        width = levels[-1]
        for number, skip in enumerate(reversed(levels[:-1])):
            outputs = widths[min(number, len(widths) - 1)]
            self.blocks.append(Block(width + skip, outputs, norm, dims))
            width = outputs
        self.channels = width

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        x = levels[-1]
        for block, skip in zip(self.blocks, reversed(levels[:-1]), strict=True):
            x = block(torch.cat([resized(x, skip.shape[2:]), skip], dim=1))
        return x


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map at another size, by the nearest pixel."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size=tuple(size), mode="nearest")


class EncoderBackbone(nn.Module):
    """An encoder of the zoo and the blocks on it. `divisor`: what each axis of the input must be a multiple of."""

    def __init__(self, dims: int, in_channels: int, grid: Sequence[int], options: Any) -> None:
        super().__init__()
        self.grid = tuple(grid)
        name, arguments = options.encoder.name, {"weights": options.encoder_weights, **options.encoder.arguments}
        decoder = options.decoder
        if dims == 2:
            finest = min(grid)
            strides = [s for s in (1, 2, 4, 8, 16, 32) if s >= finest]
            known = info(name)
            deepest = max(known.strides[-1], finest)
            self.pyramid: Any = Pyramid(
                build_encoder(name, in_channels=in_channels, **arguments), [s for s in strides if s <= deepest]
            )
            levels: Sequence[int] = self.pyramid.channels
            step = max(self.pyramid.encoder.divisor, deepest)
        else:
            self.pyramid = MonaiLevels(name, in_channels, arguments)
            levels, step = self.pyramid.channels, self.pyramid.divisor
        self.divisor = tuple(max(step, g) for g in grid)
        self.upward = Upward(levels, decoder.widths, decoder.norm, dims)
        self.channels = self.upward.channels

    def forward(self, x: Tensor, trace: dict[str, Tensor]) -> Tensor:
        """Return (B, channels, *S / grid)."""
        levels = list(self.pyramid(x))
        for i, level in enumerate(levels):
            trace[f"level{i}"] = level
        size = [n // g for n, g in zip(x.shape[2:], self.grid, strict=True)]
        while len(levels) > 2 and all(n > s for n, s in zip(levels[1].shape[2:], size, strict=True)):
            levels.pop(0)
        return resized(self.upward(levels), size)


class MonaiLevels(nn.Module):
    """The levels of a 3-D ResNet of MONAI: the volume itself, then strides 2, 4, 8, 16 and 32 along each axis.

    Weights of MONAI's own hub are not asked for here: `train.weights` starts from any file.
    """

    def __init__(self, name: str, in_channels: int, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        from monai.networks import nets

        if name not in MONAI:
            raise ValueError(f'no 3-D encoder "{name}". Expected one of {", ".join(MONAI)}')
        given = dict(arguments)
        if given.pop("weights", "none") != "none":
            raise ValueError("encoder_weights of a 3-D encoder are not known. Use none, and train.weights for a file")
        made = getattr(nets, name)(spatial_dims=3, n_input_channels=in_channels, feed_forward=False, **given)
        self.stem = nn.Sequential(made.conv1, made.bn1, nn.ReLU(inplace=True))
        self.pool = made.maxpool
        self.stages = nn.ModuleList([made.layer1, made.layer2, made.layer3, made.layer4])
        self.divisor = 32
        was = self.training
        with torch.no_grad():
            found = self.eval()(torch.zeros(1, in_channels, 32, 32, 32))
        self.train(was)
        self.channels = [int(level.shape[1]) for level in found]

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [x]
        y = self.stem(x)
        found.append(y)
        y = self.pool(y)
        for stage in self.stages:
            y = stage(y)
            found.append(y)
        return found
