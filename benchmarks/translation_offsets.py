"""ASP, CUT and pix2pix trained on pairs that lie off each other, scored on aligned ones; trains, benchmarks, draws.

    python benchmarks/translation_offsets.py --seeds 0 1 --out runs/offsets

The recipe is ihc-translation-phantom (synthetic H&E to Ki67) with a narrower generator, the same for all three
objectives: adaptive supervised PatchNCE as in that recipe, CUT (the pairs are never compared) and pix2pix's GAN and L1
(with the generator of the others, not a U-Net). Only the training pairs are off, by 0, 5 and 10 pixels in a random
direction each; held-out pairs are aligned. CUT never compares the two pictures of a pair, so that an offset changes
nothing it could learn: it is trained once a seed and stands beside all offsets. The last weights are judged: no
validation chooses. With the defaults a training is one to two thousand steps of a quarter to one second, by objective
and machine. Called again it goes on where it was stopped. Writes offsets.md, offsets.json and offsets.png. To try it:

    python benchmarks/translation_offsets.py --seeds 0 --offsets 0 5 --epochs 1 --samples 8 --test 4 --out DIR
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

OBJECTIVES: dict[str, list[str]] = {
    "asp": [],
    "cut": [
        "model.objective=[{name: gan}, {name: patch_nce, weight: 0.5}, {name: identity_nce, weight: 0.5}]",
        "model.features.normalise=cut",
        "model.paired=false",
    ],
    "pix2pix": [
        "model.objective=[{name: gan}, {name: l1, weight: 100}]",
        "model.discriminator.conditional=true",
        "model.discriminator.mode=vanilla",
    ],
}
"""What each objective changes of the recipe."""
UNPAIRED = ("cut",)
"""Objectives to which an offset is the same as none."""
MEASURED = {
    "ssim": "SSIM",
    "psnr": "PSNR, dB",
    "dab_concordance": "concordance of DAB",
    "positive_cell_f1": "F1 of positive cells",
    "positive_area_error": "error of positive area",
    "positive_count_correlation": "correlation of counts",
}
"""Metric -> its name on the picture."""
COLOURS = {"asp": "#0072b2", "cut": "#d55e00", "pix2pix": "#009e73"}


def overrides(objective: str, offset: int, seed: int, chosen: argparse.Namespace) -> list[str]:
    """Return what a training's recipe is told."""
    decay = max(1, chosen.epochs // 4)
    rate = f"{{name: linear-decay, arguments: {{constant: {chosen.epochs - decay}, decay: {decay}}}}}"
    return [
        f"seed={seed}",
        f"data.train.datasets.0.arguments.offset={offset}",
        f"data.train.samples={chosen.samples}",
        "data.train.workers=0",
        f"data.validate.datasets.0.arguments.val={min(8, chosen.test)}",
        f"model.generator.width={chosen.width}",
        f"train.epochs={chosen.epochs}",
        f"train.schedule={rate}",
        f"train.validate_every={chosen.epochs}",
        f"train.pictures_every={chosen.epochs}",
        "train.precision=bf16",
        "train.threads=1",
        *OBJECTIVES[objective],
        *chosen.overrides,
    ]


def numbers(found: Results, runs: dict[tuple[str, int], list[Path]]) -> list[dict[str, Any]]:
    """Return metric, objective, offset, the value of each seed, their mean and its interval."""
    told = []
    for (objective, offset), paths in runs.items():
        rows = named(found.rows, paths)
        for metric in MEASURED:
            values, low, high = over_seeds(rows, metric)
            entry = {"metric": metric, "objective": objective, "offset": offset, "seeds": values}
            told.append({**entry, "mean": float(np.mean(values)), "low": low, "high": high})
    return told


def markdown(told: Sequence[dict[str, Any]]) -> str:
    """Return the table: a row an objective and offset."""
    lines = ["| objective | offset, px | " + " | ".join(MEASURED) + " |", "| --- | ---: |" + " ---: |" * len(MEASURED)]
    for objective, offset in dict.fromkeys((t["objective"], t["offset"]) for t in told):
        own = {t["metric"]: t for t in told if (t["objective"], t["offset"]) == (objective, offset)}
        cells = [f"{own[m]['mean']:.3f} [{own[m]['low']:.3f}, {own[m]['high']:.3f}]" for m in MEASURED]
        lines.append(f"| {objective} | {offset} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(told: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a curve an objective over the offsets, its interval as a band, a panel a metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    for place, (metric, title) in zip(axes.flat, MEASURED.items(), strict=True):
        for objective, colour in COLOURS.items():
            own = [t for t in told if (t["metric"], t["objective"]) == (metric, objective)]
            at = [t["offset"] for t in own]
            if not own:
                continue
            place.fill_between(at, [t["low"] for t in own], [t["high"] for t in own], color=colour, alpha=0.15, lw=0)
            place.plot(at, [t["mean"] for t in own], color=colour, marker="o", ms=4, label=objective)
            for t in own:
                place.plot([t["offset"]] * len(t["seeds"]), t["seeds"], ".", color=colour, ms=3, alpha=0.6)
        place.set_title(title, fontsize=10, loc="left")
        place.set_xticks(sorted({t["offset"] for t in told}))
        place.spines[["top", "right"]].set_visible(False)
        place.grid(axis="y", lw=0.5, alpha=0.4)
    for place in axes[-1]:
        place.set_xlabel("offset of the training pairs, pixels")
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> int:
    """Train what is missing, judge everything, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--offsets", type=int, nargs="+", default=[0, 5, 10])
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=320, help="patches an epoch")
    parser.add_argument("--width", type=int, default=16, help="of the generator")
    parser.add_argument("--test", type=int, default=48, help="held-out fields")
    parser.add_argument("--out", type=Path, default=Path("runs/offsets"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="key=value")
    chosen = parser.parse_args()
    runs: dict[tuple[str, int], list[Path]] = {}
    for seed in chosen.seeds:  # a whole curve first, so that an early end leaves one
        for offset in chosen.offsets:
            for objective in chosen.objectives:
                at = chosen.offsets[0] if objective in UNPAIRED else offset
                run = chosen.out / f"{objective}-{at}-{seed}"
                trained(run, "ihc-translation-phantom", overrides(objective, at, seed, chosen))
                runs.setdefault((objective, offset), []).append(run / "last.safetensors")
    held = f"phantom-stains:test+marker=Ki67+size=256+test={chosen.test}"
    words: dict[str, Any] = {"metrics": tuple(MEASURED), "save_pictures": False, "say": print}
    every = list(dict.fromkeys(str(path) for paths in runs.values() for path in paths))
    found = bench(every, [held], chosen.out / "bench", **words)
    told = numbers(found, runs)
    text = markdown(told)
    (chosen.out / "offsets.md").write_text(text, encoding="utf-8")
    (chosen.out / "offsets.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draw(told, chosen.out / "offsets.png")
    print(f"\n{text}\n{chosen.out / 'offsets.png'}")
    return found.status


if __name__ == "__main__":
    sys.exit(main())
