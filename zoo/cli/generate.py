"""Draw pictures with trained weights of a generator: from masks, like embeddings, like other pictures, or from nothing
but noise. A picture depends on its seed, and not on what is drawn beside it; how it was made stands in its metadata.
What is in DIR already is not drawn again, so that the same command goes on after an interruption.

  zoo generate tissue-diffusion-pixel-unet --mask masks/ --count 4 --out drawn
  zoo generate runs/mine --mask phantom-nuclei:test --size 128 --out drawn

A mask holds a class a pixel (255: nothing is told here), or an object's number where the model has one class or --class
says which; GeoJSON by class names, with --size; or DATASET[:SPLIT]. An embedding is a .npy file.
"""

from __future__ import annotations

import argparse
import sys

from zoo.cli.predict import device, resolution, said_slow
from zoo.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo generate`."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights name, run folder or .safetensors file")
    parser.add_argument("--mask", nargs="+", default=[], metavar="M", help="masks: files, folders, globs, datasets")
    parser.add_argument("--embedding", nargs="+", default=[], metavar="E", help="embeddings: .npy files")
    parser.add_argument("--like", nargs="+", default=[], metavar="IMAGE", help="pictures to be like")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="pictures of each (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first one (default 0)")
    parser.add_argument("--steps", type=int, metavar="K", help="steps (default: the model's)")
    parser.add_argument(
        "--guidance", type=float, metavar="G", help="1: none; more: closer to what is asked (default: the model's)"
    )
    parser.add_argument("--sampler", metavar="NAME", help="dpm++, ddim, ddpm, ... (default: the model's)")
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help="side, or height and width, in pixels")
    parser.add_argument("--class", dest="object_class", metavar="NAME", help="class of objects that masks number")
    parser.add_argument("--mpp", metavar="UM", help="um per pixel of --like, or native: as it is")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N masks of a dataset")
    parser.add_argument("--tile", type=int, metavar="N", help="side of the windows of large pictures")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that neighbouring windows share")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default 8)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="arithmetic (default 32)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--pairs", action="store_true", help="make DIR a dataset: images/, masks/ and a card")
    parser.add_argument("--overwrite", action="store_true", help="draw again what is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _size(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2 or min(values) < 1:
        raise UserError(f"--size: {' '.join(map(str, values))} will not do. Expected a side, or height and width")
    return values[0], values[-1]


def run(args: argparse.Namespace) -> int:
    """Draw and say what was done."""
    size, mpp = _size(args.size), resolution(args.mpp)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit: {args.limit} will not do. Expected 1 or more")
    from zoo.families.build import load
    from zoo.inference.generate import Drawing, generate
    from zoo.inference.wishes import Asked

    said_slow(args.precision, device(args.device))
    summary = generate(
        load(args.weights, device=device(args.device)),
        Asked(args.mask, args.embedding, args.like, size, args.object_class, mpp, args.limit),
        args.out,
        count=args.count,
        seed=args.seed,
        drawing=Drawing(args.steps, args.guidance, args.sampler, args.batch, args.tile, args.overlap, args.precision),
        overwrite=args.overwrite,
        progress=not args.quiet,
        pairs=args.pairs,
    )
    for failure in summary.failures:
        print(failure["error"], file=sys.stderr)
    print(summary)
    return summary.status
