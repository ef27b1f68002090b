"""The family unet, with every decoder and mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tester import FamilyTester

NARROW = {"channels": [16, 16, 8, 8, 8]}
DECODERS: dict[str, dict[str, Any]] = {
    "unet": {"channels": [32, 16, 16], "attention": True},
    "unetplusplus": {"channels": [32, 16, 16, 16, 16], "attention": True},
    "manet": NARROW | {"reduction": 8, "pab_channels": 8},
    "linknet": {"channels": 8},
    "fpn": {"channels": 32, "pyramid_channels": 16},
    "pspnet": {"channels": 16, "width": 8},
    "deeplabv3plus": {"channels": 16, "width": 8},
    "upernet": {"channels": 16},
    "segformer": {"channels": 16},
    "dpt": {"channels": 16, "reassembled": [8, 8, 16, 16]},
}
THREE = ["background", "stroma", "tumour"]
MORE: dict[str, dict[str, Any]] = {  # what else a variant tries, spread over the decoders
    "unet": {"dropout": 0.2, "classes": THREE, "instances": None, "loss": ["lovasz", "focal"], "ignore": 254},
    "unetplusplus": {"norm": "group", "instances": {"min_size": 4}, "class_weights": [0.5, 2]},
    "linknet": {"mode": "multilabel", "classes": ["stroma", "tumour"], "instances": None, "norm": "none"},
    "fpn": {"classes": THREE, "instances": {"boundary": "outline", "width": 1, "semantic": False}},
    "pspnet": {"encoder": {"name": "resnet10t", "arguments": {"output_stride": 8}}, "mode": "multiclass"},
    "deeplabv3plus": {"loss": "boundary_cross_entropy", "instances": None},
    "segformer": {"channels": ["DAPI", "CD3", "CD8", "panCK"], "norm": "instance"},
    "dpt": {"loss": ["boundary_cross_entropy", "tversky"], "border": {"kind": "objects"}},
}


class TestUNet(FamilyTester):
    family = "unet"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"decoder": {"name": name, "arguments": arguments}} | MORE.get(name, {})
        for name, arguments in DECODERS.items()
    }
