"""What every reader of the phantom shares: splits are ranges of seeds, slides are groups, sites are centres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Argument
from pydantic import NonNegativeInt, field_validator

from zoo.cards import DatasetCard
from zoo.data.phantom.noise import mix
from zoo.data.phantom.optics import Difficulty, Draws, Site
from zoo.data.readers.base import Entry
from zoo.errors import UserError, suggest
from zoo.schema import Schema
from zoo.types import Sample, Truth

SLIDE = 8
"""Fields that come from one slide, and share its stain."""
SPLITS = {"train": 0, "val": 1, "test": 2}
Side = Annotated[int, Argument(ge=32, le=8192)]


class PhantomArguments(Schema):
    """What any phantom may be told."""

    difficulty: Difficulty = "medium"
    """Crowding, contrast, blur and noise: easy | medium | hard."""
    sites: tuple[Site, ...] = ()
    """Sites whose slides take turns, of a, b, c, d, e, f: each has its stain and its scanner. None: every slide is
    stained and scanned anew."""
    train: NonNegativeInt = 400
    """Fields of split train."""
    val: NonNegativeInt = 48
    """Fields of split val."""
    test: NonNegativeInt = 96
    """Fields of split test."""
    seed: NonNegativeInt = 0
    """Another seed gives other tissue in every split."""

    @field_validator("sites", mode="before")
    @classmethod
    def _one_site(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def seed_of(seed: int, split: int, number: int) -> int:
    """Return the seed of one field."""
    return int(mix(seed, split, number) >> np.uint64(33))


def site_of(entry: Entry) -> Site | None:
    """Return the site of a field, None where it has none."""
    site: Site | None = entry.center.removeprefix("site-") if entry.center else None  # type: ignore[assignment]
    return site


class Generated:
    """Base of the phantom's readers: computes a field from (seed, split, number) when it is read; nothing is stored.

    `KNOWN` names the truths that the reader makes; a card may leave some out.
    """

    Arguments: ClassVar[type[Schema]] = PhantomArguments
    needs_folder: ClassVar[bool] = False
    KNOWN: ClassVar[tuple[str, ...]] = ()
    PER_SLIDE: ClassVar[int] = SLIDE
    """Items that come from one slide."""

    def __init__(self, card: DatasetCard, folder: Path | None, arguments: Any) -> None:
        for key in card.truths:
            if key not in self.KNOWN:
                raise UserError(
                    f"{card.name}: truths.{key}: this phantom does not know it. {suggest(key, self.KNOWN)} "
                    f"Expected some of {', '.join(self.KNOWN)}."
                )
        self.card, self.arguments = card, arguments

    def index(self) -> Sequence[Entry]:
        """Return the fields of every split: ids `train-0000`, ..., groups `train-slide-000`, ..."""
        sites = self.arguments.sites
        return [
            Entry(
                f"{split}-{n:04d}",
                group=f"{split}-slide-{n // self.PER_SLIDE:03d}",
                center=f"site-{sites[n // self.PER_SLIDE % len(sites)]}" if sites else None,
                split=split,
                extra={"number": n},
            )
            for split in SPLITS
            for n in range(getattr(self.arguments, split))
        ]

    def draws(self, entry: Entry) -> Draws:
        """Return the draws of a field's slide."""
        assert entry.split is not None
        return Draws(
            (self.arguments.seed, SPLITS[entry.split], int(entry.extra["number"]) // self.PER_SLIDE), site_of(entry)
        )

    def seed(self, entry: Entry) -> int:
        """Return a field's seed."""
        assert entry.split is not None
        return seed_of(self.arguments.seed, SPLITS[entry.split], int(entry.extra["number"]))

    def sample(self, entry: Entry, image: Any, spacing: tuple[float, ...], known: dict[str, Truth]) -> Sample:
        """Return the sample of a field, with the truths that the card names."""
        return Sample(
            entry.id,
            self.card.name,
            image,
            axes=self.card.axes,
            channels=self.card.channels,
            group=entry.group,
            center=entry.center,
            spacing=spacing,
            truth={key: known[key] for key in self.card.truths},
        )
