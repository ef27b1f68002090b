"""Judge weights on datasets: a table with intervals beside trivial baselines, paired tests, a number an image, and a
page with pictures. Weights that have seen the images, or their patients, are refused unless --allow-leakage, which
marks them. Predictions are kept, so that a benchmark that was broken off goes on where it was.

  zoo bench --weights runs/quickstart --datasets phantom-nuclei:test --out out
  zoo bench --weights a b a+b --datasets glas:testB --robustness --out out
  zoo bench --recipe gland-unet-resnet18 seed=1 --folds 5 --out out
  zoo bench --encoders uni2-h resnet50:imagenet --datasets glas:testB --out out
  zoo bench --encoders uni resnet18:none --recipe gland-unet-resnet18 --out out
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from zoo.cli.predict import add_prediction_arguments, device, options, resolution
from zoo.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo bench`."""
    parser.add_argument("--weights", nargs="+", metavar="WEIGHTS", help="names, run folders or files; A+B: an ensemble")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="NAME, NAME:SPLIT, NAME:SPLIT@FOLD/FOLDS, NAME+KEY=VALUE"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for results.json, table.md, report.html, ..."
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="as dice object_f1@0.7 (`zoo list metrics`); default: those that fit",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset")
    parser.add_argument("--allow-leakage", action="store_true", help="judge and mark what leaks")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default 1; 0: this one)")
    parser.add_argument("--no-cache", action="store_true", help="predict again, keep nothing")
    parser.add_argument("--tta", default="none", metavar="KIND", help="average over flips or d4 (default none)")
    parser.add_argument(
        "--robustness",
        nargs="*",
        metavar="NAME",
        help="curves: stain blur jpeg brightness magnification (default all)",
    )
    parser.add_argument("--operating", metavar="NAME:SPLIT", help="choose thresholds on this data first")
    parser.add_argument(
        "--recipe", nargs="+", metavar=("RECIPE", "key=value"), help="with --folds, --encoders: what is trained"
    )
    parser.add_argument("--folds", type=int, metavar="N", help="cross-validate a recipe, folds cut by patient or slide")
    parser.add_argument(
        "--encoders",
        nargs="+",
        metavar="NAME",
        help="NAME or NAME:WEIGHTS: probe frozen features on --datasets, or train --recipe with each",
    )
    parser.add_argument("--probe-split", default="train", metavar="SPLIT", help="what probes learn from (train)")
    add_prediction_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print the table and where the report is."""
    mpp = resolution(args.mpp)
    _check_words(args)
    if args.encoders and not args.recipe:
        return _probe(args, mpp)
    said: dict[str, Any] = {
        "metrics": args.metrics,
        "mpp": mpp,
        "device": device(args.device),
        "seed": args.seed,
        "jobs": args.jobs,
        "save_pictures": not args.no_pictures,
        "say": lambda line: print(line, file=sys.stderr, flush=True),
        "tile": args.tile,
        "overlap": args.overlap,
        "batch": args.batch,
        **options(args),
    }
    if args.encoders:
        from zoo.bench.decoders import bench_decoders

        more = {"datasets": args.datasets or (), "allow_leakage": args.allow_leakage, "limit": args.limit}
        found = bench_decoders(args.encoders, args.recipe[0], args.recipe[1:], args.out, **more, **said)
    elif args.folds is not None:
        from zoo.bench.folds import bench_folds

        found = bench_folds(args.recipe[0], args.recipe[1:], args.folds, args.out, **said)
    else:
        from zoo.bench.perturb import PERTURBATIONS
        from zoo.bench.run import bench

        wanted = args.robustness
        found = bench(
            args.weights or (),
            args.datasets or (),
            args.out,
            allow_leakage=args.allow_leakage,
            limit=args.limit,
            tta=args.tta,
            robustness=() if wanted is None else tuple(wanted or PERTURBATIONS),
            operating_on=args.operating,
            cache=not args.no_cache,
            **said,
        )
    return _told(found)


def _probe(args: argparse.Namespace, mpp: Any) -> int:
    """Probe encoders and print their table."""
    from zoo.bench.encoders import bench_encoders

    return _told(
        bench_encoders(
            args.encoders,
            args.datasets,
            args.out,
            train_split=args.probe_split,
            limit=args.limit,
            mpp=mpp,
            device=device(args.device),
            seed=args.seed,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )


def _told(found: Any) -> int:
    """Print the tables and where the files are, and return the exit status."""
    from zoo.bench import terminal

    print(terminal.tables(found))
    print(f"table {found.out / 'table.md'}")
    print(f"report {found.out / 'report.html'}")
    status: int = found.status
    return status


def _check_words(args: argparse.Namespace) -> None:
    """Raise `UserError` where the ways of calling are mixed."""
    if args.encoders:
        if args.weights or args.folds is not None:
            raise UserError("zoo bench: --encoders is a way of its own. Leave out --weights and --folds.")
        if not args.recipe and not args.datasets:
            raise UserError("zoo bench: --encoders comes without data. Add --datasets NAME:SPLIT, or --recipe RECIPE.")
        return
    if (args.folds is None) != (args.recipe is None):
        there, missing = ("--recipe", "--folds N") if args.folds is None else ("--folds", "--recipe RECIPE")
        raise UserError(f"zoo bench: {there} comes without {missing.split()[0]}. Expected both. Add {missing}.")
    if args.folds is not None and (args.weights or args.datasets):
        raise UserError(
            "zoo bench: --folds trains and judges a recipe on its own data. Leave out --weights and --datasets."
        )
    for word, given in (("--tta", args.tta != "none"), ("--robustness", args.robustness is not None)):
        if given and args.folds is not None:
            raise UserError(f"zoo bench: {word} is for weights. Bench the runs of the folds with it.")
