"""Run the exported network on one picture: python run.py PICTURE OUT.npz

Needs torch, numpy and Pillow. OUT.npz holds each map (channels, rows, columns), activated (probabilities where
spec.json says softmax or sigmoid), and `NAME.classes`, the most probable class of each pixel where there are several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent


def encoded(pixels: Any, encoding: dict[str, Any]) -> Any:
    """Return (C, H, W) float32 as the network wants it; `pixels` uint8."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if encoding["kind"] == "raw":
        return image.float()
    if encoding["kind"] == "rgb8":
        mean, std = (torch.tensor(encoding[k]).view(-1, 1, 1) for k in ("mean", "std"))
        return (image.float() / 255 - mean) / std
    flat = image.float().flatten(1)
    low, high = (torch.quantile(flat, encoding[k] / 100, dim=1).view(-1, 1, 1) for k in ("low", "high"))
    return (image.float() - low) / (high - low).clamp_min(1e-6)


def positions(length: int, tile: int, step: int) -> list[int]:
    """Return where tiles begin along one side, the last one at the end."""
    return sorted({*range(0, max(length - tile, 0), step), max(length - tile, 0)})


def run(picture: Path) -> dict[str, Any]:
    """Return name -> map of a picture, computed tile by tile; of overlapping tiles the mean."""
    spec = json.loads((HERE / "spec.json").read_text(encoding="utf-8"))
    network = torch.export.load(str(HERE / "model.pt2")).module()
    mode = "RGB" if len(spec["channels"]) == 3 else "L"
    pixels = np.asarray(Image.open(picture).convert(mode))
    image = encoded(pixels if pixels.ndim == 3 else pixels[..., None], spec["encoding"])
    rows, columns = image.shape[1:]
    tile, step = spec["tile"], spec["tile"] - 2 * spec["margin"]
    padding = (0, max(tile - columns, 0), 0, max(tile - rows, 0))
    image = torch.nn.functional.pad(image[None], padding, mode="replicate")[0]
    sums = {n: torch.zeros(m["channels"], *image.shape[1:]) for n, m in spec["maps"].items()}
    counts = torch.zeros(image.shape[1:])
    with torch.inference_mode():
        for top in positions(image.shape[1], tile, step):
            for left in positions(image.shape[2], tile, step):
                part = (slice(top, top + tile), slice(left, left + tile))
                for name, found in zip(sums, network(image[None, :, part[0], part[1]]), strict=True):
                    sums[name][:, part[0], part[1]] += found[0]
                counts[part] += 1
    maps = {name: (value / counts)[:, :rows, :columns].numpy() for name, value in sums.items()}
    classes = {f"{n}.classes": m.argmax(0).astype(np.uint8) for n, m in maps.items() if len(m) > 1}
    return {**maps, **classes}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    np.savez_compressed(sys.argv[2], **run(Path(sys.argv[1])))
