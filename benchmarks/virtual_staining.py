"""Virtual staining in one table: an embedding translator beside translations of pixels, on the same held-out pairs.

    python benchmarks/virtual_staining.py --seeds 0 1 --translations runs/offsets --out runs/staining

The arms: `embeddings`, the recipe ihc-diffusion-phantom (the stain is drawn from a carried embedding), and `asp`,
`pix2pix` and `cut`, the recipe ihc-translation-phantom with the objective of that name. All are trained on the same
pairs (synthetic H&E and Ki67, `--fields` of them, off by `--offset` pixels) and judged on the same aligned ones; the
last weights are judged, no validation chooses. With `--translations`, the folder of translation_offsets.py, its runs of
this offset are judged and none is trained here. A drawn stain follows no pixel, so SSIM and PSNR say little of it; what
is counted (positive area, positive cells) is the same question to all. `--overrides` go to every training, those that
begin with an arm and a colon to that arm alone. Called again it goes on where it was stopped. Writes staining.md and
staining.json, and says how long each training took. To try it:

    python benchmarks/virtual_staining.py --seeds 0 --arms embeddings pix2pix --test 2 --out DIR --overrides \\
        data.train.samples=16 embeddings:stages.0.train.epochs=1 embeddings:stages.1.train.epochs=1 \\
        pix2pix:train.epochs=1
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seeds import named, over_seeds, trained
from translation_offsets import OBJECTIVES

from zoo.bench.results import Results
from zoo.bench.run import bench

ARMS = ("embeddings", *OBJECTIVES)
RECIPES = {"embeddings": "ihc-diffusion-phantom"} | dict.fromkeys(OBJECTIVES, "ihc-translation-phantom")
MEASURED = {
    "positive_cell_f1": "cells F1",
    "positive_count_correlation": "count r",
    "positive_area_error": "area error",
    "dab_concordance": "DAB conc.",
    "ssim": "SSIM",
    "psnr": "PSNR",
}
"""Metric -> its column."""


def overrides(arm: str, seed: int, chosen: argparse.Namespace) -> list[str]:
    """Return what a training's recipe is told."""
    own = [word.partition(":") for word in chosen.overrides]
    threads = ["stages.0.train.threads=1", "stages.1.train.threads=1"] if arm == "embeddings" else ["train.threads=1"]
    return [
        f"seed={seed}",
        f"data.train.datasets.0.arguments.train={chosen.fields}",
        f"data.train.datasets.0.arguments.offset={chosen.offset}",
        "data.train.workers=0",
        *threads,
        *OBJECTIVES.get(arm, []),
        *(text for name, _, text in own if name == arm),
        *(name + colon + text for name, colon, text in own if name not in ARMS),
    ]


def seconds(run: Path) -> float:
    """Return how long a run's epochs took, all stages together."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return sum(
        max(float(row["seconds"]) for row in rows if row["stage"] == stage) for stage in {r["stage"] for r in rows}
    )


def numbers(found: Results, runs: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """Return metric, arm, the value of each seed, their mean and its interval over seeds and slides."""
    told = []
    for arm, paths in runs.items():
        rows = named(found.rows, paths)
        for metric in MEASURED:
            values, low, high = over_seeds(rows, metric)
            told.append(
                {"metric": metric, "arm": arm, "seeds": values, "mean": np.mean(values), "low": low, "high": high}
            )
    return told


def markdown(told: Sequence[dict[str, Any]]) -> str:
    """Return the table: a row an arm."""
    lines = [f"| arm | {' | '.join(MEASURED.values())} |", "| --- |" + " ---: |" * len(MEASURED)]
    for arm in dict.fromkeys(t["arm"] for t in told):
        own = {t["metric"]: t for t in told if t["arm"] == arm}
        cells = [f"{own[m]['mean']:.3f} [{own[m]['low']:.3f}, {own[m]['high']:.3f}]" for m in MEASURED]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def narrow(told: Sequence[dict[str, Any]]) -> str:
    """Return the means alone, at most 80 columns wide."""
    head = f"{'mean of seeds':13s}" + "".join(f"{name:>11s}" for name in MEASURED.values())
    lines = [head]
    for arm in dict.fromkeys(t["arm"] for t in told):
        own = {t["metric"]: t["mean"] for t in told if t["arm"] == arm}
        lines.append(f"{arm:13s}" + "".join(f"{own[m]:11.3f}" for m in MEASURED))
    return "\n".join(lines)


def main() -> int:
    """Train what is missing, judge everything, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--translations", type=Path, metavar="DIR", help="runs of translation_offsets.py to judge")
    parser.add_argument("--fields", type=int, default=192, help="pairs to train on")
    parser.add_argument("--offset", type=int, default=0, help="of the training pairs, in pixels")
    parser.add_argument("--test", type=int, default=24, help="held-out fields of 256 pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/staining"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="[ARM:]key=value")
    chosen = parser.parse_args()
    runs: dict[str, list[Path]] = {}
    for seed in chosen.seeds:  # all arms of a seed first, so that an early end leaves a table
        for arm in chosen.arms:
            run = chosen.out / f"{arm}-{seed}"
            if chosen.translations and arm in OBJECTIVES:
                run = chosen.translations / f"{arm}-{chosen.offset}-{seed}"
            else:
                trained(run, RECIPES[arm], overrides(arm, seed, chosen))
            print(f"{arm}, seed {seed}: trained for {seconds(run):.0f} s", flush=True)
            runs.setdefault(arm, []).append(run / "last.safetensors")
    held = f"phantom-stains:test+marker=Ki67+size=256+test={chosen.test}"
    words: dict[str, Any] = {"metrics": tuple(MEASURED), "save_pictures": False, "say": print}
    found = bench([str(path) for paths in runs.values() for path in paths], [held], chosen.out / "bench", **words)
    told = numbers(found, runs)
    (chosen.out / "staining.md").write_text(markdown(told), encoding="utf-8")
    (chosen.out / "staining.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"\n{narrow(told)}\nwith intervals: {chosen.out / 'staining.md'}")
    return found.status


if __name__ == "__main__":
    sys.exit(main())
