"""What published cases of encoders mean here: a file of a foreign layout, converted and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.cases import Case


def concerns(case: Case) -> bool:
    """Return whether a case is about an encoder alone: a network published in a layout that has to be converted."""
    return case.kind in ("network", "manifest") and "published_layout" in case.configuration


def answer(case: Case) -> Mapping[str, Any]:
    """Answer with `tokens` (B, prefix + patches, D), all of the last norm; `class` and `patches` are parts of them."""
    import torch

    from zoo.encoders import build_encoder

    if not concerns(case):
        raise case.unknown()
    said = dict(case.configuration["timm"])
    name = str(said.pop("name"))
    said = {k: v for k, v in said.items() if k not in ("num_classes", "global_pool", "dynamic_img_size")}
    with case.building():
        encoder = build_encoder(name, weights="none", levels=1, **said).eval()
    case.load(encoder, _into)
    if case.layout_only:
        return {}
    with torch.inference_mode():
        found = encoder(next(iter(case.inputs.values())))
    parts = {"class": found.prefix[-1][:, 0], "patches": found.tokens}
    return {"tokens": torch.cat([found.prefix[-1], found.tokens], 1), **parts}


def _into(state: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of an encoder: the converter that a pull uses, under the module's prefix."""
    from zoo.encoders import layouts

    return {f"net.{k}": v for k, v in layouts.to_timm(state)[0].items()}
