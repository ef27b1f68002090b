"""Check recipes, dataset cards and weights cards, told apart by what they hold. Every mistake is said at once; nothing
is started."""

from __future__ import annotations

import argparse
import sys

from zoo.cli.text import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo check`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="recipe, card, name of either, or a run folder")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Print every problem on standard error, and one line for each file that has none; 2 where there are any."""
    from zoo.training.check import check_file

    found = {file: check_file(file) for file in args.files}
    if args.json:
        print(as_json({file: [vars(problem) for problem in problems] for file, problems in found.items()}))
    else:
        for file, problems in found.items():
            print(f"{file}: ok") if not problems else print("\n".join(map(str, problems)), file=sys.stderr)
    return 2 if any(found.values()) else 0
