"""What a benchmark writes besides its page: results.json, table.md, per_image.parquet and per_image.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.bench.compare import Comparison, Ranking
from zoo.bench.results import FORMAT, Results, Row, cell, columns, figure, footnotes, label, size_of
from zoo.bench.statistics import Mean
from zoo.errors import counted
from zoo.metrics import METRICS

Table = tuple[str, str, str]


def p_value(p: float) -> str:
    """Return a p value as a table shows it."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def signed(mean: Mean, metric: str) -> str:
    """Return a difference with its sign and interval."""
    if math.isnan(mean.value):
        return "–"
    digits = 1 if "." in (text := figure(1.0, metric)) and len(text.split(".")[1]) == 1 else 3
    found = f"{mean.value:+.{digits}f}"
    if mean.low is None or mean.high is None:
        return found
    return f"{found} [{mean.low:+.{digits}f}, {mean.high:+.{digits}f}]"


def few_groups(found: Comparison) -> str:
    """Return the sentence that says what so few groups can show, "" where they are enough."""
    groups = found.difference.groups
    if not found.few:
        return ""
    least = f"no p can be below {found.lowest:.3g}" if groups else "there is nothing to compare"
    return f"{counted(groups, 'group')}: {least}."


def ranked(found: tuple[str, Ranking]) -> str:
    """Return one sentence on the ranks over groups."""
    metric, ranking = found
    named = ", ".join(f"{n} {r:.2f}" for n, r in zip(ranking.names, ranking.ranks, strict=True))
    few = " Fewer than 10 blocks: read it as a picture, not as a test." if ranking.few else ""
    return (
        f"Average rank by {metric} over {ranking.blocks} groups: {named}. Critical difference {ranking.critical:.2f} "
        f"(Nemenyi, 5 %); Friedman p {p_value(ranking.p)}.{few}"
    )


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """Return every table as Markdown."""
    parts = ["# Benchmark", ""]
    for key, rows in results.tables().items():
        names = columns(rows)
        images, groups = size_of(rows)
        parts += [f"## {key[0]}:{key[1]} ({key[2]})", ""]
        size = f"{counted(images, 'image')}, {counted(groups, 'group')}"
        parts += [f"{size}; {averaged(names)}, 95 % interval by group bootstrap.", ""]
        parts += [f"| weights | output | {' | '.join(names)} |", f"| --- | --- |{' ---: |' * len(names)}"]
        for row in rows:
            cells = " | ".join(cell(row.means.get(name), name) for name in names)
            parts.append(f"| {'_' + row.weights + '_' if row.baseline else label(row)} | {row.output} | {cells} |")
        notes = footnotes(rows)
        parts += ["", *(f"- {note}" for note in notes), *([""] if notes else [])]
        parts += _compared(results.analysis.comparisons.get(key, []))
        parts += _seeds(results, key)
        parts += _centres(results, key)
        parts += [line for row in rows for line in _confused(row)]
        parts += _curves(results, key)
    parts += _whole(results)
    if results.failures:
        parts += ["## Failures", "", "| weights | dataset | image | what |", "| --- | --- | --- | --- |"]
        parts += [f"| {f.weights} | {f.dataset} | {f.image} | {_one_line(f.error)} |" for f in results.failures]
        parts.append("")
    return "\n".join(parts)


def averaged(names: Sequence[str]) -> str:
    """Return how the numbers of a table come of its images: some metrics are counted over all images together."""
    pooled = [name for name in names if METRICS[name].pooled]
    if len(pooled) == len(names):
        return "counted over all images together"
    return f"mean over images ({', '.join(pooled)}: counted over all together)" if pooled else "mean over images"


def _compared(found: list[Comparison]) -> list[str]:
    if not found:
        return []
    parts = [f"Paired by group, {found[0].metric}; p of a permutation test, Holm's correction.", ""]
    parts += ["| first | second | difference | p | detectable |", "| --- | --- | ---: | ---: | ---: |"]
    parts += [
        f"| {c.first} | {c.second} | {signed(c.difference, c.metric)} | {p_value(c.adjusted)} | "
        f"{figure(c.detectable, c.metric)} |"
        for c in found
    ]
    few = list(dict.fromkeys(text for c in found if (text := few_groups(c))))
    return [*parts, "", *(f"- {text}" for text in few), *([""] if few else [])]


def _seeds(results: Results, key: Table) -> list[str]:
    found = [(output, s) for table, output, s in results.analysis.seeds if table == key]
    if not found:
        return []
    parts = ["| recipe | output | seeds | metric | mean [95 %] | between seeds | between groups | rest |"]
    parts.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for output, s in found:
        mean = cell(Mean(s.value, s.low, s.high, 0, s.groups), s.metric)
        spread = " | ".join(figure(v, s.metric) for v in (s.between_seeds, s.between_groups, s.residual))
        parts.append(f"| {s.recipe} | {output} | {', '.join(s.seeds)} | {s.metric} | {mean} | {spread} |")
    return [*parts, ""]


def _centres(results: Results, key: Table) -> list[str]:
    found = [(row, metric, means) for row, metric, means in results.analysis.centres if row.table == key]
    if not found:
        return []
    names = list(dict.fromkeys(name for _, _, means in found for name in means))
    parts = [f"| by centre | output | {' | '.join(names)} |", f"| --- | --- |{' ---: |' * len(names)}"]
    for row, metric, means in found:
        parts.append(f"| {label(row)} | {row.output} | {' | '.join(cell(means.get(n), metric) for n in names)} |")
    return [*parts, ""]


