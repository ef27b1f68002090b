"""How near `zoo embed` comes to the bare forward loop of its encoder: tiles a second, measured in turns in one process.

    python benchmarks/embed.py [--encoder vit_small_patch16_224] [--tiles 96] [--rounds 3] [--device cpu]

Pictures are written to a temporary folder as PNG; the bare loop runs the same tiles, in memory and normalised, in the
batch size that the embedding settled on. A ratio of 1 means that reading, cutting, normalising and writing are free.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.encoders import build_encoder
from zoo.inference.embed import Embedder, How
from zoo.inference.embed_files import embed_files


def main() -> None:
    """Print tiles a second of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--tiles", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    encoder = build_encoder(args.encoder, weights="none").eval()
    rng = np.random.default_rng(0)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        side = 448  # four tiles a picture
        for i in range(args.tiles // 4):
            small = rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(Path(folder) / f"{i:04}.png")
        how = How(tile=224, mpp="native", batch=args.batch)
        first = embed_files(encoder, [folder], Path(folder) / "a.h5", how, device=args.device, progress=False)
        how = How(tile=224, mpp="native", batch=first.batch)
        embedder = Embedder(encoder, how, args.device)
        x = torch.randn(first.batch, 3, 224, 224, device=args.device)

        def bare() -> float:
            began, count = time.perf_counter(), 0
            with torch.inference_mode():
                while count < first.tiles:
                    embedder.encoder.embedding(embedder.encoder(x))
                    count += first.batch
                if args.device != "cpu":
                    torch.cuda.synchronize()
            return count / (time.perf_counter() - began)

        for turn in range(args.rounds):
            before = bare()
            out = Path(folder) / f"{turn}.h5"
            found = embed_files(encoder, [folder], out, how, device=args.device, progress=False)
            after = bare()
            ours, theirs = found.tiles / found.seconds, (before + after) / 2
            ratios.append(ours / theirs)
            print(f"round {turn}: embed {ours:.2f}, bare {theirs:.2f} tiles a second, ratio {ours / theirs:.3f}")
    print(f"batch {first.batch}, median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
