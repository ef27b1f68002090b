"""From a name to an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.encoders import listing, pretrained
from zoo.encoders.base import Encoder
from zoo.errors import UserError


def build_encoder(name: str, *, in_channels: int = 3, weights: str | Path = "none", **arguments: Any) -> Encoder:
    """Return an encoder by name (`zoo list encoders`; the naming rule is in `zoo.encoders.listing`).

    `weights`: "none", "imagenet", one of the encoder's tags (`zoo show NAME`), or the path of a .safetensors or .pth
    file. `in_channels`: any number from 1; pretrained first layers are adapted. Further `arguments` go to the library
    behind it (`output_stride=16`, `drop_path_rate=0.1`; for plain transformers also `levels` and `norm`, for pyramids
    `stem_stride=1`, which makes every level twice as fine). Weights that are not on this machine are fetched once,
    announced on standard error, unless `ZOO_OFFLINE=1` forbids it.
    Raises `UserError`: unknown name, tag or argument, weights that cannot be had or do not fit.
    """
    info = listing.info(name)
    if in_channels < 1:
        raise UserError(f"encoder {name}: in_channels is {in_channels}. Expected 1 or more.")
    found = pretrained.find(info, weights)
    build = _builder(info.source)
    if found is None:
        encoder = build(info, in_channels, None, None, arguments)
    else:
        encoder = pretrained.filled(build, info, in_channels, found, arguments)
    encoder.name, encoder.weights = info.name, "none" if found is None else found.label
    return encoder


def _builder(source: str) -> Callable[..., Encoder]:
    import torch

    with torch.device("cpu"):  # libraries make tensors when they are imported, which fails where a caller is on "meta"
        if source == "timm":
            from zoo.encoders.timm_models import build
        else:
            from zoo.encoders.smp_models import build
    return build
