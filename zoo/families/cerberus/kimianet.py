"""What KimiaNet's published case means here: a DenseNet-121 with a linear head on the mean of its last map.

Riasatian et al. 2021, "Fine-Tuning and Training of DenseNet for Histopathology Image Representation Using TCGA
Diagnostic Slides". Unlike torchvision's and timm's DenseNets the released wrapper has no ReLU between the last norm and
the mean: features may be negative. The weights need an agreement with their authors; nothing here fetches them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

import zoo
from zoo.cases import Case
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
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key.removeprefix("module."))
        if name.startswith("model.0."):
            first, _, rest = name.removeprefix("model.0.").partition(".")
            found[f"pyramid.encoder.net.features_{first}.{rest}"] = value
        elif name == "fc_4.weight":
            found[f"heads.{TASK}.layers.0.weight"] = value[:, :, None, None]
        elif name == "fc_4.bias":
            found[f"heads.{TASK}.layers.0.bias"] = value
        else:
            raise UserError(f'kimianet: "{key}" is not in the published layout. Expected the released file.')
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
    levels = model.pyramid.encoder(image).maps  # type: ignore[union-attr,operator]
    for number, level in enumerate(levels[1:], start=1):
        found[f"denseblock{number}"] = level
        found[f"denseblock{number}_row0"] = level[:, :, 0]
    return found
