"""One network for many tasks against one network a task, of the same size and budget: trains, benchmarks, sums up.

    python benchmarks/cerberus_tasks.py --seeds 0 1 2 --out runs/cerberus-tasks

For each seed it trains the recipe colon-cerberus-resnet18 whole and once for each task alone (the same encoder,
decoder, number of steps and patches a step; only the data of the task), and judges each on what it knows. Means over
seeds, with 95 % intervals for which seeds and groups are drawn, crossed. Called again it goes on where it was stopped.
`--overrides` go to every training. The whole takes five trainings a seed; to try it:

    python benchmarks/cerberus_tasks.py --seeds 0 --tasks lumen --limit 2 --out DIR --overrides train.epochs=1 \\
        data.train.samples=8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seeds import named, over_seeds, trained

from zoo.bench.results import Results
from zoo.bench.run import bench

RECIPE = "colon-cerberus-resnet18"
PHANTOM = "{name: phantom-multitask, split: train, limit: 160, arguments: {um: 1.0}}"
PATCHES = "{name: phantom-patches, split: train, limit: 400, arguments: {um: 1.0}}"
GLAND = "gland: {kind: objects, truth: glands, rule: gland, contour: 5, grow: 5, min_size: 150}"
LUMEN = "lumen: {kind: objects, truth: lumina, rule: lumen, grow: 2, min_size: 40}"
ALONE: dict[str, list[str]] = {
    "gland": [f"model.tasks={{{GLAND}}}", "data.train.datasets=[{name: glas, split: train}]"],
    "nuclei": [
        "model.tasks={nuclei: {kind: objects, rule: nuclei, min_size: 20}}",
        "data.train.datasets=[{name: dsb2018-he, split: train}]",
    ],
    "lumen": [f"model.tasks={{{LUMEN}}}", f"data.train.datasets=[{PHANTOM}]"],
    "tissue": ["model.tasks={tissue: {kind: patch, window: 144}}", f"data.train.datasets=[{PATCHES}]"],
}
"""Overrides that leave one task of the recipe; its data are then those that the task had in the mix."""
JUDGED = {
    "gland": ("glas:testB", ("object_dice", "glas_f1", "object_f1", "pq")),
    "nuclei": ("dsb2018-he:test", ("pq", "object_f1")),
    "lumen": ("phantom-glands:test", ("pq", "object_f1")),
    "tissue": ("phantom-glands:test", ("dice", "pixel_accuracy")),
}
"""Task -> dataset and metrics."""


def plain(name: str, overrides: Sequence[str]) -> list[str]:
    """Return what makes a single-task training of the recipe."""
    alone = [*ALONE[name], "data.train.balance=none", "data.streams={}"]
    return [*alone, *(["data.train.size=[144,144]"] if name == "tissue" else []), *overrides]


def told(found: Results, task: str, runs: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """Return task, network, metric, the value of each seed, their mean and its interval over seeds and groups."""
    numbers = []
    for kind, paths in runs.items():
        rows = [row for row in named(found.rows, paths) if row.output == task]
        for metric in rows[0].metrics:
            values, low, high = over_seeds(rows, metric)
            entry = {"task": task, "network": kind, "metric": metric, "seeds": values}
            numbers.append({**entry, "mean": float(np.mean(values)), "low": low, "high": high})
    return numbers


def markdown(numbers: Sequence[dict[str, Any]]) -> str:
    """Return the table: a row a task and metric."""
    lines = ["| task, metric | all tasks in one | the task alone | each seed |", "| --- | ---: | ---: | --- |"]
    for task, metric in dict.fromkeys((n["task"], n["metric"]) for n in numbers):
        own = {n["network"]: n for n in numbers if (n["task"], n["metric"]) == (task, metric)}
        cells = [f"{n['mean']:.3f} [{n['low']:.3f}, {n['high']:.3f}]" for n in (own["multi"], own["alone"])]
        each = "; ".join(", ".join(f"{v:.3f}" for v in own[kind]["seeds"]) for kind in ("multi", "alone"))
        lines.append(f"| {task}, {metric} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train what is missing, judge everything, write tasks.md and tasks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/cerberus-tasks"))
    parser.add_argument("--tasks", nargs="+", choices=list(ALONE), default=list(ALONE))
    parser.add_argument("--limit", type=int, help="judge on so many images only, to try it out")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--train-only", action="store_true", help="train, and judge another time")
    chosen = parser.parse_args()
    runs: dict[str, list[Path]] = {kind: [] for kind in ("multi", *chosen.tasks)}
    for seed in chosen.seeds:
        for kind in runs:
            more = plain(kind, chosen.overrides) if kind in ALONE else chosen.overrides
            runs[kind].append(trained(chosen.out / f"{kind}-{seed}", RECIPE, [f"seed={seed}", *more]))
    if chosen.train_only:
        return 0
    numbers, status = [], 0
    words: dict[str, Any] = {"mpp": "native", "limit": chosen.limit, "allow_leakage": True, "save_pictures": False}
    for task in chosen.tasks:
        dataset, metrics = JUDGED[task]
        paths = [str(path) for path in (*runs["multi"], *runs[task])]
        found = bench(paths, [dataset], chosen.out / "bench" / task, metrics=metrics, say=print, **words)
        numbers += told(found, task, {"multi": runs["multi"], "alone": runs[task]})
        status = max(status, found.status)
    text = markdown(numbers)
    (chosen.out / "tasks.md").write_text(text, encoding="utf-8")
    (chosen.out / "tasks.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}")
    return status


if __name__ == "__main__":
    sys.exit(main())
