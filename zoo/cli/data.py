"""Fetch or check a copy of a dataset, write a card for your own folder, or samples.

zoo data fetch bccd                 download it, or say how, then check it
zoo data check glas                 is the copy whole, and does anything leak
zoo data check leukemia-attri subset=L_40X_C2
zoo data init FOLDER --um 0.5       write FOLDER/zoo-dataset.yaml
zoo data init FOLDER --images he --pictures ihc     of pairs in two folders
zoo data sample phantom-smear difficulty=hard --count 16 --sheet --out DIR
zoo data align phantom-stains       how far its pairs lie off
zoo data gate orion-crc --out DIR   which nuclei are positive
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from zoo.cli.text import as_json, paragraph
from zoo.errors import UserError, ZooError, counted

ACTIONS = ("align", "check", "fetch", "gate", "init", "sample")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo data`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="dataset name or folder; all but fetch and init take key=value"
    )
    check = parser.add_argument_group("check")
    check.add_argument("--between", action="store_true", help="also look for images that the datasets share")
    check.add_argument("--json", action="store_true", help="for machines")
    fetch = parser.add_argument_group("fetch")
    fetch.add_argument("--accept-licence", action="store_true", help="I have read the licence and accept it")
    fetch.add_argument("--quiet", action="store_true", help="no progress bar")
    init = parser.add_argument_group("init")
    init.add_argument("--name", help="name of the dataset (default: that of the folder)")
    init.add_argument("--um", type=float, help="um per pixel, where the files do not say it")
    init.add_argument("--group", metavar="REGEX", help="first bracket = patient or slide in an image's id")
    init.add_argument("--images", metavar="FOLDER", help="sub-folder of the images (default: guessed)")
    init.add_argument("--masks", metavar="FOLDER", help="sub-folder of the masks (default: guessed)")
    init.add_argument(
        "--pictures", metavar="FOLDER", action="append", help="sub-folder of pictures of the same fields (pairs)"
    )
    init.add_argument("--kind", choices=("semantic", "instances"), metavar="KIND", help="semantic or instances")
    init.add_argument("--truth", default="objects", help="key of the truth (default objects)")
    init.add_argument("--licence", default="not stated", help="licence of the data")
    init.add_argument("--force", action="store_true", help="replace a card that is there")
    sample = parser.add_argument_group("sample")
    sample.add_argument("--out", metavar="DIR", help="folder to write into")
    sample.add_argument("--split", default="all", help="split (default all)")
    sample.add_argument("--count", type=int, default=3, metavar="N", help="how many (default 3)")
    align = parser.add_argument_group("align")
    align.add_argument("--picture", metavar="KEY", help="truth to compare with the image (default: the only picture)")
    align.add_argument("--reach", type=int, default=24, metavar="N", help="largest offset looked for (default 24)")
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--by", choices=("slide", "image"), default="slide", help="where labels are unique (default slide)"
    )
    gate.add_argument("--how", choices=("posterior", "crossing"), default="posterior", help="ORION's way, or HEMIT's")
    sample.add_argument("--sheet", action="store_true", help="also NAME.sheet.png: all of it to look at")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    actions = {"check": _check, "fetch": _fetch, "gate": _gate, "init": _init, "sample": _sample, "align": _align}
    return actions[args.action](args)


def _check(args: argparse.Namespace) -> int:
    from zoo.data.integrity import check_dataset, leakage, prints_of

    names, arguments = _arguments(args)
    reports, failed = {}, {}
    for name in names:
        try:
            report = check_dataset(name, arguments=arguments, progress=_progress if sys.stderr.isatty() else None)
        except ZooError as error:
            if len(names) == 1:
                raise
            failed[name] = str(error)
            print(error, file=sys.stderr)  # the others are checked all the same
            continue
        reports[name] = report
        if not args.json:
            print("\n".join(report.lines()))
    shared = []
    if args.between:
        from zoo.data import open_dataset

        prints = {name: prints_of(open_dataset(name, arguments=arguments)) for name in reports}
        for one, other in itertools.combinations(reports, 2):
            shared += leakage(prints[one], prints[other], (one, other))
    if args.json:
        told = [r.values() for r in reports.values()]
        told += [{"dataset": name, "ok": False, "error": error} for name, error in failed.items()]
        print(as_json({"datasets": told, "between": [vars(f) for f in shared]}))
    elif args.between and len(reports) > 1:
        print("\n".join(map(str, shared)) or "between: nothing is shared")
    return 0 if not failed and all(report.ok for report in reports.values()) else 1


def _fetch(args: argparse.Namespace) -> int:
    from zoo.cards import dataset_card
    from zoo.data.fetch import How, fetch
    from zoo.data.integrity import check_dataset
    from zoo.fetch.http import Settings

    status = 0
    for name in args.names:
        dataset_card(name)  # an unknown name is said before the first byte
    for name in args.names:
        try:
            found = fetch(name, How(args.accept_licence, Settings(progress=False if args.quiet else None)))
            print("\n".join(paragraph(line, "  ", "") for line in found.lines))
            if found.complete and found.folder is not None:
                report = check_dataset(name, progress=_progress if sys.stderr.isatty() else None)
                print("\n".join(report.lines()))
                status = status if report.ok else 1
        except ZooError as error:
            if len(args.names) == 1:
                raise
            print(error, file=sys.stderr)
            status = 1
    return status


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {counted(total, 'image')}", end=end, file=sys.stderr, flush=True)


def _init(args: argparse.Namespace) -> int:
    from zoo.cards import CARD_NAME
    from zoo.data.init import init_folder
    from zoo.data.init_pairs import init_pairs

    for name in args.names:
        card = Path(name).expanduser() / CARD_NAME
        if card.exists() and not args.force:
            raise UserError(f"{card}: a card is there already. Replace it with: zoo data init {name} --force")
        common = {"name": args.name, "um": args.um, "group_pattern": args.group, "licence": args.licence}
        if args.pictures:
            text, report = init_pairs(name, args.images or "images", args.pictures, **common)
        else:
            told = {"images": args.images, "masks": args.masks, "kind": args.kind, "truth": args.truth}
            text, report = init_folder(name, **told, **common)
        try:
            card.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{card}: cannot be written ({error.strerror}). Make the folder writable") from None
        print("\n".join(paragraph(line, "      ", line[: len(line) - len(line.lstrip())]) for line in report))
    return 0


def _arguments(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Return the datasets that are named, and what `key=value` says to their readers."""
    from zoo.recipe import apply_overrides
    from zoo.schema import Document

    told = Document({}, file=f"zoo data {args.action}")
    apply_overrides(told, [word for word in args.names if "=" in word])
    names = [word for word in args.names if "=" not in word]
    if not names:
        raise UserError(f"zoo data {args.action}: no dataset is named. See: zoo list datasets")
    return names, told.values


