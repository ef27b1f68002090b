"""Opening a dataset by name: card, folder, split, then samples one at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from zoo import cards, paths, registry
from zoo.cards import DatasetCard
from zoo.data.readers.base import Entry, Reader
from zoo.data.splits import folds_by_group
from zoo.errors import DataError, Problem, Problems, UserError, suggest
from zoo.schema import Document, problems_of
from zoo.types import Sample

__all__ = ["Dataset", "Entry", "card_splits", "dataset_folder", "open_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset: `card`, `index` (what is in it, known without decoding), `[i]` -> `Sample`.

    Picklable; holds no pixels and no open file. `[i]` raises `DataError` for one bad item; the others are not touched.
    """

    card: DatasetCard
    index: tuple[Entry, ...]
    reader: Reader
    split: str = "all"

    @property
    def name(self) -> str:
        """Return the dataset's name."""
        return self.card.name

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> Sample:
        entry = self.index[position]
        try:
            return self.reader.read(entry)
        except (DataError, UserError):
            raise
        except OSError as error:
            raise DataError(f"{self.name}: {entry.id}: the file cannot be read ({error.strerror or error}).") from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def subset(self, positions: Sequence[int]) -> Dataset:
        """Return a dataset of some items, in that order."""
        return replace(self, index=tuple(self.index[i] for i in positions))

    def position(self, item: str) -> int:
        """Return where an id stands in `index`. Raises `UserError` with the nearest ids."""
        for position, entry in enumerate(self.index):
            if entry.id == item:
                return position
        known = [e.id for e in self.index]
        raise UserError(f'{self.name}: no image "{item}" in split {self.split}. {suggest(item, known)}'.strip())


def open_dataset(
    name: str | Path,
    *,
    split: str = "all",
    fold: int | None = None,
    folds: int = 5,
    part: Literal["train", "validate"] = "train",
    arguments: Mapping[str, Any] | None = None,
    limit: int | None = None,
    root: Path | str | None = None,
    seed: int = 0,
) -> Dataset:
    """Open a dataset by name, by a folder that holds a zoo-dataset.yaml, or by the path of a card.

    `split`: a split of the card or of the layout, or "all". `fold`: cut that split into `folds` by group and take all
    but that fold (`part="train"`) or that fold alone (`part="validate"`); `seed` decides the cut. `arguments`: what the
    reader is told beyond the card. `limit`: the first so many images. `root`: the data root, in place of ZOO_DATA.

    No image is decoded. Raises `UserError` for an unknown name or split, missing data, or a copy that lacks images of
    a fixed split.
    """
    file = cards.dataset_card_file(name)
    card = cards.dataset_card(name)
    reader = make_reader(card, file, arguments, root)
    entries = read_index(card, reader)
    _no_duplicates(card, entries)
    chosen = _split(card, file, entries, split)
    if fold is not None:
        if not 0 <= fold < folds:
            raise UserError(f"{card.name}: fold: {fold} will not do. Expected 0 to {folds - 1}.")
        held = set(folds_by_group(chosen, folds, seed=seed, labels=labels_of(chosen))[fold])
        chosen = tuple(e for e in chosen if (e.id in held) == (part == "validate"))
    if limit is not None:
        chosen = chosen[:limit]
    return Dataset(card, chosen, reader, split)


def read_index(card: DatasetCard, reader: Reader) -> tuple[Entry, ...]:
    """Return what a reader lists. Raises `UserError` where its folder or tables cannot be read."""
    try:
        return tuple(reader.index())
    except (OSError, UnicodeDecodeError) as error:
        place = getattr(error, "filename", None) or "a file"
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{card.name}: {place} cannot be read ({reason}). Check the folder and its rights.") from None


