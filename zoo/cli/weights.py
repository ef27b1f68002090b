"""List weights, pull them, verify what is here, make ready to give away.

zoo weights list
zoo weights pull NAME                     fetch, check, convert
zoo weights pull NAME --from FILE         one that you fetched by hand
zoo weights verify                        all that is here
zoo weights mirror NAME... --out DIR      for machines without a network
zoo weights push RUN --name x.lab --licence MIT --out DIR
zoo weights remove NAME
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError, ZooError

if TYPE_CHECKING:
    from zoo.weights.gather import How

FORMATS = ("hub", "monai", "plain")
ACTIONS = ("list", "pull", "verify", "mirror", "push", "remove")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo weights`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names, hf://OWNER/NAME@REVISION, run folders or files"
    )
    parser.add_argument("--out", metavar="DIR", help="mirror, push: folder to write into")
    pull = parser.add_argument_group("pull and mirror")
    pull.add_argument(
        "--from", dest="origin", metavar="PLACE", help="file, folder or mirror (folder or address) to take it from"
    )
    pull.add_argument("--accept-licence", action="store_true", help="I have read the licence and accept it")
    pull.add_argument("--quiet", action="store_true", help="no progress bar")
    push = parser.add_argument_group("push")
    push.add_argument("--name", metavar="NAME.TAG", help="name of the weights (default: that of the recipe, .v1)")
    push.add_argument("--licence", metavar="SPDX", help="licence of the weights, as Apache-2.0")
    push.add_argument("--licence-file", metavar="FILE", help="its text")
    push.add_argument("--allows", metavar="USES", help="what it allows: research,commercial,redistribution,derivatives")
    push.add_argument("--results", metavar="FILE", help="results.json of zoo bench (default: measured now)")
    push.add_argument("--no-numbers", action="store_true", help="a card without numbers")
    push.add_argument("--half", action="store_true", help="store in 16 bits")
    push.add_argument("--with-permission", action="store_true", help="the owners of the data have agreed")
    push.add_argument("--format", choices=FORMATS, default="hub", metavar="FORM", help=", ".join(FORMATS))
    push.add_argument("--to", metavar="OWNER/NAME", help="upload to this hub repository (wants a token)")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    return {"list": _list, "pull": _pull, "verify": _verify, "mirror": _mirror, "push": _push, "remove": _remove}[
        args.action
    ](args)


def _list(args: argparse.Namespace) -> int:
    from zoo.cli import catalogue
    from zoo.cli.text import table

    if args.names:
        raise UserError("zoo weights list: it takes no names. See: zoo show NAME")
    print(table([(item.name, *item.columns) for item in catalogue.weights()]))
    return 0


def _wanted(args: argparse.Namespace) -> list[str]:
    if not args.names:
        raise UserError(f"zoo weights {args.action}: no NAME. Expected at least one. See: zoo list weights")
    return list(args.names)


def _how(args: argparse.Namespace) -> How:
    from zoo.fetch.http import Settings
    from zoo.weights.gather import How

    settings = Settings(progress=False if args.quiet else None)
    return How(args.origin, args.accept_licence, lambda line: print(line, file=sys.stderr), settings)


def _pull(args: argparse.Namespace) -> int:
    from zoo.weights.pull import pull

    how = _how(args)
    names = _known(_wanted(args))

    def one(name: str) -> str:
        found = pull(name, how)
        return f"{found.name} {found.path}"

    return _each(names, one)


def _each(names: list[str], say: Callable[[str], str]) -> int:
    """Print what is said of each name and return the exit status: 1 where one of several failed, and was told."""
    status = 0
    for name in names:
        try:
            print(say(name))
        except ZooError as error:
            if len(names) == 1:
                raise
            print(error, file=sys.stderr)
            status = 1
    return status


def _known(names: list[str]) -> list[str]:
    """Return names of which each has a card, before the first is fetched. Raises `UserError`."""
    from zoo.weights import store

    return [name if name.startswith("hf://") else store.resolve(name) for name in names]


def _mirror(args: argparse.Namespace) -> int:
    from zoo.weights.pull import mirror

    if not args.out:
        raise UserError("zoo weights mirror: --out DIR is missing. Say where to write")
    how, out = _how(args), Path(args.out).expanduser()
    names = _known(_wanted(args))
    status = _each(names, lambda name: f"{name} {mirror(name, out, how) or 'comes with histozoo: nothing to mirror'}")
    print(f"there: ZOO_MIRROR={out} zoo weights pull {' '.join(names)}", file=sys.stderr)
    return status


def _verify(args: argparse.Namespace) -> int:
    from zoo.cli import catalogue
    from zoo.weights.pull import verify

    names = list(args.names) or [item.name for item in catalogue.weights() if item.usable]
    for name in args.names:  # what is not here is a mistake that is said before the first file is read
        _here(name)
    status = 0
    for name in names:
        try:
            found, actual, compared = verify(name)
        except ZooError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        family = found.card.of if found.card else _family(found.path)
        print(f"{found.name} ok: {family}, sha256 {actual[:16]}... ({compared})")
    return status


def _here(name: str) -> None:
    from zoo.weights import store

    if Path(name).expanduser().exists() or name.startswith("hf://"):
        return
    card = store.card(store.resolve(name))
    if store.local(card) is None:
        raise store.absent(card)


def _family(path: Path) -> str:
    from zoo.weights import store

    return store.read_shapes(path)[1].get("family", "")


def _push(args: argparse.Namespace) -> int:
    from zoo.fetch import hub
    from zoo.publish.folder import Wish, push

    names = _wanted(args)
    if len(names) > 1:
        raise UserError("zoo weights push: several runs. Expected one: each has a folder of its own")
    if not args.out:
        raise UserError("zoo weights push: --out DIR is missing. Say where to write")
    wish = Wish(
        name=args.name,
        licence=args.licence,
        allows=_uses(args.allows),
        text=Path(args.licence_file).expanduser() if args.licence_file else None,
        results=Path(args.results).expanduser() if args.results else None,
        half=args.half,
        permission=args.with_permission,
        judge=not args.no_numbers,
        form=args.format,
    )
    say = _how(args).say
    folder = push(Path(names[0]).expanduser(), Path(args.out).expanduser(), wish, say)
    print(folder)
    if args.to:
        repository, _ = hub.parse(f"{hub.SCHEME}{args.to}")
        print(hub.upload(folder, repository, f"{args.name or folder.name}, by zoo weights push"))
    return 0


def _uses(text: str | None) -> tuple[str, ...]:
    from typing import get_args

    from zoo.cards import Use
    from zoo.errors import suggest

    words = tuple(word.strip() for word in (text or "").split(",") if word.strip())
    for word in words:
        if word not in get_args(Use):
            raise UserError(f'zoo weights push: --allows: "{word}" is no use. {suggest(word, get_args(Use))}')
    return words


def _remove(args: argparse.Namespace) -> int:
    from zoo.weights.pull import remove

    for name in _wanted(args):
        print(f"{name} removed: {remove(name) / 1e6:.1f} MB freed")
    return 0
