"""Generators: a picture in [-1, 1] to another, before the final tanh, and intermediate features of the first half.

Names of parameters are those of the pix2pix / CycleGAN / CUT code base wherever it has the network, so that what was
published loads with spectral norm's names changed and nothing else (`published`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders import Pyramid
from zoo.encoders.base import Encoder
from zoo.families.translation.norms import Instance
from zoo.nn.antialias import BlurDownsample, BlurUpsample
from zoo.nn.discriminators import PlainNorm, conv
from zoo.nn.spectral import spectral_norm


def norm_of(norm: PlainNorm, channels: int) -> nn.Module:
    """Return batch norm, an instance norm whose statistics can be those of a whole picture, or nothing."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return Instance(channels) if norm == "instance" else nn.Identity()


class Generator(nn.Module):
    """Base: `forward(x)` gives the picture before tanh; `features(x, layers)` gives what the layers put out;
    `feature_channels(layers)` says how wide they are; `divisor`, `margin`: what prediction must know; `smallest`: the
    side of the smallest picture that it can take."""

    divisor: int = 4
    smallest: int = 8
    margin: int = 64

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the outputs of some layers, in the order of the network, computing no more than they need."""
        raise NotImplementedError

    def feature_channels(self, layers: Sequence[int]) -> list[int]:
        """Return the channels of `features`. Raises `ValueError` for a layer that is not there."""
        raise NotImplementedError


class ResidualBlock(nn.Module):
    """x + conv, norm, ReLU, (dropout), conv, norm of x; mirrored borders."""

    def __init__(self, channels: int, norm: PlainNorm, *, dropout: bool, spectral: bool, bias: bool) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for half in range(2):
            parts += [nn.ReflectionPad2d(1), conv(channels, channels, 3, spectral=spectral, bias=bias)]
            parts += [norm_of(norm, channels), *([nn.ReLU()] if half == 0 else [])]
            parts += [nn.Dropout(0.5)] if dropout and half == 0 else []
        self.conv_block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return cast(Tensor, x + self.conv_block(x))


class ResnetGenerator(Generator):
    """Convolutions down by 4, residual blocks, up by 4 (Johnson et al., ECCV 2016; Zhu et al., ICCV 2017, appendix).

    Sides are multiples of 2 ** downs. Feature layer i is the output of element i of `model`; 0 is the padded picture.
    """

    def __init__(
        self,
        inputs: int = 3,
        outputs: int = 3,
        width: int = 64,
        blocks: int = 9,
        *,
        norm: PlainNorm = "instance",
        dropout: bool = False,
        antialias: bool = True,
        antialias_up: bool = True,
        spectral: bool = False,
        downs: int = 2,
    ) -> None:
        super().__init__()
        bias = norm != "batch"
        parts: list[nn.Module] = [nn.ReflectionPad2d(3), conv(inputs, width, 7, spectral=spectral, bias=bias)]
        parts += [norm_of(norm, width), nn.ReLU()]
        for level in range(downs):
            now, after = width * 2**level, width * 2 ** (level + 1)
            stride = 1 if antialias else 2
            parts += [conv(now, after, 3, spectral=spectral, stride=stride, padding=1, bias=bias)]
            parts += [norm_of(norm, after), nn.ReLU(), *([BlurDownsample(after)] if antialias else [])]
        deep = width * 2**downs
        parts += [ResidualBlock(deep, norm, dropout=dropout, spectral=spectral, bias=bias) for _ in range(blocks)]
        for level in range(downs, 0, -1):
            now, after = width * 2**level, width * 2 ** (level - 1)
            if antialias_up:
                parts += [BlurUpsample(), conv(now, after, 3, spectral=spectral, padding=1, bias=bias)]
            else:
                up = nn.ConvTranspose2d(now, after, 3, 2, 1, output_padding=1, bias=bias)
                parts += [spectral_norm(up) if spectral else up]
            parts += [norm_of(norm, after), nn.ReLU()]
        parts += [nn.ReflectionPad2d(3), conv(width, outputs, 7, spectral=spectral)]
        self.model = nn.Sequential(*parts)
        self.inputs, self.width, self.downs = inputs, width, downs
        self.divisor, self.smallest = 2**downs, 2 ** (downs + 1)
        self.margin = 8 * round((2 * blocks * 2**downs + 4 * 2**downs + 6) / 8 + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), before tanh."""
        return cast(Tensor, self.model(x))

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the outputs of elements of `model`."""
        found = []
        for index in range(max(layers) + 1):
            x = self.model[index](x)
            if index in layers:
                found.append(x)
        return found

    def feature_channels(self, layers: Sequence[int]) -> list[int]:
        """Return the channels of elements of `model`."""
        found, channels = [], self.inputs
        for index, part in enumerate(self.model):
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                channels = part.out_channels
            if index in layers:
                found.append(channels)
        if len(found) != len(layers):
            raise ValueError(f"layers {list(layers)}: the generator has elements 0 to {len(self.model) - 1}")
        return found


class _Level(nn.Module):
    """A level of the U-Net: down, what is inside, up; outside the outermost, the input is kept beside the output."""

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: nn.Module | None,
        norm: PlainNorm,
        *,
        first: int = 0,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        self.outermost, self.innermost = bool(first), inside is None
        down = nn.Conv2d(first or outer, inner, 4, 2, 1, bias=bias)
        twice = inner if inside is None else 2 * inner
        up = nn.ConvTranspose2d(twice, outer, 4, 2, 1, bias=True if first else bias)
        if first:
            assert inside is not None
            parts: list[nn.Module] = [down, inside, nn.ReLU(), up]
        elif inside is None:
            parts = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm_of(norm, outer)]
        else:
            parts = [nn.LeakyReLU(0.2), down, norm_of(norm, inner), inside, nn.ReLU(), up, norm_of(norm, outer)]
            parts += [nn.Dropout(0.5)] if dropout else []
        self.model = nn.Sequential(*parts)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the level's output, with its input before it except for the outermost."""
        found = self.model(x)
        return cast(Tensor, found) if self.outermost else torch.cat([x, found], 1)

    def descend(self, x: Tensor) -> tuple[Tensor, nn.Module | None]:
        """Return what goes into the next level, and that level."""
        for part in self.model:
            if isinstance(part, _Level):
                return x, part
            x = part(x)
            if self.innermost and isinstance(part, nn.Conv2d):
                return x, None
        raise AssertionError("a level without an inside ends at its convolution")


