"""Feature pyramids of plain vision transformers: from blocks of one stride, and the picture, to a decoder's strides.

Four ways, one call: `neck(image, maps, prefix)` gives a map (B, channels[i], ceil(H / strides[i]), ceil(W /
strides[i])) a level for an image (B, C, H, W). `maps`: a few blocks' outputs, first block first, each (B, D, ceil(H /
patch), ceil(W / patch)); `prefix`: class and register tokens (B, P, D) beside each, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.blocks import ConvNormAct, Norm, norm_layer

Kind = Literal["simple", "dpt", "detail", "unetr"]
KINDS: tuple[Kind, ...] = ("simple", "dpt", "detail", "unetr")


def build(
    kind: Kind, dim: int, patch: int, strides: Sequence[int], width: int, *, image: int, maps: int, norm: Norm
) -> ViTNeck:
    """Return a neck. `dim`: channels of the blocks, `width`: of the coarser levels; `image`: channels of the picture;
    `maps`: how many blocks there are; `norm`: of the added layers ("simple" has group norms, as published)."""
    if kind == "simple":
        return Simple(dim, patch, strides, width)
    made = {"dpt": Reassembly, "detail": DetailStream, "unetr": Unetr}[kind]
    return made(dim, patch, strides, width, image=image, maps=maps, norm=norm)


class ViTNeck(nn.Module):
    """Base: sizes, and which block a level looks at (the first for the finest, the last for the coarsest)."""

    def __init__(self, patch: int, strides: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.patch, self.strides, self.channels = patch, tuple(strides), tuple(channels)

    def block(self, level: int, maps: int) -> int:
        """Return which of `maps` blocks a level is made of."""
        return round(level * (maps - 1) / max(1, len(self.strides) - 1))

    def sized(self, level: Tensor, covered: tuple[int, int], stride: int, size: tuple[int, int]) -> Tensor:
        """Return a level of patches that cover more than the picture: resized to its stride where it has another one
        (patches of 14), and cut to the picture."""
        grid = (-(-covered[0] // stride), -(-covered[1] // stride))
        if tuple(level.shape[-2:]) != grid:
            level = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
        return level[..., : -(-size[0] // stride), : -(-size[1] // stride)]

    def covers(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        """Return height and width in pixels that the patches cover."""
        return maps[-1].shape[-2] * self.patch, maps[-1].shape[-1] * self.patch

    def steps(self, stride: int) -> int:
        """Return how many doublings lead from the patch to about a stride; negative: halvings."""
        return round(math.log2(self.patch / stride))


def tapered(width: int, strides: Sequence[int], coarse: int = 8) -> tuple[int, ...]:
    """Return channels that halve with each doubling of the size above stride `coarse`, 16 at least."""
    return tuple(max(16, width * min(s, coarse) // coarse) for s in strides)


class Simple(ViTNeck):
    """The simple feature pyramid of a plain transformer, of its last block only (Li et al. 2022, ViTDet, section 3).

    A finer level comes from 2 x 2 transposed convolutions (GELU and norm between), the level of the patch from the map
    itself, a coarser one from max pooling; each ends in a 1 x 1 and a 3 x 3 convolution with norms.
    """

    def __init__(
        self, dim: int, patch: int, strides: Sequence[int], width: int | Sequence[int], norm: Norm = "group"
    ) -> None:
        super().__init__(patch, strides, (width,) * len(strides) if isinstance(width, int) else width)
        pairs = zip(self.strides, self.channels, strict=True)
        self.levels = nn.ModuleList(self._level(dim, self.steps(s), c, norm) for s, c in pairs)

    @staticmethod
    def _level(dim: int, steps: int, outputs: int, norm: Norm) -> nn.Sequential:
        parts: list[nn.Module] = []
        width = dim
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

    def forward(self, image: Tensor, maps: Sequence[Tensor], prefix: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the levels."""
        size, covered = (image.shape[-2], image.shape[-1]), self.covers(maps)
        pairs = zip(self.strides, self.levels, strict=True)
        return [self.sized(level(maps[-1]), covered, stride, size) for stride, level in pairs]


