"""Tiled prediction beside a bare loop over the same tiles, and beside MONAI's sliding window.

    python benchmarks/tiled_prediction.py                      4096², the network of the bundled nuclei model
    python benchmarks/tiled_prediction.py --encoder resnet18   a network of another kind
    python benchmarks/tiled_prediction.py --side 1024 --repeats 3

The bare loop cuts the same tiles, normalises, and runs the same network channels-last; it neither blends nor decodes.
Zoo's side does all of it, down to class map and probabilities. MONAI's blends with its Gaussian window. The three run
interleaved; medians of CPU seconds and their ratios are printed, and as JSON with --json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import zoo
from zoo.families.base import Family
from zoo.inference.predict import Settings, predict_array, tile_plan


def bare(family: Family, image: np.ndarray, tile: int, batch: int) -> None:
    """The loop that a user would write who wants nothing but speed."""
    plan = tile_plan(family, image.shape[:2], Settings(tile=tile))
    places = list(plan.tiles())
    side_y, side_x = plan.rows.tile, plan.columns.tile
    padded = np.pad(image, ((0, plan.rows.padded - image.shape[0]), (0, plan.columns.padded - image.shape[1]), (0, 0)))
    with torch.inference_mode():
        for first in range(0, len(places), batch):
            tiles = np.stack([padded[y : y + side_y, x : x + side_x] for y, x in places[first : first + batch]])
            pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2)  # channels-last, as it lies in memory
            family.forward(family.prepare({"image": pixels}))


def monai(family: Family, image: np.ndarray, tile: int, batch: int) -> None:
    """MONAI's sliding window over the normalised picture, same tile size and overlap; `family` in torch's default
    memory format, as its users run it."""
    from monai.inferers import sliding_window_inference

    overlap = min(family.spec.margin, tile // 2) / tile
    with torch.inference_mode():
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        inputs = family.prepare({"image": pixels})["image"]

        def network(x: torch.Tensor) -> torch.Tensor:
            return next(iter(family.forward({"image": x}).values()))

        sliding_window_inference(inputs, tile, batch, network, overlap=overlap, mode="gaussian").argmax(1)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoder", default="mobilenetv3_small_100")
    parser.add_argument("--skip-monai", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    family = zoo.create("unet", encoder=arguments.encoder, classes=["background", "gland", "lumen"])
    plain = copy.deepcopy(family)
    family.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = np.random.default_rng(0).integers(0, 255, (arguments.side, arguments.side, 3), dtype=np.uint8)
    size = (family, image, arguments.tile, arguments.batch)
    contenders: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(*size),
        "zoo": lambda: predict_array(family, image, tile=arguments.tile, batch=arguments.batch),
    }
    if not arguments.skip_monai:
        contenders["monai"] = lambda: monai(plain, *size[1:])
    small = image[:512, :512]
    bare(family, small, arguments.tile, arguments.batch)
    predict_array(family, small, tile=arguments.tile, batch=arguments.batch)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.repeats):
        for name, call in contenders.items():
            found[name].append(timed(call))
    cpu = {name: statistics.median(c for _, c in times) for name, times in found.items()}
    wall = {name: statistics.median(w for w, _ in times) for name, times in found.items()}
    tiles = tile_plan(family, image.shape[:2], Settings(tile=arguments.tile)).count
    ratios = {f"zoo_over_{name}": round(cpu[name] / cpu["zoo"], 3) for name in contenders if name != "zoo"}
    result = {
        **vars(arguments),
        "tiles": tiles,
        "wall_s": {k: round(v, 2) for k, v in wall.items()},
        "cpu_s": {k: round(v, 2) for k, v in cpu.items()},
        "speed": ratios,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.side}² in {tiles} tiles of {arguments.tile}², {arguments.threads} thread(s)")
    for name in contenders:
        print(f"  {name:6} {wall[name]:7.2f} s wall {cpu[name]:7.2f} s CPU (median of {arguments.repeats})")
    for name, ratio in ratios.items():
        print(f"  speed of {name.replace('_', ' ')}: {ratio:.3f}")


if __name__ == "__main__":
    main()
