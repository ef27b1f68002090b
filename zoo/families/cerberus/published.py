"""The released network: its layout of parameters and ours (Graham et al. 2022; 558 entries).

Published names say `Gland`, `Nuclei#TYPE`, `Patch-Class`; ours are a task each. The encoder's unused classifier
(`backbone.fc`) is in the released file and is taken off here, by name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.families.cerberus.options import published_tasks
from zoo.weights.convert import Converted, Files

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048}
"""Encoders whose published layout is known (torchvision's names), and the channels of their deepest map."""


def task_name(decoder: str) -> str:
    """Return our task of a published decoder: "Nuclei#TYPE" -> "nuclei_class", "Patch-Class" -> "tissue"."""
    base = decoder.removesuffix("#TYPE")
    if base == "Patch-Class":
        return "tissue"
    name = base.lower().replace("-", "_")
    return f"{name}_class" if decoder.endswith("#TYPE") else name


def options(encoder: str, decoders: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return the options of a network that the published code would build: `decoders` as DECODER -> {OUTPUT: planes}.

    Raises `UserError` for an encoder of another layout.
    """
    if encoder not in WIDTHS:
        known = ", ".join(WIDTHS)
        raise UserError(f'cerberus: the published layout of encoder "{encoder}" is not known. Expected one of {known}.')
    ours = published_tasks()
    tasks: dict[str, Any] = {}
    for decoder, outputs in decoders.items():
        name, planes = task_name(decoder), next(iter(outputs.values()))
        known_task = dict(ours.get(name, {}))
        if decoder == "Patch-Class":
            named = known_task["classes"]
            tasks[name] = known_task | {"classes": named if len(named) == planes else _numbered(planes)}
        elif decoder.endswith("#TYPE"):
            of = name.removesuffix("_class")
            named = known_task.get("classes", [])
            classes = named if len(named) == planes - 1 else _numbered(planes - 1)
            weights = {} if classes == named else {"class_weights": None}
            tasks[name] = {"kind": "classes", **known_task, "of": of, "classes": classes} | weights
        else:
            tasks[name] = {"kind": "objects", **known_task}
    for name, task in [*tasks.items()]:
        if task["kind"] == "classes" and task["of"] not in tasks:
            raise UserError(f"cerberus: decoder of {name} without a decoder of {task['of']}. Name both.")
        if task.get("inside") not in (None, *tasks):
            tasks[name] = {**task, "inside": None}
    return {"encoder": {"name": encoder, "arguments": {"stem_stride": 1}}, "tasks": tasks}


def _numbered(count: int) -> list[str]:
    return [f"class {i + 1}" for i in range(count)]


PATCH = {"bn1": "layers.0", "conv1": "layers.3", "bn2": "layers.4", "conv2": "layers.6"}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict of a published one; a prefix `module.` of every name is taken off.

    Raises `UserError` for a name that is not of the published layout.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        ours = _renamed(key, value)
        if ours is not None:
            found[ours] = value
    return found


def _renamed(key: str, value: Tensor) -> str | None:
    """Return our name of an entry, None for the encoder's classifier."""
    if key.startswith("backbone."):
        rest = key.removeprefix("backbone.")
        if rest in ("fc.weight", "fc.bias"):
            if value.shape[0] != 1000:
                raise UserError(
                    f"cerberus: {key} has shape {tuple(value.shape)}. Expected the 1000 classes of ImageNet."
                )
            return None
        return f"pyramid.encoder.net.{rest}"
    if key == "conv_map.weight":
        return "neck.weight"
    dense = re.fullmatch(r"decoder_head\.([^.]+)\.(\d+)\.block\.(\d+)\.(conv|bn)\.(\w+)", key)
    if dense:
        decoder, block, unit, part, rest = dense.groups()
        return f"decoders.{task_name(decoder)}.blocks.{block}.{unit}.{'norm' if part == 'bn' else 'conv'}.{rest}"
    patch = re.fullmatch(r"decoder_head\.([^.]+)\.(bn1|conv1|bn2|conv2)\.(\w+)", key)
    if patch:
        return f"heads.{task_name(patch[1])}.{PATCH[patch[2]]}.{patch[3]}"
    head = re.fullmatch(r"output_head\.([^.]+)\.[^.]+\.x\.(0)\.block\.0\.(conv|bn)\.(\w+)", key)
    if head:
        return f"heads.{task_name(head[1])}.0.{'norm' if head[3] == 'bn' else 'conv'}.{head[4]}"
    last = re.fullmatch(r"output_head\.([^.]+)\.[^.]+\.x\.1\.conv\.(\w+)", key)
    if last:
        return f"heads.{task_name(last[1])}.1.{last[2]}"
    raise UserError(f'cerberus: "{key}" is not in the published layout. Expected the released file.')


RELEASED = {
    "Gland": {"INST": 3},
    "Gland#TYPE": {"TYPE": 3},
    "Lumen": {"INST": 3},
    "Nuclei": {"INST": 3},
    "Nuclei#TYPE": {"TYPE": 7},
    "Patch-Class": {"OUT": 9},
}
"""Decoders of the released network, and the planes of each."""


def from_files(files: Files, encoder: str = "resnet34") -> Converted:
    """Return the released network: the converter of its weights' card. Raises `UserError` for another layout."""
    return Converted("cerberus", options(encoder, RELEASED), convert(files.state_dict()))
