"""Pairs of pictures in folders, a name a pair: MIST, BCI, HEMIT, and any two folders of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import natural
from zoo.errors import DataError, UserError, counted
from zoo.io.images import IMAGE_SUFFIXES, read_image, to_rgb8
from zoo.schema import Schema
from zoo.types import Picture, Sample, Truth

RGB = ("red", "green", "blue")


class PairsArguments(Schema):
    """What the reader is told. In a folder's name `{split}` stands for each of `splits`."""

    image: str = "A"
    """Folder of the images, below the dataset's."""
    pictures: dict[str, str] = Field(default_factory=lambda: {"picture": "B"})
    """Truth of the card -> folder of its pictures."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Split -> what stands for {split}; none = one folder each, without splits."""
    group_pattern: str | None = None
    """Regular expression on a pair's name; its first bracket is the slide or patient."""
    encoding: str = "rgb8"
    """Encoding of pictures that are not RGB ("linear" for fluorescence)."""

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            if value is not None and not re.compile(value).groups:
                raise ValueError(f"{value!r} has no bracket. Expected one around what names the group")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
        return value


class PairsReader(FolderReader):
    """Image and pictures of the same field, matched by their names without endings."""

    Arguments = PairsArguments
    arguments: PairsArguments

    def index(self) -> Sequence[Entry]:
        """Return the pairs. Raises `UserError` for a folder that is not there, and for names without a partner."""
        unknown = sorted(set(self.arguments.pictures) - set(self.card.truths))
        if unknown:
            known = ", ".join(self.card.truths) or "none"
            raise UserError(f'{self.card.name}: pictures: "{unknown[0]}" is no truth of this card. Expected {known}.')
        named: list[tuple[str | None, str]] = [*self.arguments.splits.items()]
        entries = [entry for split, word in named or [(None, "")] for entry in self._split(split, word)]
        if not entries:
            where = self.folder / self.arguments.image
            raise UserError(f"{self.card.name}: {where} holds no image. Expected {', '.join(IMAGE_SUFFIXES)} files.")
        return entries

    def _split(self, split: str | None, word: str) -> list[Entry]:
        images = self._files(self.arguments.image, word, split)
        if images is None:
            return []
        sides = {key: self._files(folder, word, split) for key, folder in self.arguments.pictures.items()}
        for key, found in sides.items():
            folder = self._folder_of(self.arguments.pictures[key], word)
            self._check_partners(images, found or {}, folder)
        prefix = "" if split is None else f"{split}/"
        return [
            Entry(
                f"{prefix}{name}",
                self._group(name),
                None,
                split,
                {"image": path, **{key: found[name] for key, found in sides.items() if found}},
            )
            for name, path in images.items()
        ]

    def _folder_of(self, folder: str, word: str) -> Path:
        return self.folder / folder.replace("{split}", word)

    def _files(self, folder: str, word: str, split: str | None) -> dict[str, Path] | None:
        """Return name -> file, in natural order; None where a split's folder is not here."""
        base = self._folder_of(folder, word)
        if not base.is_dir():
            if split is None:
                raise UserError(f"{self.card.name}: {base}: no such folder. Expected {self.card.layout or 'pairs'}")
            return None
        files = [p for p in base.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
        files.sort(key=lambda p: natural(p.relative_to(base).as_posix()))
        return {p.relative_to(base).with_suffix("").as_posix(): p for p in files}

    def _check_partners(self, images: dict[str, Path], others: dict[str, Path], folder: Path) -> None:
        lonely = [name for name in images if name not in others]
        extra = [name for name in others if name not in images]
        if lonely or extra:
            name, lacking = (lonely[0], folder) if lonely else (extra[0], next(iter(images.values())).parent)
            raise UserError(
                f"{self.card.name}: {len(images)} images and {len(others)} pictures in {folder}: {name} has no partner "
                f"in {lacking}. Expected one file of the same name in both. Remove it or get the other."
            )

    def _group(self, name: str) -> str | None:
        match = re.search(self.arguments.group_pattern, name) if self.arguments.group_pattern else None
        return match.group(1) if match else None

    def read(self, entry: Entry) -> Sample:
        """Return a pair. Raises `DataError` for pictures of another size or other channels than the card's."""
        path = entry.files["image"]
        with read_image(path) as file:
            image, spacing = np.moveaxis(to_rgb8(file.read())[0], -1, 0), file.spacing
        truths: dict[str, Truth] = {}
        for key in self.arguments.pictures:
            other = entry.files[key]
            channels = self.card.truths[key].channels or RGB
            data = self._pixels(other, channels)
            if data.shape[1:] != image.shape[1:]:
                raise DataError(
                    f"{other}: {data.shape[1]} x {data.shape[2]} pixels, but its image {path.name} has "
                    f"{image.shape[1]} x {image.shape[2]}. Expected one size. Export both at the same level."
                )
            truths[key] = Picture(data, channels, encoding="rgb8" if channels == RGB else self.arguments.encoding)
        return self.sample(entry, np.ascontiguousarray(image), truths, spacing=self.spacing() or spacing)

    def _pixels(self, path: Path, channels: Sequence[str]) -> NDArray[Any]:
        with read_image(path) as file:
            array = file.read()
        if tuple(channels) == RGB and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4):
            return np.ascontiguousarray(np.moveaxis(to_rgb8(array)[0], -1, 0))
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        if tuple(channels) == RGB and array.dtype != np.uint8:
            raise DataError(
                f"{path}: the picture holds {array.dtype}. Expected 8 bits a channel, as the card says (rgb). Name its "
                "channels in the card, or convert it."
            )
        if len(planes) != len(channels):
            raise DataError(
                f"{path}: the picture has {counted(len(planes), 'channel')}. Expected {len(channels)}: "
                f"{', '.join(channels)}. Name the channels in the card."
            )
        return np.ascontiguousarray(planes)
