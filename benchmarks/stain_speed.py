"""Stain normalisation: single pictures in numpy against batches in torch, interleaved, one thread.

    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/stain_speed.py --tiles 64 --side 512

Seconds of CPU, so that neighbours on the machine count less; the ratio of each round, then its median and range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data import open_dataset
from zoo.stain.batched import BatchNormaliser
from zoo.stain.normalise import Normaliser, normaliser


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compared(
    single: Normaliser, batch: BatchNormaliser, tiles: list[NDArray[np.uint8]], tensor: torch.Tensor, rounds: int
) -> list[tuple[float, float]]:
    """Return the seconds of both paths, a pair a round."""
    single(tiles[0]), batch(tensor[:2])
    return [(seconds(lambda: [single(t) for t in tiles]), seconds(lambda: batch(tensor))) for _ in range(rounds)]


def main() -> None:
    """Print a line a method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--methods", nargs="+", default=["macenko", "macenko-torchstain", "vahadane", "ruifrok", "reinhard"]
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = open_dataset("phantom-nuclei", split="train", arguments={"size": args.side}, limit=4)
    planes = np.stack([source[i % len(source)].image for i in range(args.tiles)])
    tensor = torch.from_numpy(planes)
    tiles = [np.ascontiguousarray(np.moveaxis(p, 0, -1)) for p in planes]
    for method in args.methods:
        single = normaliser(method)
        pairs = compared(single, BatchNormaliser(single), tiles, tensor, args.rounds)
        ratios = [a / b for a, b in pairs]
        each = [1e3 * statistics.median(p[k] for p in pairs) / args.tiles for k in (0, 1)]
        print(
            f"{method}: {each[0]:.1f} ms a tile alone, {each[1]:.1f} ms batched, "
            f"{statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
