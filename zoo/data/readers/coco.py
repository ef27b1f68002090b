"""Boxes in COCO JSON, one file a split; and LeukemiaAttri, whose boxes carry morphology."""

from __future__ import annotations

import functools
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zoo.cards import TruthCard
from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import natural, read_rgb
from zoo.errors import DataError, UserError, suggest
from zoo.io.images import IMAGE_SUFFIXES
from zoo.schema import Schema
from zoo.types import Boxes, Sample


class CocoArguments(Schema):
    """What the reader is told."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Split -> its JSON file, below the dataset's folder; a split "all" names none."""
    images: str | dict[str, str] = "."
    """Folder of the images below the dataset's, or one a split; sub-folders are looked through."""
    truth: str = "cells"
    """The card's boxes that the file holds."""
    names: dict[str, str] = Field(default_factory=dict)
    """Category of the file -> class of the card, where they differ by more than small and capital letters; "" leaves
    its boxes out."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """Attribute of the card -> key of an annotation that holds the index of its value; other values are missing."""
    group_pattern: str | None = None
    """Regular expression on an image's name; its first bracket is the group."""


@dataclass(frozen=True)
class Row:
    """One box of a file: corners, class from 1, attributes, whether it is a crowd, and its place in the file."""

    xyxy: tuple[float, float, float, float]
    kind: int
    attributes: tuple[int, ...]
    crowd: bool
    place: int


class CocoReader(FolderReader):
    """Images that a COCO file lists, with its boxes; an image without any is annotated all the same: it has none.

    Names of images may be paths, absolute ones of another machine too: what counts is their end.
    """

    Arguments = CocoArguments
    arguments: CocoArguments

    def index(self) -> Sequence[Entry]:
        """Return every image of every file. Raises `UserError` for one that is no COCO file or names no image here."""
        self._truth()
        files = self._annotations()
        if not files:
            raise UserError(
                f"{self.card.name}: {self.folder} holds no annotations. Expected {self._expected()} Mend the card."
            )
        entries: list[Entry] = []
        for split, path in files.items():
            here = _images(self.folder / self._image_folder(split))
            whole = read_coco(path)
            names = _checked_names(path, whole)
            for number, name in sorted(names.items(), key=lambda item: natural(PurePosixPath(item[1]).name)):
                image = _find(name, here)
                if image is None:
                    continue
                stem = PurePosixPath(name).stem
                entries.append(
                    Entry(
                        stem,
                        self._group(stem),
                        self._center(),
                        None if split == "all" else split,
                        {"image": image, "cells": path},
                        {"number": number},
                    )
                )
        if not entries:
            raise UserError(
                f"{self.card.name}: none of the images that {next(iter(files.values()))} names is here. Expected them "
                f"below {self.folder / self._image_folder(next(iter(files)))}. Copy them, or mend `images` of the card."
            )
        return entries

    def absent(self) -> list[str]:
        """Return what the card and the files name and is not here, a sentence each."""
        found = self._annotations()
        missing = [(name, split) for split, name in self.arguments.annotations.items() if split not in found]
        said = [f"split {split}: {name} is not here. Copy it, or mend the card." for name, split in missing]
        for split, path in found.items():
            here = _images(self.folder / self._image_folder(split))
            names = _checked_names(path, read_coco(path)).values()
            lost = [name for name in names if _find(name, here) is None]
            if lost:
                shown = ", ".join(lost[:3]) + (" ..." if lost[3:] else "")
                said.append(f"{len(lost)} of the {len(names)} images of {path.name} are not here: {shown}.")
        return said

    def _truth(self) -> TruthCard:
        """Return the card's boxes. Raises `UserError` where the reader's arguments name what the card has not."""
        truths, wanted = self.card.truths, self.arguments.truth
        if wanted not in truths:
            raise UserError(
                f'{self.card.name}: reader.arguments.truth: no "{wanted}". {suggest(wanted, truths)}'.strip()
            )
        for name in self.arguments.attributes:
            if name not in truths[wanted].attributes:
                near = suggest(name, truths[wanted].attributes) or f"Write it to truths.{wanted}.attributes."
                raise UserError(f'{self.card.name}: reader.arguments.attributes: {wanted} has no "{name}". {near}')
        return truths[wanted]

    def _annotations(self) -> dict[str, Path]:
        found = {split: self.folder / name for split, name in self.arguments.annotations.items()}
        return {split: path for split, path in found.items() if path.is_file()}

    def _expected(self) -> str:
        return ", ".join(self.arguments.annotations.values()) + "."

    def _image_folder(self, split: str) -> str:
        images = self.arguments.images
        return images if isinstance(images, str) else images.get(split, ".")

    def _group(self, stem: str) -> str | None:
        pattern = self.arguments.group_pattern
        match = re.search(pattern, stem) if pattern else None
        return match.group(1) if match else None

    def _center(self) -> str | None:
        return None

    def read(self, entry: Entry) -> Sample:
        """Return image and boxes. Boxes without an area are left out, those that leave the image are cut.

        Raises `DataError` for a box wholly outside, and for what `boxes_of_image` refuses.
        """
        image = read_rgb(entry.files["image"])
        path, arguments, truth = entry.files["cells"], self.arguments, self._truth()
        names = {**{k.casefold(): v for k, v in arguments.names.items()}}
        keys = [(arguments.attributes.get(name, name), len(values)) for name, values in truth.attributes.items()]
        rows = boxes_of_image(path, entry.extra["number"], truth.classes, names, keys)
        return self.sample(entry, image, {arguments.truth: as_boxes(rows, image.shape[1:], path, len(keys))})


