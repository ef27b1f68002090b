"""What a command did with many files: what is done, what was there already, what failed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import UserError


@dataclass
class Summary:
    """Names done and already there, and what failed, as {"file", "error"}; `verb` says what was done."""

    out: Path
    verb: str
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Return the exit status: 1 where a file failed."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        parts = [f"{len(self.done)} {self.verb}"]
        parts += [f"{len(self.skipped)} already there"] if self.skipped else []
        parts += [f"{len(self.failures)} failed (see {self.out / 'failures.json'})"] if self.failures else []
        return f"{self.out}: {', '.join(parts)}"

    def write_failures(self) -> None:
        """Write `failures.json`, or take away the one of an earlier run where nothing fails any more."""
        path = self.out / "failures.json"
        if self.failures:
            path.write_text(json.dumps(self.failures, indent=1) + "\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def check_folder(out: Path) -> None:
    """Make a folder. Raises `UserError` where nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".zoo-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}). Choose another --out.") from None
