"""Distributions as inline SVG, in the page's own colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from zoo.bench.results import Row, figure
from zoo.metrics import METRICS

_WIDTH, _LEFT, _RIGHT, _LINE = 720, 190, 24, 26


def strips(rows: Sequence[Row], metric: str, several: bool = False) -> str:
    """Return a dot an image, a line a row, with the mean and its interval; nothing where no row has numbers."""
    shown = [row for row in rows if any(_finite(c.scores.get(metric)) for c in row.cases)]
    values = [c.scores[metric] for row in shown for c in row.cases if _finite(c.scores.get(metric))]
    if not values:
        return ""
    low, high = _range(values, METRICS[metric].best)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    ticks = _ticks(low, high)
    height = len(shown) * _LINE + 30
    parts = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{height - 26}" class="grid"/>'
        f'<text x="{x(t):.1f}" y="{height - 10}" class="tick">{t:g}</text>'
        for t in ticks
    ]
    for number, row in enumerate(shown):
        parts.append(_strip(row, metric, x, 4 + _LINE * number + _LINE / 2, several))
    title = f"{metric} of each image; the bar is the mean and its interval"
    return (
        f'<figure class="plot"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg><figcaption>{html.escape(title)}</figcaption></figure>"
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


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _strip(row: Row, metric: str, x: object, y: float, several: bool) -> str:
    assert callable(x)
    cases = [c for c in row.cases if _finite(c.scores.get(metric))]
    name = row.weights + (f" {row.output}" if several and not row.baseline else "")
    short = name if len(name) <= 26 else name[:25] + "…"
    kind = "baseline" if row.baseline else "own"
    dots = []
    for position, case in enumerate(cases):
        jitter = ((position * 0.618034) % 1 - 0.5) * 12  # spread evenly, the same each time
        value = case.scores[metric]
        tip = html.escape(f"{case.image}: {figure(value, metric)}")
        dots.append(f'<circle cx="{x(value):.1f}" cy="{y + jitter:.1f}" r="2.6"><title>{tip}</title></circle>')
    mean = row.means[metric]
    bar = ""
    if mean.low is not None and mean.high is not None:
        bar += f'<line x1="{x(mean.low):.1f}" x2="{x(mean.high):.1f}" y1="{y}" y2="{y}" class="interval"/>'
    if _finite(mean.value):
        bar += f'<line x1="{x(mean.value):.1f}" x2="{x(mean.value):.1f}" y1="{y - 8}" y2="{y + 8}" class="mean"/>'
    text = f'<text x="{_LEFT - 12}" y="{y + 4}" class="name">{html.escape(short)}</text>'
    return f'<g class="{kind}">{text}{"".join(dots)}{bar}</g>'
