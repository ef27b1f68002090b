"""The phantom as a dataset: its splits are ranges of seeds, its slides are groups, its truths are exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Argument
from pydantic import NonNegativeInt, PositiveFloat

from zoo.cards import DatasetCard
from zoo.data.phantom.he import Optics, draw_stain, render
from zoo.data.phantom.layout import Anatomy, Layout, lay_out
from zoo.data.readers.base import Entry
from zoo.data.resample import present_ids
from zoo.errors import UserError
from zoo.schema import Schema
from zoo.types import Instances, Sample, Semantic, Truth

Difficulty = Literal["easy", "medium", "hard"]
SLIDE = 8
"""Fields that come from one slide, and share its stain."""
_SPLITS = {"train": 0, "val": 1, "test": 2}

ANATOMY: dict[str, Anatomy] = {
    "easy": Anatomy(overlap=0.0, gap=1.25, rough=0.05, rows=0.0, lymphocytes=0.7, fibroblasts=1.6),
    "medium": Anatomy(overlap=0.04, gap=1.0, rough=0.09, rows=0.4, lymphocytes=1.4, fibroblasts=2.4),
    "hard": Anatomy(overlap=0.22, gap=1.0, rough=0.14, rows=0.7, lymphocytes=2.4, fibroblasts=3.2),
}
OPTICS: dict[str, Optics] = {
    "easy": Optics((1.4, 1.9), (0.05, 0.15), (0.4, 0.75), (0.1, 0.3), (1.0, 2.0), 0.03),
    "medium": Optics((1.0, 1.7), (0.12, 0.4), (0.5, 1.0), (0.2, 0.5), (1.5, 4.0), 0.08),
    "hard": Optics((0.65, 1.25), (0.25, 0.75), (0.55, 1.2), (0.3, 0.8), (2.5, 6.0), 0.16),
}


class PhantomArguments(Schema):
    """What a phantom may be told."""

    difficulty: Difficulty = "medium"
    """Crowding, contrast, blur and noise: easy | medium | hard."""
    size: int = Argument(default=256, ge=32, le=8192)
    """Height and width of a field in pixels."""
    um: PositiveFloat = Argument(default=0.5, ge=0.1, le=4)
    """um per pixel."""
    train: NonNegativeInt = 400
    """Fields of split train."""
    val: NonNegativeInt = 48
    """Fields of split val."""
    test: NonNegativeInt = 96
    """Fields of split test."""
    seed: NonNegativeInt = 0
    """Another seed gives other tissue in every split."""


class PhantomReader:
    """Reader "phantom": computes a field from (seed, split, number) when it is read; nothing is stored."""

    Arguments: ClassVar[type[Schema]] = PhantomArguments
    needs_folder: ClassVar[bool] = False

    def __init__(self, card: DatasetCard, folder: Path | None, arguments: Any) -> None:
        unknown = sorted(set(card.truths) - {"nuclei", "glands", "lumina", "tissue"})
        if unknown:
            raise UserError(
                f"{card.name}: truths.{unknown[0]}: no phantom knows it. Expected nuclei, glands, lumina, tissue."
            )
        self.card, self.arguments = card, arguments

    def index(self) -> Sequence[Entry]:
        """Return the fields of every split: ids `train-0000`, ..., groups `train-slide-000`, ..."""
        return [
            Entry(f"{split}-{n:04d}", group=f"{split}-slide-{n // SLIDE:03d}", split=split, extra={"number": n})
            for split in _SPLITS
            for n in range(getattr(self.arguments, split))
        ]

    def read(self, entry: Entry) -> Sample:
        """Return one field: (3, size, size) uint8, with the truths that the card names."""
        assert entry.split is not None
        arguments = self.arguments
        image, layout = field(
            arguments.seed,
            entry.split,
            int(entry.extra["number"]),
            size=arguments.size,
            um=arguments.um,
            difficulty=arguments.difficulty,
        )
        known = truths(layout)
        return Sample(
            entry.id,
            self.card.name,
            image,
            group=entry.group,
            spacing=(arguments.um, arguments.um),
            truth={key: known[key] for key in self.card.truths},
        )


def field(
    seed: int, split: str, number: int, *, size: int = 256, um: float = 0.5, difficulty: str = "medium"
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Layout]:
    """Return the picture (3, size, size) and the layout of one field: a function of the arguments alone."""
    key = (seed, _SPLITS[split])
    stain = draw_stain(np.random.default_rng([*key, 0, number // SLIDE]), OPTICS[difficulty])
    rng = np.random.default_rng([*key, 1, number])
    layout = lay_out(rng, (size, size), um, ANATOMY[difficulty])
    return render(rng, layout, stain, OPTICS[difficulty]), layout


def truths(layout: Layout) -> dict[str, Truth]:
    """Return the truths of a layout, cut to the picture: nuclei with classes, glands, lumina, tissue."""
    nuclei = layout.cut(layout.nuclei)
    classes = {int(i): int(layout.classes[i - 1]) for i in present_ids(nuclei)}
    return {
        "nuclei": Instances(nuclei, classes),
        "glands": Instances(layout.cut(layout.glands)),
        "lumina": Instances(layout.cut(layout.lumina)),
        "tissue": Semantic(layout.cut(layout.tissue)),
    }
