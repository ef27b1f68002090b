"""List weights, or verify that files of weights are whole and build the model that they say.

zoo weights list
zoo weights verify runs/quickstart
"""

from __future__ import annotations

import argparse
import sys

from zoo.errors import UserError

ACTIONS = ("list", "verify")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo weights`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("names", nargs="*", metavar="NAME", help="names, run folders or files; default: all bundled")


def run(args: argparse.Namespace) -> int:
    """List or verify."""
    from zoo.cli import catalogue
    from zoo.cli.text import table

    if args.action == "list":
        if args.names:
            raise UserError("zoo weights list: it takes no names. See: zoo show NAME")
        print(table([(item.name, *item.columns) for item in catalogue.weights()]))
        return 0
    return _verify(args.names or [item.name for item in catalogue.weights() if item.usable])


def _verify(names: list[str]) -> int:
    from zoo.families.build import load
    from zoo.weights import store

    status = 0
    for found in [store.find(name) for name in names]:
        try:
            expected = found.card.source.sha256 if found.card else None
            actual = store.checksum(found.path)
            if expected is not None and actual != expected:
                raise UserError(f"{found.path}: SHA-256 is {actual}, its card says {expected}. Copy or pull it again")
            family = load(found.path)
        except UserError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        checked = "as its card says" if expected else "no card to compare with"
        print(f"{found.name} ok: {family.name}, sha256 {actual[:16]}... ({checked})")
    return status
