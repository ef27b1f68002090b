"""The files of a card, as published, into a folder of this machine: from an address, the hub, a mirror or a person's
hands; each compared with the sum that the card, the mirror or an earlier pull knows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import paths
from zoo.cards import WeightsCard, WeightsFile
from zoo.errors import UserError
from zoo.fetch import FetchError, checksum, forbidden, http, hub, wrong_checksum
from zoo.weights import cache

MIRROR = "mirror.json"
"""What a mirror holds: name -> {revision, served: file -> {sha256, size}}."""


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True)
class How:
    """How to pull: `origin`, a file, a folder or an address to take the files from in place of the card's source;
    `accept`, whether the user has accepted the licence on the command line; `say`, where lines for the user go."""

    origin: str | None = None
    accept: bool = False
    say: Callable[[str], None] = _silent
    settings: http.Settings = field(default_factory=http.Settings)


@dataclass(frozen=True)
class Gathered:
    """Files as served: `folder`, `main` in it, sums of all, and the commit where a hub had them."""

    folder: Path
    main: Path
    served: Mapping[str, Mapping[str, Any]]
    revision: str | None = None


def gather(card: WeightsCard, folder: Path, how: How) -> Gathered:
    """Put every file of a card into a folder, checked. Raises `UserError`, `FetchError`."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = how.origin or paths.mirror()
    known = dict(cache.known_sums(card.name))
    noted = _mirrored(origin, card.name)
    known |= noted.get("served", {})
    revision = card.source.revision or noted.get("revision")
    served: dict[str, dict[str, Any]] = {}
    for file in card.source.files:
        target = folder / file.file
        pinned = file.sha256 or known.get(file.file, {}).get("sha256")
        says = "its card says" if file.sha256 else "an earlier pull recorded"
        if origin:
            _from_origin(card, file, origin, target, pinned, says, how)
        elif card.source.kind == "hub":
            revision = _from_hub(card, file, revision, target, pinned, says, how)
        elif card.source.kind == "http" and file.url:
            request = http.Request(file.url, target, pinned, file.size, card.source.page, says=says)
            http.download(request, how.settings)
        else:
            raise UserError(
                f'weights "{card.name}": a person must fetch {file.file}: visit {card.source.page}, then run: '
                f"zoo weights pull {card.name} --from FILE-OR-FOLDER"
            )
        actual = checksum(target)
        served[file.file] = {"sha256": actual, "size": target.stat().st_size}
        if pinned is None:
            how.say(
                f"{card.name}: nobody states a SHA-256 of {file.file}; recorded now, compared from now on: {actual}"
            )
    return Gathered(folder, folder / card.source.files[0].file, served, revision)


def _mirrored(origin: str | None, name: str) -> dict[str, Any]:
    """Return what a mirror's folder notes of a name."""
    if not origin or "://" in origin:
        return {}
    try:
        values = json.loads((Path(origin).expanduser() / MIRROR).read_text(encoding="utf-8"))
        found = values.get(name, {})
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _from_origin(
    card: WeightsCard, file: WeightsFile, origin: str, target: Path, pinned: str | None, says: str, how: How
) -> None:
    if origin.startswith(("http://", "https://")):
        whole = origin.partition("?")[0].endswith("/" + file.file)
        url = origin if whole else f"{origin.rstrip('/')}/{card.name}/{file.file}"
        http.download(http.Request(url, target, pinned, file.size, card.source.page, says=says), how.settings)
        return
    path = Path(origin).expanduser()
    if not path.exists():
        raise UserError(
            f"{origin}: there is no such file or folder. Expected {file.file} of {card.name}, or a folder with it."
        )
    places = [path / card.name / file.file, path / file.file, path / Path(file.file).name]
    given = path if path.is_file() and file == card.source.files[0] else next((p for p in places if p.is_file()), None)
    if given is None and path.is_file():
        places = [path.with_name(Path(file.file).name)]
        given = next((p for p in places if p.is_file()), None)
    if given is None:
        raise UserError(
            f"{origin}: neither {places[0]} nor {places[-1]} is there. Expected {file.file} of {card.name}."
        )
    if pinned is not None and (actual := checksum(given)) != pinned:
        raise FetchError(f"{given}: SHA-256 is {actual}, {says} {pinned}. The file was not used. Get it again.")
    place(given, target)


def _from_hub(
    card: WeightsCard, file: WeightsFile, revision: str | None, target: Path, pinned: str | None, says: str, how: How
) -> str:
    repository = str(card.source.repository)
    here = hub.cached(repository, file.file, revision) is not None
    if card.gate == "token" and not here and not forbidden() and hub.lacks_token():  # else it is asked six times
        raise hub.gated(repository, card.source.page or hub.page(repository))
    path = hub.file(repository, file.file, revision, card.source.page)
    commit = hub.commit_of(path)
    if revision is None:
        how.say(f"{card.name}: the card names no revision; {repository} is at {commit}: recorded, kept to from now on")
    if pinned is not None and (actual := checksum(path)) != pinned:
        real = path.resolve()
        path.unlink()
        raise wrong_checksum(real, f"{repository}/{file.file}", actual, pinned, says)
    place(path, target)
    return commit


def place(source: Path, target: Path) -> None:
    """Put a file at another place: a second name of the same bytes where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.copy")
    partial.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
