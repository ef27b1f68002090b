"""From rows to what a reader asks next: means, who is better, by which centre, how robust, over how many seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo import registry
from zoo.bench.compare import Comparison, Ranking, Records, Scores, Seeds, compare, compare_pooled, pool_seeds, rank
from zoo.bench.perturb import PERTURBATIONS, area
from zoo.bench.results import Analysis, Case, Row
from zoo.bench.statistics import Mean, mean_by_group, pooled_by_group
from zoo.bench.work import Judged
from zoo.errors import UserError
from zoo.families.score import Task
from zoo.metrics import METRICS, function

Table = tuple[str, str, str]


def means_of(metrics: Sequence[str], cases: Sequence[Case], seed: int) -> dict[str, Mean]:
    """Return metric -> mean over images (or the pooled number) with its interval, of the metrics that any case has."""
    groups = [case.group for case in cases]
    found: dict[str, Mean] = {}
    for name in metrics:
        if METRICS[name].pooled:
            having = [case for case in cases if name in case.records]
            if having:
                pooled: Any = function(name)
                records = [case.records[name] for case in having]
                found[name] = pooled_by_group(pooled, records, [case.group for case in having], seed=seed)
        elif any(name in case.scores for case in cases):
            found[name] = mean_by_group([case.scores.get(name, math.nan) for case in cases], groups, seed=seed)
    return found


def scores_of(row: Row, metric: str) -> Scores:
    """Return image -> (value, group) of a row."""
    return {c.image: (c.scores[metric], c.group) for c in row.cases if metric in c.scores}


def records_of(row: Row, metric: str) -> Records:
    """Return image -> (what it adds to a pooled metric, group) of a row."""
    return {c.image: (c.records[metric], c.group) for c in row.cases if metric in c.records}


def leading(rows: Sequence[Row]) -> str:
    """Return the metric that orders pictures and stands in summaries: the first that every row has, images having it
    too where there is one."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    common = [name for name in names if all(name in row.means for row in rows)] or names
    return next((name for name in common if not METRICS[name].pooled), common[0])


def analyse(
    tables: Mapping[Table, Sequence[Row]], seed: int, recipes: Mapping[str, tuple[str, str]] | None = None, **more: Any
) -> Analysis:
    """Return what is made of the rows of a benchmark, table by table; `recipes` as in `seeds`, `more`: what else is
    known of it (curves, points, notes)."""
    lead = {key: leading(rows) for key, rows in tables.items()}
    compared = {key: comparisons(rows, lead[key], seed) for key, rows in tables.items()}
    return Analysis(
        {key: found for key, found in compared.items() if found},
        ranking(tables),
        tuple(
            (row, lead[key], means)
            for key, rows in tables.items()
            for row in rows
            if lead[key] in row.means and (means := centres(row, lead[key], seed))
        ),
        tuple(
            (key, output, pooled)
            for key, rows in tables.items()
            for output, pooled in seeds(rows, lead[key], recipes or {}, seed)
        ),
        **more,
    )


# --- who is better ----------------------------------------------------------------------------------------------------


def comparisons(rows: Sequence[Row], metric: str, seed: int) -> list[Comparison]:
    """Return every pair of weights of one table (one row a file of weights: the first that has the metric), and each
    against the best of the baselines."""
    chosen: dict[str, Row] = {}
    for row in rows:
        if metric in row.means and not row.baseline:
            chosen.setdefault(row.weights, row)
    told = [row for row in rows if metric in row.means and not math.isnan(row.means[metric].value)]
    baselines = [row for row in told if row.baseline]
    if baselines:
        sign = 1 if METRICS[metric].better == "max" else -1
        best = max(baselines, key=lambda row: sign * row.means[metric].value)
        chosen.setdefault(best.weights, best)
    if len(chosen) < 2:
        return []
    if METRICS[metric].pooled:
        return compare_pooled(
            metric, function(metric), {n: records_of(r, metric) for n, r in chosen.items()}, seed=seed
        )
    return compare(metric, {name: scores_of(row, metric) for name, row in chosen.items()}, seed=seed)


def ranking(tables: Mapping[Table, Sequence[Row]]) -> tuple[str, Ranking] | None:
    """Return the metric and the ranks of the weights that every table has, over the groups of all tables; None where
    two weights or two groups are not to be had. A table's metric is its leading one; blocks are its groups."""
    shared: set[str] | None = None
    for rows in tables.values():
        own = {row.weights for row in rows if not row.baseline and not row.leaks}
        shared = own if shared is None else shared & own
    if not shared or len(shared) < 2:
        return None
    blocks: list[dict[str, float]] = []
    metrics: list[str] = []
    for rows in tables.values():
        metric = leading(rows)
        metrics.append(metric)
        sign = 1.0 if METRICS[metric].better == "max" else -1.0
        chosen: dict[str, Row] = {}
        for row in rows:
            if row.weights in shared and metric in row.means:
                chosen.setdefault(row.weights, row)
        by_group: dict[str, dict[str, list[float]]] = {}
        for name, row in chosen.items():
            for value, group in scores_of(row, metric).values():
                if math.isfinite(value):
                    by_group.setdefault(group, {}).setdefault(name, []).append(sign * value)
        blocks += [{n: sum(v) / len(v) for n, v in values.items()} for values in by_group.values()]
    found = rank(blocks)
    return None if found is None else (", ".join(dict.fromkeys(metrics)), found)


