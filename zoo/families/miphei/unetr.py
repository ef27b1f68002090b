"""Decoders like CellViT's (Hörst et al. 2024, after UNETR, Hatamizadeh et al. 2022), over a transformer or a CNN."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.encoders import Encoder
from zoo.families.miphei.heads import Heads
from zoo.families.miphei.matte import Seen, on_grid


class Conv(nn.Module):
    """3 x 3 convolution with bias, batch norm, ReLU, dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        parts = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout))
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W)."""
        found: Tensor = self.block(x)
        return found


class Up(nn.Module):
    """Transposed 2 x 2 convolution, 3 x 3 convolution, batch norm, ReLU, dropout: twice the size."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 2, 2),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, 2 H, 2 W)."""
        found: Tensor = self.block(x)
        return found


def doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return a transposed 2 x 2 convolution."""
    return nn.ConvTranspose2d(inputs, outputs, 2, 2)


class Decoder(nn.Module):
    """Maps of strides 1, 2, 4, 8, 16, `channels` wide -> (B, outputs, H, W)."""

    def __init__(self, channels: Sequence[int], outputs: int, dropout: float) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels

        def conv(a: int, b: int) -> Conv:
            return Conv(a, b, dropout)

        self.bottleneck_upsampler = doubling(c4, c3)
        self.decoder3_upsampler = nn.Sequential(conv(2 * c3, c3), conv(c3, c3), conv(c3, c3), doubling(c3, c2))
        self.decoder2_upsampler = nn.Sequential(conv(2 * c2, c2), conv(c2, c2), doubling(c2, c1))
        self.decoder1_upsampler = nn.Sequential(conv(2 * c1, c1), conv(c1, c1), doubling(c1, c0))
        self.decoder0_header = nn.Sequential(conv(2 * c0, c0), conv(c0, c0), nn.Conv2d(c0, outputs, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map at full size."""
        z0, z1, z2, z3, z4 = maps
        x = self.bottleneck_upsampler(z4)
        x = self.decoder3_upsampler(torch.cat([z3, x], 1))
        x = self.decoder2_upsampler(torch.cat([z2, x], 1))
        x = self.decoder1_upsampler(torch.cat([z1, x], 1))
        found: Tensor = self.decoder0_header(torch.cat([z0, x], 1))
        return found


def picture_stream(inputs: int, dropout: float) -> nn.Sequential:
    """Return two convolutions on the picture itself: 32, then 64 wide."""
    return nn.Sequential(Conv(inputs, 32, dropout), Conv(32, 64, dropout))


class Steps(nn.Module):
    """From maps of an encoder to strides 1, 2, 4, 8, 16: those of a transformer lie on one grid of stride 16, those of
    a hierarchical one at 4, 8, 16 and 32."""

    def __init__(self, inputs: int, channels: Sequence[int], plain: bool, dropout: float) -> None:
        super().__init__()
        self.plain = plain

        def ups(*widths: int) -> nn.Sequential:
            return nn.Sequential(*(Up(a, b, dropout) for a, b in itertools.pairwise(widths)))

        self.convsteam = picture_stream(inputs, dropout)
        wide = channels[-1]
        if plain:
            s1, s2, narrow = (256, 128, 312) if wide < 512 else (512, 256, 512)
            paths = [ups(wide, s1, s2, 128), ups(wide, s1, 256), ups(wide, narrow), nn.Sequential()]
            self.channels = (64, 128, 256, narrow, wide)
        else:
            paths = [ups(channels[0], 128), ups(channels[1], 256), ups(channels[2], 512), ups(wide, wide)]
            self.channels = (64, 128, 256, 512, wide)
        self.upsampler0, self.upsampler1, self.upsampler2, self.upsampler3 = paths

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of strides 1, 2, 4, 8, 16 of a picture (B, C, H, W)."""
        if self.plain:
            maps = [on_grid(m, x.shape[-2:], "nearest") for m in maps]
        ways = (self.upsampler0, self.upsampler1, self.upsampler2, self.upsampler3)
        return [self.convsteam(x), *(way(m) for way, m in zip(ways, maps, strict=True))]


def block_numbers(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return the blocks whose outputs are taken: evenly from a quarter of the depth to the last, halves to even; all
    of them where there are no more."""
    if depth == count:
        return tuple(range(depth))
    first, last = depth // 4, depth - 1
    return tuple(round(first + i * (last - first) / (count - 1)) for i in range(count))


class Unetr(nn.Module):
    """(B, C, H, W), sides multiples of 16 -> what goes into tanh, (B, M, H, W).

    `encoder`: of a transformer on patches the maps of `block_numbers`, without the last norm; of a hierarchical one
    four maps. A CNN's maps of strides 2 to 16 are skips as they are; the first is then the picture itself, or
    (`stream`) two convolutions on it.
    """

    def __init__(
        self,
        encoder: Encoder,
        markers: int,
        *,
        cnn: bool = False,
        stream: bool = False,
        width: int = 32,
        dropout: float = 0.1,
        gated: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.cnn = encoder, cnn
        self.steps: nn.Module | None = None
        channels: tuple[int, ...]
        if cnn:
            self.levels = [encoder.strides.index(s) for s in (2, 4, 8, 16)]
            self.steps = picture_stream(encoder.in_channels, dropout) if stream else None
            channels = (64 if stream else encoder.in_channels, *(encoder.channels[i] for i in self.levels))
        else:
            steps = Steps(encoder.in_channels, encoder.channels[-4:], bool(encoder.patch), dropout)
            self.steps, channels = steps, steps.channels
        self.decoder = Decoder(channels, width, dropout)
        self.heads = Heads(width, markers, gated)
        self.divisor = 16 if cnn or encoder.patch else 32

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return maps of strides 1, 2, 4, 8, 16."""
        found = self.encoder(x, pad=not self.encoder.patch).maps
        if not self.cnn:
            assert self.steps is not None
            maps: list[Tensor] = self.steps(x, found[-4:])
            return maps
        return [x if self.steps is None else self.steps(x), *(found[i] for i in self.levels)]

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        """Return what goes into tanh; `seen` gets "encoder.0" to "encoder.4" and "decoder"."""
        maps = self.maps(x)
        decoded = self.decoder(maps)
        if seen is not None:
            seen |= {f"encoder.{i}": m for i, m in enumerate(maps)} | {"decoder": decoded}
        planes: Tensor = self.heads(decoded)
        return planes
