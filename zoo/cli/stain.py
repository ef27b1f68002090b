"""Stain tools for images, folders, globs and slides (one look a slide).

zoo stain normalise slides/*.tif --out DIR --target reference.png
zoo stain separate tiles --out DIR --method macenko
zoo stain measure tiles
zoo stain statistics tiles --out look.yaml

Methods: macenko, macenko-torchstain, vahadane, vahadane-tiatoolbox, ruifrok, custom (with --matrix) and reinhard. What
cannot be normalised (blank, one colour, pen) stays as it is, and is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from zoo.cli.text import as_json
from zoo.errors import UserError, counted

ACTIONS = ("normalise", "separate", "measure", "statistics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo stain`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders or globs")
    parser.add_argument("--out", metavar="PATH", help="folder for the results; of statistics, the file")
    parser.add_argument("--method", metavar="NAME", help="how stains are found (default macenko)")
    parser.add_argument("--target", metavar="IMAGE", help="reference picture (default: a published reference)")
    parser.add_argument("--matrix", metavar="ROWS", help="method custom: 'r,g,b r,g,b', haematoxylin first")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    if args.action != "measure" and not args.out:
        raise UserError(f"zoo stain {args.action}: no --out. Expected where the results go. See: zoo stain --help")
    if args.action == "measure" and args.out:
        raise UserError("zoo stain measure: --out: nothing is written. Leave it out; --json prints all of it.")
    given = [name for name in ("method", "target", "matrix") if getattr(args, name) is not None]
    if args.action == "statistics" and given:
        raise UserError(f"zoo stain statistics: --{given[0]}: colours are counted as they are. Leave it out.")
    return _statistics(args) if args.action == "statistics" else _with_method(args)


def _with_method(args: argparse.Namespace) -> int:
    from zoo.data.stains import from_component
    from zoo.inference import stains
    from zoo.schema import Component

    given: dict[str, Any] = {}
    if args.target:
        given["target"] = args.target
    if args.matrix:
        given["matrix"] = _rows(args.matrix)
    made = from_component(Component(name=args.method or "macenko", arguments=given))
    if args.action == "measure":
        report = stains.measure_files(made, args.images)
    elif args.action == "normalise":
        report = stains.normalise_files(made, args.images, Path(args.out))
    else:
        report = stains.separate_files(made, args.images, Path(args.out))
    return _say(args, report)


def _rows(text: str) -> list[list[float]]:
    try:
        return [[float(v) for v in row.split(",")] for row in text.replace(";", " ").split()]
    except ValueError:
        raise UserError(f'--matrix: "{text}" will not do. Expected rows as 0.65,0.70,0.29 0.07,0.99,0.11') from None


def _say(args: argparse.Namespace, report: Any) -> int:
    for failure in report.failures:
        print(failure["error"], file=sys.stderr)
    if args.json:
        print(as_json({"images": report.records, "failures": report.failures}))
        return int(report.status)
    for record in report.records:
        print(_line(record))
    done = counted(len(report.records), "image")
    failed = f", {len(report.failures)} failed" if report.failures else ""
    print(f"{args.out}: {done}{failed}" if args.out else f"{done}{failed}")
    return int(report.status)


def _line(record: dict[str, Any]) -> str:
    words = [record.get("output") or record["file"]]
    if "matrix" in record and "output" not in record:
        words += ["  ".join(" ".join(f"{v:5.2f}" for v in row) for row in record["matrix"])]
    if record.get("note"):
        words.append(record["note"])
    return ": ".join(words)


def _statistics(args: argparse.Namespace) -> int:
    from zoo.inference import stains
    from zoo.recipe import dump_yaml

    out = Path(args.out)
    report, values = stains.statistics_of_files(args.images, out)
    out.write_text(dump_yaml(values), encoding="utf-8")
    for failure in report.failures:
        print(failure["error"], file=sys.stderr)
    if args.json:
        print(as_json({"statistics": values, "images": report.records, "failures": report.failures}))
        return int(report.status)
    used = sum(record["counted"] for record in report.records)
    left = f", {len(report.records) - used} without stained tissue left out" if used < len(report.records) else ""
    print(f"{out}: statistics of {counted(used, 'image')}{left}. In a recipe: augment: [{{name: randstainna, ...}}]")
    return int(report.status)
