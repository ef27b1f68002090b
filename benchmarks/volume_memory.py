"""Peak memory and time of predicting a volume in blocks, file to files.

    python benchmarks/volume_memory.py --stub                    # maps in closed form on 256 x 1024 x 1024 voxels
    python benchmarks/volume_memory.py                           # a trained 3-D network on 256 x 512 x 512 voxels
    python benchmarks/volume_memory.py --shape 64 256 256 --weights runs/mine

The network sees synthetic tissue (phantom-volume, hard): `--parts` different cubes of 32 x 128 x 128 voxels, laid
side by side, each mirrored by chance. The input is a memory-mapped .npy; the outputs are a compressed label volume, an
object table and a picture. The peak is that of the whole process (ru_maxrss), libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data.datasets import open_dataset
from zoo.families.base import Maps
from zoo.families.build import load
from zoo.families.stardist import StarDist, StarDistOptions
from zoo.inference.files import predict_files

CUBE = (32, 128, 128)


class Stub(StarDist):
    """Says that every bright voxel is the centre of a ball of radius 5; costs next to nothing."""

    def forward(self, inputs: Mapping[str, torch.Tensor], taps: Sequence[str] = ()) -> Maps:
        steps = (..., *(slice(None, None, g) for g in self.grid))
        small = inputs["image"].float()[steps]
        logits = torch.where(small > 0, 2 + small / 100, torch.full_like(small, -20.0))
        return {"prob": logits, "dist": torch.full((1, 1), 5.3).expand(1, self.options.ray_count, *small.shape[2:])}


def balls(path: Path, shape: tuple[int, int, int], step: int = 16) -> int:
    """Write a volume with one bright voxel in each cube of `step` voxels; return their number."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    rng = np.random.default_rng(0)
    count = 0
    for z in range(step // 2, shape[0] - 4, step):
        plane = np.zeros(shape[1:], np.uint8)
        places = [np.arange(step // 2, n - 4, step) // 2 * 2 for n in shape[1:]]
        plane[np.ix_(*places)] = rng.integers(1, 255, [len(p) for p in places])
        array[z] = plane
        count += int((plane > 0).sum())
    array.flush()
    return count


def tissue(path: Path, shape: tuple[int, int, int], parts: int) -> int:
    """Write a volume of synthetic nuclei; return how many its cubes hold, the cut ones included."""
    words = {"difficulty": "hard", "um": [1.0, 0.5, 0.5], "size": list(CUBE)}
    cubes = open_dataset("phantom-volume", split="test", limit=parts, arguments=words)
    known = [cubes[i] for i in range(len(cubes))]
    array = np.lib.format.open_memmap(path, "w+", known[0].image.dtype, shape)
    rng = np.random.default_rng(0)
    count = 0
    for corner in product(*(range(0, n, c) for n, c in zip(shape, CUBE, strict=True))):
        one = known[rng.integers(len(known))]
        place = tuple(slice(a, min(a + c, n)) for a, c, n in zip(corner, CUBE, shape, strict=True))
        cut = tuple(slice(0, p.stop - p.start) for p in place)
        axes = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))
        array[place] = np.flip(one.image[0], axes)[cut]
        truth: Any = one.truth["nuclei"]
        count += len(np.unique(np.flip(truth.map, axes)[cut])) - 1
    array.flush()
    return count


def stub(tile: int) -> StarDist:
    """Return a model that costs next to nothing."""
    options: dict[str, Any] = {"dims": 3, "backbone": "resnet", "grid": [1, 2, 2], "anisotropy": [2, 1, 1]}
    options |= {"channels": ["nuclei"], "classes": ["nucleus"], "normalise": None, "tile": tile}
    options["resnet"] = {"filters": 2, "blocks": 1, "convs": 2, "features": 2}
    torch.manual_seed(0)
    return Stub(StarDistOptions.model_validate(options)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--weights", default="nuclei3d-stardist-resnet")
    parser.add_argument("--shape", type=int, nargs=3)
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--tile", type=int, help="side of a block; default: the model's, 128 for the stub")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = tuple(args.shape or ((256, 1024, 1024) if args.stub else (256, 512, 512)))
    model = stub(args.tile or 128) if args.stub else load(args.weights)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "volume.npy", Path(folder) / "out"
        put = balls(path, shape) if args.stub else tissue(path, shape, args.parts)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        began = time.perf_counter()
        wishes: dict[str, Any] = {"tile": args.tile} if args.tile and not args.stub else {}
        found = predict_files(model, [path], out, mpp="native", progress=False, **wishes)
        if found.failures:
            raise SystemExit(found.failures[0]["error"])
        seconds = time.perf_counter() - began
        record = json.loads((out / "volume.prediction.json").read_text())
        size = (out / "volume.labels.tif").stat().st_size / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"shape {shape}, threads {args.threads}, {'stub' if args.stub else args.weights}")
    print(f"put in {put}, objects {record['objects']}, labels.tif {size:.1f} MB")
    print(f"peak {peak:.2f} GB ({before:.2f} GB before), {seconds:.0f} s")


if __name__ == "__main__":
    main()
