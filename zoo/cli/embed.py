"""Turn pictures into vectors: tiles of images, folders and globs through an encoder, into one table that other tools
open (Parquet, HDF5 or Zarr, by the name's ending): image, y, x, height, width in pixels of the source, feature. Images
that are in the table are left as they are; new ones are added; broken ones are named and skipped.

  zoo embed uni slides/*.tif --out features.parquet
  zoo embed resnet50 photos --weights imagenet --mpp native --out features.h5
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from zoo.cli.predict import device, options, resolution, said_slow
from zoo.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo embed`."""
    parser.add_argument("encoder", metavar="ENCODER", help="encoder name (`zoo list encoders`)")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders or globs")
    parser.add_argument("--out", required=True, metavar="FILE", help="a name in .parquet, .h5 or .zarr")
    parser.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="published (default of foundation encoders), imagenet (of others), a tag, a file, or none: random",
    )
    parser.add_argument("--mpp", metavar="UM", help="um per pixel of images that do not say it, or native: as they are")
    parser.add_argument("--tile", type=int, metavar="N", help="side of a tile (default: the encoder's own, or 224)")
    parser.add_argument("--step", type=int, metavar="N", help="from tile to tile (default: the tile)")
    parser.add_argument("--pool", choices=("class", "class+mean", "mean"), help="default: as its publishers do")
    parser.add_argument("--batch", default="auto", metavar="N", help="tiles at once (default auto: found out)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of what is stored")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), default="32", help="of the computation")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random weights (default 0)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="an argument of the encoder")
    parser.add_argument("--overwrite", action="store_true", help="embed again what is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Embed and say what was done."""
    from pathlib import Path

    from zoo.encoders import listing
    from zoo.io import features

    features.ending(Path(args.out))
    info = listing.info(args.encoder)
    how: dict[str, Any] = {"mpp": resolution(args.mpp), "batch": _batch(args.batch)}
    for name in ("tile", "step"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: expected 1 or more pixels.")
    weights = args.weights or ("published" if info.card else "imagenet")
    import torch

    from zoo.encoders import build_encoder
    from zoo.inference.embed import How
    from zoo.inference.embed_files import embed_files

    torch.manual_seed(args.seed)
    encoder = build_encoder(args.encoder, weights=weights, **options(args))
    if (args.pool or encoder.pool) == "none":
        raise UserError(f"{args.encoder}: how its publishers pool tokens is not known here. Say --pool class or mean.")
    if weights == "none":
        print(f"{args.encoder}: random weights, as asked for", file=sys.stderr)
    said_slow(args.precision, device(args.device))
    settings = How(
        tile=args.tile or info.size,
        step=args.step,
        pool=args.pool,
        dtype=args.dtype,
        precision=args.precision,
        **how,
    )
    found = embed_files(
        encoder,
        args.images,
        args.out,
        settings,
        device=device(args.device),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    for failure in found.failures:
        print(failure["error"], file=sys.stderr)
    print(found)
    return found.status


def _batch(text: str) -> int:
    """Return the batch size, 0 for auto. Raises `UserError`."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UserError(f'--batch: "{text}" will not do. Expected auto, or 1 or more.')
    return int(text)
