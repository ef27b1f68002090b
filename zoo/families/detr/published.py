"""Published weights of MFDS-DETR, and of Deformable DETR with its names, in the layout of this family."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.families.detr.options import DetrOptions
from zoo.weights.convert import Converted, Files

State = dict[str, Tensor]

SOURCE = "MFDS-DETR: https://github.com/JustlfC03/MFDS-DETR (no licence file; files carry Apache-2.0 headers)"

_RENAMED = (
    (r"backbone\.0\.body\.", "pyramid.encoder.net."),
    (r"backbone\.1\.", "positions."),
    (r"transformer\.(encoder|decoder)\.layers\.", r"\1.layers."),
    (r"transformer\.(level_embed|reference_points|enc_output_norm|enc_output|pos_trans_norm|pos_trans)", r"\1"),
    (r"(input_proj|top_feature_proj|upbottom_conv|weight_conv|up_sample_conv|lateral_conv)\.", r"neck.\1."),
)
_HEAD = re.compile(r"^(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.(\d+)\.(.+)$")


def published_options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of the family from the arguments of the published code (`main.py`).

    Classes get the names "class 0", ... Raises `UserError` for what the published code cannot do either, or what this
    build does not have.
    """
    c = dict(configuration)
    if c.get("dilation"):
        raise UserError("MFDS-DETR: a dilated last stage (DC5) is not supported. Expected dilation: false.")
    neck = {"wbcfpn": "hs-fpn"}.get(c.get("method_fpn") or "wbcfpn") if c.get("with_fpn", True) else "plain"
    if neck is None:
        raise UserError(
            f'MFDS-DETR: the neck "{c["method_fpn"]}" does not run in the published code. Expected wbcfpn, or none.'
        )
    refine, selected = bool(c.get("with_box_refine", False)), bool(c.get("two_stage", False))
    return {
        "encoder": c.get("backbone", "resnet50"),
        "pad": False,
        "freeze": "norms",
        "neck": neck,
        "levels": c.get("num_feature_levels", 4),
        "width": c.get("hidden_dim", 256),
        "heads": c.get("nheads", 8),
        "encoder_layers": c.get("enc_layers", 6),
        "decoder_layers": c.get("dec_layers", 6),
        "encoder_points": c.get("enc_n_points", 4),
        "decoder_points": c.get("dec_n_points", 4),
        "feedforward": c.get("dim_feedforward", 1024),
        "dropout": c.get("dropout", 0.1),
        "positions": c.get("position_embedding", "sine"),
        "queries": c.get("num_queries", 100),
        "refine": refine or selected,
        "selection": "two-stage" if selected else "none",
        "auxiliary": c.get("aux_loss", True),
        "classes": [f"class {i}" for i in range(c.get("num_classes", 6))],
    }


