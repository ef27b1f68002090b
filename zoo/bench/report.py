"""One HTML page that says everything and needs nothing: no script, no font, no picture from outside."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from zoo.bench import plot
from zoo.bench.results import Case, Results, Row, columns, figure, footnotes, interval, label, size_of
from zoo.errors import counted
from zoo.metrics import METRICS


def write(results: Results, title: str = "Benchmark", intro: str = "", extra: str = "") -> Path:
    """Write report.html into the results' folder; `intro` is a sentence under the title, `extra` a section of HTML."""
    path = results.out / "report.html"
    path.write_text(page(results, title, intro, extra), encoding="utf-8")
    return path


def page(results: Results, title: str = "Benchmark", intro: str = "", extra: str = "") -> str:
    """Return the page."""
    tables = results.tables()
    parts = [_summary(results), *(_section(results, key, rows) for key, rows in tables.items())]
    parts += [extra, _failures(results), _method(results)]
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    lead = f'<p class="lead">{text(intro)}</p>' if intro else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{text(title)}</h1>\n{lead}\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return text as HTML shows it."""
    return html.escape(str(value))


def heading(results: Results, key: tuple[str, str, str]) -> str:
    """Return the name of a table: the truth is said only where a dataset has more than one."""
    dataset, split, truth = key
    several = len({k for k in results.tables() if k[:2] == key[:2]}) > 1
    return f"{dataset}:{split}" + (f" · {truth}" if several else "")


def leading(rows: Sequence[Row]) -> str:
    """Return the metric that orders the pictures and stands in the summary: the first that every row has."""
    common = [name for name in columns(rows) if all(name in row.means for row in rows)]
    return (common or columns(rows))[0]


# --- tables -----------------------------------------------------------------------------------------------------------


def _name(row: Row, several: bool) -> str:
    name = f"<i>{text(row.weights)}</i>" if row.baseline else text(label(row))
    return name + (f' <span class="output">{text(row.output)}</span>' if several and not row.baseline else "")


def _summary(results: Results) -> str:
    """Return the matrix of weights x datasets, one number each; left out where there is one table of one row."""
    tables = results.tables()
    if len(tables) < 2:
        return ""
    names = list(dict.fromkeys((row.weights, row.output, row.baseline) for rows in tables.values() for row in rows))
    names.sort(key=lambda name: name[2])
    several = len({output for _, output, baseline in names if not baseline}) > 1
    measured = {key: leading(rows) for key, rows in tables.items()}
    head = "".join(
        f'<th class="number">{text(heading(results, key))}<br><span class="metric">{text(measured[key])}</span></th>'
        for key in tables
    )
    lines = []
    for weights, output, baseline in names:
        cells = []
        shown = None
        for key, rows in tables.items():
            row = next((r for r in rows if (r.weights, r.output) == (weights, output)), None)
            shown = row or shown
            value = figure(row.means[measured[key]].value, measured[key]) if row and measured[key] in row.means else ""
            mark = " ‡" if row and row.leaks else ""
            cells.append(f'<td class="number">{value}{mark}</td>')
        name = f"<i>{text(weights)}</i>" if baseline else text(weights)
        name += f' <span class="output">{text(output)}</span>' if several and not baseline else ""
        lines.append(f'<tr class="{"baseline" if baseline else ""}"><th>{name}</th>{"".join(cells)}</tr>')
    return (
        f'<section>\n<h2>Overview</h2>\n<div class="wide"><table>\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(line + chr(10) for line in lines)}</tbody>\n</table></div>\n</section>"
    )


def _section(results: Results, key: tuple[str, str, str], rows: Sequence[Row]) -> str:
    names = columns(rows)
    images, groups = size_of(rows)
    several = len({row.output for row in rows if not row.baseline}) > 1
    head = "".join(f'<th class="number" title="{text(METRICS[n].summary)}">{text(n)}</th>' for n in names)
    best = {name: _best(rows, name) for name in names}
    lines = []
    for row in rows:
        cells = "".join(_cell(row, name, best[name]) for name in names)
        lines.append(f'<tr class="{"baseline" if row.baseline else ""}"><th>{_name(row, several)}</th>{cells}</tr>\n')
    notes = "".join(f"<li>{text(note)}</li>" for note in footnotes(rows))
    measured = leading(rows)
    strips = plot.strips(rows, measured, several) if images > 1 else ""
    return (
        f"<section>\n<h2>{text(heading(results, key))}</h2>\n"
        f"<p>{counted(images, 'image')}, {counted(groups, 'group')}. Mean over images, and its 95 % "
        "interval where there are two groups or more.</p>\n"
        f'<div class="wide"><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody>\n'
        f"</table></div>\n{f'<ul class=notes>{notes}</ul>' if notes else ''}\n{strips}\n"
        f"{''.join(_gallery(results, row, several) for row in rows if not row.baseline)}</section>"
    )


def _best(rows: Sequence[Row], name: str) -> float:
    """Return the best mean of a column among rows that neither leak nor are baselines; nan with fewer than two."""
    values = [r.means[name].value for r in rows if name in r.means and not r.leaks and not r.baseline]
    values = [v for v in values if not math.isnan(v)]
    if len(values) < 2:
        return math.nan
    return max(values) if METRICS[name].better == "max" else min(values)


def _cell(row: Row, name: str, best: float) -> str:
    mean = row.means.get(name)
    if mean is None:
        return "<td></td>"
    strong = ' class="number best"' if not row.leaks and not row.baseline and mean.value == best else ' class="number"'
    return f'<td{strong}>{figure(mean.value, name)}<span class="interval">{text(interval(mean, name))}</span></td>'


# --- pictures ---------------------------------------------------------------------------------------------------------


def chosen(row: Row) -> list[tuple[str, Case]]:
    """Return the best, the median and the worst case of a row by its first metric; fewer where it has fewer."""
    metric = row.metrics[0]
    cases = [c for c in row.cases if c.pictures and not math.isnan(c.scores.get(metric, math.nan))]
    if METRICS[metric].better == "max":
        cases.sort(key=lambda case: (-case.scores[metric], case.image))
    else:
        cases.sort(key=lambda case: (case.scores[metric], case.image))
    if len(cases) >= 3:
        return [("best", cases[0]), ("median", cases[len(cases) // 2]), ("worst", cases[-1])]
    return list(zip(("best", "worst") if len(cases) == 2 else ("",), cases, strict=False))


def _gallery(results: Results, row: Row, several: bool) -> str:
    picked = chosen(row)
    if not picked:
        return ""
    metric = row.metrics[0]
    lines = "".join(
        f'<div class="case"><p class="caption">{f"<b>{rank}</b> · " if rank else ""}{text(case.image)} · '
        f"{text(metric)} {figure(case.scores[metric], metric)}</p>{figures(results.out, case.pictures)}</div>\n"
        for rank, case in picked
    )
    return f"<h3>{_name(row, several)}</h3>\n{lines}"


def figures(folder: Path, pictures: dict[str, str]) -> str:
    """Return pictures (role -> file below `folder`) side by side, the files taken into the page."""
    shown = []
    for role, name in pictures.items():
        file = folder / name
        if file.is_file():
            data = base64.b64encode(file.read_bytes()).decode()
            source = f"data:image/jpeg;base64,{data}"
            shown.append(f'<figure><img src="{source}" alt="{role}"><figcaption>{role}</figcaption></figure>')
    return f'<div class="row">{"".join(shown)}</div>'


# --- the rest ---------------------------------------------------------------------------------------------------------


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    lines = "".join(
        f"<tr><th>{text(f.weights)}</th><td>{text(f.dataset)}</td><td>{text(f.image)}</td><td>{text(f.error)}</td></tr>\n"
        for f in results.failures
    )
    return (
        f"<section>\n<h2>Failures</h2>\n<p>{len(results.failures)} could not be judged; everything else is above.</p>\n"
        '<div class="wide"><table class="failures">\n<thead><tr><th>weights</th><td>dataset</td><td>image</td>'
        f"<td>what</td></tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n</section>"
    )


def _method(results: Results) -> str:
    used = list(dict.fromkeys(name for row in results.rows for name in row.metrics))
    metrics = "".join(f"<dt>{text(name)}</dt><dd>{text(METRICS[name].summary)}.</dd>" for name in used)
    hardware = results.environment.get("hardware", {})
    versions = results.environment.get("versions", {})
    machine = ", ".join(
        str(part)
        for part in (hardware.get("platform"), f"{hardware.get('cpus')} CPUs", *hardware.get("gpus", ()))
        if part
    )
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "not installed")
    times = "".join(
        f"<li>{text(row.weights)} on {text(row.dataset)}: {_median(row)}</li>"
        for row in results.rows
        if not row.baseline and _median(row)
    )
    ran_on = f"{results.environment.get('device', '')}, {results.environment.get('threads', '')} threads"
    return (
        "<section>\n<h2>How this was measured</h2>\n"
        "<p>Numbers are means over images, each image weighing the same; an image for which a metric is not defined "
        "(no object in truth or prediction) is left out. Intervals are percentile bootstraps that draw whole groups "
        "(patients, slides), 5000 resamples. Baselines never see a truth.</p>\n"
        f"<dl>{metrics}</dl>\n<details><summary>Times and versions</summary>\n<ul>{times}</ul>\n"
        f"<p>histozoo {_version()}; {text(software)}. {text(machine)}; {text(ran_on)}.</p></details>\n</section>"
    )


def _median(row: Row) -> str:
    seconds = sorted(case.seconds for case in row.cases if case.seconds is not None)
    return f"{seconds[len(seconds) // 2]:.3g} s an image" if seconds else ""


def _version() -> str:
    try:
        return metadata.version("histozoo")
    except metadata.PackageNotFoundError:
        return "from a checkout"
