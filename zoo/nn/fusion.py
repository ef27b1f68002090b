"""Necks of detectors: from a backbone's maps of several strides to maps of one width, each with the others' meaning.

All take maps finest first, each half the size of the one before (rounded up), add levels of further strides where more
are wanted, and return `levels` maps of `width` channels, finest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError

EPSILON = 1e-4


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups, or of as many as divide the channels; of two channels a group at least, so that
    a level of one pixel has something to norm."""
    return nn.GroupNorm(math.gcd(32, max(channels // 2, 1)), channels)


def _projection(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), group_norm(outputs))


def fit(map_: Tensor, like: Tensor) -> Tensor:
    """Return a map at the size of another, by bilinear interpolation where it differs."""
    size = like.shape[-2:]
    return map_ if map_.shape[-2:] == size else F.interpolate(map_, size=size, mode="bilinear", align_corners=False)


class PlainNeck(nn.Module):
    """A 1 x 1 convolution a map; further levels by 3 x 3 convolutions of stride 2, the first of the deepest raw map
    (Zhu et al. 2021, section A.2)."""

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        extra = _extra(channels, levels)
        more = [_projection(channels[-1] if i == 0 else width, width, 3, 2) for i in range(extra)]
        self.input_proj = nn.ModuleList([*(_projection(c, width) for c in channels), *more])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels."""
        found = [project(map_) for project, map_ in zip(self.input_proj, maps, strict=False)]
        last = maps[-1]
        for project in list(self.input_proj)[len(maps) :]:
            last = project(last)
            found.append(last)
        return found


class ChannelGate(nn.Module):
    """Channel attention: sigmoid of what two 1 x 1 convolutions make of the average and of the maximum of a map."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight of each channel, (B, C, 1, 1) in [0, 1]."""
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        one, two = (self.conv2(F.relu(self.conv1(p))) for p in pooled)
        return torch.sigmoid(one + two)


class SelfGate(ChannelGate):
    """A map weighed by its own channel attention."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return super().forward(x) * x


class HighLevelScreening(nn.Module):
    """HS-FPN (Chen et al. 2024, MFDS-DETR, section 3.2): the deepest level selects what of the finer ones counts.

    An extra level of half the deepest map's size and twice its channels is made first. Every level is gated by its own
    channels and brought to `width`; the extra level, enlarged step by step, weighs the channels of each finer level and
    is added to it. No finer level feeds another.
    """

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        if levels != len(channels) + 1:
            raise UserError(
                f"neck hs-fpn: {levels} levels of {len(channels)} maps. Expected one level more than maps. "
                f"Set levels: {len(channels) + 1}, or choose another neck."
            )
        deepest, middle, top = channels[-1], channels[-1] // 2, channels[-1] * 2
        self.top_feature_proj = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(deepest, middle, 1),
                    nn.Conv2d(middle, middle, 3, 2, 1),
                    nn.Conv2d(middle, top, 1),
                    group_norm(top),
                )
            ]
        )
        coarse_first = (top, *reversed(channels))
        self.upbottom_conv = nn.ModuleList(nn.Sequential(SelfGate(c), nn.Conv2d(c, width, 1)) for c in coarse_first)
        self.weight_conv = nn.ModuleList(nn.Sequential(ChannelGate(width)) for _ in channels)
        self.up_sample_conv = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(width, width, 3, 2, 1, output_padding=1)) for _ in channels
        )
        self.lateral_conv = nn.ModuleList(_projection(width, width, 3) for _ in range(levels))

    def top(self, deepest: Tensor) -> Tensor:
        """Return the extra level, (B, 2 C, ceil(h / 2), ceil(w / 2)) of (B, C, h, w)."""
        made: Tensor = self.top_feature_proj[0](deepest)
        return made

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels."""
        raw = [self.top(maps[-1]), *reversed(maps)]
        small = [shrink(m) for shrink, m in zip(self.upbottom_conv, raw, strict=True)]
        fused, high = [small[0]], small[0]
        for enlarge, select, own in zip(self.up_sample_conv, self.weight_conv, small[1:], strict=True):
            high = enlarge(high)
            laid = fit(high, own)
            fused.append(select(laid) * own + laid)
        return [F.relu(out(f)) for out, f in zip(self.lateral_conv, reversed(fused), strict=True)]


class TopDown(nn.Module):
    """FPN (Lin et al. 2017), and with `up` PAFPN (Liu et al. 2018): maps of one width, summed from the top down, then
    from the bottom up."""

    def __init__(self, channels: Sequence[int], width: int, levels: int, *, up: bool = False) -> None:
        super().__init__()
        self.inputs = PlainNeck(channels, width, levels)
        self.down = nn.ModuleList(_projection(width, width, 3) for _ in range(levels))
        steps = levels - 1 if up else 0
        self.shrink = nn.ModuleList(_projection(width, width, 3, 2) for _ in range(steps))
        self.up = nn.ModuleList(_projection(width, width, 3) for _ in range(steps))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels."""
        found = self.inputs(maps)
        for level in range(len(found) - 2, -1, -1):
            found[level] = found[level] + F.interpolate(found[level + 1], size=found[level].shape[-2:])
        found = [out(f) for out, f in zip(self.down, found, strict=True)]
        for level, (shrink, out) in enumerate(zip(self.shrink, self.up, strict=True)):
            found[level + 1] = out(found[level + 1] + F.relu(shrink(found[level])))
        return found


class _Blend(nn.Module):
    """Fast normalised fusion of maps of one size, then a depth-wise and a 1 x 1 convolution (Tan et al. 2020)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.mix = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 1),
            group_norm(width),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        share = self.weights.relu()
        share = share / (share.sum() + EPSILON)
        made: Tensor = self.mix(sum(w * fit(m, maps[0]) for w, m in zip(share, maps, strict=True)))
        return made


class _BiLayer(nn.Module):
    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Blend(2, width) for _ in range(levels - 1))
        self.up = nn.ModuleList(_Blend(2 if i == levels - 2 else 3, width) for i in range(levels - 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        down = list(maps)
        for level in range(len(maps) - 2, -1, -1):
            down[level] = self.down[level](maps[level], down[level + 1])
        found = [down[0]]
        for level in range(1, len(maps)):
            pooled = F.max_pool2d(found[-1], 3, 2, 1)
            middle = () if level == len(maps) - 1 else (down[level],)
            found.append(self.up[level - 1](maps[level], *middle, pooled))
        return found


class BiFPN(nn.Module):
    """BiFPN (Tan et al. 2020, EfficientDet, section 3): learned weights of what is summed, down and up, repeated."""

    def __init__(self, channels: Sequence[int], width: int, levels: int, *, repeats: int = 2) -> None:
        super().__init__()
        self.inputs = PlainNeck(channels, width, levels)
        self.layers = nn.ModuleList(_BiLayer(width, levels) for _ in range(repeats))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels."""
        found: list[Tensor] = self.inputs(maps)
        for layer in self.layers:
            found = layer(found)
        return found


NECKS = ("plain", "hs-fpn", "fpn", "pafpn", "bifpn")
"""Names of the necks."""


def build_neck(name: str, channels: Sequence[int], width: int, levels: int) -> nn.Module:
    """Return a neck by name. Raises `UserError` where it cannot give so many levels."""
    if name == "hs-fpn":
        return HighLevelScreening(channels, width, levels)
    if name == "bifpn":
        return BiFPN(channels, width, levels)
    if name in ("fpn", "pafpn"):
        return TopDown(channels, width, levels, up=name == "pafpn")
    return PlainNeck(channels, width, levels)


def _extra(channels: Sequence[int], levels: int) -> int:
    if levels < len(channels):
        raise UserError(
            f"neck: {levels} levels of {len(channels)} maps. Expected at least one a map. "
            f"Set levels: {len(channels)} or more."
        )
    return levels - len(channels)
