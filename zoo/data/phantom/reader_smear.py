"""Reader "phantom-smear": blood smears with boxes, attributes, outlines and parts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Argument
from pydantic import NonNegativeFloat, PositiveFloat, field_validator

from zoo.data.phantom import smear
from zoo.data.phantom.generated import Generated, PhantomArguments, Side, pair
from zoo.data.phantom.leukocytes import KINDS
from zoo.data.readers.base import Entry
from zoo.schema import Schema
from zoo.types import Boxes, Instances, Sample, Semantic, Truth

_USUAL = {"neutrophil": 3.0, "lymphocyte": 2.0, "monocyte": 1.0, "eosinophil": 1.0, "basophil": 1.0, "blast": 1.0}


class SmearArguments(PhantomArguments):
    """What the phantom of blood smears may be told."""

    size: Side | tuple[Side, Side] = 320
    """Height and width of a field in pixels: one number, or two."""
    um: PositiveFloat = Argument(default=0.15, ge=0.05, le=1)
    """um per pixel."""
    leukocytes: NonNegativeFloat = 2.0
    """White cells in a field, on average."""
    kinds: dict[str, Annotated[float, Argument(ge=0)]] = _USUAL
    """Proportions of the types: neutrophil, lymphocyte, monocyte, eosinophil, basophil, blast."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, values: dict[str, float]) -> dict[str, float]:
        for name in values:
            if name not in KINDS:
                raise ValueError(f'no cell type "{name}". Expected some of {", ".join(KINDS)}')
        if not sum(values.values()):
            raise ValueError("no type has a share. Expected at least one number above 0")
        return values


class SmearReader(Generated):
    """Reader "phantom-smear". Truths: `cells` boxes with classes and the seven attributes, `objects` the same objects
    as instances (row i of the boxes is id i + 1), `cell` parts of white cells, `nuclei` of white cells."""

    Arguments: ClassVar[type[Schema]] = SmearArguments
    KNOWN: ClassVar[tuple[str, ...]] = ("cells", "objects", "cell", "nuclei")

    def read(self, entry: Entry) -> Sample:
        """Return one field: (3, H, W) uint8."""
        arguments: Any = self.arguments
        image, found = smear.smear_field(
            self.seed(entry),
            self.draws(entry),
            pair(arguments.size),
            arguments.um,
            arguments.difficulty,
            arguments.leukocytes,
            tuple(arguments.kinds.get(name, 0.0) for name in KINDS),
        )
        kinds = {i: int(k) for i, k in enumerate(found.kinds, start=1)}
        white = {i: k - smear.PLATELET for i, k in kinds.items() if k >= smear.FIRST}
        nuclei = np.where(found.parts == 2, found.objects, 0).astype(np.int32)
        known: dict[str, Truth] = {
            "cells": Boxes(found.boxes, found.kinds, found.attributes),
            "objects": Instances(found.objects, kinds),
            "cell": Semantic(found.parts),
            "nuclei": Instances(nuclei, {i: k for i, k in white.items() if (nuclei == i).any()}),
        }
        return self.sample(entry, image, (arguments.um, arguments.um), known)
