"""One network for many tasks against one network a task, of the same size and budget: trains, benchmarks, sums up.

    python benchmarks/cerberus_tasks.py --seeds 0 1 2 --out runs/cerberus-tasks

For each seed it trains the recipe colon-cerberus-resnet18 whole and once for each task alone (the same encoder,
decoder, number of steps and patches a step; only the data of the task), and judges each on what it knows. Called again
it goes on where it was stopped. `--overrides` go to every training. The whole takes five trainings a seed; to try it:

    python benchmarks/cerberus_tasks.py --seeds 0 --tasks lumen --limit 2 --out DIR --overrides train.epochs=1 \\
        data.train.samples=8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
"""Task -> dataset and metrics, those of them that this version has."""


def run(words: Sequence[str]) -> None:
    """Run one command, shown; stop where it fails for the user's mistake."""
    print("+", " ".join(words), flush=True)
    if subprocess.run([sys.executable, "-m", "zoo.cli", *words], check=False).returncode == 2:
        raise SystemExit(2)


def train(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """Train, or go on where it was stopped; a finished run stays as it is."""
    if (folder / "checkpoints" / "last.pt").is_file():
        run(["train", "--resume", str(folder)])
        return
    run(["train", RECIPE, f"seed={seed}", f"output={folder}", *overrides])


def plain(name: str, overrides: Sequence[str]) -> list[str]:
    """Return what makes a single-task training of the recipe."""
    alone = [*ALONE[name], "data.train.balance=none", "data.streams={}"]
    return [*alone, *(["data.train.size=[144,144]"] if name == "tissue" else []), *overrides]


def judge(out: Path, weights: Path, dataset: str, metrics: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Return the benchmark's results for a dataset."""
    from zoo import registry

    known = [name for name in metrics if name in registry.table("metric")]
    words = ["bench", "--weights", str(weights), "--datasets", dataset, "--metrics", *known, "--out", str(out)]
    few = [] if limit is None else ["--limit", str(limit)]
    run([*words, "--mpp", "native", "--allow-leakage", *few])
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Train, judge, and write every table's path and the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/cerberus-tasks"))
    parser.add_argument("--tasks", nargs="+", choices=list(ALONE), default=list(ALONE))
    parser.add_argument("--limit", type=int, help="judge on so many images only, to try it out")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    chosen = parser.parse_args()
    means: dict[tuple[str, str, str], list[float]] = {}
    for seed in chosen.seeds:
        train(chosen.out / f"multi-{seed}", seed, chosen.overrides)
        for name in chosen.tasks:
            train(chosen.out / f"{name}-{seed}", seed, plain(name, chosen.overrides))
            dataset, metrics = JUDGED[name]
            for kind in ("multi", name):
                folder = chosen.out / "bench" / f"{kind}-{name}-{seed}"
                table = judge(folder, chosen.out / f"{kind}-{seed}", dataset, metrics, chosen.limit)
                for metric, value in values(table, name).items():
                    means.setdefault((name, "multi" if kind == "multi" else "alone", metric), []).append(value)
    print("\ntask      network  metric           mean over seeds (each)")
    for (name, kind, metric), found in sorted(means.items()):
        each = ", ".join(f"{value:.3f}" for value in found)
        print(f"{name:9s} {kind:8s} {metric:16s} {np.mean(found):.3f} ({each})")
    return 0


def values(table: dict[str, Any], output: str) -> dict[str, float]:
    """Return metric -> mean of one output of the model."""
    rows = [row for row in table["rows"] if row["output"] == output and not row["baseline"]]
    return {metric: float(told["value"]) for row in rows for metric, told in row["metrics"].items()}


if __name__ == "__main__":
    sys.exit(main())
