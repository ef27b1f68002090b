"""The HEMIT baseline: a CNN and a Swin transformer side by side, joined by gated cross-attention (Bian et al. 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.families.miphei.matte import Seen


class Residual(nn.Module):
    """Two reflecting 3 x 3 convolutions with batch norm, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def conv() -> tuple[nn.Module, ...]:
            return nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width)

        self.conv_block = nn.Sequential(*conv(), nn.ReLU(), *conv())

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W)."""
        found: Tensor = x + self.conv_block(x)
        return found


class GatedAttention(nn.Module):
    """Replaces the `k` positions of a CNN's map with the highest gate by attention on a transformer's map there."""

    def __init__(self, width: int, inputs: int, doublings: int, k: int, heads: int = 8) -> None:
        super().__init__()
        self.k = k
        self.swinT_transform = nn.Conv2d(inputs, width, 1)
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(doublings)
        )
        self.gate = nn.Sequential(nn.Conv2d(width, 1, 1), nn.Sigmoid())
        self.gate.requires_grad_(False)  # it only chooses, so that no gradient could reach it
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Return (B, width, H, W): `x` with its chosen positions replaced. Items of a batch do not meet."""
        other = self.swinT_transform(other)
        for block in self.upsample_blocks:
            other = block(other)
        k = min(self.k, x.shape[2] * x.shape[3])
        places = self.gate(x).flatten(1).topk(k, 1).indices[:, None].expand(-1, x.shape[1], -1)
        flat = x.flatten(2)
        query, key = (m.flatten(2).gather(2, places).transpose(1, 2) for m in (x, other))
        found, _ = self.attention(query, key, key, need_weights=False)
        return flat.scatter(2, places, found.transpose(1, 2).to(flat.dtype)).view_as(x)


class Hemit(nn.Module):
    """(B, C, size, size) -> what goes into tanh, (B, M, size, size).

    `size`: side of the field that it sees at once; the transformer's tables depend on it. `patch`, `window`, `dims`,
    `depths`, `heads` of the transformer; `k`: positions of a map that attend.
    """

    def __init__(
        self,
        inputs: int,
        markers: int,
        *,
        size: int = 256,
        width: int = 64,
        blocks: int = 6,
        patch: int = 32,
        window: int = 64,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        k: int = 1000,
    ) -> None:
        super().__init__()
        if size % (patch * 8):
            raise ValueError(f"size: {size} px will not do. Expected a multiple of {patch * 8}, 8 patches")
        self.size = self.divisor = size
        widths = [width * 2**i for i in range(4)]
        first = (nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.initial_layers = nn.Sequential(*first)
        self.downsampling_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.resnet_blocks = nn.ModuleList(Residual(widths[-1]) for _ in range(blocks))
        swin: Any = _swin(inputs, size, patch, window, dim, depths, heads)
        swin.layers[-1].blocks = swin.norm = nn.Identity()  # nothing looks at what comes after
        self.swinT = swin
        doublings = int(math.log2(patch))
        self.cross_atts = nn.ModuleList(
            GatedAttention(w, dim * 2 ** (i + 1), doublings, k) for i, w in enumerate(widths[1:])
        )
        self.upsampling_layers = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(2 * b, a, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
            for a, b in reversed(list(itertools.pairwise(widths)))
        )
        self.final_layers = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, markers, 7))

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        """Return what goes into tanh; `seen` gets "swin.patch_embed" (B, h, w, D) and "resnet"."""
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            return _in_fields(x, self.size, self)
        kept: Seen = {}
        levels = self._levels(x, kept)
        x = self.initial_layers(x)
        skips = []
        for down, attention, level in zip(self.downsampling_layers, self.cross_atts, levels, strict=True):
            x = down(x)
            skips.append(attention(x, level))
        for block in self.resnet_blocks:
            x = block(x)
        kept["resnet"] = x
        for up, skip in zip(self.upsampling_layers, reversed(skips), strict=True):
            x = up(torch.cat([x, skip], 1))
        if seen is not None:
            seen |= kept
        planes: Tensor = self.final_layers(x)
        return planes

    def _levels(self, x: Tensor, kept: Seen) -> list[Tensor]:
        """Return the transformer's maps as they enter stages 1, 2 and 3, before their blocks."""
        swin: Any = self.swinT
        y = kept["swin.patch_embed"] = swin.patch_embed(x)
        found = []
        for stage in swin.layers:
            y = stage.downsample(y)
            found.append(y.permute(0, 3, 1, 2))
            y = stage.blocks(y)
        return found[1:]


def _swin(
    inputs: int, size: int, patch: int, window: int, dim: int, depths: Sequence[int], heads: Sequence[int]
) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    made: nn.Module = SwinTransformer(
        img_size=size,
        patch_size=patch,
        in_chans=inputs,
        num_classes=0,
        global_pool="",
        window_size=window,
        embed_dim=dim,
        depths=tuple(depths),
        num_heads=tuple(heads),
        drop_path_rate=0.2,
    )
    return made


def _in_fields(x: Tensor, side: int, network: nn.Module) -> Tensor:
    """Return what a network says of a picture whose sides are multiples of `side`, a field at a time."""
    rows = [torch.cat([network(f) for f in torch.split(row, side, 3)], 3) for row in torch.split(x, side, 2)]
    return torch.cat(rows, 2)
