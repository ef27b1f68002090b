"""Addresses -> verified files on this machine: downloads, the hub, archives, consent. Knows neither models nor data."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from zoo import paths
from zoo.errors import UserError, ZooError


class FetchError(ZooError):
    """A file could not be had: a server, a network or a disk is in the way. What was received is kept where it can be
    gone on with. Exit status 1: other names may well be pulled."""


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raises `UserError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Copy or pull the file again.") from None


def forbidden() -> str:
    """Return why the network must not be touched, or "" where it may."""
    if paths.offline():
        return "ZOO_OFFLINE=1 forbids fetching"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE=1 forbids fetching"
    return ""


def shown(address: str) -> str:
    """Return an address as it may be printed: no name and password, and nothing of a query, which may hold a key."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


def quarantine(path: Path) -> Path:
    """Move a file that is not what it should be out of the way, never deleting it, and return where it lies now."""
    folder = paths.cache_root() / "quarantine"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{checksum(path)[:12]}-{path.name.removeprefix('.').removesuffix('.part')}"
    shutil.move(path, target)
    return target


def wrong_checksum(path: Path, label: str, actual: str, expected: str, says: str = "its card says") -> FetchError:
    """Quarantine a file and return the error that says so."""
    kept = quarantine(path)
    return FetchError(
        f"{label}: SHA-256 is {actual}, {says} {expected}. The file was not used; it lies at {kept}. "
        "Pull it again; where the sum stays, the publisher has changed the file: ask before you trust it."
    )


def room_for(folder: Path, size: int | None) -> None:
    """Raise `FetchError` where a disk has no room for `size` bytes."""
    if size is None:
        return
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FetchError(f"{folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. Make room.")
