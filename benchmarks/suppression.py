"""Suppression of star-convex candidates: ours against the package's, the same objects or not, CPU seconds and seconds.

    python benchmarks/suppression.py                    # 1k, 10k and 100k candidates in 2-D and 3-D, 1 and 2 threads
    python benchmarks/suppression.py --counts 1000 --theirs 2000

Candidates are those of touching ellipsoids (radii 3.5, 7, 7 voxels; 9 pixels) with 7 % of noise on every ray. Each
count and number of threads is a process of its own; in it the two take turns. The package is asked up to `--theirs`
candidates only: in 3-D it needs milliseconds a candidate. Ours runs on one thread whatever OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.families.stardist import native, rays, suppress, targets

Array = NDArray[Any]


def field(shape: tuple[int, ...], radii: tuple[float, ...], seed: int) -> Array:
    """Return a map of ellipsoids on a jittered lattice, so dense that many touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    steps = [2.1 * r for r in radii]
    places = np.ndindex(*(int(n // s) for n, s in zip(shape, steps, strict=True)))
    for label, lattice in enumerate(places, start=1):
        centre = (np.array(lattice) + 0.5) * steps + rng.uniform(-0.15, 0.15, len(shape)) * steps
        radius = np.array(radii) * rng.uniform(0.8, 1.2, len(radii))
        low = np.maximum(np.floor(centre - radius), 0).astype(int)
        high = np.minimum(np.ceil(centre + radius) + 1, shape).astype(int)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        inside = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"))
        ones = (slice(None), *(None,) * len(shape))
        here = (((inside - centre[ones]) / radius[ones]) ** 2).sum(0) <= 1
        labels[window][here & (labels[window] == 0)] = label
    return labels


def candidates(dims: int, count: int) -> tuple[Array, Array, Array, Any]:
    """Return distances, points, probabilities (strongest first) and rays (None in 2-D) of `count` candidates."""
    rng = np.random.default_rng(count)
    if dims == 3:
        shape, radii, spread, grid = (48, 96, 96), (3.5, 7.0, 7.0), rays.golden_spiral(96, (2, 1, 1)), (1, 2, 2)
    else:
        shape, radii, spread, grid = (320, 320), (9.0, 9.0), None, (2, 2)
    small, _ = targets.compact(field(shape, radii, 0))
    dist = targets.distances(small, spread if spread is not None else 32, grid)
    prob = targets.on_grid(targets.probability(small, (2, 1, 1) if dims == 3 else None), grid, dims)
    places = np.argwhere(prob > 0.3)
    parts: list[tuple[Array, Array, Array]] = []
    for copy in range(-(-count // len(places))):  # side by side: their number grows, their density does not
        d = dist[(slice(None), *places.T)].T * (1 + 0.07 * rng.standard_normal((len(places), len(dist))))
        p = prob[tuple(places.T)] + 0.03 * rng.standard_normal(len(places))
        shift = np.zeros(dims, np.int64)
        shift[-1] = copy * (shape[-1] + 10)
        parts.append((np.maximum(d, 1e-3), places * np.array(grid) + shift, p))
    d, points, p = (np.concatenate([part[i] for part in parts])[:count] for i in range(3))
    order = np.argsort(-p)
    return d[order].astype(np.float32), points[order], p[order].astype(np.float32), spread


def ours(dist: Array, points: Array, spread: Any, counts: dict[str, int]) -> Array:
    if spread is None:
        return suppress.polygons(dist, points, 0.4, counts)
    return suppress.polyhedra(dist, points, spread, 0.4, counts)


def theirs(dist: Array, points: Array, prob: Array, spread: Any) -> Array:
    nms = native.module("nms")
    if spread is None:
        return np.flatnonzero(nms.non_maximum_suppression_inds(dist, points, prob, thresh=0.4, verbose=0))
    return np.flatnonzero(nms.non_maximum_suppression_3d_inds(dist, points, spread, prob, thresh=0.4, verbose=0))


def timed(call: Any) -> tuple[Array, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def one(dims: int, count: int, rounds: int, limit: int) -> dict[str, Any]:
    """Measure one configuration in this process: the best of some rounds, the two in turn."""
    dist, points, prob, spread = candidates(dims, count)
    ours(dist[:50], points[:50], spread, {})  # compiles, or reads what was compiled before
    best: dict[str, Any] = {"dims": dims, "candidates": len(dist), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    for _ in range(rounds):
        asked: dict[str, int] = {}
        kept, wall, cpu = timed(lambda: ours(dist, points, spread, asked))  # noqa: B023
        best |= {"kept": len(kept), "asked": asked["asked"]}
        best["ours_s"], best["ours_cpu_s"] = min(best.get("ours_s", 1e9), wall), min(best.get("ours_cpu_s", 1e9), cpu)
        if count <= limit:
            other, wall, cpu = timed(lambda: theirs(dist, points, prob, spread))
            best["same"] = bool(np.array_equal(kept, other))
            best["package_s"] = min(best.get("package_s", 1e9), wall)
            best["package_cpu_s"] = min(best.get("package_cpu_s", 1e9), cpu)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--theirs", type=int, default=10_000, help="candidates up to which the package is asked")
    parser.add_argument("--one", type=int, nargs=2, metavar=("DIMS", "COUNT"), help="one configuration, here")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one, args.rounds, args.theirs)))
        return
    print("| axes | candidates | kept | threads | ours s (CPU s) | package s (CPU s) | ratio of CPU s | same | asked |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for dims in args.dims:
        for count in args.counts:
            for threads in args.threads:
                words = [sys.executable, __file__, "--one", str(dims), str(count)]
                words += ["--rounds", str(args.rounds), "--theirs", str(args.theirs)]
                env = os.environ | {"OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
                other = ratio = same = "-"
                if "package_s" in row:
                    other = f"{row['package_s']:.2f} ({row['package_cpu_s']:.2f})"
                    ratio, same = f"{row['package_cpu_s'] / row['ours_cpu_s']:.0f}", "yes" if row["same"] else "no"
                mine = f"{row['ours_s']:.3f} ({row['ours_cpu_s']:.3f})"
                numbers = [dims, row["candidates"], row["kept"], threads, mine, other, ratio, same, row["asked"]]
                print("| " + " | ".join(map(str, numbers)) + " |", flush=True)


if __name__ == "__main__":
    main()
