"""The family unet, with every decoder and mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tester import FamilyTester

NARROW = {"channels": [16, 16, 8, 8, 8]}
DECODERS: dict[str, dict[str, Any]] = {
    "unet": NARROW | {"attention": True},
    "unetplusplus": NARROW,
    "manet": NARROW | {"reduction": 8, "pab_channels": 8},
    "linknet": {"channels": 8},
    "fpn": {"channels": 32, "pyramid_channels": 16},
    "pspnet": {"channels": 16, "width": 8},
    "deeplabv3plus": {"channels": 16, "width": 8},
    "upernet": {"channels": 16},
    "segformer": {"channels": 16},
    "dpt": {"channels": 16, "reassembled": [8, 8, 16, 16]},
}


class TestUNet(FamilyTester):
    family = "unet"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"decoder": {"name": name, "arguments": arguments}} for name, arguments in DECODERS.items()
    }
