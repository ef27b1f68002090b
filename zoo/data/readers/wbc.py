"""White blood cells of Zheng et al.: `Dataset 1/001.bmp` with `001.png` labels, types in a CSV beside the folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import map_values, read_labels, read_rgb
from zoo.data.truths import boxes_of
from zoo.errors import UserError
from zoo.postprocess.labels import components, remove_small
from zoo.schema import Schema
from zoo.types import Instances, Label, Sample, Semantic, Truth

_VALUES = {0: 0, 128: 1, 255: 2}
_IGNORE = 255
_SMALLEST = 50
"""Pixels of the smallest part of a label that counts as a cell."""
_TYPES = 5


def _one_cell(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the label map of the one cell that an image is about: every part of its label that is no speck."""
    parts = remove_small(components(mask), _SMALLEST)
    return (parts > 0).astype(np.int32)


class WbcArguments(Schema):
    """What the reader is told."""

    part: int = 1
    """Which of the published folders: 1 or 2."""
    center: str | None = None
    """Where the images were taken."""
    same: tuple[tuple[str, ...], ...] = ()
    """Images that show the same cell: they are one group."""


class WbcReader(FolderReader):
    """One cell an image: `cell` (background, cytoplasm, nucleus), `cells` (the box around it) and `type`. Stray label
    values become ignore."""

    Arguments = WbcArguments
    arguments: WbcArguments

    def index(self) -> Sequence[Entry]:
        """Return every image of the folder, by number."""
        part, types = self.folder / f"Dataset {self.arguments.part}", self._types()
        images = sorted(part.glob("*.bmp")) if part.is_dir() else []
        if not images:
            raise UserError(f"{self.card.name}: {part} holds no image 001.bmp. Unpack the published repository there.")
        group_of = {item: f"same-as-{items[0]}" for items in self.arguments.same for item in items}
        entries = []
        for path in images:
            files = {"image": path}
            if path.with_suffix(".png").is_file():
                files["cell"] = path.with_suffix(".png")
            number = path.stem.lstrip("0")
            extra = {"label": types[number]} if number in types else {}
            entries.append(Entry(path.stem, group_of.get(path.stem), self.arguments.center, None, files, extra))
        return entries

    def _types(self) -> dict[str, int]:
        """Return image number -> type index, 0 neutrophil to 4 basophil."""
        file = self.folder / f"Class Labels of Dataset {self.arguments.part}.csv"
        if not file.is_file():
            return {}
        found: dict[str, int] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            cells = [cell.strip() for cell in line.split(",")]
            if number == 1 or not cells[0]:
                continue
            if len(cells) < 2 or not cells[1].isdigit() or not 1 <= int(cells[1]) <= _TYPES:
                raise UserError(f"{file}:{number}: {line!r} will not do. Expected: image number, type 1 to {_TYPES}.")
            found[cells[0].lstrip("0")] = int(cells[1]) - 1
        return found

    def read(self, entry: Entry) -> Sample:
        """Return image and truths; values other than 0, 128, 255 are not annotated (ignore)."""
        image = read_rgb(entry.files["image"])
        truth: dict[str, Truth] = {}
        if "cell" in entry.files:
            labels = read_labels(entry.files["cell"], image.shape[1:], entry.files["image"])
            cell = map_values(labels, _VALUES, entry.files["cell"], unknown=_IGNORE)
            truth["cell"] = Semantic(cell, ignore=_IGNORE)
            truth["cells"] = boxes_of(Instances(_one_cell((cell > 0) & (cell != _IGNORE))))
        if "label" in entry.extra:
            truth["type"] = Label(entry.extra["label"])
        return self.sample(entry, image, truth)
