"""Metrics beside those that a user would reach for.

    python benchmarks/metrics.py [--rounds 9] [--objects 1500] [--slow] [--slide 20000]

Three cases: Dice of 8 x 512², 6 classes, beside segmentation_models_pytorch and torchmetrics; every overlap metric of a
1000² pair of touching objects, without and with the object-level Hausdorff distance, beside one call of stardist's
`matching` and, with --slow, torchmetrics' panoptic quality; with --slide 20000, a whole-slide pair of a million
objects: seconds, and the memory beyond the two maps themselves.
Calls are interleaved (ours, theirs, ours, ...); medians in milliseconds are printed, and each as a multiple of ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zoo.metrics import instances, semantic, shapes

Call = Callable[[], Any]


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each call; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in times.items()}


def dice_calls() -> dict[str, Call]:
    """Return Dice of 8 x 512², 6 classes, of several libraries."""
    from segmentation_models_pytorch.metrics import f1_score, get_stats
    from torchmetrics.segmentation import DiceScore

    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 6, (8, 32, 32)), np.ones((1, 16, 16), int)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 6, truth.shape)).astype(np.uint8)
    p, t = torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    score = DiceScore(num_classes=6, include_background=False, input_format="index")

    def smp() -> Any:
        return f1_score(*get_stats(p, t, mode="multiclass", num_classes=6), reduction="macro")

    return {
        "histozoo, uint8": lambda: semantic.from_confusion(semantic.confusion(prediction, truth, 6)),
        "histozoo, int64": lambda: semantic.from_confusion(semantic.confusion(p.numpy(), t.numpy(), 6)),
        "smp": smp,
        "torchmetrics": lambda: score(p, t),
    }


def cells(objects: int, side: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction: touching round cells, and the same from centres that moved a little."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    centres = rng.uniform(0, side, (objects, 2))
    pixels = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)

    def grown(points: np.ndarray) -> np.ndarray:
        distance, nearest = cKDTree(points).query(pixels)
        return np.where(distance < 11, nearest + 1, 0).reshape(side, side).astype(np.int32)

    return grown(centres), grown(centres + rng.normal(0, 2, centres.shape))


def overlap_calls(objects: int, slow: bool) -> dict[str, Call]:
    """Return the overlap metrics of one pair, of several libraries."""
    from stardist.matching import matching

    truth, prediction = cells(objects)
    calls: dict[str, Call] = {
        "histozoo, all": lambda: instances.from_overlap(instances.overlap(prediction, truth)),
        "histozoo, and Hausdorff": lambda: whole(prediction, truth),
        "histozoo, table": lambda: instances.overlap(prediction, truth),
        "stardist, one": lambda: matching(truth, prediction, thresh=0.5),
    }
    if slow:
        from torchmetrics.functional.detection import panoptic_quality

        def stacked(labels: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.stack([(labels > 0).astype(np.int64), labels.astype(np.int64)], -1))[None]

        p, t = stacked(prediction), stacked(truth)
        calls["torchmetrics, PQ"] = lambda: panoptic_quality(p, t, things={1}, stuffs={0})
    return calls


def whole(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Compute every number of a pair, distances between objects included."""
    found = shapes.shapes(prediction, truth)
    instances.from_overlap(found.table)
    shapes.object_hausdorff(found)
    shapes.centroid_f1(found)


def slide(side: int, cell: int = 20) -> None:
    """Print what a pair of label maps of (side / cell)² objects costs."""
    import resource

    per_row = side // cell
    rows = np.arange(side, dtype=np.int32) // cell
    inside = (np.arange(side) % cell) < cell - 4

    def made(shift: int) -> np.ndarray:
        labels = np.zeros((side, side), np.int32)
        columns = np.roll(rows, shift) + 1
        kept = np.roll(inside, shift)
        for r in np.flatnonzero(inside):
            labels[r] = np.where(kept, rows[r] * per_row + columns, 0)
        return labels

    truth, prediction = made(0), made(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    table = instances.overlap(prediction, truth)
    counted = time.perf_counter() - began
    found = instances.from_overlap(table)
    total = time.perf_counter() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"Whole-slide pair, {side}², {len(table.truth_ids)} and {len(table.prediction_ids)} objects")
    print(f"  table {counted:.1f} s, every overlap metric {total:.1f} s (PQ {found['pq']:.3f})")
    print(f"  memory beyond the two maps ({2 * truth.nbytes / 2**20:.0f} MiB): {more:.0f} MiB")


def show(title: str, found: dict[str, float]) -> None:
    """Print medians and what each is as a multiple of ours."""
    ours = next(iter(found.values()))
    print(title)
    for name, value in found.items():
        print(f"  {name:<24} {value:9.1f} ms  x {value / ours:.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--slow", action="store_true", help="torchmetrics' panoptic quality too: seconds a call")
    parser.add_argument(
        "--slide", type=int, metavar="SIDE", help="a pair of SIDE² pixels too; 20000: a million objects"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    show("Dice of 8 x 512², 6 classes", interleaved(dice_calls(), given.rounds))
    pair = interleaved(overlap_calls(given.objects, given.slow), 2 if given.slow else given.rounds)
    show(f"Overlap metrics of a 1000² pair, {given.objects} objects", pair)
    if given.slide:
        slide(given.slide)


if __name__ == "__main__":
    main()
