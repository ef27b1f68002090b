"""Train a recipe into a run folder, or go on with a run as if it had never stopped.

zoo train quickstart
zoo train quickstart train.epochs=20 seed=1 output=runs/second
zoo train --resume runs/second
"""

from __future__ import annotations

import argparse

from zoo.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo train`."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name (`zoo list recipes`), file or run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the recipe, as train.epochs=20")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="a few steps: time, memory and disk of a run; writes nothing"
    )
    parser.add_argument("--devices", default=None, metavar="N", help="devices of each machine, or auto (default 1)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument("--strategy", default="auto", metavar="NAME", help="auto, ddp or fsdp (default auto)")
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="auto, cpu, gpu or mps (default auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train, resume or estimate; the run folder is the last line on standard output."""
    _check_words(args)
    devices = _devices(args.devices)
    if args.resume:
        from zoo.training.run import resume

        where = {"nodes": args.nodes, "strategy": args.strategy, "accelerator": args.accelerator}
        print(resume(args.resume, devices=devices, progress=not args.quiet, **where))
        return 0
    from zoo.training.check import load_recipe_for_training

    count = devices if isinstance(devices, int) else 1
    recipe = load_recipe_for_training(args.recipe, args.overrides, devices=max(1, count) * args.nodes)
    if args.dry_run:
        from zoo.training.run import dry_run

        print(dry_run(recipe, accelerator=args.accelerator))
        return 0
    from zoo.training.run import train

    folder = train(
        recipe,
        devices=1 if devices is None else devices,
        nodes=args.nodes,
        strategy=args.strategy,
        accelerator=args.accelerator,
        progress=not args.quiet,
    )
    from zoo.training.launch import is_first

    if is_first():  # with several devices this command runs once a device
        print(folder)
    return 0


def _check_words(args: argparse.Namespace) -> None:
    if args.resume and args.recipe:
        raise UserError(
            "zoo train: --resume takes the run's own recipe and no changes. Write only: zoo train --resume RUN"
        )
    if args.resume and args.dry_run:
        raise UserError("zoo train: --dry-run is for a new run. Leave out --resume")
    if not args.resume and not args.recipe:
        raise UserError("zoo train: RECIPE is missing. See: zoo list recipes")


def _devices(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.lstrip("-").isdigit() or int(text) == 0 or int(text) < -1:
        raise UserError(
            f'zoo train: --devices: "{text}" will not do. Expected a number of devices, -1 for all, or auto'
        )
    return int(text)
