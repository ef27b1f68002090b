"""The family cerberus, with other encoders, sets of tasks and decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tester import FamilyTester

NUCLEI = {"nuclei": {"kind": "objects", "rule": "nuclei"}}


class TestCerberus(FamilyTester):
    family = "cerberus"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "coarse": {
            "encoder": "test_resnet",
            "tasks": NUCLEI,
            "finest": 2,
            "widths": [8, 8, 8, 8],
            "encoding": "encoder",
        },
        "picture as a level": {"encoder": "resnet10t", "tasks": NUCLEI, "widths": None, "mpp": None},
        "patch": {
            "tasks": {"tissue": {"kind": "patch", "classes": ["a", "b"], "window": None, "head": "linear"}},
            "widths": None,
        },
    }
