"""Numbers of several trainings of one recipe: the mean over seeds, and an interval that counts seeds and groups."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.results import Row
from zoo.metrics import METRICS, function


def trained(run: Path, recipe: str, overrides: Sequence[str]) -> Path:
    """Train, or go on where it was stopped; a finished run stays as it is. Return its folder."""
    words = ["train", "--resume", str(run)]
    if not (run / "checkpoints" / "last.pt").is_file():
        words = ["train", recipe, f"output={run}", *overrides]
    print("+ zoo", " ".join(words), flush=True)
    done = subprocess.run([sys.executable, "-m", "zoo.cli", *words], check=False).returncode
    if done:
        raise SystemExit(done)
    return run


def named(rows: Sequence[Row], paths: Sequence[Path]) -> list[Row]:
    """Return the rows of some files of weights, whose labels the benchmark may have shortened."""
    wanted = {name for path in paths for name in (str(path), path.name, path.stem)}
    return [row for row in rows if not row.baseline and row.weights in wanted]


def _resampler(row: Row, metric: str, images: Sequence[str]) -> Any:
    """Return a function from indices into `images` to the metric of those images of one row."""
    cases = {case.image: case for case in row.cases}
    if METRICS[metric].pooled:
        return function(metric).resampler([cases[i].records[metric] for i in images])  # type: ignore[attr-defined]
    values = np.array([cases[i].scores.get(metric, np.nan) for i in images])
    return lambda indices: float(np.nanmean(values[indices])) if np.isfinite(values[indices]).any() else float("nan")


def over_seeds(rows: Sequence[Row], metric: str, resamples: int = 500) -> tuple[list[float], float, float]:
    """Return the number of each seed and the 95 % interval of their mean: seeds and groups (patients, slides) are drawn
    with replacement, crossed (Owen, 2007), because both are samples. With one seed only the groups are drawn."""
    first = {case.image: case.group for case in rows[0].cases}
    shared = [image for image in first if all(any(c.image == image for c in row.cases) for row in rows)]
    each = [_resampler(row, metric, shared) for row in rows]
    groups: dict[str, list[int]] = {}
    for place, image in enumerate(shared):
        groups.setdefault(first[image], []).append(place)
    members, rng = [np.array(own) for own in groups.values()], np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        values = [each[s](chosen) for s in rng.integers(0, len(each), len(each))]
        drawn.append(np.mean(values))
    told = np.array([v for v in drawn if np.isfinite(v)])
    low, high = np.quantile(told, [0.025, 0.975]) if len(told) else (np.nan, np.nan)
    return [float(one(np.arange(len(shared)))) for one in each], float(low), float(high)
