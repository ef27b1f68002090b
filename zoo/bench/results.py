"""What a benchmark found: rows, numbers an image, failures; and the files that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.bench.compare import Comparison, Ranking, Seeds
from zoo.bench.statistics import FEW, Mean
from zoo.metrics import METRICS

if TYPE_CHECKING:
    from zoo.bench.analysis import Curve
    from zoo.bench.operating import Point

FORMAT = 2


@dataclass(frozen=True)
class Case:
    """One image under one row: its scores, the seconds that the prediction took and its peak of memory in MiB, its
    pictures (role -> file below the output folder), its centre, what it adds to pooled metrics, of boxes, which class
    was taken for which (`zoo.families.score.Judged`), and what is said of it in words (its class, what it was taken
    for)."""

    image: str
    group: str
    scores: dict[str, float]
    seconds: float | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    memory: float | None = None
    center: str | None = None
    records: dict[str, Any] = field(default_factory=dict, compare=False)
    confusion: tuple[tuple[str, ...], Any] | None = field(default=None, compare=False)
    words: dict[str, str] = field(default_factory=dict)


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

    @property
    def confusion(self) -> tuple[tuple[str, ...], Any] | None:
        """Return classes and the table of true by predicted boxes over all images; None of anything but boxes."""
        found = [case.confusion for case in self.cases if case.confusion is not None]
        return (found[0][0], sum(table for _, table in found)) if found else None

    @property
    def seconds(self) -> float | None:
        """Return the median seconds of an image, None where nothing was timed."""
        return _median([case.seconds for case in self.cases])

    @property
    def memory(self) -> float | None:
        """Return the largest peak of memory of an image in MiB, None where it was not measured."""
        return max((case.memory for case in self.cases if case.memory is not None), default=None)


def _median(values: Sequence[float | None]) -> float | None:
    told = sorted(v for v in values if v is not None)
    return told[len(told) // 2] if told else None


@dataclass(frozen=True)
class Failure:
    """What could not be judged: `image` is empty where a whole pair of weights and dataset fell out."""

    weights: str
    dataset: str
    image: str
    error: str


@dataclass(frozen=True)
class Analysis:
    """What a benchmark made of its rows. `comparisons`: table -> pairs by its leading metric; `ranking`: (metrics,
    ranks) over all tables; `centres`: (weights, table, metric, centre -> mean); `seeds`: (table, output, pooled);
    `curves`: under perturbations; `points`: thresholds that were chosen; `notes`: sentences about what was left out."""

    comparisons: dict[tuple[str, str, str], list[Comparison]] = field(default_factory=dict)
    ranking: tuple[str, Ranking] | None = None
    centres: tuple[tuple[Row, str, dict[str, Mean]], ...] = ()
    seeds: tuple[tuple[tuple[str, str, str], str, Seeds], ...] = ()
    curves: tuple[Curve, ...] = ()
    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """A benchmark: `rows` (baselines last in each table), `failures`, what it was run with, where it lies; `analysis`:
    what was made of the rows (comparisons, ranks, centres, seeds, curves, operating points)."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    out: Path
    analysis: Analysis = field(default_factory=lambda: Analysis())

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
    if metric.startswith("picture_kid"):
        return f"{value:.4f}"
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


def _span(counts: set[int]) -> str:
    """Return "5", or "5 to 9" where rows differ."""
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Return what a reader of a table must know, a sentence each."""
    found = [f"{row.weights} ({row.output}): {note}." for row in rows for note in row.notes]
    means = [mean for row in rows for mean in row.means.values()]
    if any(mean.few and mean.low is not None for mean in means):
        found.append(f"† Fewer than {FEW} groups: the interval is too narrow to be trusted.")
    if any(mean.groups < 2 and mean.images for mean in means):
        found.append("No interval: all images are of one group.")
    undefined: dict[str, set[int]] = {}
    for row in rows:
        for metric, mean in row.means.items():
            if mean.undefined and mean.images:
                undefined.setdefault(metric, set()).add(mean.undefined)
    if undefined:
        said = ", ".join(f"{metric} {_span(counts)}" for metric, counts in sorted(undefined.items()))
        found.append(f"Images for which a metric is not defined are left out of its mean: {said}.")
    if any(row.leaks for row in rows):
        found.append("‡ Leaks: the weights have seen images, patients or slides of this data. Not a result.")
    return list(dict.fromkeys(found))


def label(row: Row) -> str:
    """Return the name of a row, marked where it leaks."""
    return f"{row.weights}{' ‡' if row.leaks else ''}"
