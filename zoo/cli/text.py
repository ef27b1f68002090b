"""Text for a terminal: tables and paragraphs that fit 80 columns, JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 80


def shorten(text: str, width: int) -> str:
    """Return one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: max(width - 3, 1)].rstrip(" ,;:") + "..."


def table(rows: Iterable[Sequence[str]], width: int = WIDTH) -> str:
    """Return rows in columns; the last column is cut so that a line fits, the name in the first never is."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    count = max(map(len, cells))
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(count)]
    lines = []
    for row in cells:
        start = "  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1]))
        left = width - len(start) - 2 if start else width
        end = row[-1] if not start or left < 8 else shorten(row[-1], left)
        lines.append((f"{start}  {end}" if start else end).rstrip())
    return "\n".join(lines)


def paragraph(text: str, indent: str = "", first: str | None = None) -> str:
    """Return text wrapped to 80 columns."""
    return "\n".join(
        textwrap.wrap(
            " ".join(str(text).split()),
            WIDTH,
            initial_indent=indent if first is None else first,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def wrapped(text: str) -> str:
    """Return a docstring in 80 columns: paragraphs filled, indented lines and command lines as they are."""
    found = []
    for part in text.strip().split("\n\n"):
        lines = part.splitlines()
        if all(line.startswith("zoo ") for line in lines):  # ruff takes an indent away that all lines have
            lines = [f"  {line}" for line in lines]
        laid_out = any(line.startswith(" ") for line in lines)
        found.append("\n".join(lines) if laid_out else paragraph(part))
    return "\n\n".join(found)


def as_json(value: Any) -> str:
    """Return JSON that a person can read too."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
