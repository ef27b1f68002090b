"""Checkpoints of latent diffusion, and autoencoders as diffusers writes them, in the layout of this family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.families.diffusion.layouts import State, count, only, renamed


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
        return renamed(name, _ENDS, layout)
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
        new = renamed(name, _AUTO, "an autoencoder of latent diffusion")
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
    only("_class_name", name, ("AutoencoderKL",))
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        for value in config.get(key, ()):
            only(key, value, (kind,))
    only("latents_mean", config.get("latents_mean"), (None,))
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


def unet_arguments_of(state: Mapping[str, Tensor], embedder: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Return arguments of the network "latent-unet" that fit a latent-diffusion state dict, and the embedding's width.

    One attention head as wide as the level, as published. Raises `UserError` for another layout.
    """
    if "input_blocks.0.0.weight" not in state or "patch_fc.weight" not in embedder:
        raise UserError("not a U-Net of latent diffusion on embeddings: no input_blocks.0.0 or no patch_fc.")
    base, channels = state["input_blocks.0.0.weight"].shape[:2]
    inputs = count(state, r"input_blocks\.(\d+)\.")
    downs = sorted(int(m[1]) for m in (re.match(r"input_blocks\.(\d+)\.0\.op\.weight", n) for n in state) if m)
    blocks = downs[0] - 1 if downs else inputs - 1
    widths, attention = [], []
    for level in range(len(downs) + 1):
        last = level * (blocks + 1) + blocks
        widths.append(state[f"input_blocks.{last}.0.out_layers.3.weight"].shape[0])
        if f"input_blocks.{last}.1.norm.weight" in state:
            attention.append(2**level)
    context, width = embedder["patch_fc.weight"].shape
    region = embedder.get("region_fc.weight")
    arguments = {
        "channels": channels,
        "outputs": state["out.2.weight"].shape[0],
        "base": base,
        "multipliers": [n // base for n in widths],
        "blocks": blocks,
        "attention": attention,
        "context": context,
        "region_width": 0 if region is None else region.shape[1],
    }
    return arguments, width


def first_stage_arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return {name, arguments} of the VQ autoencoder that fits a latent-diffusion state dict. Raises `UserError`."""
    if "quantize.embedding.weight" not in state:
        raise UserError('no "quantize.embedding.weight" among its tensors: not a VQ autoencoder of latent diffusion.')
    codes, code_width = state["quantize.embedding.weight"].shape
    levels = count(state, r"encoder\.down\.(\d+)\.")
    widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    attention = [i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in state]
    return {
        "name": "vq",
        "arguments": {
            "channels": state["encoder.conv_out.weight"].shape[0],
            "codes": codes,
            "code_width": code_width,
            "levels": widths,
            "blocks": count(state, r"encoder\.down\.0\.block\.(\d+)\."),
            "attention": attention,
            "pictures": state["encoder.conv_in.weight"].shape[1],
        },
    }
