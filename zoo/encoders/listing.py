"""Names of encoders, from the committed list `names.json`; imports neither torch nor timm.

**The naming rule.** An encoder's name is its plain architecture name without a weights tag. timm's architectures have
timm's names (`resnet34`, `convnext_tiny`, `swin_tiny_patch4_window7_224`), those that only segmentation_models_pytorch
(smp) has have smp's (`mit_b0`, `mobilenet_v2`). Where both have an architecture, up to "-" for "_", the plain name is
timm's; `smp:NAME` is smp's version with smp's weights, and `timm:NAME` is allowed for clearness.
`tools/encoder_list.py` writes the list. Foundation encoders of pathology stand under names of their own (`uni`,
`h-optimus-0`) in `zoo.encoders.foundation`, each with the card of its weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.encoders import foundation
from zoo.encoders.foundation import Foundation
from zoo.errors import UserError, suggest
from zoo.schema import Component

FILE = Path(__file__).with_name("names.json")
SEE = "zoo list encoders"


@dataclass(frozen=True)
class Weights:
    """One set of pretrained weights: `repo` on the Hugging Face hub with `file` and `revision`, or a `url`.

    `licence` is what the library says about it; None where it says nothing.
    """

    tag: str
    licence: str | None
    repo: str | None
    file: str
    revision: str
    url: str | None
    custom: bool = False

    @property
    def page(self) -> str | None:
        """Return the address of the page to read, which also has the licence."""
        return f"https://huggingface.co/{self.repo}" if self.repo else self.url

    @property
    def download(self) -> str | None:
        """Return the address of the file."""
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.file}" if self.repo else self.url


@dataclass(frozen=True)
class Info:
    """What is known of an encoder without building it.

    `name` is what a recipe says, `model` the name inside `source`. `kind`: "pyramid", or "vit" (one stride, tokens).
    `channels`, `strides`: finest map first, for three input channels. `parameters`: those that features need, without
    a classifier. `mean`, `std`: of the default weights. `imagenet`: the tag behind `weights: imagenet`. `exact`:
    whether the backbone's maps have exactly the declared sizes; where not, they are resized to them. `build`: what
    the library is told so that any size goes through. Of a foundation encoder also: `card`, the name of its weights;
    `mpp`, um per pixel that it was trained at; `pool`, how its publishers make one vector of a tile; `size`, the side
    of its tiles in pixels.
    """

    name: str
    source: Literal["timm", "smp"]
    model: str
    architecture: str
    kind: Literal["pyramid", "vit", "stages"]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    parameters: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: int
    minimum: int
    exact: bool
    weights: Mapping[str, Weights]
    imagenet: str | None
    build: Mapping[str, Any]
    card: str | None = None
    mpp: float | None = None
    pool: Literal["class", "class+mean", "mean", "none"] = "mean"
    size: int = 224


@functools.cache
def _file() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def _table() -> dict[str, dict[str, Any]]:
    return _file()["encoders"]


def names(*, forced: bool = False) -> list[str]:
    """Return the plain names, sorted; with `forced` also those that need a prefix (`smp:resnet34`)."""
    return sorted([*foundation.TABLE, *(n for n in _table() if forced or ":" not in n)])


def canonical(name: str) -> str:
    """Return the name under which the list has an encoder. Raises `UserError` with the nearest names."""
    table = _table()
    if name in table or name in foundation.TABLE:
        return name
    source, colon, plain = name.partition(":")
    if colon and plain in table and table[plain]["source"] == source:
        return plain
    raise UserError(unknown_encoder(name))


def info(name: str) -> Info:
    """Return what is known of an encoder. Raises `UserError` with the nearest names."""
    found = canonical(name)
    if found in foundation.TABLE:
        return _foundation(found, foundation.TABLE[found])
    entry = _table()[found]
    model = found.partition(":")[2] or found
    return Info(
        name=found,
        source=entry["source"],
        model=model,
        architecture=entry["architecture"],
        kind=entry.get("kind", "pyramid"),
        channels=tuple(entry["channels"]),
        strides=tuple(entry["strides"]),
        parameters=entry["parameters"],
        mean=tuple(entry["mean"]),
        std=tuple(entry["std"]),
        divisor=entry["divisor"],
        minimum=entry.get("minimum", 1),
        exact=entry.get("exact", True),
        weights={tag: _weights(entry["source"], model, tag, w) for tag, w in entry["weights"].items()},
        imagenet=entry.get("imagenet"),
        build=entry.get("build", {}),
    )


def known(component: Component) -> Component:
    """Return a component that names an encoder: what a schema checks with. Raises `ValueError`."""
    try:
        info(component.name)
    except UserError as error:
        raise ValueError(str(error)) from None
    return component


def _foundation(name: str, known: Foundation) -> Info:
    vit = known.kind == "vit"
    return Info(
        name=name,
        source="timm",
        model=known.timm,
        architecture="vision_transformer" if vit else known.timm.partition("_")[0],
        kind=known.kind,
        channels=(known.width,) * 4 if vit else known.channels,
        strides=(known.patch or 1,) * 4 if vit else known.strides,
        parameters=known.parameters,
        mean=known.stats[0],
        std=known.stats[1],
        divisor=known.patch or 32,
        minimum=1,
        exact=True,
        weights={},
        imagenet=None,
        build={**({} if known.kind == "pyramid" else {"dynamic_img_size": True}), **known.arguments},
        card=known.card,
        mpp=known.mpp,
        pool=known.pool,
        size=known.size,
    )


def _weights(source: str, model: str, tag: str, entry: Mapping[str, Any]) -> Weights:
    """Return one set of weights; the list leaves out what follows from the names."""
    default = f"timm/{model}.{tag}" if source == "timm" else f"smp-hub/{model}.{tag}"
    return Weights(
        tag=tag,
        licence=entry.get("licence"),
        repo=None if "url" in entry else entry.get("repo", default),
        file=entry.get("file", "model.safetensors"),
        revision=entry.get("revision", "main"),
        url=entry.get("url"),
        custom=bool(entry.get("custom", False)),
    )


def unknown_encoder(name: str) -> str:
    """Return the sentence that says there is no such encoder, with the nearest names."""
    plain = name.partition(":")[2] or name
    base, dot, tag = plain.partition(".")
    if plain in foundation.UNAVAILABLE:
        return f'encoder "{plain}" is not available: {foundation.UNAVAILABLE[plain]}. See: {SEE}'
    if plain in _file()["refused"]:
        return f'no encoder "{name}": the library has it, but it does not take pictures of every size. See: {SEE}'
    if dot and base in _table():
        return f'no encoder "{name}". A tag is said apart: encoder {base} with weights: {tag}. See: {SEE}'
    return f'no encoder "{name}". {suggest(plain, names(), SEE)}'
