"""Discriminators of pictures: patches, pixels, and patches at several scales. Raw scores, no sigmoid."""

from __future__ import annotations

import itertools
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.antialias import BlurDownsample
from zoo.nn.norms import InstanceNorm2d
from zoo.nn.spectral import spectral_norm

SPECTRAL = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}
"""Entries of a convolution under torch's old spectral norm -> those under its parametrization."""

PlainNorm = Literal["instance", "batch", "none"]


def plain_norm(norm: PlainNorm, channels: int) -> nn.Module:
    """Return batch norm, or instance norm without parameters and statistics, or nothing."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return InstanceNorm2d(channels) if norm == "instance" else nn.Identity()


def conv(inputs: int, outputs: int, kernel: int, *, spectral: bool = False, **more: object) -> nn.Module:
    """Return a convolution, under spectral norm (Miyato et al. 2018) where wanted."""
    layer = nn.Conv2d(inputs, outputs, kernel, **more)  # type: ignore[arg-type]
    return spectral_norm(layer) if spectral else layer


def _last_side(side: int, layers: int, antialias: bool) -> int:
    """Return the side of a PatchGAN's last normalised map."""
    for _ in range(layers):
        side = side // 2 if not antialias else -(-(side - 1) // 2) if side > 2 else 0
    return side - 1


class PatchDiscriminator(nn.Module):
    """PatchGAN: (B, inputs, H, W) -> (B, 1, h, w), a score a patch (Isola et al., CVPR 2017, section 3.2.2).

    `layers` halvings; width doubles up to 8 times. `antialias`: stride 1 and a blurred halving in place of stride 2.
    The last normalised map must be larger than one pixel: `smallest` is the side of the smallest picture that gives it.
    """

    def __init__(
        self,
        inputs: int = 3,
        width: int = 64,
        layers: int = 3,
        *,
        norm: PlainNorm = "instance",
        antialias: bool = True,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        stride = 1 if antialias else 2
        bias = norm != "batch"
        parts: list[nn.Module] = [conv(inputs, width, 4, spectral=spectral, stride=stride, padding=1)]
        parts += [nn.LeakyReLU(0.2), *([BlurDownsample(width)] if antialias else [])]
        before = width
        for level in range(1, layers + 1):
            after = width * min(2**level, 8)
            last = level == layers
            step = 1 if last else stride
            parts += [conv(before, after, 4, spectral=spectral, stride=step, padding=1, bias=bias)]
            parts += [plain_norm(norm, after), nn.LeakyReLU(0.2)]
            parts += [BlurDownsample(after)] if antialias and not last else []
            before = after
        self.enc = nn.Sequential(*parts)
        self.smallest = next(side for side in itertools.count(1) if _last_side(side, layers, antialias) > 1)
        self.final_conv = conv(before, 1, 4, spectral=spectral, stride=1, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map of scores, in a list."""
        return [self.final_conv(self.enc(x))]


class PixelDiscriminator(nn.Module):
    """A score a pixel, from 1 x 1 convolutions."""

    smallest = 2

    def __init__(self, inputs: int = 3, width: int = 64, *, norm: PlainNorm = "instance") -> None:
        super().__init__()
        bias = norm != "batch"
        self.net = nn.Sequential(
            nn.Conv2d(inputs, width, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            plain_norm(norm, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map of scores, in a list."""
        return [self.net(x)]


class MultiscaleDiscriminator(nn.Module):
    """Several PatchGANs on a picture and on its halvings (Wang et al., CVPR 2018, section 3.2)."""

    def __init__(
        self,
        inputs: int = 3,
        width: int = 64,
        layers: int = 3,
        scales: int = 2,
        *,
        norm: PlainNorm = "instance",
        antialias: bool = True,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        parts = [
            PatchDiscriminator(inputs, width, layers, norm=norm, antialias=antialias, spectral=spectral)
            for _ in range(scales)
        ]
        self.scales = nn.ModuleList(parts)
        self.smallest: int = (parts[0].smallest - 1) * 2 ** (scales - 1) + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map of scores a scale, finest first."""
        found: list[Tensor] = []
        for level, scale in enumerate(self.scales):
            if level:
                x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            found += scale(x)
        return found
