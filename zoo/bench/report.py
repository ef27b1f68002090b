"""One HTML page that says everything and needs nothing from outside: no script, font or picture is fetched.

Without JavaScript it is a printed report; with it, tables sort, words filter, and every dot and picture opens its image
with truth and prediction side by side.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.bench import files, plot
from zoo.bench import report_tables as tables
from zoo.bench.analysis import leading
from zoo.bench.report_tables import heading, text
from zoo.bench.results import Case, Results, Row, figure, footnotes, size_of
from zoo.errors import counted
from zoo.metrics import METRICS

ROOM = 8 * 2**20
"""Bytes of pictures that the page may hold beyond those that it shows; the rest stay in the folder `pictures`."""


def write(results: Results, title: str = "Benchmark", intro: str = "", extra: str = "") -> Path:
    """Write report.html into the results' folder; `intro` is a sentence under the title, `extra` a section of HTML."""
    path = results.out / "report.html"
    path.write_text(page(results, title, intro, extra), encoding="utf-8")
    return path


def publish(results: Results, title: str = "Benchmark", intro: str = "") -> Results:
    """Write every file of a benchmark (results.json, table.md, per_image.*, report.html) and return it."""
    files.write(results)
    write(results, title, intro)
    return results


def page(results: Results, title: str = "Benchmark", intro: str = "", extra: str = "") -> str:
    """Return the page."""
    numbers = {id(row): n for n, row in enumerate(r for r in results.rows if not r.baseline)}
    parts = [tables.overview(results), _ranks(results)]
    parts += [_section(results, key, rows, numbers) for key, rows in results.tables().items()]
    parts += [extra, tables.points(results), _failures(results), _method(results), _viewer()]
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    lead = f'<p class="lead">{text(intro)}</p>' if intro else ""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{text(title)}</h1>\n{lead}\n{_said(results)}\n{_tools()}\n{body}\n</main>\n"
        f'<script type="application/json" id="cases">{_json(_cases(results))}</script>\n'
        f'<script type="application/json" id="pictures">{_json(_pictures(results, body))}</script>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _json(value: Any) -> str:
    """Return JSON that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _said(results: Results) -> str:
    """Return in a line what was compared."""
    weights = len({row.weights for row in results.rows if not row.baseline})
    found = results.tables()
    datasets = len({key[:2] for key in found})
    images = sum(size_of(rows)[0] for rows in found.values())
    options = {k: v for k, v in results.settings.items() if k == "tta" and v != "none"}
    more = "".join(f" · {k} {v}" for k, v in options.items())
    failed = f" · <b>{len(results.failures)} failed</b>" if results.failures else ""

    things = results.settings.get("compared", ("file of weights", "files of weights"))

    def count(n: int, word: str, plural: str) -> str:
        return f"{n} {word if n == 1 else plural}"

    return (
        f'<p class="said">{count(weights, *things)} · '
        f"{count(datasets, 'dataset', 'datasets')} · {count(images, 'image', 'images')}{more}{failed}</p>"
    )


def _tools() -> str:
    return (
        '<p class="tools"><label>Filter <input id="filter" type="search" placeholder="weights, dataset, image …" '
        'autocomplete="off"></label></p>'
    )


# --- a dataset --------------------------------------------------------------------------------------------------------


def _section(results: Results, key: tuple[str, str, str], rows: Sequence[Row], numbers: dict[int, int]) -> str:
    images, groups = size_of(rows)
    several = len({row.output for row in rows if not row.baseline}) > 1
    measured = leading(rows)
    notes = "".join(f"<li>{text(note)}</li>" for note in footnotes(rows))
    strips = plot.strips(rows, measured, several, numbers) if images > 1 else ""
    parts = [
        f"<h2>{text(heading(results, key))}</h2>",
        f"<p>{counted(images, 'image')}, {counted(groups, 'group')}. Mean over images, and its 95 % "
        "interval where there are two groups or more.</p>",
        tables.numbers(rows, several),
        f"<ul class=notes>{notes}</ul>" if notes else "",
        strips,
        tables.compared(results, key),
        tables.seeds(results, key),
        tables.centres(results, key),
        _confusions(rows, several, opened=2),
        _curves(results, key),
        *_galleries(results, [row for row in rows if not row.baseline], several, numbers),
        tables.groups(rows, measured, several),
    ]
    name = text(" ".join(key))
    return f'<section data-name="{name}">\n' + "\n".join(part for part in parts if part) + "\n</section>"


def _confusions(rows: Sequence[Row], several: bool, opened: int) -> str:
    """Return which class of box was taken for which, a picture a row; beyond the first few they are folded."""
    found: list[str] = []
    for row in rows:
        if row.baseline or row.confusion is None:
            continue
        classes, counts = row.confusion
        title = "Boxes: true classes in rows, what they were taken for in columns, shares of the row"
        picture = plot.confusion(classes, counts.tolist(), title)
        shown = " open" if len(found) < opened else ""
        summary = f"<summary><h3>Confusion: {tables.name(row, several)}</h3></summary>"
        search = f'data-search="{text(row.weights)}"'
        found.append(f'<details class="gallery" {search}{shown}>{summary}\n{picture}</details>')
    return "\n".join(found)


def _curves(results: Results, key: tuple[str, str, str]) -> str:
    """Return the curves of a table under perturbations, and the areas under them."""
    found = [c for c in results.analysis.curves if (c.dataset, c.split, c.truth) == key]
    if not found:
        return ""
    series = {pair: n for n, pair in enumerate(dict.fromkeys((c.weights, c.output) for c in found))}
    several = len({output for _, output in series}) > 1
    kinds = list(dict.fromkeys((c.perturbation, c.metric) for c in found))
    plots = "".join(plot.curve([c for c in found if (c.perturbation, c.metric) == kind], series) for kind in kinds)
    drawn = f'<div class="smalls">{plots}</div>'
    keys = "".join(
        f'<span class="key"><i class="s{n % plot.COLOURS}"></i>'
        f"{text(weights)}{' ' + text(output) if several else ''}</span>"
        for (weights, output), n in series.items()
    )
    return f'<h3>Robustness</h3><p class="legend">{keys}</p>{drawn}{tables.areas(found, several)}'


def _ranks(results: Results) -> str:
    found = results.analysis.ranking
    if found is None:
        return ""
    return f"<section>\n<h2>Ranks</h2>\n<p>{text(files.ranked(found))}</p>\n{plot.ranks(found[1])}\n</section>"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _picture_metric(row: Row) -> str | None:
    """Return the metric by which a row's images are ordered: the first that images have."""
    return next((name for name in row.metrics if any(name in case.scores for case in row.cases)), None)


