"""Bundle a run's weights with the package: half precision, a card, numbers from a benchmark.

    python tools/bundle.py RUN NAME.TAG [--results BENCH/results.json] [--commit COMMIT] [--default]

Bench the bundled file itself (`zoo bench --weights NAME.TAG`), then bundle again with its results.json: the bytes stay.
Writes zoo/weights/bundled/NAME.TAG.safetensors and NAME.TAG.yaml. Refuses data whose licence does not let one give away
what was trained on it, and a file above the budget of 8 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from zoo.cards import WeightsCard, dataset_card
from zoo.families import build
from zoo.recipe import dump_yaml, load_recipe
from zoo.weights.store import BUNDLE

BUDGET = 8_000_000


def numbers(results: Path | None) -> list[dict[str, Any]]:
    """Return a card's numbers from a benchmark: the rows that are neither a baseline nor leaking."""
    if results is None:
        return []
    found = []
    for row in json.loads(results.read_text())["rows"]:
        if row["baseline"] or row["leaks"]:
            continue
        for metric, number in row["metrics"].items():
            if number["value"] is None:
                continue
            found.append(
                {
                    "dataset": row["dataset"],
                    "split": row["split"],
                    "metric": f"{row['output']}/{metric}",
                    "value": round(number["value"], 4),
                    "interval": None if number["low"] is None else [round(number["low"], 4), round(number["high"], 4)],
                    "n": number["images"],
                    "groups": number["groups"],
                }
            )
    return found


def licence(trained_on: list[dict[str, Any]]) -> None:
    """Stop where a dataset's licence does not let one give away what was made from it."""
    for entry in trained_on:
        card = dataset_card(entry["dataset"])
        if "derivatives" not in card.licence.allows:
            sys.exit(
                f"{card.name}: its licence ({card.licence.name}) does not let us give away what was trained on it."
            )


def main() -> None:
    """Bundle one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="RECIPE.TAG")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--commit", help="commit of the code that trained the run; default: HEAD")
    parser.add_argument("--default", action="store_true", help="the recipe's name alone means these weights")
    options = parser.parse_args()

    family = build.load(options.run)
    meta = family.weights_metadata
    trained_on = json.loads(meta["trained_on"])
    licence(trained_on)
    recipe = load_recipe(options.run / "recipe.yaml")
    file = BUNDLE / f"{options.name}.safetensors"
    kept = {k: v for k, v in meta.items() if k not in ("format", "family", "options")}
    build.save(family, file, half=True, **kept)
    size = file.stat().st_size
    if size > BUDGET:
        file.unlink()
        sys.exit(f"{options.name}: {size} bytes are above the budget of {BUDGET}.")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    card = {
        "zoo": 1,
        "name": options.name,
        "summary": recipe.summary,
        "default": options.default,
        "family": family.name,
        "recipe": recipe.name,
        "recipe_hash": meta.get("recipe_hash"),
        "commit": options.commit or head,
        "seed": recipe.seed,
        "source": {
            "kind": "bundled",
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": size,
        },
        "licence": {
            "code": "Apache-2.0",
            "weights": {"name": "Apache-2.0", "allows": ["research", "commercial", "redistribution", "derivatives"]},
        },
        "input": f"{', '.join(family.spec.channels)}; um per pixel {family.spec.mpp or 'as it is'}",
        "output": "; ".join(f"{k}: {o.kind} ({', '.join(o.classes)})" for k, o in family.spec.outputs.items()),
        "trained_on": trained_on,
        "numbers": numbers(options.results),
        "notes": "Stored in half precision; the numbers are those of the stored file.",
    }
    WeightsCard.model_validate(card)
    (BUNDLE / f"{options.name}.yaml").write_text(dump_yaml(card))
    print(f"{file}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
