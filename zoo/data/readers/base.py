"""What a reader is: it lists what a dataset holds without decoding anything, then reads one item at a time.

A reader is registered under `reader` in `zoo.registry` and named by a card (`reader: {name, arguments}`). Generated
datasets (the phantom) have readers too: theirs get no folder, and their splits are ranges of seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from zoo.cards import DatasetCard
from zoo.errors import UserError
from zoo.schema import Schema
from zoo.types import Sample


@dataclass(frozen=True)
class Entry:
    """One item of a dataset, known without decoding it.

    `id` is unique within the dataset. `group` is the patient, slide or cluster that must not be split (None: the item
    stands alone), `center` the site or scanner. `split` is the split that the layout itself names (a file name, a
    folder, a seed range), None where the layout names none. `files`: role ("image", "mask", ...) -> file. `extra`:
    plain values that only the reader understands (a seed, a bounding box, a grade).
    """

    id: str
    group: str | None = None
    center: str | None = None
    split: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Return what must not be split: the group, or the id of an item that stands alone."""
        return self.group if self.group is not None else self.id


class NoArguments(Schema):
    """Arguments of a reader that takes none."""


@runtime_checkable
class Reader(Protocol):
    """Lists and reads one dataset. Instances are picklable and hold no open file.

    `Arguments` is the strict schema of what the card (`reader.arguments`) and the caller (`arguments`, which win) may
    say. `needs_folder` is False for data that is generated or comes with a package; such a reader gets `folder=None`.
    """

    Arguments: ClassVar[type[Schema]]
    needs_folder: ClassVar[bool]

    def __init__(self, card: DatasetCard, folder: Path | None, arguments: Any) -> None:
        """Keep the card, the dataset's folder and the checked arguments (an instance of `Arguments`)."""

    def index(self) -> Sequence[Entry]:
        """Return every item that is here, in a stable order, decoding none.

        Raises `UserError` where the folder is not laid out as the card says.
        """
        ...

    def read(self, entry: Entry) -> Sample:
        """Return one item. A function of the entry alone. Raises `DataError` naming the file."""
        ...


class FolderReader:
    """Base of readers of a folder: `card`, `folder` and `arguments` as attributes."""

    Arguments: ClassVar[type[Schema]] = NoArguments
    needs_folder: ClassVar[bool] = True

    def __init__(self, card: DatasetCard, folder: Path | None, arguments: Any) -> None:
        if folder is None and self.needs_folder:
            raise UserError(f"{card.name}: folder: the reader needs a folder. Name one in the card (`folder:`).")
        self.card = card
        self._folder = folder
        self.arguments = arguments

    @property
    def folder(self) -> Path:
        """Return the dataset's folder."""
        if self._folder is None:
            raise UserError(f"{self.card.name}: folder: this dataset has no folder.")
        return self._folder

    def absent(self) -> Sequence[str]:
        """Return what card and files name and is not here, a sentence each: `zoo data check` says it."""
        return ()

    def spacing(self) -> tuple[float, ...] | None:
        """Return um per pixel of each spatial axis as the card states it, or None."""
        um = self.card.spacing.um
        if um is None:
            return None
        axes = len(self.card.axes) - 1
        return um if isinstance(um, tuple) else (um,) * axes

    def sample(self, entry: Entry, image: Any, truth: Mapping[str, Any], **changes: Any) -> Sample:
        """Return a sample of this dataset with what card and entry say filled in."""
        values: dict[str, Any] = {
            "id": entry.id,
            "dataset": self.card.name,
            "image": image,
            "axes": self.card.axes,
            "channels": self.card.channels,
            "group": entry.group,
            "center": entry.center,
            "spacing": self.spacing(),
            "truth": truth,
        }
        return Sample(**{**values, **changes})