class UnetGenerator(Generator):
    """The U-Net of pix2pix (Isola et al., CVPR 2017, appendix 6.1): `downs` halvings, 7 or 8 there.

    Feature layer i is what the i-th halving gives, from 0.
    """

    def __init__(
        self,
        inputs: int = 3,
        outputs: int = 3,
        width: int = 64,
        downs: int = 8,
        *,
        norm: PlainNorm = "batch",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        level = _Level(8 * width, 8 * width, None, norm)
        for _ in range(downs - 5):
            level = _Level(8 * width, 8 * width, level, norm, dropout=dropout)
        for outer in (4 * width, 2 * width, width):
            level = _Level(outer, 2 * outer, level, norm)
        self.model = _Level(outputs, width, level, norm, first=inputs)
        self.divisor = self.smallest = 2**downs
        self.margin = 64

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), before tanh."""
        return cast(Tensor, self.model(x))

    def _levels(self) -> list[_Level]:
        return [m for m in self.model.modules() if isinstance(m, _Level)]

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return what some halvings give."""
        found: list[Tensor] = []
        level: nn.Module | None = self.model
        for index in range(max(layers) + 1):
            x, level = cast(_Level, level).descend(x)
            if index in layers:
                found.append(x)
        return found

    def feature_channels(self, layers: Sequence[int]) -> list[int]:
        """Return the channels of some halvings."""
        levels = self._levels()
        if max(layers) >= len(levels):
            raise ValueError(f"layers {list(layers)}: the generator has halvings 0 to {len(levels) - 1}")
        return [levels[i].inner for i in sorted(layers)]


