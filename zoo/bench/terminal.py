"""The tables of a benchmark for a terminal: complete, in 80 columns; metrics that do not fit go below one another."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from zoo.bench.results import Results, Row, cell, columns, footnotes, label, size_of
from zoo.errors import counted

WIDTH = 80
NAME = 30
"""The most columns that the names of weights take."""


def tables(results: Results, width: int = WIDTH) -> str:
    """Return every table, its notes, and what failed."""
    parts = [_table(key, rows, width) for key, rows in results.tables().items()]
    if results.failures:
        said = [f"{' '.join(filter(None, (f.weights, f.dataset, f.image)))}: {f.error}" for f in results.failures]
        parts.append("\n".join(["failed", *(_note(line, width) for line in said)]))
    return "\n\n".join(parts)


def _table(key: tuple[str, str, str], rows: Sequence[Row], width: int) -> str:
    dataset, split, truth = key
    images, groups = size_of(rows)
    head = f"{dataset}:{split} ({truth}): {counted(images, 'image')}, {counted(groups, 'group')}"
    names = [_fitted(label(row)) for row in rows]
    outputs = [row.output for row in rows]
    first = [_column("weights", names), _column("output", outputs)]
    values = [_column(metric, [cell(row.means.get(metric), metric) for row in rows]) for metric in columns(rows)]
    blocks, free = [list(first)], width - _width(first)
    for column in values:
        needed = 2 + len(column[0])
        if needed > free and len(blocks[-1]) > len(first):
            blocks.append(list(first))
            free = width - _width(first)
        blocks[-1].append(column)
        free -= needed
    notes = [_note(note, width) for note in footnotes(rows)]
    shown = ["\n".join(_lines(block, len(first))) for block in blocks]
    return "\n".join([head, "\n\n".join(shown), *notes])


def _fitted(name: str) -> str:
    return name if len(name) <= NAME else f"...{name[3 - NAME :]}"


def _column(head: str, cells: Sequence[str]) -> list[str]:
    width = max(map(len, (head, *cells)))
    return [text.ljust(width) for text in (head, *cells)]


def _width(block: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) for column in block) + 2 * (len(block) - 1)


def _lines(block: Sequence[Sequence[str]], named: int) -> list[str]:
    """Return the lines of columns of which `named` say what a row is; rows that hold nothing else are left out."""
    lines = zip(*block, strict=True)
    return ["  ".join(cells).rstrip() for cells in lines if any(cell.strip() for cell in cells[named:])]


def _note(text: str, width: int) -> str:
    return textwrap.fill(
        " ".join(text.split()), width, initial_indent="  ", subsequent_indent="  ", break_long_words=False
    )
