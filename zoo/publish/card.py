"""The card of a run's weights: made from the file, the recipe and a benchmark, never typed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.cards import WeightsCard, dataset_card
from zoo.errors import UserError
from zoo.families.base import Family
from zoo.recipe import Recipe
from zoo.weights import store


def numbers(results: Mapping[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return a card's numbers from a benchmark's results.json: the rows of one of these labels that do not leak.

    Raises `UserError` where the benchmark was of other weights.
    """
    rows = [row for row in results.get("rows", []) if not row["baseline"]]
    there = list(dict.fromkeys(row["weights"] for row in rows))
    chosen = next((label for label in labels if label in there), there[0] if len(there) == 1 else None)
    if chosen is None:
        raise UserError(
            f"results.json: no rows of {labels[0]}. It has {', '.join(there) or 'none'}. Bench the run itself."
        )
    found = []
    for row in rows:
        if row["leaks"] or row["weights"] != chosen:
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


def bound_by(trained_on: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each dataset whose licence does not let one give away what was made from it."""
    found = []
    for name in dict.fromkeys(str(entry["dataset"]) for entry in trained_on):
        try:
            licence = dataset_card(name).licence
        except UserError:
            found.append(f"{name}: its card is not on this machine; whether its licence allows this is not known")
            continue
        if "derivatives" not in licence.allows:
            found.append(f"{name}: its licence ({licence.name}) does not let one give away what was trained on it")
    return found


def bound_by_start(started_from: Sequence[str]) -> list[str]:
    """Return a sentence for each file of weights with a card, behind those that a run started from, whose licence does
    not let one give away what was made from it."""
    found: list[str] = []
    for name in dict.fromkeys(started_from):
        card, earlier = _start(name)
        if card is not None and "derivatives" not in (licence := card.licence.weights).allows:
            found.append(f"{name}: its licence ({licence.name}) does not let one give away what started from it")
        elif card is None and earlier is None:
            found.append(
                f"{name}: where it started is not on this machine; whether that may be given away is not known"
            )
        found += [line for line in bound_by_start(earlier or ()) if line not in found]
    return found


def _start(name: str) -> tuple[WeightsCard | None, list[str] | None]:
    """Return the card of the weights that a run started from, and what those started from; None where not here."""
    try:
        start = store.find(name)
    except UserError:
        known = store.card_index()
        return (store.card(name) if name in known else None), None
    return start.card, json.loads(store.read_shapes(start.path)[1].get("started_from", "[]"))


def commit_of(run: Path) -> str | None:
    """Return the commit of the code that trained a run, where its environment.json says one."""
    try:
        values = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = values.get("commit")
    return str(found) if found else None


def describe(
    family: Family,
    recipe: Recipe,
    *,
    name: str,
    source: Mapping[str, Any],
    licence: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return a card's values, checked. Raises `UserError` through the schema where something is missing."""
    meta = family.weights_metadata
    values: dict[str, Any] = {
        "zoo": 1,
        "name": name,
        "summary": recipe.summary,
        "family": family.name,
        "recipe": recipe.name,
        "recipe_hash": meta.get("recipe_hash"),
        "seed": recipe.seed,
        "source": dict(source),
        "licence": dict(licence),
        "input": f"{', '.join(family.spec.channels)}; um per pixel {family.spec.mpp or 'as it is'}",
        "output": "; ".join(f"{k}: {o.kind} ({', '.join(o.classes)})" for k, o in family.spec.outputs.items()),
        "trained_on": json.loads(meta.get("trained_on", "[]")),
        "numbers": [dict(number) for number in found],
    }
    values |= {k: v for k, v in more.items() if v is not None}
    WeightsCard.model_validate(values)
    return values
