"""Large pictures drawn in windows: seams, memory and time.

    python benchmarks/diffusion_large.py --generator runs/tissue-diffusion-pixel-unet --sizes 1024 2048 4096 --apart

Draws a square picture of each size from one mask of the phantom, mirrored to the size, each in a process of its own,
and prints the peak memory of the process beside that of one that draws a single window, and the seam energy: mean
absolute difference of neighbouring pixels across the lines where windows begin, end or hand over, over the mean across
all other lines; the larger of rows and columns. `--apart` draws the smallest size once more with windows that do not
overlap, for comparison: a seam shows there. An interrupted size goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mask_of(size: int) -> NDArray[np.uint8]:
    """Return a class map of the phantom, mirrored to (size, size)."""
    from zoo.data.phantom.layout import ANATOMY, lay_out

    side = min(size, 1024)
    layout = lay_out(20, (side, side), 0.5, ANATOMY["medium"])
    nuclei = layout.cut(layout.nuclei)
    found = np.concatenate([[0], layout.classes]).astype(np.uint8)[nuclei]
    return np.asarray(np.pad(found, ((0, size - side),) * 2, mode="symmetric"), np.uint8)


def lines(starts: tuple[int, ...], tile: int, supports: list[tuple[int, int]]) -> dict[str, list[int]]:
    """Return the pixels at which windows begin or end, and those at which one hands over to the next."""
    borders = [*starts[1:], *(s + tile for s in starts[:-1])]
    changes = [b for b, _ in supports[1:]] + [e for _, e in supports[:-1]]
    middles = [(b + e) // 2 for (b, _), (_, e) in zip(supports[1:], supports[:-1], strict=True)]
    return {"borders": borders, "hand-over": [*changes, *middles]}


def energy(picture: NDArray[Any], where: list[int], axis: int) -> float:
    """Return mean |difference| across lines over that across all others."""
    steps = np.abs(np.diff(picture.astype(np.float32), axis=axis)).mean(tuple(a for a in range(3) if a != axis))
    chosen = np.zeros(len(steps), bool)
    chosen[[w - 1 for w in where if 0 < w <= len(steps)]] = True
    return float(steps[chosen].mean() / steps[~chosen].mean())


def draw(chosen: argparse.Namespace) -> None:
    """Draw one size in this process and print what it took, as JSON."""
    import torch
    from PIL import Image

    from zoo.families import build
    from zoo.inference import generate as module
    from zoo.inference.wishes import Asked

    torch.set_num_threads(1)
    size = chosen.sizes[0]
    out = chosen.out / f"{size}-{chosen.overlap}"
    mask = out.parent / f"mask-{size}.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    if not mask.is_file():
        Image.fromarray(mask_of(size)).save(mask)
    family = build.load(chosen.generator)
    drawing = module.Drawing(
        chosen.steps, 1.0, batch=8, tile=chosen.tile, overlap=chosen.overlap, precision=chosen.precision
    )
    began, wall = time.process_time(), time.monotonic()
    summary = module.generate(family, Asked([str(mask)]), out, drawing=drawing)
    took = time.process_time() - began, time.monotonic() - wall
    told = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "drawn": bool(summary.done)}
    if size > chosen.tile:
        tiles = module._plan(family, drawing, (size, size))
        path = out / [*summary.done, *summary.skipped][0]
        picture = read(path)
        axes = [(0, tiles.rows), (1, tiles.columns)]
        for kind in ("borders", "hand-over"):
            told[kind] = max(
                energy(picture, lines(a.starts, a.tile, [a.support(i) for i in range(len(a.starts))])[kind], axis)
                for axis, a in axes
            )
    print(json.dumps({**told, "cpu": took[0], "wall": took[1]}))


def read(path: Path) -> NDArray[np.uint8]:
    """Return a drawn picture."""
    if path.suffix == ".tif":
        import tifffile

        return np.asarray(tifffile.imread(path))
    from PIL import Image

    return np.asarray(Image.open(path))


def main() -> int:
    """Draw every size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True, metavar="WEIGHTS")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion-large"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--precision", choices=("32", "bf16"), default="bf16")
    parser.add_argument("--apart", action="store_true", help="the smallest size also without overlap")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        draw(chosen)
        return 0
    runs = [(chosen.tile, chosen.overlap), *((size, chosen.overlap) for size in chosen.sizes)]
    runs += [(min(chosen.sizes), 0)] if chosen.apart else []
    print("size   overlap  peak memory  seam energy: borders, hand-over   core seconds")
    for size, overlap in runs:
        words = ["--generator", chosen.generator, "--out", str(chosen.out), "--one", "--sizes", str(size)]
        words += ["--steps", str(chosen.steps), "--tile", str(chosen.tile), "--overlap", str(overlap)]
        words += ["--precision", chosen.precision]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        seams = f"{told['borders']:.3f}, {told['hand-over']:.3f}" if "borders" in told else "one window"
        seconds = f"{told['cpu']:.0f}" if told["drawn"] else "drawn before"
        print(f"{size:5d}  {overlap:7d}  {told['peak'] / 1e6:8.0f} MB  {seams:33s} {seconds}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
