"""Published files in the layout of this family: folders as diffusers writes them, PixCell's training format, adapters,
and checkpoints of latent diffusion. Only JSON and tensors are read; no published code is ever run.
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
    _only("cross_attention_dim", said.pop("cross_attention_dim", heads * head_width), (heads * head_width, None))
    _only("norm_type", said.pop("norm_type", "ada_norm_single"), ("ada_norm_single",))
    _only("attention_type", config.get("attention_type", "default"), ("default", None))
    _only("out_channels", outputs, (None, channels, 2 * channels))
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


def _only(key: str, value: Any, known: Sequence[Any]) -> None:
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
    _only("mlp_ratio", float(said.get("mlp_ratio", 4.0)), (4.0,))
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
        found[_renamed(name, _ORIGINAL, "PixCell's training format")] = value
    return found


def _renamed(name: str, table: Sequence[tuple[str, str]], layout: str) -> str:
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
        new = _renamed(name, _ADAPTER, "a transformer with adapters")
        found[new] = value[None] if new.endswith((".down", ".up")) else value
    return found


def adapter_arguments_of(state: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Any]:
    """Return rank and alpha of a state dict with adapters; `alpha` is the rank unless given. Raises `UserError`."""
    ranks = {value.shape[0] for name, value in state.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise UserError(f"adapters of {len(ranks)} ranks. Expected a transformer with adapters of one rank.")
    rank = ranks.pop()
    return {"adapter_rank": rank, "adapter_alpha": float(rank if alpha is None else alpha)}


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


# --- latent diffusion -------------------------------------------------------------------------------------------------


def unet_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the network "latent-unet" from those of the published U-Net. Raises `UserError`."""
    if not said.get("use_spatial_transformer", True):
        raise UserError("U-Net: use_spatial_transformer is false. Expected cross-attention to a context.")
    head_width = said.get("num_head_channels", -1)
    return {
        "size": int(said.get("image_size", 64)),
        "channels": int(said.get("in_channels", 3)),
        "outputs": int(said.get("out_channels", 3)),
        "base": int(said.get("model_channels", 192)),
        "multipliers": [int(n) for n in said.get("channel_mult", (1, 2, 3, 5))],
        "blocks": int(said.get("num_res_blocks", 2)),
        "attention": [int(n) for n in said.get("attention_resolutions", (8, 4, 2))],
        "heads": int(said.get("num_heads", 1)) if head_width in (-1, None) else None,
        "head_width": None if head_width in (-1, None) else int(head_width),
        "depth": int(said.get("transformer_depth", 1)),
        "context": int(said.get("context_dim", 512)),
    }


_RESIDUAL = (
    (r"in_layers\.0\.", "norm1."),
    (r"in_layers\.2\.", "conv1."),
    (r"emb_layers\.1\.", "time_emb_proj."),
    (r"out_layers\.0\.", "norm2."),
    (r"out_layers\.3\.", "conv2."),
    (r"skip_connection\.", "conv_shortcut."),
)
_ENDS = (
    (r"time_embed\.0\.", "time_embedding.linear_1."),
    (r"time_embed\.2\.", "time_embedding.linear_2."),
    (r"input_blocks\.0\.0\.", "conv_in."),
    (r"out\.0\.", "conv_norm_out."),
    (r"out\.2\.", "conv_out."),
)
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)$")
_MIDDLE = {"0": "mid_block.resnets.0.", "1": "mid_block.attentions.0.", "2": "mid_block.resnets.1."}


def unet_state(state: Mapping[str, Tensor], blocks: int = 2) -> State:
    """Return the state dict of diffusers' U-Net from a latent-diffusion one. `blocks`: residual blocks a level."""
    return {_unet_name(name, blocks): value for name, value in state.items()}


def _unet_name(name: str, blocks: int) -> str:
    layout = "a U-Net of latent diffusion"
    middle = re.match(r"middle_block\.(\d)\.(.+)$", name)
    if middle:
        return _MIDDLE[middle[1]] + _inside(middle[2])
    block = _BLOCK.match(name)
    if not block or name.startswith("input_blocks.0."):
        return _renamed(name, _ENDS, layout)
    side, number, part, rest = block[1], int(block[2]), block[3], block[4]
    down = side == "input_blocks"
    level, place = divmod(number - 1 if down else number, blocks + 1)
    prefix = f"{'down' if down else 'up'}_blocks.{level}."
    if rest.startswith("op."):
        return f"{prefix}downsamplers.0.conv.{rest[3:]}"
    if rest.startswith("conv."):
        return f"{prefix}upsamplers.0.conv.{rest[5:]}"
    return f"{prefix}{'resnets' if part == '0' else 'attentions'}.{place}.{_inside(rest)}"


