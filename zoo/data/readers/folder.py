"""A user's own folder: images, and masks as label images, as a folder of binary masks an image, or as GeoJSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from zoo.cards import TruthCard
from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import instances_of, map_values, natural, read_labels, unknown_values
from zoo.data.readers.polygons import instance_map, semantic_map
from zoo.errors import DataError, UserError, suggest
from zoo.io.images import IMAGE_SUFFIXES, read_image, to_rgb8
from zoo.schema import Schema
from zoo.types import Instances, Sample, Semantic, Truth

SPLITS = ("train", "val", "valid", "validation", "test", "testA", "testB")
RGB = ("red", "green", "blue")
_EACH = "*/"
_MASKS = (".png", ".tif", ".tiff", ".npy", ".bmp", ".geojson", ".json", ".gif")


class MaskSource(Schema):
    """Where the masks of one truth lie."""

    folder: str = "masks"
    """Folder below the dataset's; "." = beside the images; "*/masks" as for the images."""
    suffix: str = ""
    """What a mask's name has after the stem of its image, "_mask" say."""
    values: dict[int, str] = Field(default_factory=dict)
    """Semantic: stored value -> class name; none = the stored values are the class indices."""
    unknown: Literal["error", "ignore"] = "error"
    """What other values mean: a fault of the mask, or not annotated."""


class FolderArguments(Schema):
    """What the reader is told."""

    images: str = "images"
    """Folder of the images, below the dataset's; "." = the folder itself. Sub-folders are read too. "*/images" = the
    folder of that name in each sub-folder (train/images, val/images; or one a patient), which begins the ids."""
    suffix: str = ""
    """What an image's name has after its stem, "_image" say."""
    masks: dict[str, MaskSource] = Field(default_factory=dict)
    """Truth of the card -> where its masks lie."""
    group_pattern: str | None = None
    """Regular expression on an image's id (its path without suffix); its first bracket is the group."""

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                brackets = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression ({error})") from None
            if not brackets:
                raise ValueError(f"{value!r} has no bracket. Expected one around what names the group")
        return value


class FolderOfImages(FolderReader):
    """Images and masks by stem. An image without mask carries no truth of that key."""

    Arguments = FolderArguments
    arguments: FolderArguments

    def index(self) -> Sequence[Entry]:
        """Return every image; a first sub-folder named train, val, test ... is the split."""
        unknown = sorted(set(self.arguments.masks) - set(self.card.truths))
        if unknown:
            raise UserError(
                f'{self.card.name}: reader.arguments.masks: "{unknown[0]}" is no truth of this card. Expected one of '
                f"{', '.join(self.card.truths) or 'none'}."
            )
        for key, source in self.arguments.masks.items():
            for name in source.values.values():
                if name not in self.card.truths[key].classes:
                    raise UserError(
                        f'{self.card.name}: reader.arguments.masks.{key}.values: no class "{name}". '
                        f"{suggest(name, self.card.truths[key].classes)}"
                    )
        entries = [self._entry(path, item) for path, item in found_images(self.folder, self.arguments)]
        if not entries:
            base = self.folder / self.arguments.images
            raise UserError(f"{self.card.name}: {base} holds no image. Expected {', '.join(IMAGE_SUFFIXES)} files.")
        for key, source in self.arguments.masks.items():
            if not any(key in entry.files for entry in entries):
                where, inside = mask_folder(Path(), source.folder, entries[0].id)
                example = (where / f"{inside}{source.suffix}.png").as_posix()
                raise UserError(
                    f"{self.card.name}: reader.arguments.masks.{key}: none of the {len(entries)} images has a mask. "
                    f"Expected {example} (or {', '.join(_MASKS[1:])}, or a folder of that name). Mend the card."
                )
        return entries

    def _entry(self, path: Path, item: str) -> Entry:
        files = {"image": path}
        for key, source in self.arguments.masks.items():
            mask = mask_of(self.folder, source, item, path)
            if mask is not None:
                files[key] = mask
        first = item.split("/")[0]
        split = first if "/" in item and first in SPLITS else None
        return Entry(item, group_of(item, self.arguments.group_pattern), None, split, files)

    def read(self, entry: Entry) -> Sample:
        """Return image and truths; um per pixel is the card's, or the file's own where the card states none."""
        path = entry.files["image"]
        image = read_image(path)
        data = self._pixels(image.read(), path)
        shape = (data.shape[1], data.shape[2])
        truth = {k: self._truth(k, entry.files[k], shape, path) for k in self.arguments.masks if k in entry.files}
        return self.sample(entry, data, truth, spacing=self.spacing() or image.spacing)

    def _pixels(self, array: NDArray[Any], path: Path) -> NDArray[Any]:
        if self.card.channels == RGB:
            array, _ = to_rgb8(array)
        planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if len(planes) != len(self.card.channels):
            raise DataError(
                f"{path}: the image has {len(planes)} channels. The card names {len(self.card.channels)}: "
                f"{', '.join(self.card.channels)}."
            )
        return np.ascontiguousarray(planes)

    def _truth(self, key: str, path: Path, shape: tuple[int, int], image: Path) -> Truth:
        truth, source = self.card.truths[key], self.arguments.masks[key]
        if path.suffix.lower() in (".geojson", ".json"):
            if truth.kind == "semantic":
                indices = semantic_map(path, truth.classes, shape, truth.ignore)
                ignore = truth.ignore if truth.ignore is not None else 255 if (indices == 255).any() else None
                return Semantic(indices, ignore)
            ids, classes, unsure = instance_map(path, truth.classes or (key,), shape)
            return Instances(ids, classes if len(truth.classes) > 1 else None, unsure)
        if truth.kind == "semantic":
            return _semantic(truth, source, read_labels(path, shape, image), path)
        if path.is_dir():
            return Instances(merge_binary(sorted(path.iterdir(), key=lambda p: natural(p.name)), shape, image))
        return Instances(instances_of(read_labels(path, shape, image), path))