def _confused(row: Row) -> list[str]:
    """Return which class was taken for which: true boxes in rows, predicted ones in columns."""
    if row.confusion is None or row.baseline:
        return []
    classes, counts = row.confusion
    parts = [f"| {label(row)}: boxes that are | taken for {' | '.join(classes)} | not found |"]
    parts.append(f"| --- |{' ---: |' * (len(classes) + 1)}")
    for name, line in zip((*classes, "nothing"), counts.tolist(), strict=True):
        cells = [*map(str, line[:-1]), "" if name == "nothing" else str(line[-1])]
        parts.append(f"| {name} | {' | '.join(cells)} |")
    return [*parts, ""]


def _curves(results: Results, key: Table) -> list[str]:
    found = [c for c in results.analysis.curves if (c.dataset, c.split, c.truth) == key]
    parts: list[str] = []
    for name in dict.fromkeys(c.perturbation for c in found):
        own = [c for c in found if c.perturbation == name]
        levels = own[0].levels
        parts += [f"| {name} | output | metric | {' | '.join(f'{v:g}' for v in levels)} | area |"]
        parts += [f"| --- | --- | --- |{' ---: |' * (len(levels) + 1)}"]
        for c in own:
            heights = " | ".join(figure(h.value, c.metric) for h in c.heights)
            parts.append(f"| {c.weights} | {c.output} | {c.metric} | {heights} | {cell(c.area, c.metric)} |")
        parts.append("")
    return parts


def _whole(results: Results) -> list[str]:
    found = results.analysis
    parts: list[str] = []
    if found.ranking is not None:
        parts += ["## Ranks", "", ranked(found.ranking), ""]
    if found.points:
        parts += ["## Operating points", ""]
        for point in found.points:
            chosen = ", ".join(f"{k} {v:g}" for k, v in point.options.items())
            parts.append(
                f"- {point.weights}: {chosen}, chosen by {point.metric} on {point.dataset}:{point.split} "
                f"({point.before:.3f} before, {point.value:.3f} there)."
            )
        parts.append("")
    costs = [row for row in results.rows if not row.baseline and row.seconds is not None]
    if costs:
        parts += ["## Cost", "", "| weights | dataset | seconds an image (median) | peak memory, MiB |"]
        parts += ["| --- | --- | ---: | ---: |"]
        lines = {
            f"| {r.weights} | {r.dataset} | {r.seconds:.3g} | {'–' if r.memory is None else f'{r.memory:.0f}'} |"
            for r in costs
        }
        parts += [*sorted(lines), ""]
    parts += [*(f"- {note}" for note in found.notes), *([""] if found.notes else [])]
    return parts


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
    found = results.analysis
    return {
        "format": FORMAT,
        "rows": [_row(row) for row in results.rows],
        "comparisons": [
            {"dataset": key[0], "split": key[1], "truth": key[2], **_plain(asdict(c))}
            for key, pairs in found.comparisons.items()
            for c in pairs
        ],
        "ranking": None if found.ranking is None else {"metric": found.ranking[0], **_plain(asdict(found.ranking[1]))},
        "centres": [
            {"weights": r.weights, "output": r.output, "dataset": r.dataset, "metric": m, "means": _plain(_means(v))}
            for r, m, v in found.centres
        ],
        "seeds": [
            {"dataset": key[0], "split": key[1], "truth": key[2], "output": output, **_plain(asdict(s))}
            for key, output, s in found.seeds
        ],
        "robustness": [{**_plain(asdict(c)), "kept": _plain(c.kept)} for c in found.curves],
        "operating": [_plain(asdict(point)) for point in found.points],
        "notes": list(found.notes),
        "failures": [asdict(f) for f in results.failures],
        "settings": _plain(results.settings),
        "environment": results.environment,
    }


def _row(row: Row) -> dict[str, Any]:
    confused = row.confusion
    more = {} if confused is None else {"confusion": {"classes": list(confused[0]), "counts": confused[1].tolist()}}
    return {
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
        "seconds_median": None if row.seconds is None else round(row.seconds, 4),
        "memory_peak_mib": None if row.memory is None else round(row.memory, 1),
        "metrics": _plain(_means(row.means)),
        **more,
    }


def _means(means: dict[str, Mean]) -> dict[str, Any]:
    return {name: asdict(mean) for name, mean in means.items()}


def _plain(value: Any) -> Any:
    """Return plain values of any depth."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _write_images(results: Results) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    per_image = {name for row in results.rows for case in row.cases for name in case.scores}
    names = [name for name in columns(results.rows) if name in per_image]
    said = list(dict.fromkeys(name for row in results.rows for case in row.cases for name in case.words))
    words = ("weights", "dataset", "split", "output", "truth", "image", "group", "center", *said)
    numbers = [("seconds", pa.float64()), ("memory_mib", pa.float64())]
    types = [*((name, pa.string()) for name in words), ("baseline", pa.bool_()), ("leaks", pa.bool_()), *numbers]
    schema = pa.schema([*types, *((name, pa.float64()) for name in names)])
    lines = []
    for row in results.rows:
        for case in row.cases:
            line: dict[str, Any] = {
                name: getattr(row, name) for name in ("weights", "dataset", "split", "output", "truth")
            }
            line |= {"image": case.image, "group": case.group, "center": case.center, **case.words}
            line |= {"baseline": row.baseline, "leaks": row.leaks > 0}
            line |= {"seconds": case.seconds, "memory_mib": case.memory}
            lines.append(line | {name: _nullable(case.scores.get(name)) for name in names})
    table = pa.Table.from_pylist(lines, schema=schema)
    parquet.write_table(table, results.out / "per_image.parquet")
    csv.write_csv(table, results.out / "per_image.csv")


def _nullable(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
