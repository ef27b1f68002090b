"""Foundation encoders of pathology: what is known of each, and why the others are not here; imports no torch.

Licence, gate, repository and revision stand on the weights card that an entry names (`zoo show CARD`). A number that
the publishers' pages do not say is marked on the card as not verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.errors import UserError, suggest

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]
Kind = Literal["vit", "stages", "pyramid"]
Pool = Literal["class", "class+mean", "mean", "none"]

IMAGENET: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Stats = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPTIMUS: Stats = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: Stats = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: Stats = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))


@dataclass(frozen=True)
class Foundation:
    """One encoder. `card`: its weights. `timm`, `arguments`: what builds the architecture. `kind`: "vit" (one stride),
    "stages" (a hierarchical transformer, last norm included) or "pyramid" (a CNN).

    `prefix`: class and register tokens. `positions`: shape of the position table at `size`, the native side in pixels.
    `parameters`, `entries`: of the network without a classifier. `mpp`: um per pixel that it was trained at. `pool`:
    what the publishers use as the embedding of a tile; "none" where their pooling is not known.
    """

    card: str
    timm: str
    parameters: int
    entries: int
    width: int
    depth: int = 12
    heads: int = 6
    patch: int | None = 16
    prefix: int = 1
    positions: tuple[int, int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stats: Stats = IMAGENET
    kind: Kind = "vit"
    size: int = 224
    mpp: float = 0.5
    pool: Pool = "class"
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


_SCALED = {"init_values": 1e-5}
_GATED = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}  # packed SwiGLU: fc1 holds gate and value


def _small(card: str, patch: int, stats: Stats) -> Foundation:
    count = (224 // patch) ** 2
    weights = {16: 21665664, 8: 21670272}[patch]
    return Foundation(
        card, f"vit_small_patch{patch}_224", weights, 150, 384, patch=patch, positions=(1, count + 1, 384), stats=stats
    )


def _base(card: str, patch: int, stats: Stats, **more: Any) -> Foundation:
    count = (224 // patch) ** 2
    weights = {16: 85798656, 8: 85807872}[patch]
    name, positions = f"vit_base_patch{patch}_224", (1, count + 1, 768)
    return Foundation(
        card, name, weights, 150, 768, heads=12, patch=patch, positions=positions, stats=stats, arguments=more
    )


def _resnet(card: str) -> Foundation:
    widths, strides = (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)
    return Foundation(
        card, "resnet50", 23508032, 318, 2048, depth=50, heads=0, patch=None, prefix=0,
        stats=LUNIT, kind="pyramid", pool="mean", channels=widths, strides=strides,
    )  # fmt: skip


TABLE: dict[str, Foundation] = {
    "uni": Foundation(
        "uni.mahmoodlab", "vit_large_patch16_224", 303350784, 342, 1024, 24, 16,
        positions=(1, 197, 1024), arguments=_SCALED,
    ),
    "uni2-h": Foundation(
        "uni2-h.mahmoodlab", "vit_giant_patch14_224", 681394176, 343, 1536, 24, 24, patch=14, prefix=9,
        positions=(1, 256, 1536),
        arguments={
            **_SCALED, **_GATED, "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8,
        },
    ),
    "virchow": Foundation(
        "virchow.paige", "vit_huge_patch14_224", 631229184, 454, 1280, 32, 16, patch=14, positions=(1, 257, 1280),
        arguments={**_SCALED, **_GATED, "mlp_ratio": 5.3375, "global_pool": ""}, pool="class+mean",
    ),
    "virchow2": Foundation(
        "virchow2.paige", "vit_huge_patch14_224", 631239424, 455, 1280, 32, 16, patch=14, prefix=5,
        positions=(1, 261, 1280),
        arguments={**_SCALED, **_GATED, "mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": 4}, pool="class+mean",
    ),
    "h-optimus-0": Foundation(
        "h-optimus-0.bioptimus", "vit_giant_patch14_reg4_dinov2", 1134774272, 567, 1536, 40, 24, patch=14, prefix=5,
        positions=(1, 256, 1536), arguments={**_SCALED, "img_size": 224}, stats=OPTIMUS,
    ),
    "h-optimus-1": Foundation(
        "h-optimus-1.bioptimus", "vit_giant_patch14_reg4_dinov2", 1134774272, 567, 1536, 40, 24, patch=14, prefix=5,
        positions=(1, 256, 1536), arguments={**_SCALED, "img_size": 224}, stats=OPTIMUS,
    ),
    "h0-mini": Foundation(
        "h0-mini.bioptimus", "vit_base_patch14_reg4_dinov2", 85739520, 175, 768, 12, 12, patch=14, prefix=5,
        positions=(1, 256, 768), arguments={**_SCALED, **_GATED, "img_size": 224, "mlp_ratio": 5.33334}, stats=OPTIMUS,
    ),
    "gigapath": Foundation(
        "gigapath.prov", "vit_giant_patch14_dinov2", 1134953984, 566, 1536, 40, 24, positions=(1, 197, 1536),
        arguments={**_SCALED, "img_size": 224, "patch_size": 16},
    ),
    "phikon": _base("phikon.owkin", 16, IMAGENET, norm_eps=1e-12),
    "phikon-v2": Foundation(
        "phikon-v2.owkin", "vit_large_patch14_dinov2", 303350784, 342, 1024, 24, 16, positions=(1, 197, 1024),
        arguments={**_SCALED, "img_size": 224, "patch_size": 16},
    ),
    "hibou-b": Foundation(
        "hibou-b.histai", "vit_base_patch14_reg4_dinov2", 85727232, 175, 768, 12, 12, patch=14, prefix=5,
        positions=(1, 256, 768), arguments={**_SCALED, "img_size": 224}, stats=HIBOU,
    ),
    "hibou-l": Foundation(
        "hibou-l.histai", "vit_large_patch14_reg4_dinov2", 303230976, 343, 1024, 24, 16, patch=14, prefix=5,
        positions=(1, 256, 1024), arguments={**_SCALED, "img_size": 224}, stats=HIBOU,
    ),
    "midnight-12k": Foundation(
        "midnight-12k.kaiko", "vit_giant_patch14_dinov2", 1134769664, 566, 1536, 40, 24, patch=14,
        positions=(1, 257, 1536), arguments={**_SCALED, "img_size": 224}, stats=HALF,
    ),
    "openmidnight": Foundation(
        "openmidnight.sophont", "vit_giant_patch14_reg4_dinov2", 1134774272, 567, 1536, 40, 24, patch=14, prefix=5,
        positions=(1, 256, 1536), arguments={**_SCALED, "img_size": 224},
    ),
    "gpfm": Foundation(
        "gpfm.hkust", "vit_large_patch14_dinov2", 303227904, 342, 1024, 24, 16, patch=14, positions=(1, 257, 1024),
        arguments={**_SCALED, "img_size": 224},
    ),
    "kaiko-vits16": _small("kaiko-vits16.v0-0-1", 16, HALF),
    "kaiko-vits8": _small("kaiko-vits8.v0-0-1", 8, HALF),
    "kaiko-vitb16": _base("kaiko-vitb16.v0-0-1", 16, HALF),
    "kaiko-vitb8": _base("kaiko-vitb8.v0-0-1", 8, HALF),
    "kaiko-vitl14": Foundation(
        "kaiko-vitl14.v0-0-1", "vit_large_patch14_reg4_dinov2", 304370688, 343, 1024, 24, 16, patch=14, prefix=5,
        positions=(1, 1369, 1024), arguments=_SCALED, stats=HALF, size=518,
    ),
    "lunit-vits16": _small("lunit-vits16.published", 16, LUNIT),
    "lunit-vits8": _small("lunit-vits8.published", 8, LUNIT),
    "lunit-resnet50-bt": _resnet("lunit-resnet50-bt.published"),
    "lunit-resnet50-mocov2": _resnet("lunit-resnet50-mocov2.published"),
    "lunit-resnet50-swav": _resnet("lunit-resnet50-swav.published"),
    "sp85m": _base("sp85m.mountsinai", 16, IMAGENET),
    "ctranspath": Foundation(
        "ctranspath.mirror", "swin_tiny_patch4_window7_224", 27520038, 183, 768, 12, 24, patch=None, prefix=0,
        arguments={"embed_layer": "conv_stem"}, kind="stages", mpp=1.0, pool="mean",
        channels=(96, 192, 384, 768), strides=(4, 8, 16, 32),
    ),
    "conch-v1-5": Foundation(
        "conch-v1-5.mahmoodlab", "vit_large_patch16_224", 303952896, 342, 1024, 24, 16, positions=(1, 785, 1024),
        arguments={"init_values": 1.0, "img_size": 448}, size=448, pool="none",
    ),
    "kimianet": Foundation(
        "kimianet.published", "densenet121", 6953856, 725, 1024, 121, 0, patch=None, prefix=0, kind="pyramid",
        arguments={"final_relu": False}, pool="mean", size=1000,
        channels=(64, 256, 512, 1024, 1024), strides=(2, 4, 8, 16, 32),
    ),
}  # fmt: skip
"""Name -> what is known. The architectures follow the publishers' own loading code and pages."""