class Reassembly(ViTNeck):
    """DPT's reassembly (Ranftl et al. 2021, section 3): read, concatenate, resample; a block a level.

    The class token is concatenated to each patch token and projected; a 1 x 1 convolution gives the level's channels, a
    strided or transposed convolution its size, a 3 x 3 convolution its contents.
    """

    def __init__(
        self, dim: int, patch: int, strides: Sequence[int], width: int, *, image: int, maps: int, norm: Norm
    ) -> None:
        super().__init__(patch, strides, (width,) * len(strides))
        self.read = nn.ModuleList(nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU()) for _ in strides)
        self.levels = nn.ModuleList(self._level(dim, self.steps(s), width, norm) for s in strides)

    @staticmethod
    def _level(dim: int, steps: int, width: int, norm: Norm) -> nn.Sequential:
        parts: list[nn.Module] = [nn.Conv2d(dim, width, 1)]
        if steps > 0:
            parts.append(nn.ConvTranspose2d(width, width, 2**steps, 2**steps))
        parts += [nn.Conv2d(width, width, 3, 2, 1) for _ in range(-steps)]
        parts += [nn.Conv2d(width, width, 3, padding=1, bias=norm == "none"), norm_layer(norm, width)]
        return nn.Sequential(*parts)

    def _read(self, level: int, tokens: Tensor, whole: Tensor) -> Tensor:
        """Return the projection of patch tokens (B, N, D) with one token (B, 1, D) concatenated to each; that one is
        projected once and not N times, which halves the work."""
        weight, bias = (self.read[level].get_parameter(f"0.{name}") for name in ("weight", "bias"))
        own, shared = weight.chunk(2, 1)
        return F.gelu(F.linear(tokens, own) + F.linear(whole, shared, bias))

    def forward(self, image: Tensor, maps: Sequence[Tensor], prefix: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the levels."""
        size, covered = (image.shape[-2], image.shape[-1]), self.covers(maps)
        found = []
        for level, stride in enumerate(self.strides):
            at = self.block(level, len(maps))
            x = maps[at]
            tokens = x.flatten(2).transpose(1, 2)
            whole = prefix[at][:, :1] if prefix else tokens.mean(1, keepdim=True)
            x = self._read(level, tokens, whole).transpose(1, 2).reshape(x.shape)
            found.append(self.sized(self.levels[level](x), covered, stride, size))
        return found


class DetailStream(ViTNeck):
    """A convolutional detail stream on the picture, fused downwards with the last block (Yao et al. 2024, ViTMatte,
    section 3.3): at each stride the coarser features are doubled, joined by the picture's and convolved."""

    def __init__(
        self, dim: int, patch: int, strides: Sequence[int], width: int, *, image: int, maps: int, norm: Norm
    ) -> None:
        super().__init__(patch, strides, tapered(width, strides))
        top = 2 ** math.ceil(math.log2(patch))
        self.fine = tuple(2**k for k in range(int(math.log2(top))))  # 1, 2, 4, 8 of a patch of 14 or 16
        details = [image, *(max(16, width * s // 16) for s in self.fine[1:])]
        self.details = nn.ModuleList(
            ConvNormAct(details[i], details[i + 1], stride=2, norm=norm) for i in range(len(details) - 1)
        )
        self.top, before = top, dim
        self.fuse = nn.ModuleDict()
        for stride, detail in reversed(list(zip(self.fine, details, strict=True))):
            if stride < min(self.strides):
                break
            after = tapered(width, (stride,))[0]
            self.fuse[str(stride)] = ConvNormAct(detail + before, after, norm=norm)
            before = after
        coarse = [(s, c) for s, c in zip(self.strides, self.channels, strict=True) if s >= top]
        self.coarse = nn.ModuleDict({str(s): ConvNormAct(dim, c, norm=norm) for s, c in coarse})

    def forward(self, image: Tensor, maps: Sequence[Tensor], prefix: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the levels."""
        size, covered = (image.shape[-2], image.shape[-1]), self.covers(maps)
        details = [image]
        for step in self.details:
            details.append(step(details[-1]))
        x = self.sized(maps[-1], covered, self.top, size)
        found: dict[int, Tensor] = {}
        for stride, detail in reversed(list(zip(self.fine, details, strict=True))):
            x = F.interpolate(x, size=detail.shape[-2:], mode="bilinear", align_corners=False)
            x = found[stride] = self.fuse[str(stride)](torch.cat([detail, x], 1))
            if stride == min(self.strides):
                break
        for stride in self.strides:
            if stride >= self.top:
                y = maps[-1]
                for _ in range(max(0, -self.steps(stride))):
                    y = F.max_pool2d(y, 2, ceil_mode=True)
                found[stride] = self.coarse[str(stride)](self.sized(y, covered, stride, size))
        return [found[s] for s in self.strides]


class Unetr(ViTNeck):
    """UNETR's skips (Hatamizadeh et al. 2022, section 3; Hörst et al. 2024, CellViT): the finest levels from the first
    block by repeated transposed convolutions, stride 1 from the picture itself by two convolutions."""

    def __init__(
        self, dim: int, patch: int, strides: Sequence[int], width: int, *, image: int, maps: int, norm: Norm
    ) -> None:
        super().__init__(patch, strides, tapered(width, strides))
        self.levels = nn.ModuleList()
        for stride, channels in zip(self.strides, self.channels, strict=True):
            if stride == 1:
                first = ConvNormAct(image, channels, norm=norm)
                self.levels.append(nn.Sequential(first, ConvNormAct(channels, channels, norm=norm)))
            else:
                self.levels.append(self._level(dim, self.steps(stride), channels, norm))

    @staticmethod
    def _level(dim: int, steps: int, channels: int, norm: Norm) -> nn.Sequential:
        parts: list[nn.Module] = []
        width = dim
        for step in range(steps):
            after = max(channels, width // 2) if step < steps - 1 else channels
            parts += [nn.ConvTranspose2d(width, after, 2, 2), ConvNormAct(after, after, norm=norm)]
            width = after
        parts += [nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(-steps)]
        if width != channels:
            parts.append(ConvNormAct(width, channels, norm=norm))
        return nn.Sequential(*parts)

    def forward(self, image: Tensor, maps: Sequence[Tensor], prefix: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the levels."""
        size, covered = (image.shape[-2], image.shape[-1]), self.covers(maps)
        found = []
        for level, stride in enumerate(self.strides):
            if stride == 1:
                found.append(self.levels[level](image))
            else:
                made = self.levels[level](maps[self.block(level, len(maps))])
                found.append(self.sized(made, covered, stride, size))
        return found
