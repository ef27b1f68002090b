"""Whether a benchmark is one: what weights were trained on, against what they are asked about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from zoo.weights.store import Found


class Item(Protocol):
    """An item of a dataset's index."""

    @property
    def id(self) -> str:
        """The item's id."""
        ...

    @property
    def group(self) -> str | None:
        """What must not be split."""
        ...


@dataclass(frozen=True)
class Record:
    """What weights say of their making: lists of {dataset, split, groups, images}; None where they say nothing; and
    the file's metadata."""

    trained: tuple[Mapping[str, Any], ...] | None
    validated: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)


def record_of(found: Found) -> Record:
    """Return the training record of weights: the card's where there is one, else the file's."""
    if found.card is not None and found.card.trained_on:
        trained_on = tuple(t.model_dump(mode="json") for t in found.card.trained_on)
        return Record(trained_on, (), _metadata(found.path))
    metadata = _metadata(found.path)
    trained = json.loads(metadata["trained_on"]) if "trained_on" in metadata else None
    return Record(
        None if trained is None else tuple(trained),
        tuple(json.loads(metadata.get("validated_on", "[]"))),
        metadata,
    )


def joined(records: Sequence[Record]) -> Record:
    """Return the record of an ensemble: what any member has seen; None where a member does not say."""
    if len(records) == 1:
        return records[0]
    trained = None if any(r.trained is None for r in records) else tuple(t for r in records for t in r.trained or ())
    return Record(trained, tuple(v for r in records for v in r.validated))


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file without its tensors; nothing where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def overlap(records: Iterable[Mapping[str, Any]], dataset: str, split: str, items: Sequence[Item]) -> list[str]:
    """Return the ids of the items that a record covers: by image, by group, or by a split that names neither."""
    images: set[str] = set()
    groups: set[str] = set()
    whole = False
    split = split.partition("+")[0].partition("@")[0]  # without arguments; of a fold, the split that it is cut from
    for record in records:
        if record["dataset"] != dataset:
            continue
        images.update(record.get("images") or ())
        groups.update(record.get("groups") or ())
        if not record.get("images") and not record.get("groups"):
            whole |= record.get("split") in (split, "all") or split == "all"
    return [
        item.id for item in items if whole or item.id in images or (item.group is not None and item.group in groups)
    ]


def sentence(weights: str, dataset: str, split: str, leaked: Sequence[str], total: int) -> str:
    """Return the sentence that refuses a leaking pair."""
    return (
        f"bench: {weights} on {dataset}:{split}: {len(leaked)} of {total} images, or their patients or slides, are in "
        f"the training record of the weights ({', '.join(leaked[:3])}{', ...' if len(leaked) > 3 else ''}). Expected "
        "data that the weights have not seen. Choose another split, or run and mark it with --allow-leakage."
    )
