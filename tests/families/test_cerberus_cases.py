"""Cases of Cerberus of configurations that the published folder need not have, made here."""

from __future__ import annotations

import re
from typing import Any

import torch

import zoo
from zoo.cases import Case
from zoo.families.cerberus import published
from zoo.families.cerberus.cases import answer

DECODERS = {"Patch-Class": {"OUT": 9}}


def entries(model: torch.nn.Module) -> dict[str, Any]:
    """Return the published entries of a network that says the classes of patches only: name -> shape and dtype."""
    names = {ours: theirs for theirs, ours in published.PATCH.items()}
    found = {"conv_map.weight": (256, 512, 1, 1), "backbone.fc.weight": (1000, 512), "backbone.fc.bias": (1000,)}
    for name, value in model.state_dict().items():
        plain = re.sub(r"^pyramid\.encoder\.net\.", "backbone.", name)
        plain = re.sub(r"^heads\.tissue\.(layers\.\d)", lambda m: f"decoder_head.Patch-Class.{names[m[1]]}", plain)
        found[plain] = tuple(value.shape)
    return {k: {"shape": list(v), "dtype": "int64" if k.endswith("tracked") else "float32"} for k, v in found.items()}


def test_a_network_of_patches_alone() -> None:
    """The published file has the map that its decoders would begin with, whether there are decoders or not."""
    options = published.options("resnet18", DECODERS)
    configuration = {"encoder_backbone_name": "resnet18", "decoder_kwargs": DECODERS}
    state = entries(zoo.create("cerberus", **options))
    about = {"system": "cerberus", "kind": "network", "configuration": configuration, "state_dict": state}
    assert answer(Case("layout", about, layout_only=True)) == {}
    found = answer(Case("patch", about, {"image": torch.zeros(1, 3, 144, 144, dtype=torch.uint8)}))
    assert found["Patch-Class"].shape == (1, 9, 1, 1)


def test_targets_of_an_annotation_without_classes() -> None:
    codes = {"Lumen-INST": "IP-ERODED-CONTOUR-3", "Lumen-TYPE": "TP"}
    about = {"kind": "target", "configuration": {"req_target_code": codes, "crop_shape": [16, 16]}}
    found = answer(Case("targets", about, {"lumen.ann": torch.ones(20, 20, 1, dtype=torch.int32)}))
    assert set(found) == {"lumen.inst", "lumen.weight"}
    assert (found["lumen.inst"] == 1).all()
