"""From published layouts of encoders to timm's names: transformers, raw DINOv2, KimiaNet, CTransPath and wrapped timm.

Which layout a file has is seen in its names, never in its file name. Sources: the names that each library writes (timm
1.0, transformers 4 and 5, the DINOv2 repository's modules, torchvision's DenseNet before and after its renaming).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from zoo.errors import UserError
from zoo.weights.convert import Converted, Files

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["timm", "transformers-dinov2", "transformers-vit", "dinov2", "swin", "densenet", "resnet"]
State = dict[str, "Tensor"]

_ANCHORS = {
    "embeddings.patch_embeddings.projection.weight": "transformers",
    "patch_embed.proj.weight": "vit",
    "patch_embed.proj.0.weight": "swin",
    "features.denseblock1.denselayer1.norm1.weight": "densenet",
    "denseblock1.denselayer1.norm1.weight": "densenet",
    "denseblock1.denselayer1.norm.1.weight": "densenet",
    "features.denseblock1.denselayer1.norm.1.weight": "densenet",
    "layer1.0.conv1.weight": "resnet",
}


def find(names: Mapping[str, object]) -> tuple[Layout, str]:
    """Return the layout of a state dict and the prefix under which its encoder lies. Raises `UserError`: none known."""
    for anchor, kind in _ANCHORS.items():
        hit = min((n for n in names if n == anchor or n.endswith(f".{anchor}")), key=len, default=None)
        if hit is None:
            continue
        prefix = hit.removesuffix(anchor)
        if kind == "transformers":
            swapped = f"{prefix}encoder.layer.0.layernorm_before.weight" in names
            return "transformers-vit" if swapped else "transformers-dinov2", prefix
        if kind == "vit":
            if f"{prefix}layers.0.blocks.0.attn.relative_position_bias_table" in names:
                return "swin", prefix
            raw = ("mask_token", "register_tokens", "blocks.0.mlp.w12.weight", "blocks.0.0.norm1.weight")
            return "dinov2" if any(prefix + n in names for n in raw) else "timm", prefix
        return kind, prefix  # type: ignore[return-value]
    shown = ", ".join(list(names)[:3])
    raise UserError(
        f"no layout of an encoder is known that has {shown}. Expected names of timm, transformers (Dinov2, ViT), "
        "DINOv2, CTransPath, KimiaNet or torchvision's ResNet. Convert the file to timm's names."
    )


def to_timm(tensors: Mapping[str, Tensor], where: str = "the file") -> tuple[State, Layout]:
    """Return a state dict under timm's names (and none but the encoder's), with the layout that it had.

    A position of the class token in files whose module adds none is left to `zoo.encoders.fill`. Raises `UserError`
    for a layout that is not known, or whose parts are missing.
    """
    try:
        layout, prefix = find(tensors)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    inside = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    return _CONVERT[layout](inside), layout


def _renamed(tensors: State, rules: list[tuple[str, str]], drop: str) -> State:
    found: State = {}
    for name, value in tensors.items():
        if re.match(drop, name):
            continue
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


_DROP = r"(?:mask_token$|head\.|fc\.|pooler\.|dino_head|ibot_head|projection_head|attn_pool|ln_contrast|classifier\.)"
_RAW = [
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks: their number says nothing
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]
_HUGGING = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
]
_PART = re.compile(r"^(blocks\.\d+\.)attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)$")


def _vit(tensors: State) -> State:
    return _renamed(tensors, _RAW, _DROP)


def _transformers(tensors: State) -> State:
    """Rename, and stack queries, keys and values in that order."""
    import torch

    named = _renamed(tensors, _HUGGING, r"(?:embeddings\.mask_token$|pooler\.|classifier\.)")
    found: State = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        hit = _PART.match(name)
        if hit:
            parts.setdefault(f"{hit[1]}attn.qkv.{hit[3]}", {})[hit[2][0]] = value
        else:
            found[name] = value
    for name, three in parts.items():
        if set(three) != {"q", "k", "v"}:
            raise UserError(f"{name}: the file has {', '.join(sorted(three))} of q, k and v. Get the file again.")
        found[name] = torch.cat([three["q"], three["k"], three["v"]])
    return found


def _swin(tensors: State) -> State:
    """Move each downsampling to the stage after it, where timm has it since 0.9; drop tables that are computed."""
    drop = r"(?:head\.|.*relative_position_index$|.*attn_mask$)"
    kept = {n: v for n, v in tensors.items() if not re.match(drop, n)}
    if not any(n.startswith("layers.0.downsample.") for n in kept):
        return kept
    return {re.sub(r"^layers\.(\d+)\.downsample\.", _later, n): v for n, v in kept.items()}


def _later(hit: re.Match[str]) -> str:
    return f"layers.{int(hit[1]) + 1}.downsample."


def densenet(tensors: Mapping[str, Tensor]) -> State:
    """Return KimiaNet's or torchvision's DenseNet under timm's names, old names (`norm.1`) included; what is not of its
    trunk is left out."""
    bare = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", n.removeprefix("features.")): v for n, v in tensors.items()}
    return {f"features.{n}": v for n, v in bare.items() if re.match(r"(?:conv0|norm[05]|denseblock|transition)", n)}


def _resnet(tensors: State) -> State:
    return {n: v for n, v in tensors.items() if not n.startswith("fc.")}


_CONVERT: dict[Layout, Callable[[State], State]] = {
    "timm": _vit,
    "dinov2": _vit,
    "transformers-dinov2": _transformers,
    "transformers-vit": _transformers,
    "swin": _swin,
    "densenet": densenet,
    "resnet": _resnet,
}


# --- what cards name --------------------------------------------------------------------------------------------------


def from_timm(files: Files) -> Converted:
    """Return a file under timm's names: wrappers, heads and other parts are cut off; raw DINOv2 has nearly the same."""
    return _of(files, "timm", "dinov2")


def from_dinov2(files: Files) -> Converted:
    """Return a file of DINOv2's own modules: registers, packed SwiGLU, chunks of blocks."""
    return _of(files, "dinov2", "timm")


def from_transformers(files: Files) -> Converted:
    """Return a file of transformers' Dinov2 (with registers or SwiGLU too) or ViT."""
    return _of(files, "transformers-dinov2", "transformers-vit")


def from_swin(files: Files) -> Converted:
    """Return CTransPath's file: a Swin with a convolutional stem, each downsampling in the stage before."""
    return _of(files, "swin")


def from_densenet(files: Files) -> Converted:
    """Return KimiaNet's file: torchvision's DenseNet-121, without the head."""
    return _of(files, "densenet")


def from_resnet(files: Files) -> Converted:
    """Return a file of torchvision's ResNet, without the head."""
    return _of(files, "resnet")


def _of(files: Files, *expected: Layout) -> Converted:
    tensors, layout = to_timm(files.state_dict(), str(files.main))
    if layout not in expected:
        raise UserError(f"{files.main}: its layout is that of {layout}. Expected {expected[0]}, as its card says.")
    return Converted("", {}, tensors)
