"""What was pulled, and from where: one folder a name below the cache, with the file and a record of it.

The record is written last, atomically: a file without one does not count. It keeps the sums of the files as they were
served, so that weights whose publisher states no sum are the same on every later pull, or it is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo import paths
from zoo.cards import WeightsCard

RECORD = "pulled.json"


@dataclass(frozen=True)
class Pulled:
    """A pulled file: `file` below the name's folder, its sum and size; `served`: file -> {sha256, size} of what came
    over the wire; `revision`: the commit where a hub had it; `converter`: what was applied."""

    name: str
    file: str
    sha256: str
    size: int
    served: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None
    converter: str | None = None

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return folder(self.name) / self.file


def root() -> Path:
    """Return the folder of pulled weights."""
    return paths.cache_root() / "weights"


def folder(name: str) -> Path:
    """Return the folder of one name (a weights name, or hf://OWNER/NAME@COMMIT)."""
    return root() / re.sub(r"[^A-Za-z0-9._-]+", "--", name)


def read(name: str) -> Pulled | None:
    """Return the record of a name, None where it was not pulled or its file is gone or cut short."""
    try:
        values = json.loads((folder(name) / RECORD).read_text(encoding="utf-8"))
        found = Pulled(**values)
        return found if found.name == name and found.path.stat().st_size == found.size else None
    except (OSError, ValueError, TypeError):
        return None


def known_sums(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what was once served for a name, kept when its file is gone or put aside."""
    try:
        found = json.loads((folder(name) / RECORD).read_text(encoding="utf-8")).get("served", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def write(record: Pulled) -> None:
    """Write a record, atomically."""
    target = folder(record.name) / RECORD
    target.parent.mkdir(parents=True, exist_ok=True)
    with paths.replacing(target) as file:
        file.write((json.dumps(asdict(record), indent=2, sort_keys=True) + "\n").encode())


def stale(record: Pulled, card: WeightsCard) -> str:
    """Return what the card says of the files that the record contradicts, "" where they agree."""
    for file in card.source.files:
        served = record.served.get(file.file)
        if file.sha256 and (served is None or served.get("sha256") != file.sha256):
            return f"{file.file} has another SHA-256"
    if card.source.revision and record.revision and card.source.revision != record.revision:
        return "the revision is another"
    wanted = card.convert.name if card.convert else None
    return "" if record.converter == wanted else "the converter is another"
