"""A U-Net on pixels, small enough to be trained on a CPU, that sees a class map beside the noisy picture.

The picture is folded (`patch` x `patch` pixels become channels) before the first convolution, so that every level works
at half the size or less. Sources: Ho et al., NeurIPS 2020 (the U-Net); Park et al., CVPR 2019 (a class map that changes
what a norm lets through, at every level); Hoogeboom et al., ICML 2023, section 3.3 (folding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.families.diffusion.networks.base import Condition, Network


def sinusoid(time: Tensor, width: int) -> Tensor:
    """Return (B, width) float32: cosines, then sines of `time` (B,) at frequencies from 1 to 1/10000."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 16), channels)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Residual(nn.Module):
    """Two convolutions; between them time (and embedding) scale and shift every channel, and the class map shifts every
    pixel."""

    def __init__(self, inputs: int, outputs: int, told: int, planes: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.told = nn.Linear(told, 2 * outputs)
        self.norm2, self.conv2 = _norm(outputs), _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.mask = nn.Conv2d(planes, outputs, 1, bias=False) if planes else None
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor, mask: Tensor | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        if self.mask is not None and mask is not None:
            h = h + self.mask(mask)
        found: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return found


class Attention(nn.Module):
    """Self-attention over the pixels of a small map, with a residual."""

    def __init__(self, channels: int, head: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm, self.qkv = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, -1, height * width).transpose(-1, -2).unbind(1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, channels, height, width)
        found: Tensor = x + self.out(seen)
        return found


class PixelUNet(Network):
    """From a noisy picture, its time and its conditions to a prediction of the same shape.

    `channels`: of the picture; `classes`: planes of the condition "mask", 0 = none; `width`: of the condition
    "embedding", 0 = none, of which there are `tokens`: every block hears their mean, and of a square grid of several
    the first convolution also sees each where its cell lies. `features`, `multipliers`, `blocks`: channels and residual
    blocks of the levels, finest first. `patch`: side of what is folded into channels. `attention`: whether the coarsest
    level attends to itself. The null condition is zeros: no class anywhere, no embedding.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 0,
        width: int = 0,
        tokens: int = 1,
        features: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        patch: int = 2,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"network.arguments.features: {features} will not do. Expected an even number, 2 or more")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"network.arguments.multipliers: {list(multipliers)} will not do. Expected 1 or more, each"
            )
        if patch < 1 or blocks < 1:
            raise ValueError(f"network.arguments: patch {patch}, blocks {blocks}. Expected 1 or more of both")
        self.channels, self.outputs, self.classes = channels, channels, classes
        self.width, self.tokens = width, tokens if width else 0
        self.takes = (*(("mask",) if classes else ()), *(("embedding",) if width else ()))
        self.patch, self.features = patch, features
        self.divisor = patch * 2 ** (len(multipliers) - 1)
        told = 4 * features
        self.time = nn.Sequential(nn.Linear(features, told), nn.SiLU(), nn.Linear(told, told))
        self.embed = nn.Sequential(nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told)) if width else None
        self.grid = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features)) if width and tokens > 1 else None
        widths = [features * m for m in multipliers]
        self.stem = nn.Conv2d((channels + classes) * patch**2, features, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, now = [features], features
        for level, wide in enumerate(widths):
            here = nn.ModuleList()
            for _ in range(blocks):
                here.append(Residual(now, wide, told, classes))
                skips.append(now := wide)
            self.down.append(here)
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv2d(now, now, 3, stride=2, padding=1))
            skips += [] if last else [now]
        self.middle = nn.ModuleList([Residual(now, now, told, classes), Residual(now, now, told, classes)])
        self.attention = Attention(now) if attention else None
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            here = nn.ModuleList()
            for _ in range(blocks + 1):
                here.append(Residual(now + skips.pop(), wide, told, classes))
                now = wide
            self.up.append(here)
            self.grow.append(nn.Conv2d(now, now, 3, padding=1) if level else nn.Identity())
        last_conv = nn.Conv2d(now, channels * patch**2, 3, padding=1)
        self.head = nn.Sequential(_norm(now), nn.SiLU(), _zeroed(last_conv))

    def null(self, condition: Condition) -> Condition | None:
        """Return zeros in the place of everything that is told."""
        return {name: torch.zeros_like(condition[name]) for name in self.takes if name in condition}

    def _told(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return (B, D): what every block hears of time and embedding."""
        told: Tensor = self.time(sinusoid(t, self.features).to(x.dtype))
        if self.embed is not None:
            told = told + self.embed(self._tokens(x, condition).mean(1))
        return F.silu(told)

    def _tokens(self, x: Tensor, condition: Condition) -> Tensor:
        """Return (B, tokens, width), zeros where nothing is told."""
        embedding = condition.get("embedding")
        return x.new_zeros(len(x), self.tokens, self.width) if embedding is None else embedding.to(x.dtype)

    def _placed(self, h: Tensor, condition: Condition) -> Tensor:
        """Return `h` (B, F, H, W) with each token of a grid added where its cell lies, blended between middles."""
        if self.grid is None:
            return h
        side = round(self.tokens**0.5)
        cells = self.grid(self._tokens(h, condition)).transpose(1, 2).unflatten(2, (side, side))
        return h + F.interpolate(cells, h.shape[2:], mode="bilinear")

    def _masks(self, x: Tensor, condition: Condition) -> list[Tensor | None]:
        """Return the class map at full size, then at the size of each level."""
        if not self.classes:
            return [None] * (1 + len(self.down))
        given = condition.get("mask")
        mask = x.new_zeros(len(x), self.classes, *x.shape[2:]) if given is None else given.to(x.dtype)
        return [mask, *(F.avg_pool2d(mask, self.patch * 2**level) for level in range(len(self.down)))]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return (B, channels, h, w)."""
        condition = condition or {}
        told = self._told(x, t, condition)
        full, *masks = self._masks(x, condition)
        h = self.stem(F.pixel_unshuffle(x if full is None else torch.cat([x, full], 1), self.patch))
        h = self._placed(h, condition)
        kept = [h]
        for level, (blocks, shrink) in enumerate(zip(self.down, self.shrink, strict=True)):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, told, masks[level])
                kept += [h]
            if not isinstance(shrink, nn.Identity):
                kept.append(h := shrink(h))
        h = self.middle[0](h, told, masks[-1])
        h = self.attention(h) if self.attention is not None else h
        h = self.middle[1](h, told, masks[-1])
        for level, blocks, grow in zip(reversed(range(len(self.down))), self.up, self.grow, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(torch.cat([h, kept.pop()], 1), told, masks[level])
            if not isinstance(grow, nn.Identity):
                h = grow(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        found: Tensor = F.pixel_shuffle(self.head(h), self.patch)
        return found
