"""What a benchmark found: rows, numbers an image, failures; and the files that say so."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.bench.statistics import FEW, Mean
from zoo.errors import counted
from zoo.metrics import METRICS

FORMAT = 1


@dataclass(frozen=True)
class Case:
    """One image under one row: its scores, the seconds that the prediction took, and its pictures (role -> file below
    the output folder)."""

    image: str
    group: str
    scores: dict[str, float]
    seconds: float | None = None
    pictures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of a table: weights (or a baseline) on a dataset, one output against one truth."""

    weights: str
    dataset: str
    split: str
    output: str
    truth: str
    kind: str
    metrics: tuple[str, ...]
    cases: tuple[Case, ...]
    means: dict[str, Mean]
    baseline: bool = False
    leaks: int = 0
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> tuple[str, str, str]:
        """Return what the row is compared within: dataset, split, truth."""
        return self.dataset, self.split, self.truth


@dataclass(frozen=True)
class Failure:
    """What could not be judged: `image` is empty where a whole pair of weights and dataset fell out."""

    weights: str
    dataset: str
    image: str
    error: str


@dataclass(frozen=True)
class Results:
    """A benchmark: `rows` (baselines last in each table), `failures`, what it was run with, where it lies."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    out: Path

    @property
    def status(self) -> int:
        """Return the exit status: 1 where something failed, the rest being finished."""
        return 1 if self.failures else 0

    def tables(self) -> dict[tuple[str, str, str], list[Row]]:
        """Return (dataset, split, truth) -> its rows, in order."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.table, []).append(row)
        return found

    def value(self, weights: str, dataset: str, metric: str) -> float:
        """Return a mean; nan where there is no such row."""
        for row in self.rows:
            if row.weights == weights and row.dataset == dataset and metric in row.means:
                return row.means[metric].value
        return math.nan


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the metrics of a table, in the order in which its rows name them."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


# --- numbers as text --------------------------------------------------------------------------------------------------


def figure(value: float, metric: str) -> str:
    """Return a number as a table shows it: three decimals of a share, one of decibels."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.1f}" if METRICS[metric].best is None else f"{value:.3f}"


def interval(mean: Mean, metric: str) -> str:
    """Return `[low, high]`, with a dagger where the groups are few; nothing where there is no interval."""
    if mean.low is None or mean.high is None:
        return ""
    return f"[{figure(mean.low, metric)}, {figure(mean.high, metric)}]{'†' if mean.few else ''}"


def cell(mean: Mean | None, metric: str) -> str:
    """Return `value [low, high]`."""
    return "" if mean is None else f"{figure(mean.value, metric)} {interval(mean, metric)}".rstrip()


def size_of(rows: Sequence[Row]) -> tuple[int, int]:
    """Return how many images and groups a table is about: the most that any row has."""
    images = max((len(row.cases) for row in rows), default=0)
    groups = max((len({case.group for case in row.cases}) for row in rows), default=0)
    return images, groups


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader of a table must know, a sentence each."""
    found = [f"{row.weights} ({row.output}): {note}." for row in rows for note in row.notes]
    means = [mean for row in rows for mean in row.means.values()]
    if any(mean.few and mean.low is not None for mean in means):
        found.append(f"† Fewer than {FEW} groups: the interval is too narrow to be trusted.")
    if any(mean.groups < 2 and mean.images for mean in means):
        found.append("No interval: all images are of one group.")
    undefined = {
        (metric, mean.undefined) for row in rows for metric, mean in row.means.items() if mean.undefined and mean.images
    }
    found += [
        f"{metric} is not defined for {counted(count, 'image')}, left out of the mean."
        for metric, count in sorted(undefined)
    ]
    if any(row.leaks for row in rows):
        found.append("‡ Leaks: the weights have seen images, patients or slides of this data. Not a result.")
    return list(dict.fromkeys(found))


def label(row: Row) -> str:
    """Return the name of a row, marked where it leaks."""
    return f"{row.weights}{' ‡' if row.leaks else ''}"


def markdown(results: Results) -> str:
    """Return every table as Markdown."""
    parts = ["# Benchmark", ""]
    for (dataset, split, truth), rows in results.tables().items():
        names = columns(rows)
        images, groups = size_of(rows)
        parts += [f"## {dataset}:{split} ({truth})", ""]
        size = f"{counted(images, 'image')}, {counted(groups, 'group')}"
        parts += [f"{size}; mean over images, 95 % interval by group bootstrap.", ""]
        parts += [f"| weights | output | {' | '.join(names)} |", f"| --- | --- |{' ---: |' * len(names)}"]
        for row in rows:
            cells = " | ".join(cell(row.means.get(name), name) for name in names)
            parts.append(f"| {'_' + row.weights + '_' if row.baseline else label(row)} | {row.output} | {cells} |")
        notes = footnotes(rows)
        parts += ["", *(f"- {note}" for note in notes), *([""] if notes else [])]
    if results.failures:
        parts += ["## Failures", "", "| weights | dataset | image | what |", "| --- | --- | --- | --- |"]
        parts += [f"| {f.weights} | {f.dataset} | {f.image} | {_one_line(f.error)} |" for f in results.failures]
        parts.append("")
    return "\n".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- files ------------------------------------------------------------------------------------------------------------


def write(results: Results) -> None:
    """Write results.json, table.md, per_image.parquet and per_image.csv."""
    out = results.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(plain(results), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results), encoding="utf-8")
    _write_images(results)


def plain(results: Results) -> dict[str, Any]:
    """Return everything but the images' numbers as plain values; not-a-number is null, infinity is "inf"."""
    rows = []
    for row in results.rows:
        means = {name: {k: _number(v) for k, v in asdict(mean).items()} for name, mean in row.means.items()}
        seconds = sorted(case.seconds for case in row.cases if case.seconds is not None)
        rows.append(
            {
                "weights": row.weights,
                "dataset": row.dataset,
                "split": row.split,
                "output": row.output,
                "truth": row.truth,
                "kind": row.kind,
                "baseline": row.baseline,
                "leaks": row.leaks,
                "notes": list(row.notes),
                "images": len(row.cases),
                "seconds_median": round(seconds[len(seconds) // 2], 4) if seconds else None,
                "metrics": means,
            }
        )
    return {
        "format": FORMAT,
        "rows": rows,
        "failures": [asdict(f) for f in results.failures],
        "settings": results.settings,
        "environment": results.environment,
    }


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _write_images(results: Results) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    names = columns(results.rows)
    fixed = [(name, pa.string()) for name in ("weights", "dataset", "split", "output", "truth", "image", "group")]
    types = [*fixed, ("baseline", pa.bool_()), ("leaks", pa.bool_()), ("seconds", pa.float64())]
    schema = pa.schema([*types, *((name, pa.float64()) for name in names)])
    lines = []
    for row in results.rows:
        for case in row.cases:
            line: dict[str, Any] = {
                name: getattr(row, name) for name in ("weights", "dataset", "split", "output", "truth")
            }
            line |= {"image": case.image, "group": case.group, "baseline": row.baseline, "leaks": row.leaks > 0}
            line |= {"seconds": case.seconds} | {name: _nullable(case.scores.get(name)) for name in names}
            lines.append(line)
    table = pa.Table.from_pylist(lines, schema=schema)
    parquet.write_table(table, results.out / "per_image.parquet")
    csv.write_csv(table, results.out / "per_image.csv")


def _nullable(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
