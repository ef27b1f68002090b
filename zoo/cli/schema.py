"""Print the JSON schema of recipes (or of cards), which editors use to complete and check YAML. With --out, write it
to a file. In VS Code's YAML extension, for example, begin a recipe with

  # yaml-language-server: $schema=recipe.schema.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.cli.text import as_json
from zoo.errors import UserError

KINDS = ("recipe", "dataset-card", "weights-card")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo schema`."""
    parser.add_argument("kind", nargs="?", default="recipe", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--out", metavar="FILE", help="write to a file in place of standard output")


def run(args: argparse.Namespace) -> int:
    """Print or write the schema."""
    from zoo.cards import DatasetCard, WeightsCard
    from zoo.recipe import json_schema

    cards: dict[str, type[DatasetCard] | type[WeightsCard]] = {"dataset-card": DatasetCard, "weights-card": WeightsCard}
    text = as_json(json_schema() if args.kind == "recipe" else cards[args.kind].model_json_schema(by_alias=True))
    if not args.out:
        print(text)
        return 0
    try:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}). Choose another --out") from None
    print(args.out)
    return 0