@functools.lru_cache(maxsize=16)
def _read(path: Path, _changed: float) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise UserError(f"{path}:{line}: not valid JSON ({error}). Expected a COCO file. Copy it again.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            raise UserError(f'{path}: no list "{key}". Expected a COCO file: images, annotations, categories.')
        for place, item in enumerate(values[key]):
            ids = [item.get(name) for name in ("id", "image_id", "category_id")] if isinstance(item, dict) else [[]]
            if any(isinstance(one, list | dict) for one in ids):
                raise UserError(
                    f"{path}: {key}[{place}]: {textwrap.shorten(str(item), 60)} is nothing that COCO knows. Expected a "
                    "mapping whose ids are numbers. Mend the file."
                )
    return dict(values)


def read_coco(path: Path) -> Mapping[str, Any]:
    """Return a COCO file's values. Raises `UserError` where it is none."""
    return _read(path, path.stat().st_mtime)


def _checked_names(path: Path, whole: Mapping[str, Any]) -> dict[Any, str]:
    """Return image id -> file name. Raises `UserError` for ids that stand twice and for images without a name."""
    names: dict[Any, str] = {}
    for place, image in enumerate(whole["images"]):
        number, name = image.get("id"), image.get("file_name")
        if number is None or not isinstance(name, str) or not name:
            raise UserError(f"{path}: images[{place}]: no id or file_name. Expected both. Mend the file.")
        if number in names:
            raise UserError(
                f"{path}: images[{place}]: the id {number} stands for {names[number]} already. Expected each id once. "
                "Mend the file."
            )
        names[number] = name.replace("\\", "/")
    seen: dict[Any, int] = {}
    for place, annotation in enumerate(whole["annotations"]):
        number = annotation.get("id", f"place {place}")
        if number in seen:
            raise UserError(
                f"{path}: annotations[{place}]: the id {number} stands at annotations[{seen[number]}] already. "
                "Expected each id once. Mend the file."
            )
        seen[number] = place
        if annotation.get("image_id") not in names:
            raise UserError(
                f"{path}: annotations[{place}]: no image has the id {annotation.get('image_id')}. "
                "Expected that of a listed image. Mend the file."
            )
    return names


def _images(folder: Path) -> dict[str, list[Path]]:
    """Return file name -> images of that name below a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            found.setdefault(path.name, []).append(path)
    return found


def _find(name: str, here: Mapping[str, Sequence[Path]]) -> Path | None:
    """Return the image whose path ends most like a name in an annotation file."""
    wanted = PurePosixPath(name).parts[::-1]

    def alike(path: Path) -> int:
        pairs = zip(wanted, path.parts[::-1], strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(wanted))

    return max(here.get(PurePosixPath(name).name, ()), key=alike, default=None)


@functools.lru_cache(maxsize=16)
def _by_image(path: Path, _changed: float) -> Mapping[Any, Sequence[int]]:
    found: dict[Any, list[int]] = {}
    for place, annotation in enumerate(read_coco(path)["annotations"]):
        found.setdefault(annotation["image_id"], []).append(place)
    return found


def boxes_of_image(
    path: Path, number: Any, classes: Sequence[str], names: Mapping[str, str], keys: Sequence[tuple[str, int]]
) -> list[Row]:
    """Return the boxes of an image by its id.

    `names`: category in small letters -> class ("" = left out); `keys`: key and number of values of each attribute.
    Raises `DataError` for a category that is no class and for a box that is not four numbers.
    """
    whole = read_coco(path)
    categories = {c.get("id"): str(c.get("name", "")) for c in whole["categories"]}
    known = {name.casefold(): name for name in classes}
    found = []
    for place in _by_image(path, path.stat().st_mtime).get(number, ()):
        annotation = whole["annotations"][place]
        where = f"{path}: annotations[{place}]"
        category = categories.get(annotation.get("category_id"))
        if category is None:
            raise DataError(f"{where}: no category has the id {annotation.get('category_id')}. Mend the file.")
        name = names.get(category.casefold(), known.get(category.casefold()))
        if name == "":
            continue
        if name not in classes:
            raise DataError(f'{where}: unknown class "{category}". {suggest(category, classes)}'.strip())
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise DataError(f"{where}: bbox: {box}. Expected x, y, width, height. Mend the file.")
        x, y, w, h = map(float, box)
        if not (all(map(math.isfinite, (x, y, w, h))) and w >= 0 and h >= 0):
            raise DataError(f"{where}: bbox: {box}. Expected numbers, width and height 0 or more. Mend the file.")
        values = tuple(_value(annotation.get(key), count) for key, count in keys)
        crowd = bool(annotation.get("iscrowd", 0))
        found.append(Row((x, y, x + w, y + h), classes.index(name) + 1, values, crowd, place))
    return found


def _value(stored: Any, count: int) -> int:
    """Return the index of an attribute's value, -1 where it is missing, no number or none of the card's values."""
    try:
        index = int(stored)
    except (TypeError, ValueError):
        return -1
    return index if 0 <= index < count else -1


def as_boxes(rows: Sequence[Row], shape: Sequence[int], path: Path, attributes: int) -> Boxes:
    """Return boxes cut to an image (H, W), without those of no area. Raises `DataError` for one wholly outside."""
    height, width = shape
    kept: list[Row] = []
    for row in rows:
        x0, y0, x1, y1 = row.xyxy
        if not (x0 < x1 and y0 < y1):
            continue
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise DataError(
                f"{path}: annotations[{row.place}]: the box {[round(v, 2) for v in row.xyxy]} lies outside the image "
                f"of {height} x {width} pixels. Mend the file, or the image is another one."
            )
        kept.append(row)
    xyxy: NDArray[np.float32] = np.asarray([row.xyxy for row in kept], np.float32).reshape(-1, 4)
    return Boxes(
        np.clip(xyxy, 0, [width, height, width, height]).astype(np.float32),
        np.asarray([row.kind for row in kept], np.int64),
        np.asarray([row.attributes for row in kept], np.int64).reshape(-1, attributes) if attributes else None,
        np.asarray([row.crowd for row in kept], bool) if any(row.crowd for row in kept) else None,
    )


# --- LeukemiaAttri ----------------------------------------------------------------------------------------------------


class LeukemiaAttriArguments(CocoArguments):
    """What the reader is told."""

    subset: str = "H_100X_C1"
    """One of the twelve subsets: microscope (H, L), magnification (10X, 40X, 100X), camera (C1, C2)."""


class LeukemiaAttriReader(CocoReader):
    """LeukemiaAttri: `SUBSET/json_labels/{train,test}.json` (or `Annotations`), images below `SUBSET`.

    The group is the patient, the first number of an image's name; the center is the subset.
    """

    Arguments = LeukemiaAttriArguments
    arguments: LeukemiaAttriArguments

    def _subset(self) -> Path:
        wanted = self.arguments.subset.casefold()
        folders = sorted(p for p in self.folder.iterdir() if p.is_dir())
        chosen = next((p for p in folders if p.name.casefold() == wanted), None)
        if chosen is None:
            near = suggest(self.arguments.subset, [p.name for p in folders])
            raise UserError(f"{self.card.name}: {self.folder} has no subset {self.arguments.subset}. {near}".rstrip())
        return chosen

    def _annotations(self) -> dict[str, Path]:
        files = sorted(self._subset().rglob("*.json"))
        return {split: path for split in ("train", "test") for path in files if path.stem.casefold() == split}

    def _expected(self) -> str:
        return f"{self.arguments.subset}/json_labels/train.json and test.json."

    def _image_folder(self, split: str) -> str:
        subset = self._subset()
        inside = [p for p in subset.rglob("*") if p.is_dir() and p.name.casefold() == split]
        chosen = [p for p in inside if any(q.suffix.lower() in IMAGE_SUFFIXES for q in p.iterdir())]
        return (chosen[0] if chosen else subset).relative_to(self.folder).as_posix()

    def _group(self, stem: str) -> str | None:
        head = stem.partition("_")[0]
        return f"patient-{head}" if head.isdigit() else None

    def _center(self) -> str | None:
        return self._subset().name
