"""Do tiles of a large translated picture meet without seams?

    python benchmarks/translation_seams.py [--side 4096] [--tile 512] [--threads 1]

Seam energy: the mean absolute step between neighbouring pixels across the lines where tiles meet, over the same a
quarter of a tile away; 1 is seamless. How far two tilings (one of three quarters the side) are apart shows what
blending hides: each tile's own brightness. For statistics of the whole picture and of each tile, with the peak of
memory. Networks are untrained: what is measured is how tiles meet, not what they show.
"""

from __future__ import annotations

import argparse
import resource

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.data import open_dataset
from zoo.families import build
from zoo.inference.windows import plan


def field(side: int) -> NDArray[np.uint8]:
    """Return (side, side, 3): phantom tiles under light that falls off to the right."""
    source = open_dataset("phantom-nuclei", split="train", arguments={"size": 512}, limit=8)
    tiles = [np.moveaxis(source[i].image, 0, -1) for i in range(len(source))]
    count = -(-side // 512)
    rows = [np.concatenate([tiles[(r + 3 * c) % len(tiles)] for c in range(count)], 1) for r in range(count)]
    whole = np.concatenate(rows)[:side, :side]
    light = np.linspace(1.0, 0.6, side, dtype=np.float32)[None, :, None]
    for begin in range(0, side, 512):
        whole[begin : begin + 512] = (whole[begin : begin + 512] * light).astype(np.uint8)
    return whole


def energy(picture: NDArray[np.uint8], lines: list[int], away: int) -> float:
    """Return the seam energy along both axes."""
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(picture.mean(0, dtype=np.float32), axis=axis)).mean(1 - axis)
        at = [line - 1 for line in lines if 0 < line < len(steps)]
        inside = [min(line - 1 + away, len(steps) - 1) for line in lines if 0 < line < len(steps)]
        ratios.append(float(steps[at].mean() / steps[inside].mean()))
    return float(np.mean(ratios))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    picture = field(given.side)
    for statistics in ("whole", "tile"):
        torch.manual_seed(0)
        options = {
            "generator": {"width": given.width, "blocks": 6, "spectral": True},
            "discriminator": None,
            "objective": ["l1"],
            "initial": {"name": "torch"},
            "statistics": statistics,
            "tile": given.tile,
        }
        family = build.create("translation", options)
        overlap = family.spec.margin
        found = family.predict(picture, tile=given.tile, batch=1).data
        rows = plan((given.side, given.side), given.tile, overlap, family.spec.divisor, overlap).rows
        value = energy(found, [start + overlap // 2 for start in rows.starts[1:]], given.tile // 4)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        other = family.predict(picture, tile=given.tile * 3 // 4 // 4 * 4, batch=1).data
        apart = np.mean([np.abs(x.astype(np.int16) - y).mean() for x, y in zip(found, other, strict=True)])
        print(
            f"statistics {statistics}: seam energy {value:.3f}, two tilings {apart:.2f} grey levels apart, "
            f"peak memory {peak:.1f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
