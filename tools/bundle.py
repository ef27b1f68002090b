"""Bundle a run's weights with the package: half precision, a card, numbers from a benchmark.

    python tools/bundle.py RUN NAME.TAG [--results BENCH/results.json] [--commit COMMIT] [--default]

Bench the bundled file itself (`zoo bench --weights NAME.TAG`), then bundle again with its results.json: the bytes stay.
Of a generator, `--numbers` takes the numbers.json of benchmarks/diffusion_use.py. Writes
zoo/weights/bundled/NAME.TAG.safetensors and NAME.TAG.yaml. Refuses data whose licence does not let one give away what
was trained on it, and a file above the budget of 8 MB (12 of a generator).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from zoo.families import build
from zoo.fetch import checksum
from zoo.publish.card import bound_by, describe, numbers
from zoo.recipe import dump_yaml, load_recipe
from zoo.weights.store import BUNDLE

BUDGET, GENERATOR = 8_000_000, 12_000_000


def main() -> None:
    """Bundle one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="RECIPE.TAG")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--numbers", type=Path, help="numbers as a card has them")
    parser.add_argument("--notes", default="", help="more that a reader must know")
    parser.add_argument("--commit", help="commit of the code that trained the run; default: HEAD")
    parser.add_argument("--default", action="store_true", help="the recipe's name alone means these weights")
    options = parser.parse_args()

    family = build.load(options.run)
    meta = family.weights_metadata
    bound = bound_by(json.loads(meta["trained_on"]))
    if bound:
        sys.exit(f"{bound[0]}.")
    recipe = load_recipe(options.run / "recipe.yaml")
    file = BUNDLE / f"{options.name}.safetensors"
    kept = {k: v for k, v in meta.items() if k not in ("format", "family", "options")}
    build.save(family, file, half=True, **kept)
    size = file.stat().st_size
    budget = GENERATOR if family.name == "diffusion" else BUDGET
    if size > budget:
        file.unlink()
        sys.exit(f"{options.name}: {size} bytes are above the budget of {budget}.")
    found = numbers(json.loads(options.results.read_text()), [options.name]) if options.results else []
    found += json.loads(options.numbers.read_text()) if options.numbers else []
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    card = describe(
        family,
        recipe,
        name=options.name,
        source={"kind": "bundled", "file": file.name, "sha256": checksum(file), "size": size},
        licence={
            "code": "Apache-2.0",
            "weights": {"name": "Apache-2.0", "allows": ["research", "commercial", "redistribution", "derivatives"]},
        },
        found=found,
        default=options.default or None,
        commit=options.commit or head,
        notes=f"Stored in half precision; the numbers are those of the stored file. {options.notes}".strip(),
    )
    (BUNDLE / f"{options.name}.yaml").write_text(dump_yaml(card))
    print(f"{file}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
