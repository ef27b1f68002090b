"""PixCell's published files in the layout of this family: folders as diffusers writes them, the training format,
adapters and the flow of embeddings. Only JSON and tensors are read; no published code is ever run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError

State = dict[str, Tensor]

# --- PixCell: arguments -----------------------------------------------------------------------------------------------

_LEGACY = {
    "norm_num_groups",
    "num_embeds_ada_norm",
    "double_self_attention",
    "num_vector_embeds",
    "only_cross_attention",
    "use_linear_projection",
    "attention_type",
    "n_controlnet_blocks",
    "lora",
}
"""Keys of a published config.json that change nothing, or that are read elsewhere."""


def pixcell_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the network "pixcell" from a published `transformer/config.json`.

    Raises `UserError` for a key that is not known, or a value that this network does not have.
    """
    said = {key: value for key, value in config.items() if not key.startswith("_") and key not in _LEGACY}
    channels = int(said.pop("in_channels", 4))
    outputs = said.pop("out_channels", None)
    heads, head_width = int(said.pop("num_attention_heads", 16)), int(said.pop("attention_head_dim", 72))
    size = int(said.pop("sample_size", 128))
    sizes = said.pop("use_additional_conditions", None)
    only("cross_attention_dim", said.pop("cross_attention_dim", heads * head_width), (heads * head_width, None))
    only("norm_type", said.pop("norm_type", "ada_norm_single"), ("ada_norm_single",))
    only("attention_type", config.get("attention_type", "default"), ("default", None))
    only("out_channels", outputs, (None, channels, 2 * channels))
    patch = int(said.pop("patch_size", 2))
    interpolation = said.pop("interpolation_scale", None)
    found = {
        "size": size,
        "channels": channels,
        "learned_variance": outputs == 2 * channels,
        "patch": patch,
        "layers": int(said.pop("num_layers", 28)),
        "heads": heads,
        "head_width": head_width,
        "width": int(said.pop("caption_channels", 1536)),
        "tokens": int(said.pop("caption_num_tokens", 1)),
        "interpolation": float(max(size // 64, 1) if interpolation is None else interpolation),
        "dropout": float(said.pop("dropout", 0.0)),
        "attention_bias": bool(said.pop("attention_bias", True)),
        "activation": str(said.pop("activation_fn", "gelu-approximate")),
        "norm_affine": bool(said.pop("norm_elementwise_affine", False)),
        "norm_eps": float(said.pop("norm_eps", 1e-6)),
        "upcast_attention": bool(said.pop("upcast_attention", False)),
        "sizes": size == 128 if sizes is None else bool(sizes),
    }
    if said:
        raise UserError(f'config.json: "{next(iter(said))}" is not known of a transformer of PixCell.')
    adapter = config.get("lora")
    return found | (adapter_arguments(adapter) if adapter else {})


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many different numbers the first group of a pattern has among the names."""
    return len({match[1] for match in (re.match(pattern, name) for name in state) if match})


def only(key: str, value: Any, known: Sequence[Any]) -> None:
    """Raise `UserError` for a value of a configuration that is none of the known ones."""
    if value not in known:
        wanted = " or ".join(json_word(v) for v in known)
        raise UserError(f"config.json: {key} is {json_word(value)}. Expected {wanted}.")


def json_word(value: Any) -> str:
    """Return a value as JSON spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


ADAPTED = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
"""Layers that a published adapter changes."""


def adapter_arguments(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's arguments of a published adapter. Raises `UserError` where it changes other layers."""
    targets = set(lora.get("target_modules", ADAPTED))
    if not set(ADAPTED) <= targets or any(not name.startswith(("attn2.", "attn.add_")) for name in targets):
        raise UserError(f"adapter: it changes {', '.join(sorted(targets))}. Expected {', '.join(ADAPTED)}.")
    return {"adapter_rank": int(lora["r"]), "adapter_alpha": float(lora.get("lora_alpha", lora["r"]))}


def original_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the network "pixcell" from those of the training code's class."""
    width = int(said.get("hidden_size", said.get("hidden", 1152)))
    heads = int(said.get("num_heads", said.get("heads", 16)))
    size, tokens = int(said.get("input_size", said.get("image_latent", 32))), said.get("model_max_length")
    only("mlp_ratio", float(said.get("mlp_ratio", 4.0)), (4.0,))
    patch = int(said.get("patch_size", said.get("patch", 2)))
    interpolation = said.get("pe_interpolation")
    return {
        "size": size,
        "channels": int(said.get("in_channels", 16)),
        "learned_variance": bool(said.get("pred_sigma", True)),
        "patch": patch,
        "layers": int(said.get("depth", 28)),
        "heads": heads,
        "head_width": width // heads,
        "width": int(said.get("caption_channels", 1536)),
        "tokens": int(said.get("tokens", 1) if tokens is None else tokens),
        "interpolation": size / (32 * patch) if interpolation is None else float(interpolation),
        "token_positions": bool(said.get("use_cond_pos_embed", True)),
    }


def original_arguments_of(state: Mapping[str, Tensor], heads: int = 16) -> dict[str, Any]:
    """Return arguments that fit a state dict in the training format. Raises `UserError` for another layout."""
    missing = [k for k in ("pos_embed", "x_embedder.proj.weight", "y_embedder.y_embedding") if k not in state]
    if missing:
        raise UserError(f'no "{missing[0]}" among its tensors: not a transformer of PixCell in its training format.')
    table, kernel, null = state["pos_embed"], state["x_embedder.proj.weight"], state["y_embedder.y_embedding"]
    patch, width = kernel.shape[-1], kernel.shape[0]
    channels = kernel.shape[1]
    size = patch * math.isqrt(table.shape[-2])
    blocks = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in state) if m}
    # the second cell of the first row is at 1 / interpolation; its first wave has the frequency 1
    row = table.reshape(-1, width)[1].double()
    place = float(torch.atan2(row[0], row[width // 4]))
    return {
        "size": size,
        "channels": channels,
        "learned_variance": state["final_layer.linear.weight"].shape[0] == 2 * channels * patch**2,
        "patch": patch,
        "layers": max(blocks) + 1,
        "heads": heads,
        "head_width": width // heads,
        "width": null.shape[-1],
        "tokens": null.reshape(-1, null.shape[-1]).shape[0],
        "interpolation": round(1 / place, 4),
        "token_positions": "y_pos_embed" in state,
    }


# --- PixCell: state dicts ---------------------------------------------------------------------------------------------

_ORIGINAL = (
    (r"x_embedder\.proj\.", "pos_embed.proj."),
    (r"t_embedder\.mlp\.0\.", "adaln_single.emb.timestep_embedder.linear_1."),
    (r"t_embedder\.mlp\.2\.", "adaln_single.emb.timestep_embedder.linear_2."),
    (r"t_block\.1\.", "adaln_single.linear."),
    (r"y_embedder\.y_proj\.fc(\d)\.", r"caption_projection.linear_\1."),
    (r"y_embedder\.y_embedding$", "caption_projection.uncond_embedding"),
    (r"y_pos_embed$", "y_pos_embed.y_pos_embed"),
    (r"blocks\.(\d+)\.attn\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"blocks\.(\d+)\.cross_attn\.q_linear\.", r"transformer_blocks.\1.attn2.to_q."),
    (r"blocks\.(\d+)\.cross_attn\.proj\.", r"transformer_blocks.\1.attn2.to_out.0."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"transformer_blocks.\1.ff.net.2."),
    (r"blocks\.(\d+)\.scale_shift_table$", r"transformer_blocks.\1.scale_shift_table"),
    (r"final_layer\.scale_shift_table$", "scale_shift_table"),
    (r"final_layer\.linear\.", "proj_out."),
)
_FUSED = {"attn.qkv": ("attn1", "to_q", "to_k", "to_v"), "cross_attn.kv_linear": ("attn2", "to_k", "to_v")}
_JOINED = re.compile(r"blocks\.(\d+)\.(attn\.qkv|cross_attn\.kv_linear)\.(weight|bias)$")


def original_state(state: Mapping[str, Tensor]) -> State:
    """Return our state dict of one in PixCell's training format; the fixed table of the image is dropped.

    Raises `UserError` for a name of another layout.
    """
    found: State = {}
    for name, value in state.items():
        joined = _JOINED.match(name)
        if name == "pos_embed":
            continue
        if joined:
            attention, *parts = _FUSED[joined[2]]
            for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
                found[f"transformer_blocks.{joined[1]}.{attention}.{part}.{joined[3]}"] = rows
            continue
        found[renamed(name, _ORIGINAL, "PixCell's training format")] = value
    return found


def renamed(name: str, table: Sequence[tuple[str, str]], layout: str) -> str:
    """Return a name by the first pattern of a table that fits its start. Raises `UserError` where none does."""
    for pattern, replacement in table:
        new, count = re.subn("^" + pattern, replacement, name)
        if count:
            return new
    raise UserError(f'"{name}" is not of {layout}. Get the file again, or look at its card.')


_ADAPTER = (
    (r"(.+)\.base_layer\.weight$", r"\1.parametrizations.weight.original"),
    (r"(.+)\.base_layer\.bias$", r"\1.bias"),
    (r"(.+)\.lora_A\.\w+\.weight$", r"\1.parametrizations.weight.0.down"),
    (r"(.+)\.lora_B\.\w+\.weight$", r"\1.parametrizations.weight.0.up"),
    (r"(.+)$", r"\1"),
)


def adapter_state(state: Mapping[str, Tensor]) -> State:
    """Return our state dict of a transformer with adapters as PEFT lays it out (`base_layer`, `lora_A`, `lora_B`)."""
    found: State = {}
    for name, value in state.items():
        new = renamed(name, _ADAPTER, "a transformer with adapters")
        found[new] = value[None] if new.endswith((".down", ".up")) else value
    return found


def adapter_arguments_of(state: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Any]:
    """Return rank and alpha of a state dict with adapters; `alpha` is the rank unless given. Raises `UserError`."""
    ranks = {value.shape[0] for name, value in state.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise UserError(f"adapters of {len(ranks)} ranks. Expected a transformer with adapters of one rank.")
    rank = ranks.pop()
    return {"adapter_rank": rank, "adapter_alpha": float(rank if alpha is None else alpha)}


def adapted_arguments_of(
    state: Mapping[str, Tensor], size: int, heads: int, alpha: float | None = None
) -> dict[str, Any]:
    """Return arguments of a transformer with adapters; `size` and `heads` are not to be seen. Raises `UserError`."""
    for name in ("pos_embed.proj.weight", "caption_projection.uncond_embedding", "proj_out.weight"):
        if name not in state:
            raise UserError(f'no "{name}" among its tensors: not a transformer of PixCell with adapters.')
    kernel, null = state["pos_embed.proj.weight"], state["caption_projection.uncond_embedding"]
    width, channels, patch = kernel.shape[0], kernel.shape[1], kernel.shape[-1]
    return {
        "size": size,
        "channels": channels,
        "learned_variance": state["proj_out.weight"].shape[0] == 2 * channels * patch**2,
        "patch": patch,
        "layers": count(state, r"transformer_blocks\.(\d+)\."),
        "heads": heads,
        "head_width": width // heads,
        "width": null.shape[-1],
        "tokens": null.reshape(-1, null.shape[-1]).shape[0],
        "interpolation": size / (32 * patch),
        "token_positions": "y_pos_embed.y_pos_embed" in state,
        **adapter_arguments_of(state, alpha),
    }


# --- the flow of embeddings -------------------------------------------------------------------------------------------


def flow_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `networks.flow.EmbeddingFlow` from those of the published class."""
    inner = int(said.get("model_channels", 1024))
    if said.get("use_context"):
        raise UserError("flow of embeddings: use_context is true. Expected a network without a context.")
    return {
        "width": int(said.get("in_channels", 1536)),
        "inner": inner,
        "bottleneck": int(said.get("bottleneck_channels", inner)),
        "time_width": int(said.get("time_embed_dim", inner)),
        "outputs": int(said.get("out_channels", said.get("in_channels", 1536))),
        "blocks": int(said.get("num_res_blocks", 6)),
        "dropout": float(said.get("dropout", 0.0)),
    }


def flow_arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return arguments that fit a state dict. Raises `UserError` for another layout."""
    if "input_proj.weight" not in state or "res_blocks.0.in_layers.2.weight" not in state:
        raise UserError('no "input_proj.weight" among its tensors: not a flow of embeddings.')
    inner, width = state["input_proj.weight"].shape
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("res_blocks.")}
    return {
        "width": width,
        "inner": inner,
        "bottleneck": state["res_blocks.0.in_layers.2.weight"].shape[0],
        "time_width": state["time_embed.0.weight"].shape[0],
        "outputs": state["out.2.weight"].shape[0],
        "blocks": max(blocks) + 1,
    }
