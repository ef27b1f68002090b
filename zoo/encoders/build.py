"""From a name to an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.encoders import listing, pretrained
from zoo.encoders.base import Encoder
from zoo.errors import UserError


def build_encoder(name: str, *, in_channels: int = 3, weights: str | Path | None = None, **arguments: Any) -> Encoder:
    """Return an encoder by name (`zoo list encoders`; the naming rule is in `zoo.encoders.listing`).

    `weights`: "none", "imagenet", one of the encoder's tags (`zoo show NAME`), "published" for a foundation encoder,
    the path of a .safetensors or .pth file, or a run folder or weights of the zoo (`zoo list weights`) whose encoder is
    taken; left out, an encoder is random, but for foundation encoders, which must be told so. `in_channels`: any number
    from 1; pretrained first layers are adapted. `arguments`: what learns and how
    (`zoo.encoders.tuning`: tune, rank, layer_decay, checkpointing, patch); the others go to the library behind it
    (`output_stride=16`, `drop_path_rate=0.1`; for plain transformers also `levels` and `norm`, for pyramids
    `stem_stride=1`, which makes every level twice as fine). Weights that are not on this machine are fetched once,
    announced on standard error, unless `ZOO_OFFLINE=1` forbids it; those of foundation encoders only by `zoo weights
    pull`. Raises `UserError`: unknown name, tag or argument, weights that cannot be had or do not fit.
    """
    from zoo.encoders import tuning

    info = listing.info(name)
    if in_channels < 1:
        raise UserError(f"encoder {name}: in_channels is {in_channels}. Expected 1 or more.")
    asked, arguments = tuning.split(name, arguments)
    if weights is None and info.card:
        raise UserError(
            f"encoder {name}: no weights are said. Expected published ({info.card}), a file, or none for random ones. "
            f"To have them: zoo weights pull {info.card}"
        )
    found = pretrained.find(info, "none" if weights is None else weights)
    build = _builder(info.source)
    if found is None:
        encoder = build(info, in_channels, None, None, arguments)
    elif info.card:
        from zoo.encoders import fill

        encoder = fill.foundation(build, info, in_channels, found, arguments)
    else:
        encoder = pretrained.filled(build, info, in_channels, found, arguments)
    encoder.name, encoder.weights = info.name, "none" if found is None else found.label
    encoder.pool = info.pool if info.card else "class" if getattr(encoder, "prefix_tokens", 0) else "mean"
    tuning.apply(encoder, asked)
    return encoder


def _builder(source: str) -> Callable[..., Encoder]:
    import torch

    with torch.device("cpu"):  # libraries make tensors when they are imported, which fails where a caller is on "meta"
        if source == "timm":
            from zoo.encoders.timm_models import build
        else:
            from zoo.encoders.smp_models import build
    return build
