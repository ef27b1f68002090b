"""Where things lie: what the package ships, what the user keeps, what the zoo caches.

The environment rules: `ZOO_DATA`, `ZOO_PARITY`, `ZOO_CACHE`, `ZOO_WEIGHTS`, `ZOO_MIRROR`, `ZOO_OFFLINE`, `ZOO_CONFIG`;
then the user's configuration file (`data: DIR`, `cache: DIR`, `weights: DIR`, `mirror: DIR`); then the defaults below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zoo.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """Return the folder "recipes" or "datasets": inside an installed package, or beside it in a checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes the place of `path` when the block ends without an exception.

    Atomic: a reader, or a process that starts after a crash, sees the old or the new content, and it is on the disk
    when the block is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def config_file() -> Path:
    """Return where the user's configuration file is looked for (it may not exist)."""
    named = os.environ.get("ZOO_CONFIG")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_config_path

    return Path(user_config_path("histozoo")) / "config.yaml"


_KEYS = ("cache", "data", "mirror", "weights")


def _configured(key: str) -> Path | None:
    value = _value(key)
    return Path(value).expanduser() if value else None


def _value(key: str) -> str | None:
    file = config_file()
    if not file.is_file():
        return None
    from zoo.schema import read_yaml

    values = read_yaml(file).values
    unknown = sorted(set(values) - set(_KEYS))
    if unknown:
        raise UserError(f'{file}: {unknown[0]}: unknown key "{unknown[0]}". Expected one of {", ".join(_KEYS)}.')
    return str(values[key]) if values.get(key) else None


def data_root() -> Path | None:
    """Return the folder that holds the user's copies of the published data sets, or None where none is set."""
    named = os.environ.get("ZOO_DATA")
    return Path(named).expanduser() if named else _configured("data")


def cache_root() -> Path:
    """Return the folder for downloaded weights and cached features."""
    named = os.environ.get("ZOO_CACHE")
    if named:
        return Path(named).expanduser()
    configured = _configured("cache")
    if configured:
        return configured
    from platformdirs import user_cache_path

    return Path(user_cache_path("histozoo"))


def weights_folders() -> list[Path]:
    """Return the user's own folders of weights cards: `ZOO_WEIGHTS` (several, separated as in PATH), or `weights:`."""
    named = os.environ.get("ZOO_WEIGHTS") or _value("weights") or ""
    return [Path(part).expanduser() for part in named.split(os.pathsep) if part]


def mirror() -> str | None:
    """Return the folder or address that `zoo weights mirror` filled (`ZOO_MIRROR`, or `mirror:`), where one is set."""
    return os.environ.get("ZOO_MIRROR") or _value("mirror")


def parity_root() -> Path | None:
    """Return the folder of published cases, or None where there is none."""
    named = os.environ.get("ZOO_PARITY")
    found = Path(named).expanduser() if named else _PACKAGE.parent.parent / "shared" / "parity"
    return found if found.is_dir() else None


def offline() -> bool:
    """Return True where the user forbids every network access (`ZOO_OFFLINE=1`)."""
    return os.environ.get("ZOO_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
