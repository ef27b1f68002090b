"""Judge weights on datasets: a table with intervals beside trivial baselines, a number an image, and a page with
pictures. Weights that have seen the images, or their patients, are refused unless --allow-leakage, which marks them.

  zoo bench --weights runs/quickstart --datasets phantom-nuclei:test --out out
"""

from __future__ import annotations

import argparse
import sys

from zoo.cli.predict import add_prediction_arguments, device, options, resolution


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo bench`."""
    parser.add_argument("--weights", nargs="+", required=True, metavar="WEIGHTS", help="names, run folders or files")
    parser.add_argument(
        "--datasets", nargs="+", required=True, metavar="NAME", help="NAME, NAME:SPLIT, NAME:SPLIT@FOLD/FOLDS"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for results.json, table.md, report.html, ..."
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="`zoo list metrics`; default: those that fit")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset")
    parser.add_argument("--allow-leakage", action="store_true", help="judge and mark what leaks")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    add_prediction_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print the table and where the report is."""
    mpp = resolution(args.mpp)
    from zoo.bench import terminal
    from zoo.bench.run import bench

    found = bench(
        args.weights,
        args.datasets,
        args.out,
        allow_leakage=args.allow_leakage,
        metrics=args.metrics,
        limit=args.limit,
        mpp=mpp,
        device=device(args.device),
        seed=args.seed,
        save_pictures=not args.no_pictures,
        say=lambda line: print(line, file=sys.stderr),
        tile=args.tile,
        overlap=args.overlap,
        batch=args.batch,
        **options(args),
    )
    print(terminal.tables(found))
    print(f"table {found.out / 'table.md'}")
    print(f"report {found.out / 'report.html'}")
    return found.status
