"""The tables of the page, as HTML: sortable, with a number's own value beside its text."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence

from zoo.bench.analysis import Curve, leading, means_of
from zoo.bench.files import few_groups, p_value, signed
from zoo.bench.results import Results, Row, columns, figure, interval, label
from zoo.bench.statistics import Mean
from zoo.metrics import METRICS

Table = tuple[str, str, str]


def text(value: object) -> str:
    """Return text as HTML shows it."""
    return html.escape(str(value))


def heading(results: Results, key: Table) -> str:
    """Return the name of a table: the truth is said only where a dataset has more than one."""
    dataset, split, truth = key
    several = len({k for k in results.tables() if k[:2] == key[:2]}) > 1
    return f"{dataset}:{split}" + (f" · {truth}" if several else "")


def name(row: Row, several: bool) -> str:
    """Return the name of a row, its output where there are several."""
    found = f"<i>{text(row.weights)}</i>" if row.baseline else text(label(row))
    return found + (f' <span class="output">{text(row.output)}</span>' if several and not row.baseline else "")


def _table(head: str, lines: Sequence[str], kind: str = "sortable", attributes: str = "") -> str:
    return (
        f'<div class="wide"><table class="{kind}"{attributes}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(line + chr(10) for line in lines)}</tbody>\n</table></div>"
    )


def _head(metric: str) -> str:
    about = METRICS[metric]
    arrow = "↑" if about.better == "max" else "↓"
    return (
        f'<th class="number" title="{text(about.summary)}" data-better="{about.better}">{text(metric)} '
        f'<span class="arrow">{arrow}</span></th>'
    )


def _value(number: float) -> str:
    return "" if math.isnan(number) else repr(float(number))


def _number(mean: Mean | None, metric: str, strong: bool = False) -> str:
    if mean is None:
        return '<td data-value=""></td>'
    kind = "number best" if strong else "number"
    return (
        f'<td class="{kind}" data-value="{_value(mean.value)}">{figure(mean.value, metric)}'
        f'<span class="interval">{text(interval(mean, metric))}</span></td>'
    )


# --- the overview -----------------------------------------------------------------------------------------------------


def overview(results: Results) -> str:
    """Return the matrix of weights x datasets, shaded; left out where there is one table of one row.

    The metric can be chosen; the first is what leads each table.
    """
    found = results.tables()
    names = list(dict.fromkeys((row.weights, row.output, row.baseline) for rows in found.values() for row in rows))
    if len(found) < 2 and len(names) < 4:
        return ""
    names.sort(key=lambda one: one[2])
    several = len({output for _, output, baseline in names if not baseline}) > 1
    lead = {key: leading(rows) for key, rows in found.items()}
    metrics = columns(results.rows)
    usual = lead[next(iter(found))]
    same = len(set(lead.values())) == 1
    head = "<th>weights</th>" + "".join(
        f'<th class="number" data-better="max">{text(heading(results, key))}'
        f"{'' if same else f'<br><span class=metric>{text(lead[key])}</span>'}</th>"
        for key in found
    )
    lines = []
    for weights, output, baseline in names:
        cells = []
        for key, rows in found.items():
            row = next((r for r in rows if (r.weights, r.output) == (weights, output)), None)
            cells.append(_shaded(row, rows, metrics, lead[key]))
        shown = f"<i>{text(weights)}</i>" if baseline else text(weights)
        shown += f' <span class="output">{text(output)}</span>' if several and not baseline else ""
        kind = "baseline" if baseline else ""
        lines.append(f'<tr class="{kind}" data-search="{text(weights)}"><th>{shown}</th>{"".join(cells)}</tr>')
    first = f"<option selected>{text(usual)}</option>" if same else '<option value="" selected>each its own</option>'
    options = first + "".join(f"<option>{text(m)}</option>" for m in metrics if not (same and m == usual))
    picker = f'<p class="picker"><label>Metric <select id="metric">{options}</select></label></p>'
    return (
        f"<section>\n<h2>Overview</h2>\n{picker}\n"
        f"{_table(head, lines, 'sortable matrix', chr(32) + 'id=' + chr(34) + 'overview' + chr(34))}\n</section>"
    )


def _shade(value: float, metric: str, rows: Sequence[Row]) -> float:
    """Return how dark a cell is, 0 to 0.5: a share by itself, others between the worst and the best of the table."""
    about = METRICS[metric]
    if math.isnan(value) or math.isinf(value):
        return 0.0
    if about.best == 1.0:
        share = value if about.better == "max" else 1 - value
    else:
        told = [r.means[metric].value for r in rows if metric in r.means and math.isfinite(r.means[metric].value)]
        low, high = min(told), max(told)
        share = (value - low) / (high - low) if high > low else 1.0
        share = share if about.better == "max" else 1 - share
    return round(0.5 * max(0.0, min(1.0, share)) ** 2, 3)


def _shaded(row: Row | None, rows: Sequence[Row], metrics: Sequence[str], usual: str) -> str:
    if row is None:
        return '<td data-value="" data-all="{}"><span class="value"></span><span class="interval"></span></td>'
    mark = " ‡" if row.leaks else ""

    def entry(metric: str) -> tuple[str, str, str, float]:
        mean = row.means[metric]
        shown = f"{figure(mean.value, metric)}{mark}"
        return _value(mean.value), shown, interval(mean, metric), _shade(mean.value, metric, rows)

    known = {m: entry(m) for m in metrics if m in row.means}
    empty = ("", "", "", 0.0)
    value, shown, spread, shade = known.get(usual, empty)
    every = text(json.dumps({**known, "": known.get(usual, empty)}, separators=(",", ":")))
    return (
        f'<td class="number" data-value="{value}" data-all="{every}" style="--shade:{shade}">'
        f'<span class="value">{shown}</span><span class="interval">{text(spread)}</span></td>'
    )


# --- one dataset ------------------------------------------------------------------------------------------------------


def numbers(rows: Sequence[Row], several: bool) -> str:
    """Return every number of a table."""
    names = columns(rows)
    best = {metric: _best(rows, metric) for metric in names}
    lines = []
    for row in rows:
        cells = "".join(
            _number(
                row.means.get(metric),
                metric,
                not row.leaks and not row.baseline and metric in row.means and row.means[metric].value == best[metric],
            )
            for metric in names
        )
        kind = "baseline" if row.baseline else ""
        lines.append(f'<tr class="{kind}" data-search="{text(row.weights)}"><th>{name(row, several)}</th>{cells}</tr>')
    kind = "sortable dense" if len(names) > 6 else "sortable"
    return _table("<th>weights</th>" + "".join(_head(metric) for metric in names), lines, kind)


def _best(rows: Sequence[Row], metric: str) -> float:
    """Return the best mean of a column among rows that neither leak nor are baselines; nan with fewer than two."""
    values = [r.means[metric].value for r in rows if metric in r.means and not r.leaks and not r.baseline]
    values = [v for v in values if not math.isnan(v)]
    if len(values) < 2:
        return math.nan
    return max(values) if METRICS[metric].better == "max" else min(values)


def compared(results: Results, key: Table) -> str:
    """Return the paired tests of a table."""
    found = results.analysis.comparisons.get(key, [])
    if not found:
        return ""
    metric = found[0].metric
    lines = [
        f'<tr data-search="{text(c.first)} {text(c.second)}"><th>{text(c.first)}</th><td>{text(c.second)}</td>'
        f'<td class="number{" best" if c.adjusted < 0.05 else ""}" data-value="{_value(c.difference.value)}">'
        f"{text(signed(c.difference, metric))}</td>"
        f'<td class="number" data-value="{_value(c.adjusted)}">{text(p_value(c.adjusted))}</td>'
        f'<td class="number" data-value="{_value(c.detectable)}">{figure(c.detectable, metric)}</td></tr>'
        for c in found
    ]
    head = (
        "<th>first</th><th>second</th>"
        f'<th class="number" data-better="max">difference in {text(metric)}</th>'
        '<th class="number" title="permutation of signs by group, Holm">p</th>'
        '<th class="number" title="found in four of five such studies">detectable</th>'
    )
    few = "".join(f"<li>{text(said)}</li>" for said in dict.fromkeys(map(few_groups, found)) if said)
    return f"<h3>Differences</h3>{_table(head, lines)}{f'<ul class=notes>{few}</ul>' if few else ''}"


def seeds(results: Results, key: Table) -> str:
    """Return the recipes of which there are several seeds."""
    found = [(output, s) for table, output, s in results.analysis.seeds if table == key]
    if not found:
        return ""
    lines = [
        f"<tr><th>{text(s.recipe)}</th><td>{text(output)}</td><td>{text(', '.join(s.seeds))}</td>"
        f"{_number(Mean(s.value, s.low, s.high, 0, s.groups), s.metric)}"
        + "".join(
            f'<td class="number" data-value="{_value(v)}">{figure(v, s.metric)}</td>'
            for v in (s.between_seeds, s.between_groups, s.residual)
        )
        + "</tr>"
        for output, s in found
    ]
    head = "<th>recipe</th><th>output</th><th>seeds</th>" + _head(found[0][1].metric)
    head += "".join(f'<th class="number">{t}</th>' for t in ("between seeds", "between groups", "rest"))
    return f"<h3>Seeds</h3><p>Standard deviations of the parts that a result is made of.</p>{_table(head, lines)}"


def centres(results: Results, key: Table) -> str:
    """Return the means by centre."""
    found = [(row, metric, means) for row, metric, means in results.analysis.centres if row.table == key]
    if not found:
        return ""
    names = list(dict.fromkeys(centre for _, _, means in found for centre in means))
    several = len({row.output for row, _, _ in found if not row.baseline}) > 1
    lines = []
    for row, metric, means in found:
        values = [m.value for m in means.values() if not math.isnan(m.value)]
        spread = max(values) - min(values) if values else math.nan
        lines.append(
            f'<tr class="{"baseline" if row.baseline else ""}" data-search="{text(row.weights)}">'
            f"<th>{name(row, several)}</th>{''.join(_number(means.get(n), metric) for n in names)}"
            f'<td class="number" data-value="{_value(spread)}">{figure(spread, metric)}</td></tr>'
        )
    head = "<th>weights</th>" + "".join(f'<th class="number" data-better="max">{text(n)}</th>' for n in names)
    return f"<h3>Centres: {text(found[0][1])}</h3>{_table(head + '<th class=number>spread</th>', lines)}"


def areas(found: Sequence[Curve], several: bool) -> str:
    """Return the areas under the curves: of the height, and as a share of the undisturbed one."""
    names = list(dict.fromkeys(c.perturbation for c in found))
    rows = list(dict.fromkeys((c.weights, c.output) for c in found))
    lines = []
    for weights, output in rows:
        own = {c.perturbation: c for c in found if (c.weights, c.output) == (weights, output)}
        cells = "".join(
            _number(own[n].area, own[n].metric).replace(
                '<span class="interval">', f'<span class="kept">{own[n].kept:.0%} kept</span><span class="interval">'
            )
            if n in own and not math.isnan(own[n].kept)
            else '<td data-value=""></td>'
            for n in names
        )
        shown = text(weights) + (f' <span class="output">{text(output)}</span>' if several else "")
        lines.append(f'<tr data-search="{text(weights)}"><th>{shown}</th>{cells}</tr>')
    head = "<th>area under the curve</th>"
    head += "".join(f'<th class="number" data-better="max">{text(n)}</th>' for n in names)
    return _table(head, lines)


def groups(rows: Sequence[Row], metric: str, several: bool) -> str:
    """Return the mean of each group, folded away."""
    own = [row for row in rows if metric in row.means and not METRICS[metric].pooled]
    names = sorted({case.group for row in own for case in row.cases})
    if len(names) < 2 or not own:
        return ""
    lines = []
    for group in names:
        cells, images = "", 0
        for row in own:
            cases = [case for case in row.cases if case.group == group]
            images = max(images, len(cases))
            mean = means_of([metric], cases, 0).get(metric)
            value = mean.value if mean else math.nan
            cells += f'<td class="number" data-value="{_value(value)}">{figure(value, metric)}</td>'
        lines.append(f'<tr><th>{text(group)}</th><td class="number" data-value="{images}">{images}</td>{cells}</tr>')
    head = '<th>group</th><th class="number">images</th>'
    head += "".join(f'<th class="number" data-better="max">{name(row, several)}</th>' for row in own)
    return f"<details><summary>By group: {text(metric)}</summary>{_table(head, lines)}</details>"


# --- the whole benchmark ----------------------------------------------------------------------------------------------


def points(results: Results) -> str:
    """Return the operating points that were chosen."""
    found = results.analysis.points
    if not found:
        return ""
    lines = [
        f"<tr><th>{text(p.weights)}</th><td>{text(', '.join(f'{k} {v:g}' for k, v in p.options.items()))}</td>"
        f"<td>{text(p.dataset)}:{text(p.split)}</td><td>{text(p.metric)}</td>"
        f'<td class="number" data-value="{_value(p.before)}">{figure(p.before, p.metric)}</td>'
        f'<td class="number" data-value="{_value(p.value)}">{figure(p.value, p.metric)}</td></tr>'
        for p in found
    ]
    head = "<th>weights</th><th>chosen</th><th>on</th><th>by</th>"
    head += '<th class="number">as trained</th><th class="number">chosen</th>'
    return (
        "<section>\n<h2>Operating points</h2>\n<p>Thresholds chosen on data that no table is about; copies of the "
        f"weights that carry them lie in the folder operating.</p>\n{_table(head, lines)}\n</section>"
    )


def cost(results: Results) -> str:
    """Return time and memory of an image."""
    found = {
        (row.weights, row.dataset): (row.seconds, row.memory)
        for row in results.rows
        if not row.baseline and row.seconds is not None
    }
    if not found:
        return ""
    lines = [
        f"<tr><th>{text(weights)}</th><td>{text(dataset)}</td>"
        f'<td class="number" data-value="{seconds}">{seconds:.3g}</td>'
        f'<td class="number" data-value="{"" if memory is None else memory}">'
        f"{'–' if memory is None else f'{memory:.0f}'}</td></tr>"
        for (weights, dataset), (seconds, memory) in found.items()
    ]
    head = '<th>weights</th><th>dataset</th><th class="number">seconds an image</th>'
    return _table(head + '<th class="number">peak memory, MiB</th>', lines)
