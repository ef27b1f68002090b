"""Check that this build computes what published models compute. A case is a manifest and its tensors; a folder stands
for every case in it, and names below the folder ZOO_PARITY will do.

zoo verify ../shared/parity/cerberus/targets
zoo verify --json cerberus kimianet

One line a case: its worst output's relative error, and the tolerance of that output. Exit status 1 where a case fails.
"""

from __future__ import annotations

import argparse

from zoo.cli.text import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo verify`."""
    parser.add_argument("cases", nargs="+", metavar="CASE", help="case (with or without suffix) or folder of cases")
    parser.add_argument("--json", action="store_true", help="for machines: one list of cases on standard output")


def run(args: argparse.Namespace) -> int:
    """Print a line a case, or one list; 1 where any case fails."""
    from zoo.verify.read import find
    from zoo.verify.run import verify

    reports = []
    for name, manifest in find(args.cases):
        report = verify(name, manifest)
        reports.append(report)
        if not args.json:
            print(report.line(), flush=True)
    if args.json:
        print(as_json([report.as_values() for report in reports]))
    return 0 if all(report.ok for report in reports) else 1
