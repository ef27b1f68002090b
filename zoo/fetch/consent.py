"""Asking once: licences that bind the user, remembered beside the configuration file."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from zoo import paths
from zoo.errors import UserError


def file() -> Path:
    """Return where accepted licences are remembered."""
    return paths.config_file().parent / "accepted-licences.json"


def _read() -> dict[str, dict[str, str]]:
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def given(name: str, licence: str) -> bool:
    """Return whether the user has accepted this licence for this name; another licence is another question."""
    return _read().get(name, {}).get("licence") == licence


def remember(name: str, licence: str) -> None:
    """Remember that a licence was accepted. Where that cannot be written, it says so and asks again next time."""
    from zoo.fetch.http import locked

    try:
        with locked(file()):
            known = _read() | {name: {"licence": licence, "accepted": datetime.date.today().isoformat()}}
            with paths.replacing(file()) as out:
                out.write((json.dumps(known, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        print(f"{file()}: cannot be written ({error.strerror}): you will be asked again", file=sys.stderr)  # noqa: T201


def ask(name: str, licence: str, terms: str, *, accept: bool) -> None:
    """Go on only where the licence is accepted: before, by `accept`, or by typing "yes" at a terminal.

    `terms`: what is bound, in sentences. Raises `UserError` where nobody accepts.
    """
    if given(name, licence):
        return
    if not accept:
        print(terms, file=sys.stderr)  # noqa: T201
        if not (sys.stdin and sys.stdin.isatty()):
            raise UserError(f"{name}: its licence ({licence}) is not accepted yet. Read it, then add: --accept-licence")
        print('Type "yes" to accept: ', end="", file=sys.stderr, flush=True)  # noqa: T201
        if sys.stdin.readline().strip().lower() not in ("yes", "y"):
            raise UserError(f"{name}: its licence ({licence}) was not accepted. Nothing was downloaded.")
    remember(name, licence)