def _align(args: argparse.Namespace) -> int:
    from zoo.data import open_dataset
    from zoo.data.registration import align

    names, arguments = _arguments(args)
    progress = _progress if sys.stderr.isatty() else None
    found = []
    for name in names:
        dataset = open_dataset(name, split=args.split, arguments=arguments)
        found.append(align(dataset, args.picture, reach=args.reach, progress=progress))
    if args.json:
        print(as_json([one.values() for one in found]))
    else:
        print("\n".join(line for one in found for line in one.lines()))
    return 1 if any(one.failures for one in found) else 0


def _gate(args: argparse.Namespace) -> int:
    if not args.out:
        raise UserError("zoo data gate: --out DIR is missing. Say where to write")
    from zoo.bench.gate import gate_dataset
    from zoo.data import open_dataset

    names, arguments = _arguments(args)
    progress = _progress if sys.stderr.isatty() else None
    for name in names:
        dataset = open_dataset(name, split=args.split, arguments=arguments)
        out = Path(args.out) / name if len(names) > 1 else Path(args.out)
        for path in gate_dataset(dataset, out, by=args.by, how=args.how, progress=progress):
            print(path)
    return 0


def _sample(args: argparse.Namespace) -> int:
    if not args.out:
        raise UserError("zoo data sample: --out DIR is missing. Say where to write")
    from zoo.data.samples import write_samples

    names, arguments = _arguments(args)
    for name in names:
        out = Path(args.out) / name if len(names) > 1 else Path(args.out)
        for path in write_samples(name, out, split=args.split, count=args.count, arguments=arguments, sheet=args.sheet):
            print(path)
    return 0
