"""The few exceptions that a user meets, and how a mistake reads.

One form for every mistake: `file:line: where: what is wrong. What was expected. What to do.`
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass


class ZooError(Exception):
    """Anything the zoo raises on purpose; `status` is the exit status of the command line."""

    status = 1


class UserError(ZooError):
    """A mistake that the user can mend: one sentence, no traceback, exit status 2, nothing started."""

    status = 2


class DataError(ZooError):
    """One item (an image, a label, an annotation file) cannot be used; the rest of its data set can."""


class Interrupted(ZooError):
    """The user stopped the work; the state is saved and the message says how to go on."""

    status = 130


def full(error: BaseException) -> str:
    """Return what the system said of a disk that is full or may not be written to; "" for another error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return ""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake and where it stands.

    `file` and `line` (from 1) may be unknown; `where` is a dotted key or the name of an item.
    """

    file: str = ""
    line: int = 0
    where: str = ""
    what: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return ": ".join(part for part in (place, self.where, self.what) if part)


class Problems(UserError):
    """Several mistakes at once, each on its own line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of `words` that `word` may have meant, best first."""
    known = list(dict.fromkeys(words))
    folded = {w.casefold(): w for w in reversed(known)}
    hits = difflib.get_close_matches(word.casefold(), folded, n=count, cutoff=0.55)
    inside = [w for w in known if len(word) >= 3 and word.casefold() in w.casefold()]
    return list(dict.fromkeys([*(folded[h] for h in hits), *inside]))[:count]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def suggest(word: str, words: Iterable[str], see: str = "") -> str:
    """Return `Did you mean a, b? See: ...`, the end of an error about an unknown name; never the whole list."""
    known = list(words)
    close = nearest(word, known)
    if close:
        text = f"Did you mean {', '.join(close)}?"
    elif 0 < len(known) <= 6:
        text = f"Expected one of {', '.join(known)}."
    else:
        text = ""
    return " ".join(part for part in (text, f"See: {see}" if see else "") if part)