def labels_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return id -> label where a reader knows one without decoding (`Entry.extra["label"]`), for stratification."""
    return {e.id: e.extra["label"] for e in entries if "label" in e.extra}


def make_reader(
    card: DatasetCard, file: Path, arguments: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Reader:
    """Return the reader that a card names, with its folder and checked arguments. Raises `UserError`."""
    made = cast(type[Reader], registry.get("reader", card.reader.name))
    values = {**card.reader.arguments, **(arguments or {})}
    try:
        checked = made.Arguments.model_validate(values)
    except ValidationError as error:
        found = problems_of(made.Arguments, error, Document(values, file=""))
        raise Problems(replace(p, where=f"{card.name}: arguments.{p.where}") for p in found) from None
    folder = dataset_folder(card, file, root) if made.needs_folder else None
    return made(card, folder, checked)


def dataset_folder(card: DatasetCard, file: Path, root: Path | str | None = None) -> Path:
    """Return where a dataset's files lie; a user's own card names a folder beside itself.

    Raises `UserError` that says which folder was looked at, how to set the data root, and where to get the data.
    """
    own = file.parent.resolve() != paths.shipped("datasets").resolve()
    base = Path(root).expanduser() if root is not None else file.parent if own else paths.data_root()
    if base is None:
        raise UserError(f"{card.name}: no data root is set. {_how(card)}")
    folder = base / (card.folder or "")
    if not _is_folder(folder):
        raise UserError(f"{card.name}: the folder {folder} is not there. {'' if own else _how(card)}".rstrip())
    return folder


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be read ({error.strerror}). Check its rights.") from None


def _how(card: DatasetCard) -> str:
    place = card.source.url or "its authors"
    return (
        f"Get the data from {place} (licence: {card.licence_line}), put it into a folder DIR/{card.folder}, then set "
        f"ZOO_DATA=DIR or write `data: DIR` into {paths.config_file()}."
    )


def _no_duplicates(card: DatasetCard, entries: Sequence[Entry]) -> None:
    seen: dict[str, Entry] = {}
    twice: list[str] = []
    for entry in entries:
        if entry.id in seen:
            files = [str(f) for e in (seen[entry.id], entry) for f in list(e.files.values())[:1]]
            twice.append(f"{entry.id} ({', '.join(files)})" if files else entry.id)
        seen.setdefault(entry.id, entry)
    if twice:
        shown = "; ".join(twice[:3]) + (f"; and {len(twice) - 3} more" if len(twice) > 3 else "")
        raise UserError(f"{card.name}: the same id stands for two images: {shown}. Rename one of each pair.")


def card_splits(card: DatasetCard, file: Path) -> dict[str, tuple[str, ...]]:
    """Return the fixed splits of a card: written in it, or in the JSON file that it names beside itself."""
    if not isinstance(card.splits, str):
        return dict(card.splits)
    return _read_splits(file.parent / card.splits)


@functools.lru_cache(maxsize=64)
def _read_splits(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): tuple(map(str, ids)) for name, ids in values.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: the file of splits is not there. Restore it, or name another in the card.") from None
    except (ValueError, AttributeError, TypeError) as error:
        line = getattr(error, "lineno", 0)
        what = "the file of splits is not valid. Expected a JSON mapping of split names to lists of ids."
        raise Problems([Problem(str(path), line, "", what)]) from None


def _split(card: DatasetCard, file: Path, entries: tuple[Entry, ...], split: str) -> tuple[Entry, ...]:
    if split == "all":
        return entries
    fixed = card_splits(card, file)
    if split not in fixed:
        by_rule = tuple(e for e in entries if e.split == split)
        if by_rule:
            return by_rule
        known = dict.fromkeys([*fixed, *(e.split for e in entries if e.split), "all"])
        raise UserError(
            f'{card.name}: no split "{split}" here. It has: {", ".join(known)}. {suggest(split, known)}'.rstrip()
        )
    by_id = {e.id: e for e in entries}
    absent = [i for i in fixed[split] if i not in by_id]
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise UserError(
            f"{card.name}: split {split}: {len(absent)} of its {len(fixed[split])} images are not here ({shown}). "
            f"Complete the copy (see: zoo data check {card.name}), or use split=all."
        )
    return tuple(by_id[i] for i in fixed[split])