class EncoderGenerator(Generator):
    """Any encoder with a light decoder: bilinear steps up, each with the encoder's map of that size beside it.

    Feature layer i is the i-th level of the pyramid of strides 1, 2, 4, 8, 16, 32.
    """

    STRIDES = (1, 2, 4, 8, 16, 32)

    def __init__(self, encoder: Encoder, outputs: int = 3, width: int = 32, *, norm: PlainNorm = "instance") -> None:
        super().__init__()
        self.pyramid = Pyramid(encoder, self.STRIDES, norm="instance" if norm == "instance" else "batch")
        channels = self.pyramid.channels
        self.ups = nn.ModuleList()
        before = channels[-1]
        for level in range(len(channels) - 2, -1, -1):
            after = width * min(2**level, 8)
            self.ups.append(
                nn.Sequential(
                    nn.Conv2d(before + channels[level], after, 3, padding=1),
                    norm_of(norm, after),
                    nn.ReLU(),
                    nn.Conv2d(after, after, 3, padding=1),
                    norm_of(norm, after),
                    nn.ReLU(),
                )
            )
            before = after
        self.last = nn.Conv2d(before, outputs, 3, padding=1)
        self.divisor = self.smallest = max(32, encoder.divisor)
        self.margin = 96
        mean, std = torch.tensor(encoder.mean), torch.tensor(encoder.std)
        self.register_buffer("shift", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("spread", std.view(1, -1, 1, 1), persistent=False)

    shift: Tensor
    spread: Tensor

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.pyramid(((x + 1) / 2 - self.shift) / self.spread)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), before tanh."""
        levels = self._pyramid(x)
        y = levels[-1]
        for up, skip in zip(self.ups, reversed(levels[:-1]), strict=True):
            y = F.interpolate(y, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, skip], 1))
        return cast(Tensor, self.last(y))

    def features(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return levels of the pyramid."""
        levels = self._pyramid(x)
        return [levels[i] for i in sorted(layers)]

    def feature_channels(self, layers: Sequence[int]) -> list[int]:
        """Return the channels of levels of the pyramid."""
        if max(layers) >= len(self.STRIDES):
            raise ValueError(f"layers {list(layers)}: the pyramid has levels 0 to {len(self.STRIDES) - 1}")
        return [self.pyramid.channels[i] for i in sorted(layers)]


class PatchProjector(nn.Module):
    """The network on patch features: for each layer Linear, ReLU, Linear, then length 1 (Park et al., ECCV 2020).

    `normalise`: "cut" divides by the length plus 1e-7, "asp" by that of the vector plus 1e-7 in every entry.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, normalise: str = "cut") -> None:
        super().__init__()
        self.normalise = normalise
        for number, size in enumerate(channels):
            self.add_module(f"mlp_{number}", nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Return (B * P, width) a layer, image after image, of (B, C, H, W) at positions (P,) `y * W + x`."""
        found = []
        for number, (feature, at) in enumerate(zip(features, positions, strict=True)):
            rows = feature.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
            rows = self.get_submodule(f"mlp_{number}")(rows)
            if self.normalise == "asp":
                found.append(rows / (rows + 1e-7).square().sum(1, keepdim=True).sqrt())
            else:
                found.append(rows / (rows.norm(dim=1, keepdim=True) + 1e-7))
        return found


def _settle(part: nn.Module) -> None:
    """Let spectral norm find the largest singular value of weights that it has not seen; in training each use of them
    takes a step, in evaluation none does."""
    before = part.training
    part.train()
    with torch.no_grad():
        for _ in range(20):
            _ = part.weight
    part.train(before)


def initialise(module: nn.Module, kind: str, gain: float) -> None:
    """Fill convolutions and linear layers: "xavier" or "normal" with a gain, biases 0; batch norm around 1."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            spectral = getattr(part, "parametrizations", None)
            weight = spectral["weight"].original if spectral is not None else part.weight
            if kind == "xavier":
                nn.init.xavier_normal_(weight, gain)
            elif kind == "normal":
                nn.init.normal_(weight, 0.0, gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if spectral is not None:
                _settle(part)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, gain)
            nn.init.zeros_(part.bias)
