"""The levels that a decoder wants, from whatever levels a backbone has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.encoders.base import Encoder, Features, ceil_div
from zoo.errors import UserError
from zoo.nn import vit_necks
from zoo.nn.blocks import ConvNormAct, Norm

Source = Literal["level", "identity", "stem", "deeper", "between", "neck"]


class Pyramid(nn.Module):
    """An encoder seen at the strides that a decoder wants: `forward(x)` gives one map a stride, finest first.

    Level i is (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). What the backbone has is passed on (the
    deepest where it has several of a stride). Otherwise: stride 1 is the picture itself ("identity"); finer strides
    come from a light convolutional stem on the picture (`stem` channels; `stem=0` takes the finest map, interpolated);
    coarser ones from 3 x 3 convolutions of stride 2; ones in between from the next coarser map, interpolated. A plain
    transformer gets a neck (`zoo.nn.vit_necks`, of the kind that `encoder.neck` names, of about `neck` channels; None =
    the encoder's `neck_width`) for every stride, but for 1 where the kind looks at blocks alone. `sources` says which.
    `norm` is that of the added layers.
    """

    def __init__(
        self,
        encoder: Encoder,
        strides: Sequence[int] = (1, 2, 4, 8, 16, 32),
        *,
        stem: int = 32,
        neck: int | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if not strides or sorted(set(strides)) != list(strides) or strides[0] < 1:
            raise UserError(f"Pyramid: strides are {tuple(strides)}. Expected whole numbers from 1, rising.")
        self.encoder, self.strides = encoder, tuple(strides)
        self.in_channels = encoder.in_channels
        self.made = nn.ModuleDict()
        self._at = {s: i for i, s in enumerate(encoder.strides)}
        self.neck = self._neck(neck or encoder.neck_width, norm)
        self.sources: tuple[Source, ...] = tuple(self._source(s, stem) for s in self.strides)
        self.channels = tuple(
            self._prepare(s, source, stem, norm) for s, source in zip(self.strides, self.sources, strict=True)
        )

    def _neck(self, width: int, norm: Norm) -> vit_necks.ViTNeck | None:
        encoder = self.encoder
        strides = [s for s in self.strides if self._source(s, 0) == "neck"]
        if encoder.patch is None or not strides:
            return None
        return vit_necks.build(
            encoder.neck,
            encoder.channels[-1],
            encoder.patch,
            strides,
            width,
            image=encoder.in_channels,
            maps=len(encoder.channels),
            norm=norm,
        )

    def _source(self, stride: int, stem: int) -> Source:
        if self.encoder.patch:
            blocks = self.encoder.neck in ("simple", "dpt")
            return "identity" if stride == 1 and blocks else "neck"
        if stride in self._at:
            return "level"
        if stride == 1:
            return "identity"
        if stride < self.encoder.strides[0]:
            return "stem" if stem else "between"
        return "deeper" if stride > self.encoder.strides[-1] else "between"

    def _coarser(self, stride: int) -> int:
        """Return the index of the next coarser level of the backbone."""
        return next(i for i, s in enumerate(self.encoder.strides) if s > stride)

    def _prepare(self, stride: int, source: Source, stem: int, norm: Norm) -> int:
        """Build what a level needs and return its channels."""
        if source == "level":
            return self.encoder.channels[self._at[stride]]
        if source == "identity":
            return self.in_channels
        if source == "between":
            return self.encoder.channels[self._coarser(stride)]
        if source == "neck" and self.neck is not None:
            return self.neck.channels[self.neck.strides.index(stride)]
        start = 1 if source == "stem" else self.encoder.strides[-1]
        inputs = self.in_channels if source == "stem" else self.encoder.channels[-1]
        steps = (stride // start).bit_length() - 1
        if start * 2**steps != stride:
            raise UserError(f"Pyramid: no way from stride {start} to {stride} by halving. Choose strides that double.")
        width = stem if source == "stem" else inputs
        parts = [ConvNormAct(inputs if i == 0 else width, width, stride=2, norm=norm) for i in range(steps)]
        self.made[str(stride)] = nn.Sequential(*parts, ConvNormAct(width, width, norm=norm))
        return width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of (B, C, H, W)."""
        return self.levels(x, self.encoder(x))

    def levels(self, x: Tensor, features: Features) -> list[Tensor]:
        """Return the maps from a picture and the encoder's features of it, for whoever needs the tokens too."""
        size = int(x.shape[-2]), int(x.shape[-1])
        necked = iter(self.neck(x, features.maps, features.prefix) if self.neck is not None else [])
        found: list[Tensor] = []
        for stride, source in zip(self.strides, self.sources, strict=True):
            if source == "level":
                found.append(features.maps[self._at[stride]])
            elif source == "identity":
                found.append(x)
            elif source == "neck":
                found.append(next(necked))
            elif source == "between":
                grid = ceil_div(size[0], stride), ceil_div(size[1], stride)
                coarser = features.maps[self._coarser(stride)]
                found.append(F.interpolate(coarser, size=grid, mode="bilinear", align_corners=False))
            else:
                found.append(self.made[str(stride)](x if source == "stem" else features.maps[-1]))
        return found

    def groups(self, decay: float | None = None) -> list[dict[str, Any]]:
        """Return the encoder's optimiser groups and one of the added layers, at scale 1."""
        inside = {id(p) for p in self.encoder.parameters()}
        added = [p for p in self.parameters() if id(p) not in inside and p.requires_grad]
        return [*self.encoder.groups(decay), *([{"params": added, "lr_scale": 1.0}] if added else [])]
