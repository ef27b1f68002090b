"""Fetching a data set whose licence allows a direct download; saying what to do for the others.

The same machinery as for weights: consent once, downloads that are gone on with, sums (the card's, or those of the
first fetch), archives that are checked before anything is written. Nothing that is there already is replaced.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from zoo import cards, paths
from zoo.cards import DatasetCard, Download
from zoo.errors import UserError
from zoo.fetch import FetchError, archives, checksum, consent, http

FETCHED = ".fetched.json"
"""What was fetched into a data set's folder: file -> SHA-256 as served."""


@dataclass(frozen=True)
class Fetched:
    """What came of a fetch: the data set's folder (None: it is generated or installed), and the lines for the user.

    `complete`: the files are here now; otherwise the lines say what a person must do.
    """

    name: str
    folder: Path | None
    complete: bool
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class How:
    """How to fetch: `accept`, whether the user has accepted the licence on the command line; `settings` of transfers;
    `say`, where lines for the user go."""

    accept: bool = False
    settings: http.Settings = field(default_factory=http.Settings)
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)  # noqa: T201


def fetch(name: str | Path, how: How) -> Fetched:
    """Fetch a data set by name, or by the folder or file of its card. Raises `UserError`, `FetchError`."""
    card, file = cards.dataset_card(name), cards.dataset_card_file(name)
    if card.folder is None:
        return Fetched(card.name, None, True, (f"{card.name}: nothing to fetch, it is generated or installed",))
    folder = _folder(card, file)
    if not card.source.downloads:
        here = folder is not None and folder.is_dir() and any(folder.iterdir())
        return Fetched(card.name, folder, here, tuple(steps(card, folder)))
    if folder is None:
        raise UserError(
            f"{card.name}: where do the data lie? Set ZOO_DATA=DIR (or `data: DIR` in {paths.config_file()})."
        )
    if _own_copy(folder):
        line = f"{card.name}: {folder} is here already and was not fetched. Move it away to fetch it anew"
        return Fetched(card.name, folder, True, (line,))
    if "commercial" not in card.licence.allows:
        consent.ask(f"data:{card.name}", card.licence.name, terms(card), accept=how.accept)
    folder.mkdir(parents=True, exist_ok=True)
    with http.locked(folder, card.name):
        for download in card.source.downloads:
            _one(card, download, folder, how)
    return Fetched(card.name, folder, True, (f"{card.name}: {folder}",))


def _folder(card: DatasetCard, file: Path) -> Path | None:
    own = file.parent.resolve() != paths.shipped("datasets").resolve()
    base = file.parent if own else paths.data_root()
    return None if base is None else base / str(card.folder)


def _own_copy(folder: Path) -> bool:
    """Return whether a folder holds files that no fetch brought."""
    return folder.is_dir() and not (folder / FETCHED).is_file() and any(p.name[0] != "." for p in folder.iterdir())


def terms(card: DatasetCard) -> str:
    """Return what binds a user of the data, in sentences."""
    lines = [f"{card.name}: the data are under {card.licence_line}."]
    if card.licence.note:
        lines.append(card.licence.note.rstrip(".") + ".")
    if page := card.licence.url or card.source.url:
        lines.append(f"Terms: {page}")
    return " ".join(lines)


def steps(card: DatasetCard, folder: Path | None) -> list[str]:
    """Return what a person must do, a line each: the licence, the page, the steps, the check."""
    where = str(folder.parent) if folder else "DIR"
    lines = [f"{card.name}: a person fetches these data.", f"Licence: {card.licence_line}"]
    if card.licence.note:
        lines.append(f"Mind: {card.licence.note}")
    if card.licence.url:
        lines.append(f"Terms: {card.licence.url}")
    if card.source.url:
        lines.append(f"Page: {card.source.url}")
    lines += [f"{i}. {step.replace('DIR', where)}" for i, step in enumerate(card.source.steps, 1)]
    lines.append(f"Then: {'' if folder else 'ZOO_DATA=DIR '}zoo data check {card.name}")
    return lines


def _one(card: DatasetCard, download: Download, folder: Path, how: How) -> None:
    file = download.file or Path(urlsplit(download.url).path).name or "download"
    known = _known(folder)
    if file in known and (download.unpack or (folder / file).is_file()) and download.sha256 in (None, known[file]):
        return
    target = folder / ".downloads" / file if download.unpack else folder / file
    pinned = download.sha256 or known.get(file)
    says = "its card says" if download.sha256 else "an earlier fetch recorded"
    page = card.source.url
    http.download(http.Request(download.url, target, pinned, download.size, page, says=says), how.settings)
    actual = checksum(target)
    if pinned is None:
        how.say(f"{card.name}: nobody states a SHA-256 of {file}; recorded now, compared from now on: {actual}")
    if download.unpack:
        _unpack(target, folder, download.inside)
        shutil.rmtree(target.parent, ignore_errors=True)
    _note(folder, known | {file: actual})


def _unpack(archive: Path, folder: Path, inside: str | None) -> None:
    """Unpack into a folder beside, then move what is wanted in place; what is there already is not replaced."""
    staging = folder / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        archives.unpack(archive, staging)
        wanted = staging / inside if inside else staging
        if not wanted.is_dir():
            found = ", ".join(sorted(p.name for p in staging.iterdir())[:4])
            raise FetchError(
                f"{archive.name}: it holds no folder {inside} ({found}). The publisher has changed the file."
            )
        entries = sorted(wanted.iterdir())
        there = [entry.name for entry in entries if (folder / entry.name).exists()]
        if there:
            raise UserError(
                f"{folder / there[0]}: is there already. Nothing was replaced. Move it away and fetch again."
            )
        for entry in entries:
            entry.replace(folder / entry.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _known(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _note(folder: Path, sums: Mapping[str, str]) -> None:
    partial = folder / f"{FETCHED}.part"
    partial.write_text(json.dumps(dict(sums), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / FETCHED)