UNAVAILABLE: dict[str, str] = {
    "atlas": "no public weights are known",
    "conch": "its vision tower is loaded by the publishers' own package; the layout of its file is not known here",
    "exaonepath": "the layout of its file is not known here",
    "genbio-pathfm": "a network of its own with rotary positions, built by the publishers' code",
    "gigapath-flash": "the layout of its file is not known here",
    "keep": "its vision tower is built by code in its repository, which the zoo does not run",
    "mstar": "the layout of its file is not known here",
    "musk": "a network of its own (BEiT-3), built by the publishers' package",
    "path-foundation": "published as a TensorFlow model only",
    "pluto": "no public weights; flexible patches are an argument of every vision transformer here: patch",
    "quiltnet-b32": "an open_clip file whose activation stands in a configuration that is not known here",
    "rudolfv": "no public weights are known",
}
"""Encoders that have a card but cannot be built, and why."""


def known(name: str) -> Foundation:
    """Return what is known of a foundation encoder. Raises `UserError`, with the reason for one that is not here."""
    if name in UNAVAILABLE:
        raise UserError(f'encoder "{name}" is not available: {UNAVAILABLE[name]}. See: zoo list encoders')
    if name not in TABLE:
        raise UserError(f'no foundation encoder "{name}". {suggest(name, TABLE, "zoo list encoders")}')
    return TABLE[name]
