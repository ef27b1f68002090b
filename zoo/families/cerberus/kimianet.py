"""What KimiaNet's published case means here: a DenseNet-121 with a linear head on the mean of its last map.

Riasatian et al. 2021, "Fine-Tuning and Training of DenseNet for Histopathology Image Representation Using TCGA
Diagnostic Slides". Unlike torchvision's and timm's DenseNets the released wrapper has no ReLU between the last norm and
the mean: features may be negative. The weights need an agreement with their authors; nothing here fetches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

import zoo
from zoo.cases import Case
from zoo.encoders import layouts
from zoo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TASK = "diagnosis"


def options(classes: int) -> dict[str, Any]:
    """Return the options of the network: `classes` tumour types of TCGA (published: 30)."""
    named = [f"class {i}" for i in range(classes)]
    head = {"kind": "patch", "classes": named, "window": None, "head": "linear", "output": "label"}
    encoder = {"name": "densenet121", "arguments": {"final_relu": False}}
    return {"encoder": encoder, "tasks": {TASK: head}, "encoding": "encoder", "mpp": 0.5}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict of the published one, old torchvision names (`norm.1`) included. Raises `UserError`."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    body = {key: value for key, value in plain.items() if key not in ("fc_4.weight", "fc_4.bias")}
    encoder = layouts.densenet({key.removeprefix("model.0."): v for key, v in body.items()})
    strange = [key for key in body if not key.startswith("model.0.")]
    if strange or len(encoder) != len(body):
        shown = strange[0] if strange else "a part of its network"
        raise UserError(f'kimianet: "{shown}" is not in the published layout. Expected the released file.')
    found = {f"pyramid.encoder.net.features_{name.removeprefix('features.')}": v for name, v in encoder.items()}
    if "fc_4.weight" in plain:
        found[f"heads.{TASK}.layers.0.weight"] = plain["fc_4.weight"][:, :, None, None]
    if "fc_4.bias" in plain:
        found[f"heads.{TASK}.layers.0.bias"] = plain["fc_4.bias"]
    return found


@torch.no_grad()
def answer(case: Case) -> Mapping[str, Any]:
    """Answer a case: features, logits, and the first row of what the dense blocks give."""
    if case.kind not in ("network", "manifest"):
        raise case.unknown()
    with case.building():
        model = zoo.create("cerberus", **options(int(case.configuration.get("classes", 30))))
    case.load(model, convert)
    if case.layout_only:
        return {}
    image = case.inputs["image"]  # normalised already
    maps = model.forward({"image": image}, ("level0", f"middle/{TASK}"))
    found: dict[str, Any] = {"features": maps["level0"].mean((2, 3)), "logits": maps[f"middle/{TASK}"].flatten(1)}
    levels = model.pyramid.encoder.pooled(image).maps  # type: ignore[union-attr,operator]
    for number, level in enumerate(levels[1:], start=1):
        found[f"denseblock{number}"] = level
        found[f"denseblock{number}_row0"] = level[:, :, 0]
    return found
