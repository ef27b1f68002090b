"""The family stardist, in 2-D and 3-D."""

from __future__ import annotations

from typing import Any, ClassVar

from tester import FamilyTester
from torch import Tensor

from zoo.families.base import Family


class TestStarDist(FamilyTester):
    family = "stardist"
    variants: ClassVar[dict[str, Any]] = {
        "one class": {"classes": ["nucleus"], "grid": [4, 2], "unet": {"filters": 8, "depth": 1, "batch_norm": True}},
        "encoder": {
            "backbone": "encoder",
            "encoder": "test_resnet",
            "decoder": {"widths": [8, 8, 8, 8], "features": 8},
        },
    }


class TestStarDistVolumes(FamilyTester):
    family = "stardist"
    size = (12, 24, 24)
    odd = (9, 17, 22)
    variants: ClassVar[dict[str, Any]] = {
        "unet": {
            "dims": 3,
            "grid": [1, 2, 2],
            "anisotropy": [2, 1, 1],
            "unet": {"filters": 4, "depth": 1, "features": 8},
        },
        "resnet": {
            "dims": 3,
            "backbone": "resnet",
            "grid": [1, 2, 2],
            "resnet": {"filters": 4, "blocks": 2, "convs": 2, "features": 8},
            "classes": ["nucleus"],
        },
        "encoder of MONAI": {
            "dims": 3,
            "backbone": "encoder",
            "encoder": {"name": "resnet10", "arguments": {"widen_factor": 0.0625}},
            "decoder": {"widths": [8, 8, 8, 4], "norm": "group", "features": 8},
            "grid": [1, 2, 2],
        },
    }

    def image(self, family: Family, size: tuple[int, ...] | None = None, B: int = 2, seed: int = 0) -> Tensor:
        shape = size or self.size
        return super().image(family, shape if family.spec.axes == "CZYX" else shape[-2:], B, seed)