def _semantic(truth: TruthCard, source: MaskSource, labels: NDArray[Any], path: Path) -> Semantic:
    """Return class indices of a semantic mask: unknown values are named, or become ignore."""
    if source.values:
        values = {stored: truth.classes.index(name) for stored, name in source.values.items()}
    else:
        values = {index: index for index in range(len(truth.classes))}
    ignore = truth.ignore
    if source.unknown == "ignore" and ignore is None:
        ignore = 255
    if ignore is not None:
        values.setdefault(ignore, ignore)
    if labels.dtype.kind == "f" and not (labels == np.rint(labels)).all():
        raise DataError(f"{path}: the mask holds fractions. Expected whole numbers, a class a pixel.")
    unknown = ignore if source.unknown == "ignore" else None
    return Semantic(map_values(labels, values, path, unknown=unknown), ignore)


def merge_binary(files: Sequence[Path], shape: tuple[int, int], image: Path) -> NDArray[np.int32]:
    """Return object ids of a folder of binary masks; a pixel in two belongs to the first, empty masks are skipped.

    Raises `DataError` for a mask of another size, or with more than one value beside 0.
    """
    merged = np.zeros(shape, np.int32)
    number = 0
    for path in files:
        if path.suffix.lower() not in _MASKS or path.name.startswith("."):
            continue
        labels = read_labels(path, shape, image)
        values = [v for v in np.unique(labels).tolist() if v]
        if len(values) > 1:
            raise DataError(f"{path}: {unknown_values(values[1:], labels, (0, values[0]))}")
        free = (labels != 0) & (merged == 0)
        if free.any():
            number += 1
            merged[free] = number
    return merged


def found_images(folder: Path, arguments: FolderArguments) -> list[tuple[Path, str]]:
    """Return the images of a dataset in natural order, each with its id; masks that lie beside them are left out."""
    found = []
    for base, before in _roots(folder, arguments.images):
        for path in image_files(base, arguments):
            inside = path.relative_to(base)
            found.append((path, before + (inside.parent / inside.stem.removesuffix(arguments.suffix)).as_posix()))
    return found


def _roots(folder: Path, images: str) -> list[tuple[Path, str]]:
    """Return the folders of images, each with what begins the ids of its images."""
    if not images.startswith(_EACH):
        return [(folder / images, "")]
    names = sorted((p.name for p in folder.iterdir() if p.is_dir()), key=natural) if folder.is_dir() else []
    return [(folder / name / images.removeprefix(_EACH), f"{name}/") for name in names]


def image_files(base: Path, arguments: FolderArguments) -> list[Path]:
    """Return the images below `base` in natural order; masks that lie beside them are left out."""
    if not base.is_dir():
        return []
    beside = tuple(s.suffix for s in arguments.masks.values() if s.suffix)
    found = []
    for path in base.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if not path.stem.endswith(arguments.suffix) or (beside and path.stem.endswith(beside)):
            continue
        found.append(path)
    return sorted(found, key=lambda p: natural(p.relative_to(base).as_posix()))


def mask_folder(folder: Path, masks: str, item: str) -> tuple[Path, str]:
    """Return the folder in which the mask of an image lies, and the image's id below it."""
    if not masks.startswith(_EACH):
        return folder / masks, item
    first, _, rest = item.partition("/")
    return folder / first / masks.removeprefix(_EACH), rest


def mask_of(folder: Path, source: MaskSource, item: str, image: Path) -> Path | None:
    """Return the mask file, or the folder of binary masks, of an image; None where there is none."""
    below, inside = mask_folder(folder, source.folder, item)
    stem = below / (inside + source.suffix)
    for end in (*_MASKS, ".jpg", ".jpeg"):
        for file in (stem.with_name(stem.name + end), stem.with_name(stem.name + end.upper())):
            if file.is_file() and file != image:
                return file
    if stem.is_dir():
        return stem
    alone = source.folder.startswith(_EACH) and below.is_dir() and len(list(image.parent.iterdir())) == 1
    return below if alone else None  # IMAGE/images/IMAGE.png, and all of IMAGE/masks are its objects


def group_of(item: str, pattern: str | None) -> str | None:
    """Return the group that an id names, None without pattern or where it does not match."""
    match = re.search(pattern, item) if pattern else None
    return match.group(1) if match else None
