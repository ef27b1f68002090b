"""The tables of benchmarks/diffusion_use.py, at most 80 columns wide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.bench.statistics import Mean, mean_by_group


def told(mean: Mean) -> str:
    """Return a mean with its interval."""
    return f"{mean.value:.3f}" if mean.low is None else f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def show_fidelity(values: dict[str, Any]) -> None:
    """Print Dice against own and shuffled masks."""
    print("\nmask fidelity: Dice of a segmenter of real images (95 % intervals over groups)")
    for kind, numbers in values.items():
        if kind != "groups":
            print(f"  {kind:24s} {told(mean_by_group(numbers, values['groups']))}")


def write_numbers(out: Path, dataset: str, values: dict[str, Any]) -> None:
    """Write the fidelity as a card of weights has numbers."""
    found = []
    for kind, metric in (("drawn", "picture/mask_dice"), ("drawn, shuffled masks", "picture/mask_dice_shuffled")):
        mean = mean_by_group(values[kind], values["groups"])
        low, high = (None if v is None else round(v, 4) for v in (mean.low, mean.high))
        found.append(
            {
                "dataset": dataset,
                "split": "test",
                "metric": metric,
                "value": round(mean.value, 4),
                "interval": None if low is None else [low, high],
                "n": mean.images,
                "groups": mean.groups,
                "note": "Dice of nuclei found in drawn pictures by a U-Net trained on real ones (64 x 64 px)",
            }
        )
    (out / "numbers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show_copies(values: dict[str, list[float]]) -> None:
    """Print distances to the nearest training crop."""
    limit = float(np.quantile(values["training"], 0.01))
    print("\ndistance to the nearest training crop (RMSE at 16 x 16 px, 1 = white to black)")
    print(f"  1st percentile of training crops to those of other fields: {limit:.4f}")
    for kind, numbers in values.items():
        low, middle = np.min(numbers), np.median(numbers)
        below = float(np.mean(np.asarray(numbers) < limit))
        print(f"  {kind:10s} least {low:.4f}, median {middle:.4f}, nearer than that {100 * below:.1f} %")


def show_sets(values: dict[str, dict[str, float]]) -> None:
    """Print FID and KID."""
    print(f"\ndistances of sets to real training crops, {values['pictures']['n']} pictures each")
    for kind, numbers in values.items():
        if kind != "pictures":
            print(f"  {kind:34s} FID {numbers['fid']:.3f}  KID {numbers['kid']:.4f} (sd {numbers['kid_sd']:.4f})")


def show_use(out: Path, arms: Sequence[str], seeds: Sequence[int], counts: Sequence[int]) -> None:
    """Print Dice and PQ of every arm, means over seeds and images, and differences to real images alone."""
    print(f"\nsegmenters on the test split, mean over {len(seeds)} seeds and images (95 % over groups)")
    print("  and the difference to real images alone")
    for metric in ("dice", "pq"):
        for count in counts:
            rows: dict[str, tuple[NDArray[Any], list[str]]] = {}
            for arm in arms:
                paths = [out / "pieces" / f"use-{arm}-{count}-{seed}.json" for seed in seeds]
                found = [json.loads(p.read_text(encoding="utf-8"))["value"] for p in paths if p.is_file()]
                if len(found) == len(seeds):
                    rows[arm] = np.mean([f[metric] for f in found], 0), found[0]["group"]
            for arm, (values, groups) in rows.items():
                line = f"  {metric:5s} n = {count:2d}  {arm:5s} {told(mean_by_group(values.tolist(), groups))}"
                if arm != "real" and "real" in rows:
                    line += f"   {told(mean_by_group((values - rows['real'][0]).tolist(), groups))}"
                print(line)
