"""Plots as inline SVG, in the page's own colours: distributions, curves, ranks."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

from zoo.bench.analysis import Curve
from zoo.bench.compare import Ranking
from zoo.bench.perturb import PERTURBATIONS
from zoo.bench.results import Row, figure
from zoo.metrics import METRICS

_WIDTH, _LEFT, _RIGHT, _LINE = 740, 214, 24, 26
COLOURS = 8
"""Series that have a colour of their own (`.s0` ... in the style sheet); further ones begin again."""


def strips(rows: Sequence[Row], metric: str, several: bool = False, numbers: Mapping[int, int] | None = None) -> str:
    """Return a dot an image, a line a row, with the mean and its interval; nothing where no row has numbers.

    `numbers`: id(row) -> its number in the page's data, so that a dot opens its image.
    """
    shown = [row for row in rows if any(_finite(c.scores.get(metric)) for c in row.cases)]
    values = [c.scores[metric] for row in shown for c in row.cases if _finite(c.scores.get(metric))]
    if not values:
        return ""
    low, high = _range(values, METRICS[metric].best)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    height = len(shown) * _LINE + 30
    parts = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{height - 26}" class="grid"/>'
        f'<text x="{x(t):.1f}" y="{height - 10}" class="tick">{t:g}</text>'
        for t in _ticks(low, high)
    ]
    for number, row in enumerate(shown):
        known = (numbers or {}).get(id(row))
        parts.append(_strip(row, metric, x, 4 + _LINE * number + _LINE / 2, several, known))
    title = f"{metric} of each image; the bar is the mean and its interval"
    return _plot(parts, _WIDTH, height, title)


def _plot(parts: Sequence[str], width: int, height: int, title: str, kind: str = "plot", caption: bool = True) -> str:
    text = html.escape(title)
    below = f"<figcaption>{text}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _range(values: Sequence[float], best: float | None) -> tuple[float, float]:
    if best == 1.0 and min(values) >= 0:
        low = math.floor(min(values) * 10) / 10
        return min(low, 0.9), 1.0
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= most:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _strip(row: Row, metric: str, x: Callable[[float], float], y: float, several: bool, number: int | None) -> str:
    cases = [c for c in row.cases if _finite(c.scores.get(metric))]
    name = row.weights + (f" {row.output}" if several and not row.baseline else "")
    kind = "baseline" if row.baseline else "own"
    dots = []
    for position, case in enumerate(cases):
        jitter = ((position * 0.618034) % 1 - 0.5) * 12  # spread evenly, the same each time
        value = case.scores[metric]
        tip = html.escape(f"{case.image}: {figure(value, metric)}")
        opens = f' data-row="{number}" data-image="{html.escape(case.image)}"' if number is not None else ""
        dots.append(f'<circle cx="{x(value):.1f}" cy="{y + jitter:.1f}" r="2.6"{opens}><title>{tip}</title></circle>')
    mean = row.means[metric]
    bar = ""
    if mean.low is not None and mean.high is not None:
        bar += f'<line x1="{x(mean.low):.1f}" x2="{x(mean.high):.1f}" y1="{y}" y2="{y}" class="interval"/>'
    if _finite(mean.value):
        bar += f'<line x1="{x(mean.value):.1f}" x2="{x(mean.value):.1f}" y1="{y - 8}" y2="{y + 8}" class="mean"/>'
    text = f'<text x="{_LEFT - 12}" y="{y + 4}" class="name">{html.escape(_short(name))}</text>'
    return f'<g class="{kind}">{text}{"".join(dots)}{bar}</g>'


# --- robustness -------------------------------------------------------------------------------------------------------


def curve(found: Sequence[Curve], series: Mapping[tuple[str, str], int]) -> str:
    """Return one perturbation: a line a file of weights over its levels, intervals as bands; `series`: (weights,
    output) -> colour."""
    about = PERTURBATIONS[found[0].perturbation]
    width, height, left, right, top, bottom = 330, 210, 40, 12, 26, 40
    values = [v for c in found for h in c.heights for v in (h.value, h.low, h.high) if v is not None and _finite(v)]
    if not values:
        return ""
    low, high = 0.0, max(1.0 if METRICS[found[0].metric].best == 1.0 else 0.0, *values)

    def x(position: int) -> float:
        return left + position / (len(about.levels) - 1) * (width - left - right)

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    title = html.escape(f"{about.summary}: {found[0].metric}")
    middle, unit = (left + width - right) / 2, html.escape(about.unit)
    parts = [f'<text x="{left - 32}" y="14" class="title">{title}</text>']
    for tick in _ticks(low, high, 5):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 7}" y="{y(tick) + 4:.1f}" class="ytick">{tick:g}</text>')
    for position, level in enumerate(about.levels):
        clean = level == about.clean
        kind = "tick clean" if clean else "tick"
        parts.append(f'<text x="{x(position):.1f}" y="{height - bottom + 16}" class="{kind}">{level:g}</text>')
    parts.append(f'<text x="{middle}" y="{height - 6}" class="tick">{unit}</text>')
    for c in found:
        colour = f"s{series[c.weights, c.output] % COLOURS}"
        points = [(x(i), y(h.value)) for i, h in enumerate(c.heights) if _finite(h.value)]
        if all(h.low is not None and h.high is not None for h in c.heights):
            upper = [f"{x(i):.1f},{y(h.high or 0):.1f}" for i, h in enumerate(c.heights)]
            lower = [f"{x(i):.1f},{y(h.low or 0):.1f}" for i, h in enumerate(c.heights)][::-1]
            parts.append(f'<polygon points="{" ".join(upper + lower)}" class="band {colour}"/>')
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        tip = f"{c.weights} {c.output}: area {figure(c.area.value, c.metric)}"
        parts.append(f'<polyline points="{line}" class="curve {colour}"><title>{html.escape(tip)}</title></polyline>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.4" class="point {colour}"/>' for a, b in points]
    return _plot(parts, width, height, f"{about.summary}: {found[0].metric}", "small", caption=False)


# --- boxes ------------------------------------------------------------------------------------------------------------


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> str:
    """Return which class was taken for which: true classes in rows, predicted ones in columns, a cell as dark as its
    share of the row; the last row is what is nothing, the last column what was not found."""
    count = len(classes)
    wide, high = (88, 46) if count <= 6 else (54, 34)
    left, top = 128, 46
    width, height = left + wide * (count + 1), top + high * (count + 1) + 4
    parts = [f'<text x="{left + wide * count / 2}" y="14" class="axis">predicted</text>']
    for column, name in enumerate((*classes, "not found")):
        middle, said = left + wide * (column + 0.5), html.escape(_short(name, 12))
        parts.append(f'<text x="{middle}" y="{top - 10}" class="tick">{said}</text>')
    for row, (name, line) in enumerate(zip((*classes, "nothing there"), counts, strict=True)):
        y, total = top + high * row, sum(line)
        parts.append(
            f'<text x="{left - 10}" y="{y + high / 2 + 4}" class="name">{html.escape(_short(name, 16))}</text>'
        )
        for column, number in enumerate(line):
            if row == column == count:
                continue  # what is nothing and was not found is everywhere
            x, share = left + wide * column, number / total if total else 0.0
            kind = "right" if row == column else "off"
            shade = f'<rect x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" class="{kind}" '
            parts.append(f'{shade}fill-opacity="{0.75 * share:.3f}"/>')
            middle = x + wide / 2
            if row == count or not number:
                parts.append(f'<text x="{middle}" y="{y + high / 2 + 5}" class="count">{number}</text>')
                continue
            parts.append(f'<text x="{middle}" y="{y + high / 2}" class="count">{number}</text>')
            parts.append(f'<text x="{middle}" y="{y + high / 2 + 14}" class="share">{share:.0%}</text>')
    return _plot(parts, width, height, title, "plot confusion")


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranks(found: Ranking) -> str:
    """Return a critical-difference diagram (Demšar, 2006, figure 1): average ranks on a line, 1 the best, a bar over
    those that are not told apart."""
    count = len(found.names)
    half = (count + 1) // 2
    width, left, right, axis = 760, 230, 230, 52
    height = axis + 20 + 22 * half + 14 * len(found.alike)

    def x(value: float) -> float:
        return left + (value - 1) / max(count - 1, 1) * (width - left - right)

    parts = [f'<line x1="{x(1)}" x2="{x(count)}" y1="{axis}" y2="{axis}" class="axis"/>']
    for tick in range(1, count + 1):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{axis - 5}" y2="{axis}" class="axis"/>')
        parts.append(f'<text x="{x(tick)}" y="{axis - 10}" class="tick">{tick}</text>')
    long = min(found.critical, count - 1)
    parts.append(f'<line x1="{x(1)}" x2="{x(1 + long):.1f}" y1="18" y2="18" class="critical"/>')
    more = "" if long == found.critical else ", wider than the scale"
    parts.append(f'<text x="{x(1)}" y="12" class="label">critical difference {found.critical:.2f}{more}</text>')
    bars = axis + 10
    for number, (first, last) in enumerate(found.alike):
        y = bars + 14 * number
        begin, end = x(found.ranks[first]) - 5, x(found.ranks[last]) + 5
        parts.append(f'<line x1="{begin:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" class="alike"/>')
    base = bars + 14 * len(found.alike) + 6
    for number, (name, value) in enumerate(zip(found.names, found.ranks, strict=True)):
        left_side = number < half
        y = base + 22 * (number if left_side else count - 1 - number)
        edge, anchor = (left - 14, "end") if left_side else (width - right + 14, "start")
        parts.append(f'<polyline points="{x(value):.1f},{axis} {x(value):.1f},{y} {edge},{y}" class="leader"/>')
        text = html.escape(f"{_short(name, 24)} {value:.2f}")
        side = -6 if left_side else 6
        parts.append(f'<text x="{edge + side}" y="{y + 4}" text-anchor="{anchor}" class="leaf">{text}</text>')
    return _plot(parts, width, height, "Average ranks and the critical difference", "plot ranks", caption=False)
