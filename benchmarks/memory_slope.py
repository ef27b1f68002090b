"""Peak memory of `predict_files` on tiled TIFFs of 4096², 8192² and 16384².

    python benchmarks/memory_slope.py [--kind semantic|instances] [--sides 4096 8192 16384]

Each size runs in a process of its own; what is printed is its peak resident memory beyond what a picture of 256² takes,
which must grow with the width of a row of tiles (x 2 a step), not with the area (x 4 a step). The model is one 1 x 1
convolution, so that cutting, stitching, decoding and writing are what is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from zoo import postprocess
from zoo.families.base import Family, IOSpec, Maps, MapSpec, Output
from zoo.inference.files import predict_files
from zoo.schema import Schema
from zoo.types import Batch, Geometry, InstancesPrediction, Prediction, SemanticPrediction

CLASSES = ("background", "nucleus")


class Pixelwise(Family):
    """Dark pixels are nuclei."""

    name = "pixelwise"

    class Options(Schema):
        kind: str = "semantic"
        """What it says: semantic or instances."""

    options: Options

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.layer = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.layer.weight[0], self.layer.weight[1] = 4.0, -4.0
            self.layer.bias.zero_()  # type: ignore[union-attr]
        local = options.kind == "semantic"
        output = Output("semantic", CLASSES) if local else Output("instances", CLASSES[1:])
        self.spec = IOSpec(
            maps={"logits": MapSpec(2, "softmax")}, outputs={options.kind: output}, margin=32, extent=64, local=local
        )

    @classmethod
    def targets(cls, options: Any, card: Any) -> Any:
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        return {"logits": self.layer(inputs["image"])}

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        raise NotImplementedError

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        return [self._one(m, g) for m, g in zip(maps["logits"], geometry, strict=True)]

    def _one(self, planes: Tensor, geometry: Geometry) -> dict[str, Prediction]:
        values = postprocess.to_source(planes, geometry).numpy()
        if self.options.kind == "semantic":
            return {"semantic": SemanticPrediction(values.argmax(0).astype(np.uint8), CLASSES, values)}
        labels = postprocess.components(values[1] > 0.5)
        count = int(labels.max(initial=0))
        return {"instances": InstancesPrediction(labels, CLASSES[1:], np.zeros(count, np.int64))}


def tiles(side: int, tile: int = 512) -> Iterator[np.ndarray]:
    """Yield tiles of pink ground with dark discs."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:tile, :tile]
    dark = np.zeros((tile, tile), bool)
    for _ in range(60):
        cy, cx, r = rng.uniform(20, tile - 20), rng.uniform(20, tile - 20), rng.uniform(5, 12)
        dark |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    block = np.where(dark[..., None], (60, 30, 90), (230, 180, 210)).astype(np.uint8)
    for _ in range((side // tile) ** 2):
        yield block


def child(side: int, kind: str) -> None:
    """Predict one picture and print the peak memory of this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        tifffile.imwrite(
            path, tiles(side, min(512, side)), shape=(side, side, 3), dtype=np.uint8, tile=(min(512, side),) * 2,
            compression="zlib", photometric="rgb",
        )  # fmt: skip
        family = Pixelwise(Pixelwise.Options(kind=kind)).eval()
        begin = time.perf_counter()
        summary = predict_files(family, [path], Path(folder) / "out", progress=False)
        assert summary.status == 0, summary.failures
        seconds = time.perf_counter() - begin
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--kind", choices=["semantic", "instances"], default="semantic")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.kind)
        return
    base, before = 0, 0
    for side in [256, *arguments.sides]:
        command = [sys.executable, __file__, "--child", str(side), "--kind", arguments.kind]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if side == 256:
            base = found["peak"]
            print(f"{'side':>6} {'MiB beyond 256²':>16} {'growth':>7} {'bytes a column':>15} {'seconds':>8}")
            continue
        extra = found["peak"] - base
        growth = f"{extra / before:.2f}" if before else ""
        line = f"{side:>6} {extra / 2**20:>16.0f} {growth:>7} {extra / side:>15.0f} {found['seconds']:>8.1f}"
        print(line, flush=True)
        before = extra


if __name__ == "__main__":
    main()
