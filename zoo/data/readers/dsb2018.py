"""Data Science Bowl 2018: `stage1_train/ID/images/ID.png` (RGBA), `stage1_train/ID/masks/*.png`, a mask a nucleus."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo import paths
from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import read_labels, read_rgb
from zoo.errors import DataError, UserError
from zoo.schema import Schema
from zoo.types import Instances, Sample

Modality = Literal["fluorescence", "he", "brightfield"]
MODALITIES: tuple[Modality, ...] = ("fluorescence", "he", "brightfield")


class Dsb2018Arguments(Schema):
    """What the reader is told."""

    modality: Modality | Literal["all"] = "all"
    """Which images."""
    table: str = "dsb2018.json"
    """File beside the cards: id -> [modality, group]."""


def modality_of(rgb: NDArray[Any]) -> Modality:
    """Return the modality of an image (3, H, W): the rule by which the committed table was made.

    Coloured (red, green and blue differ anywhere): H&E. Grey and dark (median below 128): fluorescence. Grey and light:
    bright-field.
    """
    if (rgb != rgb[:1]).any():
        return "he"
    return "fluorescence" if float(np.median(rgb)) < 128 else "brightfield"


@functools.lru_cache(maxsize=4)
def read_table(name: str) -> dict[str, tuple[Modality, str]]:
    """Return id -> (modality, group) of the committed table."""
    values = json.loads((paths.shipped("datasets") / name).read_text(encoding="utf-8"))
    return {item: (modality, group) for item, (modality, group) in values.items()}


class Dsb2018Reader(FolderReader):
    """Nuclei as instances. The modality and the group of an image stand in a committed table; an image that is not in
    the table (the published set is larger) is told apart by `modality_of`, which decodes it, and stands alone."""

    Arguments = Dsb2018Arguments
    arguments: Dsb2018Arguments

    def index(self) -> Sequence[Entry]:
        """Return the images of the wanted modality, by id."""
        base = self.folder / "stage1_train"
        if not base.is_dir():
            raise UserError(f"{self.card.name}: {base} is not there. Unpack stage1_train.zip into that folder.")
        table = read_table(self.arguments.table)
        entries = []
        for folder in sorted(p for p in base.iterdir() if p.is_dir()):
            image = folder / "images" / f"{folder.name}.png"
            if not image.is_file():
                continue
            known = table.get(folder.name)
            if self.arguments.modality != "all":
                modality = known[0] if known else _modality_of_file(image)
                if modality != self.arguments.modality:
                    continue
            group = known[1] if known else None
            entries.append(Entry(folder.name, group, None, None, {"image": image, "nuclei": folder / "masks"}))
        if not entries:
            raise UserError(f"{self.card.name}: {base} holds no {self.arguments.modality} image ID/images/ID.png.")
        return entries

    def read(self, entry: Entry) -> Sample:
        """Return image and nuclei. A pixel in two masks belongs to the first by file name; empty masks are skipped."""
        image = read_rgb(entry.files["image"])
        masks = entry.files["nuclei"]
        if not masks.is_dir():
            return self.sample(entry, image, {})
        return self.sample(entry, image, {"nuclei": Instances(_merge(masks, entry.files["image"], image.shape[1:]))})


@functools.lru_cache(maxsize=2048)
def _modality_of_file(path: Path) -> Modality | None:
    try:
        return modality_of(read_rgb(path))
    except DataError:
        return None


def _merge(masks: Path, image: Path, shape: Sequence[int]) -> NDArray[np.int32]:
    merged = np.zeros(tuple(shape), np.int32)
    number = 0
    for path in sorted(masks.glob("*.png")):
        free = (read_labels(path, shape, image) > 0) & (merged == 0)
        if free.any():
            number += 1
            merged[free] = number
    return merged
