"""What keeping a frozen encoder's features saves: processor seconds of each epoch, with K fixed views of each picture.

    python benchmarks/kept_features.py [--encoder vit_base_patch16_224] [--views 1] [--samples 16] [--epochs 3]

A U-Net on a frozen transformer learns from synthetic tissue, once without keeping features and once with. The ratio is
that of the first epoch after the views (the second, with one view): without over with. The first epoch is left out of
it, for it also computes the synthetic pictures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from zoo.recipe import load_recipe
from zoo.training import loop
from zoo.training.run import train


def epochs(args: argparse.Namespace, keep: float) -> list[float]:
    """Return the processor seconds of each epoch of a training."""
    arguments = f"{{neck: dpt, neck_width: 32, tune: frozen, keep: {keep}}}"
    took: list[float] = []
    real = loop.Run._epoch

    def timed(self: Any, work: Any) -> None:
        began = time.process_time()
        real(self, work)
        took.append(time.process_time() - began)

    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(
            "nuclei-unet-phantom",
            [
                f"model.encoder={{name: {args.encoder}, arguments: {arguments}}}",
                "model.encoder_weights=none",
                "model.decoder={name: unet, arguments: {channels: [48, 32, 24, 16, 16]}}",
                "data.train.datasets=[{name: phantom-nuclei, split: train, arguments: {um: 0.5}, limit: 16}]",
                "data.train.size=[224, 224]",
                "data.train.batch=4",
                f"data.train.samples={args.samples}",
                f"data.train.patch_epochs={args.views}",
                "data.train.fixed=true",
                "data.train.workers=0",
                "data.validate=null",
                f"train.epochs={args.epochs}",
                f"output={folder}/run",
            ],
        )
        loop.Run._epoch = timed  # type: ignore[method-assign]
        try:
            train(recipe)
        finally:
            loop.Run._epoch = real  # type: ignore[method-assign]
    return took


def main() -> None:
    """Print the seconds of each epoch, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vit_base_patch16_224")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    without, kept = epochs(args, 0), epochs(args, 4)
    for name, took in (("computed", without), ("kept", kept)):
        print(f"{name:9} {' '.join(f'{t:.2f}' for t in took)} s")
    print(f"epoch {args.views + 1}: {without[args.views] / kept[args.views]:.1f} times faster")


if __name__ == "__main__":
    main()
