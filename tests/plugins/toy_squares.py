"""A reader that draws: bright squares on a dark, noisy field, with their map and a picture of them without noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from zoo.data.readers.base import Entry, FolderReader
from zoo.errors import DataError
from zoo.schema import Schema
from zoo.types import Label, Picture, Sample, Semantic


class Arguments(Schema):
    count: int = 12
    size: int = 24
    vary: int = 2
    """Pixels by which sizes grow from one item to the next."""
    broken: int | None = None
    """An item that cannot be read."""


class Squares(FolderReader):
    Arguments: ClassVar[type[Schema]] = Arguments
    needs_folder: ClassVar[bool] = False

    def index(self) -> Sequence[Entry]:
        count = self.arguments.count
        splits = ["val" if i % 4 == 3 else "train" for i in range(count)] + ["test"] * 4
        return [
            Entry(f"square-{i:03d}", group=f"{split}-{i // 4}", split=split, extra={"seed": i})
            for i, split in enumerate(splits)
        ]

    def read(self, entry: Entry) -> Sample:
        seed = int(entry.extra["seed"])
        if seed == self.arguments.broken:
            raise DataError(f"{self.card.name}: {entry.id}: the square has five corners. Expected four.")
        rng = np.random.default_rng(seed)
        size = self.arguments.size + self.arguments.vary * (seed % 3)
        truth = np.zeros((size, size), np.uint8)
        for _ in range(3):
            top, left = rng.integers(0, size - 8, 2)
            truth[top : top + 7, left : left + 7] = 1
        clean = np.where(truth, 200, 60).astype(np.uint8)
        picture = np.stack([clean, clean // 2, 255 - clean])
        noisy = np.clip(picture + rng.normal(0, 25, picture.shape), 0, 255).astype(np.uint8)
        truths: dict[str, Any] = {
            "squares": Semantic(truth),
            "clean": Picture(picture, ("red", "green", "blue")),
            "many": Label(int(truth.sum() > 120)),
        }
        return self.sample(entry, noisy, truths)
