"""The one module of this room that knows segmentation_models_pytorch: its own encoders (MiT and a few more)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from segmentation_models_pytorch.encoders import encoders as registered
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from zoo.encoders.base import Encoder, Features, walk
from zoo.encoders.listing import Info
from zoo.errors import UserError


class SmpEncoder(Encoder):
    """An smp encoder without its identity level and without levels of no channels (MiT at stride 2)."""

    def __init__(self, net: Any, info: Info, in_channels: int) -> None:
        most = int(net.output_stride)
        levels = [(i, c, min(2**i, most)) for i, c in enumerate(net.out_channels) if i > 0 and c > 0]
        super().__init__(
            [c for _, c, _ in levels],
            [s for _, _, s in levels],
            in_channels=in_channels,
            mean=info.mean,
            std=info.std,
            divisor=info.divisor,
            minimum=info.minimum,
        )
        self.net: nn.Module = net
        self._levels = [i for i, _, _ in levels]

    def extract(self, x: Tensor) -> Features:
        found = self.net(x)
        return Features(tuple(found[i] for i in self._levels))

    def layers(self) -> Iterator[nn.Module]:
        return walk(self.net)


def build(
    info: Info,
    in_channels: int,
    tag: str | None,  # noqa: ARG001 (smp's name says all)
    tensors: Mapping[str, Tensor] | None,
    arguments: Mapping[str, Any],
) -> Encoder:
    """Return an smp encoder; `tensors` are pretrained weights for three channels, adapted where there are others."""
    device = torch.empty(0).device
    try:
        with torch.device("cpu" if info.model.startswith("mit_") else device):  # MiT reads values while it is built
            net = get_encoder(info.model, in_channels=3, weights=None, **arguments)
        if tensors is not None:
            net.load_state_dict(dict(tensors))
        net.set_in_channels(in_channels, pretrained=tensors is not None)
    except (TypeError, ValueError) as error:
        raise UserError(f"encoder {info.name}: {error}. See: zoo show {info.name}") from None
    return SmpEncoder(net.to(device), info, in_channels)


def settings(name: str) -> dict[str, dict[str, Any]]:
    """Return tag -> smp's record of where the weights are, for the script that writes the list."""
    found: dict[str, dict[str, Any]] = registered[name]["pretrained_settings"]
    return found


def names() -> list[str]:
    """Return smp's own names; those that begin with `timm-` are deprecated copies of timm's and left out."""
    return [name for name in registered if not name.startswith("timm-")]