def _ordered(row: Row) -> list[Case]:
    """Return the cases that have pictures, best first."""
    metric = _picture_metric(row)
    cases = [c for c in row.cases if c.pictures and metric and not math.isnan(c.scores.get(metric, math.nan))]
    if metric:
        sign = -1 if METRICS[metric].better == "max" else 1
        cases.sort(key=lambda case: (sign * case.scores[metric], case.image))
    return cases


def chosen(row: Row) -> list[tuple[str, Case]]:
    """Return the best, the median and the worst case of a row by its first metric; fewer where it has fewer."""
    cases = _ordered(row)
    if len(cases) >= 3:
        return [("best", cases[0]), ("median", cases[len(cases) // 2]), ("worst", cases[-1])]
    return list(zip(("best", "worst") if len(cases) == 2 else ("",), cases, strict=False))


def _galleries(results: Results, rows: Sequence[Row], several: bool, numbers: dict[int, int]) -> list[str]:
    """Return the pictures of each row; of many rows all but the first are folded. What rows share is held once."""
    held: set[str] = set()
    return [
        _gallery(results, row, several, numbers[id(row)], held, folded=place > 0 and len(rows) > 2)
        for place, row in enumerate(rows)
    ]


def _gallery(results: Results, row: Row, several: bool, number: int, held: set[str], folded: bool) -> str:
    picked, metric = chosen(row), _picture_metric(row)
    if not picked or metric is None:
        return ""
    lines = "".join(
        f'<div class="case" data-row="{number}" data-image="{text(case.image)}" tabindex="0">'
        f'<p class="caption">{f"<b>{rank}</b> · " if rank else ""}{text(case.image)} · '
        f"{text(metric)} {figure(case.scores[metric], metric)}</p>{figures(results.out, case.pictures, held)}</div>\n"
        for rank, case in picked
    )
    search = text(f"{row.weights} {' '.join(case.image for _, case in picked)}")
    opened = "" if folded else " open"
    summary = f"<summary><h3>{tables.name(row, several)}</h3></summary>"
    return f'<details class="gallery" data-search="{search}"{opened}>{summary}\n{lines}</details>'


def figures(folder: Path, pictures: dict[str, str], held: set[str] | None = None) -> str:
    """Return pictures (role -> file below `folder`) side by side, the files taken into the page.

    A file among those `held` already is not taken in again: the page's script shows it.
    """
    shown = []
    known = set() if held is None else held
    for role, name in pictures.items():
        file = folder / name
        if file.is_file():
            source = "" if name in known else f' src="data:image/jpeg;base64,{_encoded(file)}"'
            known.add(name)
            image = f'<img{source} data-file="{text(name)}" alt="{role}">'
            shown.append(f"<figure>{image}<figcaption>{role}</figcaption></figure>")
    return f'<div class="row">{"".join(shown)}</div>'


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _cases(results: Results) -> list[dict[str, Any]]:
    """Return what the viewer shows: a row of the page -> its cases, best first."""
    found = []
    for row in (r for r in results.rows if not r.baseline):
        metrics = [name for name in row.metrics if any(name in case.scores for case in row.cases)]
        cases = [
            {
                "image": case.image,
                "group": case.group,
                "scores": [figure(case.scores.get(name, math.nan), name) for name in metrics],
                "pictures": case.pictures,
            }
            for case in _ordered(row)
        ]
        title = f"{row.weights} ({row.output}) on {row.dataset}:{row.split}"
        found.append({"title": title, "metrics": metrics, "cases": cases})
    return found


def _pictures(results: Results, body: str) -> dict[str, str]:
    """Return file -> Base64 of the pictures that the page does not show already, as many as there is room for."""
    found: dict[str, str] = {}
    room = ROOM
    for row in results.rows:
        for case in row.cases:
            for name in case.pictures.values():
                file = results.out / name
                if name in found or f'data-file="{text(name)}"' in body or not file.is_file():
                    continue
                if (room := room - file.stat().st_size) < 0:
                    return found
                found[name] = _encoded(file)
    return found


def _viewer() -> str:
    return (
        '<dialog id="viewer"><header><div><h2></h2><p class="where"></p></div><nav>'
        '<button class="previous" aria-label="better image">←</button>'
        '<button class="next" aria-label="worse image">→</button>'
        '<button class="close" aria-label="close">×</button></nav></header><div class="row"></div><dl></dl></dialog>'
    )


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
        '<div class="wide"><table class="failures"><thead><tr><th>weights</th><th>dataset</th><th>image</th>'
        f"<th>what</th></tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n</section>"
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
    ran_on = f"{results.environment.get('device', '')}, {results.environment.get('threads', '')} threads"
    notes = "".join(f"<li>{text(note)}</li>" for note in results.analysis.notes)
    return (
        "<section>\n<h2>How this was measured</h2>\n"
        "<p>Numbers are means over images, each image weighing the same; an image for which a metric is not defined "
        "(no object in truth or prediction) is left out. Pooled metrics count over all images together. Intervals are "
        "percentile bootstraps that draw whole groups (patients, slides), 5000 resamples (500 of pooled metrics). "
        "Pairs are tested by flipping the signs of whole groups, with Holm's correction within a table; the detectable "
        "difference is what such a study finds with a power of 80 %. Baselines never see a truth.</p>\n"
        f"<dl>{metrics}</dl>\n{f'<ul class=notes>{notes}</ul>' if notes else ''}\n{tables.cost(results)}\n"
        f"<details><summary>Versions and machine</summary>\n"
        f"<p>histozoo {_version()}; {text(software)}. {text(machine)}; {text(ran_on)}.</p></details>\n</section>"
    )


def _version() -> str:
    try:
        return metadata.version("histozoo")
    except metadata.PackageNotFoundError:
        return "from a checkout"
