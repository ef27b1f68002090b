"""The demonstration's promises that need no training: its numbers, its folder, its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.bench import demo
from zoo.bench.results import Case, Results, Row
from zoo.bench.run import open_named
from zoo.bench.statistics import mean_by_group
from zoo.errors import UserError
from zoo.recipe import load_recipe


def row(weights: str, kind: str, value: float, baseline: bool = False) -> Row:
    case, means = Case("a", "a", {"dice": value}), {"dice": mean_by_group([value], ["a"])}
    return Row(weights, "stardist-2d", "test", kind, "nuclei", kind, ("dice",), (case,), means, baseline)


def test_the_dice_is_that_of_the_semantic_map(tmp_path: Path) -> None:
    rows = (row("run", "semantic", 0.8), row("run", "instances", 0.7), row("otsu", "semantic", 0.9, baseline=True))
    assert demo.dice_of(Results(rows, (), {}, {}, tmp_path)) == {"stardist-2d": 0.8}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        demo.demo(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_what_it_is_judged_on_it_was_not_trained_on() -> None:
    recipe = load_recipe(demo.RECIPE)
    assert recipe.data.validate_ is not None
    seen = {(s.name, s.split) for s in (*recipe.data.train.datasets, *recipe.data.validate_.datasets)}
    judged = [open_named(text) for text in demo._datasets()]
    assert {dataset.name for dataset in judged} == set(demo.FLOORS)
    assert not seen & {(dataset.name, dataset.split) for dataset in judged}
