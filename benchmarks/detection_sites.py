"""White cells at another site: source only, adapted without its labels, oracle; trains, benchmarks, writes the table.

    python benchmarks/detection_sites.py --pair bccd-wbc --seeds 0 1 2 --out runs/sites
    python benchmarks/detection_sites.py --pair phantom --seeds 0 1 2 --out runs/sites

For each seed it trains the recipe whitecell-detr-source at the first site, goes on from there as the stage `adapt` of
whitecell-detr-adapted does (the other site's pictures, no label), and trains whitecell-detr-oracle on the other site's
labels. Nothing of the adapted row is chosen with a label of the other site: thresholds are measured on the first site's
validation images, and the weights are those of its best validation. All are judged on the other site's test images and
on the first site's validation images (which chose the weights: those columns flatter). Means over seeds, with 95 %
intervals for which seeds and groups are drawn, crossed. Called again it goes on where it was stopped.

`--overrides` go to every training. The whole takes about 45 minutes a seed on one core; to try it:

    python benchmarks/detection_sites.py --pair phantom --seeds 0 --limit 4 --epochs 1 --out DIR \\
        --overrides data.train.samples=8
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from seeds import named, over_seeds, trained

from zoo.bench.results import Results, figure
from zoo.bench.run import bench
from zoo.recipe import load_recipe

KINDS = "[neutrophil, lymphocyte, monocyte, eosinophil, basophil, blast]"
METHODS = ("source", "adapted", "oracle")
SHOWN = ("coco_ap50", "coco_ap", "box_f1")


@dataclass(frozen=True)
class Pair:
    """Two sites: how a split of each is written in a recipe, what is judged, and what else the recipes are told."""

    source: str
    target: str
    judged: tuple[str, str]
    more: tuple[str, ...] = ()

    def data(self, method: str, split: str) -> str:
        """Return the dataset of a method's training or validation."""
        return (self.target if method == "oracle" else self.source).replace("SPLIT", split)


def pairs(first: str, second: str) -> dict[str, Pair]:
    """Return the pairs by name; `first` and `second` are the phantom's sites."""
    smear = "{name: phantom-smear, split: SPLIT, limit: 200, arguments: {sites: [SITE]}}"
    merge = (f"model.merge={{WBC: {KINDS}}}", "model.classes=null", "model.truth=cells")
    judged = (f"phantom-smear:test+sites={second}", f"phantom-smear:val+sites={first}")
    return {
        "bccd-wbc": Pair("{name: bccd, split: SPLIT}", "{name: wbc-1, split: SPLIT}", ("wbc-1:test", "bccd:val")),
        "phantom": Pair(smear.replace("SITE", first), smear.replace("SITE", second), judged, merge),
    }


def overrides(pair: Pair, method: str, folder: Path, seed: int, epochs: int | None) -> list[str]:
    """Return what a training's recipe is told."""
    train, val = pair.data(method, "train"), pair.data(method, "val")
    more = [f"seed={seed}", f"evaluate.datasets=[{val}]", *pair.more]
    if method != "adapted":
        told = [f"data.train.datasets=[{train}]", f"data.validate.datasets=[{val}]"]
        return more + told + ([] if epochs is None else [f"train.epochs={epochs}"])
    stages = load_recipe("whitecell-detr-adapted").stages
    assert stages is not None
    stage = stages[-1].model_dump(mode="json", by_alias=True, exclude_unset=True)
    stage["train"]["weights"] = str(folder / f"source-{seed}" / "last.safetensors")
    if epochs is not None:
        stage["train"] |= {"epochs": epochs, "validate_every": 1}
    data = [f"stages.0.data.train.datasets=[{train}]", f"stages.0.data.validate.datasets=[{val}]"]
    target = pair.target.replace("SPLIT", "train")
    data += [f"stages.0.data.streams.target.datasets=[{target}]", f"data.train.datasets=[{train}]"]
    return [f"stages={json.dumps([stage])}", *more, *data, f"data.validate.datasets=[{val}]"]


def train(pair: Pair, method: str, folder: Path, seed: int, epochs: int | None, more: Sequence[str]) -> Path:
    """Train, or go on where it was stopped; a finished run stays as it is. Return its folder."""
    if method == "adapted":
        more = [f"stages.0.{said}" if said.startswith(("data.", "train.")) else said for said in more]
    told = [*overrides(pair, method, folder, seed, epochs), *more]
    return trained(folder / f"{method}-{seed}", f"whitecell-detr-{method}", told)


def table(found: Results, folder: Path, seeds: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
    """Return the table as Markdown, and its numbers."""
    places = list(dict.fromkeys((row.dataset, row.split) for row in found.rows))
    lines = ["| site | trained | " + " | ".join(SHOWN) + " | AP50 of each seed |", "| --- | --- |" + " --- |" * 4]
    numbers: list[dict[str, Any]] = []
    for place in places:
        for method in METHODS:
            here = [row for row in found.rows if (row.dataset, row.split) == place]
            rows = named(here, [folder / f"{method}-{seed}" for seed in seeds])
            if not rows:
                continue
            cells = []
            for metric in SHOWN:
                values, low, high = over_seeds(rows, metric)
                cells.append(f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]")
                told = {"site": ":".join(place), "trained": method, "metric": metric, "mean": float(np.mean(values))}
                numbers.append({**told, "low": low, "high": high, "seeds": values})
            each = ", ".join(figure(v, "coco_ap50") for v in numbers[-len(SHOWN)]["seeds"])
            lines.append(f"| {':'.join(place)} | {method} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines) + "\n", numbers


def main() -> int:
    """Train what is missing, judge everything, write sites.md and sites.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("bccd-wbc", "phantom"), default="bccd-wbc")
    parser.add_argument("--sites", nargs=2, default=["a", "d"], metavar=("FIRST", "OTHER"), help="of the phantom")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/sites"))
    parser.add_argument("--epochs", type=int, help="of every training, to try it out")
    parser.add_argument("--limit", type=int, help="judge on so many images only, to try it out")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    chosen = parser.parse_args()
    pair, folder = pairs(*chosen.sites)[chosen.pair], chosen.out / chosen.pair
    more = (chosen.epochs, chosen.overrides)
    runs = [train(pair, method, folder, seed, *more) for seed in chosen.seeds for method in METHODS]
    words = {"mpp": "native", "limit": chosen.limit, "metrics": SHOWN, "save_pictures": False, "say": print}
    found = bench([str(run) for run in runs], pair.judged, folder / "bench", **words)
    text, numbers = table(found, folder, chosen.seeds)
    (folder / "sites.md").write_text(text, encoding="utf-8")
    (folder / "sites.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"\n{text}\n{folder / 'sites.md'}")
    return found.status


if __name__ == "__main__":
    sys.exit(main())
