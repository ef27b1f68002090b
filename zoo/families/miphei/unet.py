"""A plain U-Net decoder over a pyramid of stride 4 to 32 (ConvNeXt), with dropout in two of its blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders import Encoder
from zoo.families.miphei.heads import Heads
from zoo.families.miphei.matte import Seen


class Block(nn.Module):
    """Double by repeating pixels, put the skip behind, two convolutions with batch norm and ReLU."""

    def __init__(self, inputs: int, skip: int, outputs: int, dropout: float) -> None:
        super().__init__()
        drop = [nn.Dropout2d(dropout)] if dropout else []
        self.conv1 = nn.Sequential(*_conv(inputs + skip, outputs), *drop)
        self.conv2 = nn.Sequential(*_conv(outputs, outputs))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Return (B, outputs, 2 H, 2 W)."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x if skip is None else torch.cat([x, skip], 1)
        found: Tensor = self.conv2(self.conv1(x))
        return found


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class Unet(nn.Module):
    """(B, C, H, W), sides multiples of 32 -> what goes into tanh, (B, M, H, W).

    `widths`: of the blocks, one a halving of the encoder. Skips are the encoder's maps but the deepest; full size has
    none, and half size where the encoder has no such map.
    """

    def __init__(
        self,
        encoder: Encoder,
        markers: int,
        *,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        dropout: float = 0.1,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.at = {s: i for i, s in enumerate(encoder.strides)}
        strides = [encoder.strides[-1] // 2**i for i in range(1, len(widths) + 1)]
        skips = [encoder.channels[self.at[s]] if s in self.at else 0 for s in strides]
        inputs = [encoder.channels[-1], *widths]
        drops = [dropout if i in (1, 2) else 0.0 for i in range(len(widths))]
        self.blocks = nn.ModuleList(Block(a, s, b, d) for a, s, b, d in zip(inputs, skips, widths, drops, strict=False))
        self.heads = Heads(widths[-1], markers, gated)
        self.divisor = encoder.strides[-1]

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        """Return what goes into tanh; `seen` gets "encoder.N" (N halvings) and "decoder"."""
        maps = self.encoder(x).maps
        stride = self.encoder.strides[-1]
        decoded = maps[-1]
        for block in self.blocks:
            stride //= 2
            decoded = block(decoded, maps[self.at[stride]] if stride in self.at else None)
        if seen is not None:
            seen |= {f"encoder.{s.bit_length() - 1}": maps[i] for s, i in self.at.items()} | {"decoder": decoded}
        planes: Tensor = self.heads(decoded)
        return planes
