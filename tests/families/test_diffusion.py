"""The family diffusion: conditions, training, drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tester import FamilyTester


class TestDiffusion(FamilyTester):
    family = "diffusion"
    size = (32, 32)
    odd = (30, 37)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "plain": {"mask": None, "embedding": None, "noise": {"prediction": "epsilon", "weighting": "plain"}},
        "flow": {"embedding": None, "noise": {"prediction": "flow", "weighting": "plain"}},
        "own-features": {
            "mask": None,
            "embedding": {"tokens": 4},
            "condition_encoder": "mobilenetv3_small_050",
            "condition_encoder_weights": "none",
            "noise": {"prediction": "sample", "schedule": "linear"},
        },
    }

    def random_maps(self) -> tuple[str, ...]:
        return ("rng",)
