"""Peak memory and time of predicting a volume in blocks, file to files.

    python benchmarks/volume_memory.py --stub                    # maps in closed form on 256 x 1024 x 1024 voxels
    python benchmarks/volume_memory.py                           # the published 3-D network on 256 x 512 x 512
    python benchmarks/volume_memory.py --shape 64 256 256 --filters 8

The input is a memory-mapped .npy; the outputs are a compressed label volume, an object table and a picture. The peak is
that of the whole process (ru_maxrss), libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.families.base import Maps
from zoo.families.stardist import StarDist, StarDistOptions
from zoo.inference.files import predict_files


class Stub(StarDist):
    """Says that every bright voxel is the centre of a ball of radius 5; costs next to nothing."""

    def forward(self, inputs: Mapping[str, torch.Tensor], taps: Sequence[str] = ()) -> Maps:
        steps = (..., *(slice(None, None, g) for g in self.grid))
        small = inputs["image"].float()[steps]
        logits = torch.where(small > 0, 2 + small / 100, torch.full_like(small, -20.0))
        return {"prob": logits, "dist": torch.full((1, 1), 5.3).expand(1, self.options.ray_count, *small.shape[2:])}


def volume(path: Path, shape: tuple[int, int, int], step: int = 16) -> int:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--shape", type=int, nargs=3)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = tuple(args.shape or ((256, 1024, 1024) if args.stub else (256, 512, 512)))
    options: dict[str, Any] = {"dims": 3, "backbone": "resnet", "grid": [1, 2, 2], "anisotropy": [2, 1, 1]}
    options |= {"channels": ["nuclei"], "classes": ["nucleus"], "normalise": None, "tile": args.tile}
    options["resnet"] = (
        {"filters": 2, "blocks": 1, "convs": 2, "features": 2} if args.stub else {"filters": args.filters}
    )
    torch.manual_seed(0)
    model = (Stub if args.stub else StarDist)(StarDistOptions.model_validate(options)).eval()
    with tempfile.TemporaryDirectory() as folder:
        put = volume(Path(folder) / "volume.npy", shape)  # type: ignore[arg-type]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        began = time.perf_counter()
        # an untrained network says about 0.5 everywhere: nothing is a candidate at 0.99
        limit = {} if args.stub else {"prob": 0.99}
        out = Path(folder) / "out"
        found = predict_files(model, [Path(folder) / "volume.npy"], out, progress=False, **limit)
        if found.failures:
            raise SystemExit(found.failures[0]["error"])
        seconds = time.perf_counter() - began
        record = json.loads((out / "volume.prediction.json").read_text())
        size = (out / "volume.labels.tif").stat().st_size / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"shape {shape}, blocks of {args.tile}, threads {args.threads}, {'stub' if args.stub else 'network'}")
    print(f"balls {put if args.stub else '-'}, objects {record['objects']}, labels.tif {size:.1f} MB")
    print(f"peak {peak:.2f} GB ({before:.2f} GB before), {seconds:.0f} s")


if __name__ == "__main__":
    main()