def _inside(rest: str) -> str:
    for pattern, replacement in _RESIDUAL:
        new, count = re.subn("^" + pattern, replacement, rest)
        if count:
            return new
    return rest


def first_stage_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name, arguments} of a first stage, from `ddconfig`, `embed_dim`, `n_embed` of latent diffusion."""
    inner = dict(said.get("ddconfig", said))
    width, factors = int(inner.get("ch", 128)), [int(n) for n in inner.get("ch_mult", (1, 2, 4))]
    levels, side = [width * n for n in factors], int(inner.get("resolution", 256))
    attention = {int(n) for n in inner.get("attn_resolutions", ())}
    found: dict[str, Any] = {
        "channels": int(inner.get("z_channels", 3)),
        "levels": levels,
        "blocks": int(inner.get("num_res_blocks", 2)),
        "pictures": int(inner.get("in_channels", 3)),
        "size": side,
    }
    if inner.get("double_z"):
        if attention:
            raise UserError("first stage: attention between the ends of a KL autoencoder is not supported.")
        return {"name": "kl", "arguments": {**found, "quant_conv": True, "scale": 1.0, "shift": 0.0}}
    found |= {"codes": int(said.get("n_embed", 8192)), "code_width": int(said.get("embed_dim", found["channels"]))}
    return {
        "name": "vq",
        "arguments": {**found, "attention": [i for i in range(len(levels)) if side >> i in attention]},
    }


_AUTO = (
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"encoder\.down\.(\d+)\.downsample\.conv\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.\1.attentions.\2."),
    (r"decoder\.up\.(\d+)\.upsample\.conv\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"((?:encoder|decoder)\.conv_(?:in|out)|quantize\.embedding|(?:post_)?quant_conv)\.", r"\1."),
)
_AUTO_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def first_stage_state(state: Mapping[str, Tensor]) -> State:
    """Return the state dict of diffusers' autoencoder from a latent-diffusion one: levels of the decoder are counted
    from the coarsest there, and attention is linear layers instead of 1 x 1 convolutions."""
    ups = [int(m[1]) for m in (re.match(r"decoder\.up\.(\d+)\.", name) for name in state) if m]
    top = max(ups, default=0)
    found: State = {}
    for name, value in state.items():
        new = _renamed(name, _AUTO, "an autoencoder of latent diffusion")
        new = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{top - int(m[1])}", new)
        attention = re.match(r"(.+\.attentions\.\d+)\.(\w+)\.(weight|bias)$", new)
        if attention:
            new = f"{attention[1]}.{_AUTO_ATTENTION[attention[2]]}.{attention[3]}"
            value = value[:, :, 0, 0] if value.ndim == 4 else value
        found[new.replace(".nin_shortcut.", ".conv_shortcut.")] = value
    return found


def vae_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name, arguments} of a first stage from a published `vae/config.json`. Raises `UserError`."""
    name = str(config.get("_class_name", "AutoencoderKL"))
    _only("_class_name", name, ("AutoencoderKL",))
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for value in config.get(key, ()):
            _only(key, value, (kind,))
    _only("latents_mean", config.get("latents_mean"), (None,))
    return {
        "name": "kl",
        "arguments": {
            "channels": int(config.get("latent_channels", 4)),
            "levels": [int(n) for n in config.get("block_out_channels", (64,))],
            "blocks": int(config.get("layers_per_block", 1)),
            "groups": int(config.get("norm_num_groups", 32)),
            "scale": float(config.get("scaling_factor", 0.18215)),
            "shift": float(config.get("shift_factor") or 0.0),
            "quant_conv": bool(config.get("use_quant_conv", True)),
            "post_quant_conv": bool(config.get("use_post_quant_conv", True)),
            "attention": bool(config.get("mid_block_add_attention", True)),
            "pictures": int(config.get("in_channels", 3)),
            "size": int(config.get("sample_size", 32)),
        },
    }
