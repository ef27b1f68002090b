"""Predict images, folders and globs with trained weights, and write files that other tools open: label images or class
maps, probabilities, GeoJSON, boxes, overlays. Images whose results are there already are skipped; broken ones are noted
in failures.json.

  zoo predict runs/quickstart slides/*.tif --out results --mpp 0.5
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Literal

from zoo.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo predict`."""
    parser.add_argument("weights", metavar="WEIGHTS", help="weights name, run folder or .safetensors file")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders or globs")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results; sub-folders are kept")
    add_prediction_arguments(parser)
    parser.add_argument(
        "--labels", choices=("tif", "zarr"), default="tif", help="label volumes as OME-TIFF or OME-Zarr (default tif)"
    )
    parser.add_argument("--overwrite", action="store_true", help="predict again what is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `zoo predict` and `zoo bench` have in common."""
    parser.add_argument(
        "--mpp",
        metavar="UM",
        help="um per pixel of images that do not say it (z,y,x of volumes), or native: as they are",
    )
    parser.add_argument("--tile", type=int, metavar="N", help="side of a tile in model pixels")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that neighbouring tiles share")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="tiles at once (default 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of models that sample (default 0)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="an option of the family")


def resolution(text: str | None) -> float | tuple[float, ...] | Literal["native"] | None:
    """Return what `--mpp` says: a number, one for each of z, y and x, "native" or None. Raises `UserError`."""
    if text is None:
        return None
    if text == "native":
        return "native"
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (0.0,)
    if len(values) not in (1, 3) or not all(0 < value < 1e4 for value in values):
        raise UserError(f'--mpp: "{text}" will not do. Expected um per pixel, as 0.5, or z,y,x of volumes, or native')
    return values[0] if len(values) == 1 else values


def device(name: str) -> str:
    """Return the device to compute on. Raises `UserError` where it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device {name}: {said}. Expected auto, cpu, cuda or mps") from None
    return name


def said_slow(precision: str, name: str) -> None:
    """Say where a precision that was asked for is slower than 32 bits, because the processor emulates it."""
    import torch

    from zoo.nn.precision import slow

    if slow(precision, torch.device(name)):
        print(f"this processor has no bfloat16: --precision {precision} is slower than 32 here", file=sys.stderr)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the family from `--set key=value`. Raises `UserError`."""
    from zoo.schema import parse_value

    found = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f'--set: "{text}" is no option. Expected key=value')
        found[key] = parse_value(value)
    return found


def run(args: argparse.Namespace) -> int:
    """Predict and say what was done."""
    mpp = resolution(args.mpp)
    from zoo.families.build import load
    from zoo.inference.files import predict_files
    from zoo.inference.predict import check_origin

    family = load(args.weights, device=device(args.device))
    check_origin(family, args.weights)
    summary = predict_files(
        family,
        args.images,
        args.out,
        mpp=mpp,
        tile=args.tile,
        overlap=args.overlap,
        batch=args.batch,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=not args.quiet,
        labels=args.labels,
        **options(args),
    )
    for failure in summary.failures:
        print(failure["error"], file=sys.stderr)
    print(summary)
    return summary.status
