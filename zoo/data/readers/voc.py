"""Boxes in Pascal VOC files: BCCD under `BCCD/`, and any folders of images with a file of the same name beside each."""

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
CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""Names of a box's corners in a file, in the order in which they stand here."""
_PICTURES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")


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


class VocReader(FolderReader):
    """Images with `NAME.xml` beside `NAME.jpeg`, at any depth: boxes under the card's one key.

    An image without a file is not annotated, unless its folder's name ends in `neg`: there nothing is to be found. The
    box's class is looked up on the card; a card of one class takes every box.
    """

    def index(self) -> Sequence[Entry]:
        """Return every image; ids are names, which must differ."""
        found = [p for p in self.folder.rglob("*") if p.suffix.lower() in _PICTURES]
        if not found:
            raise UserError(f"{self.card.name}: {self.folder} holds no image. Expected .jpeg, .jpg, .png or .tif.")
        entries = []
        for path in sorted(found, key=lambda p: natural(p.relative_to(self.folder).as_posix())):
            boxes = path.with_suffix(".xml")
            files = {"image": path} | ({"boxes": boxes} if boxes.is_file() else {})
            entries.append(Entry(path.stem, None, None, None, files, {"none": path.parent.name.endswith("neg")}))
        return entries

    def read(self, entry: Entry) -> Sample:
        """Return image and boxes."""
        image = read_rgb(entry.files["image"])
        key, truth = next(iter(self.card.truths.items()))
        if "boxes" in entry.files:
            names = truth.classes if len(truth.classes) > 1 else None
            return self.sample(entry, image, {key: read_boxes(entry.files["boxes"], names, image.shape[1:])})
        if entry.extra.get("none"):
            return self.sample(entry, image, {key: Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))})
        return self.sample(entry, image, {})


def read_boxes(path: Path, classes: Sequence[str] | None, shape: Sequence[int]) -> Boxes:
    """Return the boxes of a VOC file; corners are taken as half-open, classes count from 1, attribute: truncated.

    A file without an object says that nothing is there. Boxes without an area are left out, those that leave the image
    are cut. `classes` None: every name is the one class. Raises `DataError` where the file is not valid or no VOC file,
    and for a box of an unknown class, with its corners the wrong way round, or wholly outside.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        line = error.position[0] if isinstance(error, ElementTree.ParseError) else 0
        raise DataError(
            f"{path}:{line}: the file is no Pascal VOC annotation ({error}). Expected whole XML. Copy it again."
        ) from None
    if root.tag != "annotation":
        raise DataError(f"{path}: <{root.tag}> is no Pascal VOC annotation. Expected <annotation>. Copy it again.")
    rows, kinds, cut = [], [], []
    for number, thing in enumerate(root.iter("object"), 1):
        where = f"{path}: object {number}"
        name = thing.findtext("name", "")
        if classes is not None and name not in classes:
            raise DataError(f'{where}: unknown class "{name}". {suggest(name, classes)}'.rstrip())
        box = _corners(where, thing, shape)
        if box[0] < box[2] and box[1] < box[3]:
            rows.append(box)
            kinds.append(1 if classes is None else classes.index(name) + 1)
            said = thing.findtext("truncated", "")
            cut.append([int(said) if said in ("0", "1") else -1])
    limits = [shape[1], shape[0], shape[1], shape[0]]
    return Boxes(
        xyxy=np.clip(np.asarray(rows, np.float32).reshape(-1, 4), 0, limits).astype(np.float32),
        classes=np.asarray(kinds, np.int64),
        attributes=np.asarray(cut, np.int64).reshape(-1, 1),
    )


def _corners(where: str, thing: ElementTree.Element, shape: Sequence[int]) -> list[float]:
    """Return the corners of an object. Raises `DataError`."""
    found = thing.find("bndbox")
    try:
        box = [float((found.findtext(key) if found is not None else None) or "?") for key in CORNERS]
    except ValueError:
        raise DataError(f"{where}: no four corners. Expected <bndbox> with {', '.join(CORNERS)}. Mend it.") from None
    if not (box[0] <= box[2] and box[1] <= box[3]):
        raise DataError(f"{where}: the box {box} ends before it begins. Expected min <= max. Mend the file.")
    area = box[0] < box[2] and box[1] < box[3]
    if area and (box[2] <= 0 or box[3] <= 0 or box[0] >= shape[1] or box[1] >= shape[0]):
        raise DataError(
            f"{where}: the box {box} lies outside the image of {shape[0]} x {shape[1]} pixels. Mend the file, or the "
            "image is another one."
        )
    return box
