"""List what there is. Each line begins with a name: `zoo show NAME` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from zoo.cli import catalogue
from zoo.cli.text import as_json, table

USES = ("research", "commercial", "redistribution", "derivatives", "any")
"""Words that ask for what a licence allows; others are looked for in its name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo list`."""
    parser.add_argument("kind", choices=list(catalogue.KINDS), metavar="KIND", help=", ".join(catalogue.KINDS))
    parser.add_argument(
        "--family", metavar="NAME", help="only what is of this family (recipes, weights; encoders: foundation)"
    )
    parser.add_argument(
        "--licence", metavar="USE", help="only what may be used so: commercial, research, any; or a text in its name"
    )
    parser.add_argument("--usable-now", action="store_true", help="only what needs nothing that is not on this machine")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    everything = items = catalogue.KINDS[args.kind]()
    if args.family:
        _check_family(args.family, items)
        items = [item for item in items if item.family == args.family]
    if args.licence:
        _check_licence(args.kind, args.licence, everything)
    if args.licence in USES and any("allows" in item.values for item in items):
        items = [item for item in items if args.licence == "any" or args.licence in item.values.get("allows", ())]
    elif args.licence:
        items = [item for item in items if args.licence.casefold() in item.licence.casefold()]
    if args.usable_now:
        if args.kind == "encoders":
            items = [replace(item, usable=catalogue.has_encoder_weights(item.name)) for item in items]
        items = [item for item in items if item.usable is not False]
    if args.json:
        print(as_json([item.as_values() for item in items]))
    elif items:
        print(table([(item.name, *item.columns) for item in items]))
    else:
        print(f"no {args.kind} of that kind", file=sys.stderr)
    return 0


def _check_family(name: str, items: Sequence[catalogue.Item]) -> None:
    """Raise `UserError` for a family that neither this version nor a card knows."""
    from zoo import registry
    from zoo.errors import UserError, suggest

    known = {*registry.table("family"), *(item.family for item in items if item.family)}
    if name not in known:
        raise UserError(f'zoo list: --family: no family "{name}". {suggest(name, sorted(known), "zoo list families")}')


def _check_licence(kind: str, word: str, items: Sequence[catalogue.Item]) -> None:
    """Raise `UserError` for a word that is neither a use nor in the name of a licence here."""
    from zoo.errors import UserError, nearest

    known = sorted({item.licence for item in items if item.licence})
    if word in USES or any(word.casefold() in name.casefold() for name in known):
        return
    close = nearest(word, [*USES, *known])
    meant = (
        f"Did you mean {', '.join(close)}?" if close else f"Expected {', '.join(USES)}, or a part of a licence's name."
    )
    raise UserError(f'zoo list {kind}: --licence: no licence "{word}". {meant} See: zoo list {kind}')
