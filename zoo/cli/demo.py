"""Train the quickstart on synthetic tissue, judge it on images it has never seen, predict on real images that come with
the installation, and write a report with pictures. Ends with status 1 where a Dice is below its floor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo demo`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the recipe, as in `zoo train`")
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default demo)")


def run(args: argparse.Namespace) -> int:
    """Print `dice NAME VALUE` lines, and `report PATH` last."""
    from zoo.bench.demo import FLOORS, demo

    found = demo(Path(args.out), overrides=args.overrides, say=lambda line: print(line, file=sys.stderr))
    for name, value in found.dice.items():
        print(f"dice {name} {value:.4f}")
    for failure in found.failures:
        print(failure, file=sys.stderr)
    for name in found.below:
        print(f"{name}: the Dice is below {FLOORS[name]:.2f}, the floor of the demonstration", file=sys.stderr)
    for failure in found.failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(f"report {found.report}")
    return 1 if found.below or found.failures else 0
