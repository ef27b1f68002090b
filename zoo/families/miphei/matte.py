"""MIPHEI-ViT's generator: a plain transformer's last map, a stream of detail on the picture, four fusions (section 3 of
arXiv 2505.10294, after ViTMatte, Yao et al. 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders import Encoder
from zoo.families.miphei.heads import Heads

GRID = 16
"""Stride of the map that the first fusion doubles."""

Seen = dict[str, Tensor]
"""Intermediate maps by name, filled where someone wants them."""


class ConvBlock(nn.Module):
    """3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return F.relu(self.bn(self.conv(x)))


class Fusion(nn.Module):
    """Double a map, put the detail before it, mix both."""

    def __init__(self, detail: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBlock(detail + inputs, outputs)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        """Return (B, outputs, 2 h, 2 w)."""
        larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        mixed: Tensor = self.conv(torch.cat([detail, larger], 1))
        return mixed


def on_grid(x: Tensor, size: Sequence[int], mode: str = "bicubic") -> Tensor:
    """Return (B, D, ceil(H / 16), ceil(W / 16)) of a map of a picture of `size` (H, W), whatever its own stride is.

    A patch of 14 leaves up to 13 pixels at the right and below unseen; its grid is stretched over the whole picture all
    the same, because the published weights were trained so.
    """
    wanted = tuple(-(-n // GRID) for n in size)
    if tuple(x.shape[-2:]) == wanted:
        return x
    return F.interpolate(x, size=wanted, mode=mode, align_corners=False if mode == "bicubic" else None)


class Matte(nn.Module):
    """(B, C, H, W), sides multiples of 16 (of 32 for a hierarchical encoder) -> what goes into tanh, (B, M, H, W).

    `detail`: widths of the stream at 1/2, 1/4 and 1/8. `fusion`: widths of the stages, from 1/8 to full size.
    """

    def __init__(
        self,
        encoder: Encoder,
        markers: int,
        detail: Sequence[int] = (48, 96, 192),
        fusion: Sequence[int] = (256, 128, 64, 32),
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        widths = [encoder.in_channels, *detail]
        self.detail = nn.ModuleList(ConvBlock(a, b, 2) for a, b in itertools.pairwise(widths))
        befores = [encoder.channels[-1], *fusion]
        self.fusion = nn.ModuleList(
            Fusion(d, a, b) for d, a, b in zip(widths[::-1], befores, befores[1:], strict=False)
        )
        self.heads = Heads(fusion[-1], markers, gated)
        self.divisor = GRID if encoder.patch else max(encoder.strides[-1], GRID)

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        """Return what goes into tanh; `seen` gets "encoder.tokens", "encoder.features", "detail.D3", "fusion.0" ..."""
        found = self.encoder(x, pad=not self.encoder.patch)
        features = on_grid(found.maps[-1], x.shape[-2:])
        streams = [x]
        for block in self.detail:
            streams.append(block(streams[-1]))
        kept: Seen = {"encoder.features": features}
        if found.tokens is not None:
            kept["encoder.tokens"] = torch.cat([*found.prefix[-1:], found.tokens], 1)
        for number, (block, stream) in enumerate(zip(self.fusion, reversed(streams), strict=True)):
            features = kept[f"fusion.{number}"] = block(features, stream)
        kept |= {f"detail.D{number}": stream for number, stream in enumerate(streams)}
        if seen is not None:
            seen |= kept
        planes: Tensor = self.heads(features)
        return planes
