"""Published files of foundation encoders into their modules: every entry accounted for, nothing resized unsaid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.encoders import layouts
from zoo.encoders.base import Encoder
from zoo.encoders.listing import Info
from zoo.encoders.pretrained import Build, File, from_tensors
from zoo.errors import UserError

State = dict[str, Tensor]


def foundation(build: Build, info: Info, in_channels: int, file: File, arguments: Mapping[str, Any]) -> Encoder:
    """Return a foundation encoder with a published file's weights, or those of a converted one. Raises `UserError`."""
    from zoo.weights.readers import state_dict

    tensors, _ = layouts.to_timm(state_dict(file.path), str(file.path))
    if info.kind != "vit":
        return from_tensors(build, info, in_channels, file, tensors, arguments)
    with torch.device("meta"):  # nothing is drawn that the file replaces
        encoder = build(info, in_channels, None, None, arguments)
    net: Any = encoder.net
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    fitted(state, net, str(file.path), info, resample="img_size" in arguments)
    net.load_state_dict(state, strict=True, assign=True)
    return encoder


def fitted(state: State, net: Any, where: str, info: Info, *, resample: bool = False) -> None:
    """Make a state dict under timm's names one of `net`, in place. Raises `UserError` where it is another network's.

    The position table stays as the file has it (the module's grid follows), so that it is resampled once, when a
    picture comes; `resample` makes it the module's size. A class position that the module has no room for is added to
    the class token, which is the same sum. First layers are widened for other numbers of channels as timm does.
    """
    kernel, own = state.get("patch_embed.proj.weight"), net.patch_embed.proj.weight
    if kernel is not None and tuple(kernel.shape[2:]) != tuple(own.shape[2:]):
        raise UserError(
            f"{where}: its patches are {kernel.shape[2]} x {kernel.shape[3]} pixels, those of encoder {info.name} "
            f"{own.shape[2]} x {own.shape[3]}. Expected weights of the same; `patch` resizes them afterwards."
        )
    if kernel is not None and kernel.shape[1] != own.shape[1]:
        from timm.models import adapt_input_conv

        state["patch_embed.proj.weight"] = adapt_input_conv(own.shape[1], kernel)
    _positions(state, net, where, resample)
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if expected != given:
        absent, foreign = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
        other = [k for k in given if k in expected and given[k] != expected[k]]
        said = f"{len(absent)} entries are missing, {len(foreign)} unknown, {len(other)} of another shape"
        first = (absent + foreign + other)[0]
        raise UserError(
            f"{where}: does not fit encoder {info.name}: {said}, the first {first}. "
            f"Expected the file that its page names. See: zoo show {info.name}"
        )


def _positions(state: State, net: Any, where: str, resample: bool) -> None:
    table = state.get("pos_embed")
    if table is None or net.pos_embed is None:
        return
    inside = 0 if net.no_embed_class else net.num_prefix_tokens
    side = math.isqrt(table.shape[1] - inside)
    if side * side != table.shape[1] - inside:
        side = math.isqrt(table.shape[1] - 1)
        if not (inside == 0 and side * side == table.shape[1] - 1 and "cls_token" in state):
            raise UserError(f"{where}: its table of positions has {table.shape[1]} entries. Expected a square grid.")
        state["cls_token"] = state["cls_token"] + table[:, :1]
        table = state["pos_embed"] = table[:, 1:].contiguous()
    grid = tuple(net.patch_embed.grid_size)
    if (side, side) == grid:
        return
    if resample:
        from timm.layers import resample_abs_pos_embed

        state["pos_embed"] = resample_abs_pos_embed(table, new_size=list(grid), num_prefix_tokens=inside)
    else:
        patch = net.patch_embed.patch_size
        net.patch_embed.set_input_size(img_size=(side * patch[0], side * patch[1]))
        net.pos_embed = nn.Parameter(torch.empty_like(table, device="meta"), net.pos_embed.requires_grad)


def fits(encoder: str, path: Path) -> None:
    """Raise `UserError` where a file does not fill an encoder; takes no more memory than the file."""
    from zoo.encoders.build import build_encoder

    build_encoder(encoder, weights=path)
