"""The same decoder with the same budget on several encoders: one recipe, trained with each, judged side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.bench.encoders import Chosen, named
from zoo.bench.results import Results
from zoo.bench.run import bench
from zoo.bench.work import Say
from zoo.encoders import pretrained, tuning
from zoo.errors import UserError
from zoo.recipe import Recipe, load_recipe
from zoo.schema import Component
from zoo.training.check import load_recipe_for_training
from zoo.training.run import resume, train


def bench_decoders(
    encoders: Sequence[str],
    recipe: str,
    overrides: Sequence[str],
    out: Path | str,
    *,
    datasets: Sequence[str] = (),
    say: Say | None = None,
    **options: Any,
) -> Results:
    """Train a recipe with each encoder and write what `bench` writes, a row an encoder, with paired tests.

    Runs lie in `out`/runs/ENCODER; one that was broken off goes on. `datasets`: what is judged on; by default what the
    recipe evaluates on. `options`: those of `bench`. Raises `UserError` before anything is started where the recipe has
    no encoder to exchange, or one of them will not do.
    """
    tell, out = say or (lambda _: None), Path(out)
    chosen = [named(text) for text in encoders]
    plain = load_recipe(recipe, overrides)
    judged = list(datasets) or [f"{d.name}:{d.split}" for d in (plain.evaluate.datasets if plain.evaluate else ())]
    if not judged:
        raise UserError(f"bench: --encoders: {plain.name} says no dataset to evaluate on. Add --datasets NAME:SPLIT.")
    checked = [load_recipe_for_training(recipe, [*overrides, *words(plain, one, out)]) for one in chosen]
    for one, ready in zip(chosen, checked, strict=True):
        if not (ready.run_folder / "recipe.yaml").is_file():
            pretrained.check(one.name, one.weights)
    runs = []
    for number, (one, ready) in enumerate(zip(chosen, checked, strict=True), start=1):
        tell(f"encoder {number} of {len(chosen)}: {one.label}: {ready.run_folder}")
        folder = ready.run_folder
        runs.append(resume(folder) if (folder / "recipe.yaml").is_file() else train(ready))
    return bench([str(run) for run in runs], judged, out, say=say, **options)


def words(recipe: Recipe, one: Chosen, out: Path) -> list[str]:
    """Return the overrides that put an encoder into a recipe; of the old one's arguments those stay that any encoder
    understands (what learns, which neck)."""
    if "encoder" not in recipe.model:
        raise UserError(f"bench: --encoders: {recipe.name} says no encoder (model.encoder). Choose another recipe.")
    before = Component.model_validate(recipe.model["encoder"])
    arguments = {k: v for k, v in before.arguments.items() if k in tuning.NAMES}
    folder = out / "runs" / one.label.replace(":", "-").replace("/", "-")
    return [
        f"model.encoder={json.dumps({'name': one.name, 'arguments': arguments})}",
        f"model.encoder_weights={one.weights}",
        f"output={folder}",
    ]