def convert(state: State, options: DetrOptions) -> tuple[State, list[str]]:
    """Return the family's state dict of a published one, and one line about each kind of entry that was not needed.

    One tensor with several names (the shared heads) is taken from the last of them, the one in force; where the copies
    differ a line says so. Projections that the published network with its neck never uses are left out. Raises
    `UserError` where a needed entry is missing: `zoo.load` compares names and shapes with the module.
    """
    found: State = {}
    notes: list[str] = []
    heads: dict[tuple[str, int, str], list[tuple[str, Tensor]]] = {}
    unused = []
    for name, value in state.items():
        head = _HEAD.match(name)
        if head is not None:
            heads.setdefault((head[1], int(head[2]), head[3]), []).append((name, value))
        elif name.startswith("fpn_proj_list.") or (name.startswith("input_proj.") and options.neck == "hs-fpn"):
            unused.append(name)
        elif not name.endswith("num_batches_tracked"):
            found[_renamed(name)] = value
    if unused:
        tops = ", ".join(sorted({name.split(".")[0] for name in unused}))
        notes.append(f"{len(unused)} entries that the network with this neck never uses are left out ({tops})")
    found |= _heads(heads, options, notes)
    norms = [name for name in found if name.startswith("pyramid.") and name.endswith("running_var")]
    for name in norms:
        found[name.removesuffix("running_var") + "num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return found, notes


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        new, count = re.subn("^" + pattern, replacement, name)
        if count:
            return new
    return name


def _heads(
    heads: Mapping[tuple[str, int, str], Sequence[tuple[str, Tensor]]], options: DetrOptions, notes: list[str]
) -> State:
    """Return the heads: one of each layer (and of the proposals) with refinement, else the one that all share."""
    found: State = {}
    last = max((number for _, number, _ in heads), default=0)
    aliases = differing = 0
    for (kind, number, rest), copies in sorted(heads.items()):
        aliases += len(copies) - 1
        chosen = dict(copies).get(f"{kind}.{number}.{rest}", copies[-1][1])
        differing += sum(_differ(chosen, value) for _, value in copies)
        if options.refine:
            found[f"{kind}.{number}.{rest}"] = chosen
            continue
        shared = heads.get((kind, last, rest), copies)[-1][1]
        aliases += number != last
        differing += number != last and _differ(chosen, shared)
        found[f"{kind}.0.{rest}"] = shared
    if aliases:
        notes.append(f"{aliases} entries are further names of tensors that are taken once")
    if differing:
        notes.append(f"{differing} of them differ from the one taken: this is no file that the published code wrote")
    return found


def _differ(one: Tensor, other: Tensor) -> bool:
    same = one.shape == other.shape and (one.is_meta or torch.equal(one, other))
    return not same


def convert_file(
    files: Files,
    *,
    classes: Sequence[str],
    unused: int = 1,
    file: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Converted:
    """Return the family's options and state dict of a published checkpoint.

    `classes`: their names, in the order of the ids; `unused`: logits before the first of them (ids begin at 1).
    `configuration`: what of the published arguments differs from what the shapes tell (heads, levels' points).
    """
    state = files.state_dict(file, "model")
    options = _from_shapes(state, dict(configuration or {})) | {"classes": list(classes), "unused": unused}
    checked = DetrOptions.model_validate(options)
    tensors, notes = convert(state, checked)
    for note in notes:
        sys.stderr.write(f"{files.main.name}: {note}\n")
    return Converted("detr", checked.model_dump(mode="json"), tensors, {"source": SOURCE})


def _from_shapes(state: State, said: dict[str, Any]) -> dict[str, Any]:
    """Return options that fit a state dict. Raises `UserError` where it is none of a deformable DETR."""

    def layers(prefix: str) -> int:
        return 1 + max((int(n.removeprefix(prefix).split(".")[0]) for n in state if n.startswith(prefix)), default=-1)

    level = state.get("transformer.level_embed")
    if level is None or "class_embed.0.weight" not in state:
        raise UserError("the file is no state dict of MFDS-DETR or Deformable DETR: it has no transformer.level_embed.")
    decoder = layers("transformer.decoder.layers.")
    selected = "transformer.enc_output.weight" in state
    refined = any(name.startswith("transformer.decoder.bbox_embed.") for name in state)
    heads = said.get("nheads", 8)
    encoder_offsets = state["transformer.encoder.layers.0.self_attn.sampling_offsets.bias"]
    decoder_offsets = state["transformer.decoder.layers.0.cross_attn.sampling_offsets.bias"]
    levels = level.shape[0]
    known = {
        "with_fpn": any(name.startswith("upbottom_conv.") for name in state),
        "num_feature_levels": levels,
        "hidden_dim": level.shape[1],
        "nheads": heads,
        "enc_layers": layers("transformer.encoder.layers."),
        "dec_layers": decoder,
        "enc_n_points": encoder_offsets.numel() // (heads * levels * 2),
        "dec_n_points": decoder_offsets.numel() // (heads * levels * 2),
        "dim_feedforward": state["transformer.encoder.layers.0.linear1.weight"].shape[0],
        "with_box_refine": refined,
        "two_stage": selected,
        "num_classes": state["class_embed.0.weight"].shape[0],
    }
    if "query_embed.weight" in state:
        known["num_queries"] = state["query_embed.weight"].shape[0]
    return published_options(known | said)
