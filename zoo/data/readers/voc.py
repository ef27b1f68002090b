"""BCCD: boxes in Pascal VOC files under `BCCD/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import natural, read_rgb
from zoo.errors import DataError, UserError, suggest
from zoo.types import Boxes, Sample

_SPLITS = ("train", "val", "test")


class BccdReader(FolderReader):
    """Blood cells as boxes (`cells`), with the attribute whether the image's edge cuts the cell."""

    def index(self) -> Sequence[Entry]:
        """Return every image; the split is the one list of ImageSets/Main that names it."""
        base = self.folder / "BCCD"
        images = sorted((base / "JPEGImages").glob("*.jpg"), key=lambda p: natural(p.name))
        if not images:
            raise UserError(f"{self.card.name}: {base / 'JPEGImages'} holds no .jpg. Copy the repository's BCCD there.")
        split_of: dict[str, str] = {}
        for split in _SPLITS:
            names = base / "ImageSets" / "Main" / f"{split}.txt"
            if names.is_file():
                split_of |= {name.strip(): split for name in names.read_text(encoding="utf-8").split()}
        entries = []
        for path in images:
            files = {"image": path}
            boxes = base / "Annotations" / f"{path.stem}.xml"
            if boxes.is_file():
                files["cells"] = boxes
            entries.append(Entry(path.stem, None, None, split_of.get(path.stem), files))
        return entries

    def read(self, entry: Entry) -> Sample:
        """Return image and boxes. Boxes of zero size are left out."""
        image = read_rgb(entry.files["image"])
        if "cells" not in entry.files:
            return self.sample(entry, image, {})
        boxes = read_boxes(entry.files["cells"], self.card.truths["cells"].classes, image.shape[1:])
        return self.sample(entry, image, {"cells": boxes})


def read_boxes(path: Path, classes: Sequence[str], shape: Sequence[int]) -> Boxes:
    """Return the boxes of a VOC file; corners are taken as half-open, classes count from 1, attribute: truncated.

    Raises `DataError` where the file is not valid, names an unknown class or leaves the image.
    """
    try:
        root = ElementTree.parse(path).getroot()
        rows, kinds, cut = [], [], []
        for thing in root.iter("object"):
            name = thing.findtext("name", "")
            if name not in classes:
                raise DataError(f'{path}: unknown class "{name}". {suggest(name, classes)}')
            found = thing.find("bndbox")
            if found is None:
                raise DataError(f"{path}: an object has no <bndbox>. Expected four corners.")
            box = [float(found.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax")]
            if not (0 <= box[0] <= box[2] <= shape[1] and 0 <= box[1] <= box[3] <= shape[0]):
                raise DataError(f"{path}: the box {box} leaves the image of {shape[0]} x {shape[1]} pixels.")
            if box[0] < box[2] and box[1] < box[3]:
                rows.append(box)
                kinds.append(classes.index(name) + 1)
                cut.append([int(thing.findtext("truncated", "-1"))])
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise DataError(f"{path}: the file is no Pascal VOC annotation ({error}).") from None
    return Boxes(
        xyxy=np.asarray(rows, np.float32).reshape(-1, 4),
        classes=np.asarray(kinds, np.int64),
        attributes=np.asarray(cut, np.int64).reshape(-1, 1),
    )