# --- centres ----------------------------------------------------------------------------------------------------------


def centres(row: Row, metric: str, seed: int) -> dict[str, Mean]:
    """Return centre -> mean, where the cases are of two centres or more."""
    names = sorted({case.center for case in row.cases if case.center is not None})
    if len(names) < 2:
        return {}
    return {n: means_of([metric], [c for c in row.cases if c.center == n], seed)[metric] for n in names}


# --- robustness -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One output under one perturbation: the mean at each level, and the area under the curve with its interval (the
    area of each image first, so that groups can be drawn); `kept`: the area over the undisturbed mean."""

    weights: str
    dataset: str
    split: str
    output: str
    truth: str
    metric: str
    perturbation: str
    levels: tuple[float, ...]
    heights: tuple[Mean, ...]
    area: Mean

    @property
    def kept(self) -> float:
        """Return the area as a share of the undisturbed mean, nan where that is 0."""
        clean = self.heights[self.levels.index(PERTURBATIONS[self.perturbation].clean)].value
        return self.area.value / clean if clean else math.nan


def curves(weights: str, places: Mapping[int, tuple[str, str]], judged: Sequence[Judged], seed: int) -> list[Curve]:
    """Return the curves of one file of weights; `places`: dataset number -> (name, split)."""
    clean = {(j.dataset, j.task.output, j.task.truth): j for j in judged if not j.level.name}
    levels: dict[tuple[int, str, str, str], dict[float, Judged]] = {}
    for j in judged:
        if j.level.name:
            levels.setdefault((j.dataset, j.task.output, j.task.truth, j.level.name), {})[j.level.value] = j
    found = []
    for (dataset, output, truth, name), by_level in levels.items():
        perturbation = PERTURBATIONS[name]
        by_level[perturbation.clean] = clean[dataset, output, truth]
        if set(by_level) == set(perturbation.levels):
            ordered = [by_level[level] for level in perturbation.levels]
            curve = _curve(weights, places[dataset], ordered[0].task, name, ordered, seed)
            found += [curve] if curve else []
    return found


def _curve(
    weights: str, place: tuple[str, str], task: Task, name: str, judged: Sequence[Judged], seed: int
) -> Curve | None:
    metric = next((m for m in task.metrics if not METRICS[m].pooled and METRICS[m].better == "max"), None)
    if metric is None or not all(any(metric in c.scores for c in j.cases) for j in judged):
        return None
    levels = PERTURBATIONS[name].levels
    heights = tuple(means_of([metric], j.cases, seed)[metric] for j in judged)
    values = [{c.image: c.scores.get(metric, math.nan) for c in j.cases} for j in judged]
    groups = {c.image: c.group for c in judged[0].cases}
    shared = [i for i in groups if all(i in v for v in values)]
    areas = [area(levels, [v[i] for v in values]) for i in shared]
    under = mean_by_group(areas, [groups[i] for i in shared], seed=seed)
    return Curve(weights, *place, task.output, task.truth, metric, name, levels, heights, under)


# --- seeds ------------------------------------------------------------------------------------------------------------


def recipe_key(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (key, seed) of weights: equal keys are trainings of one recipe on the same data, whatever thresholds were
    measured afterwards. None where the file does not say its recipe and seed."""
    if not metadata.get("recipe") or not metadata.get("seed"):
        return None
    options = json.loads(metadata.get("options") or "{}")
    try:
        measured = registry.get("family", metadata.get("family", "")).measured
    except UserError:  # a plug-in that is not installed any more
        measured = ()
    kept = {name: value for name, value in options.items() if name not in measured}
    said = [metadata["recipe"], metadata.get("family", ""), kept, metadata.get("trained_on", "")]
    return json.dumps(said, sort_keys=True), metadata["seed"]


def seeds(
    rows: Sequence[Row], metric: str, recipes: Mapping[str, tuple[str, str]], seed: int
) -> list[tuple[str, Seeds]]:
    """Return (output, pooled result) of each recipe that a table has several seeds of; `recipes`: weights -> (key,
    seed)."""
    grouped: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if not row.baseline and row.weights in recipes and metric in row.means:
            key, number = recipes[row.weights]
            grouped.setdefault((key, row.output), {}).setdefault(number, row)
    found = []
    for (key, output), by_seed in grouped.items():
        name = str(json.loads(key)[0])
        pooled = pool_seeds(name, metric, {s: scores_of(row, metric) for s, row in by_seed.items()}, seed=seed)
        if pooled is not None:
            found.append((output, pooled))
    return found
