"""Grouped cross-validation of a recipe: train it once a fold, judge each image by the model that never saw its group.

Folds are cut by patient or slide (`zoo.data.splits`). The weights of a fold are its last ones, never the best on what
it holds back, so that no number here was chosen on the images that it is about. A fold that was broken off is gone on
with; one that is done is not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.bench import leakage
from zoo.bench.cache import Cache
from zoo.bench.open import open_named
from zoo.bench.results import Results
from zoo.bench.run import Benchmark, prepare
from zoo.bench.work import Judged, Outcome, Say, Settings, Weights
from zoo.data.datasets import Dataset
from zoo.errors import UserError
from zoo.families import score
from zoo.recipe import DataSource, Recipe, load_recipe
from zoo.training.check import load_recipe_for_training
from zoo.training.run import resume, train
from zoo.weights.store import Found


def bench_folds(
    recipe: str,
    overrides: Sequence[str],
    folds: int,
    out: Path | str,
    *,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    jobs: int = 0,
    save_pictures: bool = True,
    say: Say | None = None,
    device: str = "cpu",
    mpp: float | tuple[float, ...] | str | None = None,
    **options: Any,
) -> Results:
    """Cross-validate a recipe in `folds` folds and write what `bench` writes, one row for all folds together.

    Runs lie in `out`/folds/0, 1, ... . Each dataset that the recipe trains on is cut; what it validates on is cut alike
    where it is the same dataset. Raises `UserError` before anything is started where the recipe or the number of folds
    will not do.
    """
    tell = say or (lambda _: None)
    if metrics is not None:
        score.check_metrics(metrics)
    plain = load_recipe(recipe, overrides)
    _check(plain, folds)
    checked = [load_recipe_for_training(recipe, _words(plain, overrides, k, folds, Path(out))) for k in range(folds)]
    parts = [open_named(f"{s.name}:{s.split}@{k}/{folds}") for s in plain.data.train.datasets for k in range(folds)]
    prepare(Path(out))
    runs = []
    for number, one in enumerate(checked):
        tell(f"fold {number + 1} of {folds}: {one.run_folder}")
        runs.append(resume(one.run_folder) if (one.run_folder / "recipe.yaml").is_file() else train(one))
    settings = Settings(
        tuple(metrics) if metrics else None,
        None,
        mpp,
        device,
        seed,
        save_pictures,
        cache=Cache.usual().folder,
        options=dict(options),
    )
    return _judge(plain, folds, runs, parts, Path(out), settings, jobs, tell)


def _check(recipe: Recipe, folds: int) -> None:
    if folds < 2:
        raise UserError(f"bench: --folds: {folds} will not do. Expected 2 or more.")
    if recipe.stages and any(stage.data for stage in recipe.stages):
        raise UserError(f"bench: --folds: {recipe.name} has stages with data of their own. Expected one `data`.")
    for source in recipe.data.train.datasets:
        dataset = open_named(f"{source.name}:{source.split}")
        groups = len({entry.unit for entry in dataset.index})
        if groups < folds:
            raise UserError(
                f"bench: --folds: {source.name}:{source.split} has {groups} groups, too few for {folds} folds. "
                f"Expected at most {groups}."
            )


def _words(recipe: Recipe, overrides: Sequence[str], fold: int, folds: int, out: Path) -> list[str]:
    """Return the recipe's overrides for one fold."""
    words = [*overrides, f"output={out / 'folds' / str(fold)}"]
    trained = {(s.name, s.split) for s in recipe.data.train.datasets}
    for i, _ in enumerate(recipe.data.train.datasets):
        words += [f"data.train.datasets.{i}.fold={fold}", f"data.train.datasets.{i}.folds={folds}"]
    validated: Sequence[DataSource] = recipe.data.validate_.datasets if recipe.data.validate_ else ()
    for i, source in enumerate(validated):
        if (source.name, source.split) in trained:
            words += [f"data.validate.datasets.{i}.fold={fold}", f"data.validate.datasets.{i}.folds={folds}"]
    return words


def _judge(
    recipe: Recipe,
    folds: int,
    runs: Sequence[Path],
    parts: Sequence[Dataset],
    out: Path,
    settings: Settings,
    jobs: int,
    say: Say,
) -> Results:
    """Judge each run on what it held back, and add the cases of all folds up."""
    label = f"{recipe.name} ({folds} folds)"
    benchmark = Benchmark(out, settings, parts, say)
    units = []
    for k, run in enumerate(runs):
        found = Found(f"{recipe.name}-fold-{k}", run / "last.safetensors")
        weights = Weights(label, (found,), leakage.record_of(found))
        held = [(n, part) for n, part in enumerate(parts) if part.split.endswith(f"@{k}/{folds}")]
        for _, part in held:
            leaks = leakage.overlap(weights.record.trained or (), part.name, "", part.index)
            if leaks:
                raise UserError(f"{run}: the run has seen images of its fold ({', '.join(leaks[:3])}). Remove it.")
        units.append(benchmark.unit(weights, held))
    whole = _together(benchmark.work(units, jobs), folds)
    benchmark.failures += whole.failures
    for judged in whole.judged:
        part = parts[judged.dataset]
        place = (part.name, f"{part.split.partition('@')[0]} in {folds} folds")
        notes = ["each image judged by the model that has not seen its group", "last weights of each fold"]
        benchmark.tasks.setdefault(judged.dataset, []).append(judged.task)
        benchmark.add(label, place, judged, notes=notes)
    _baselines(benchmark, parts, folds)
    return benchmark.finish([label])


def _together(outcomes: Sequence[Outcome], folds: int) -> Outcome:
    """Return one outcome: the cases of all folds of a dataset's output under its first fold."""
    found: dict[tuple[int, str], Judged] = {}
    whole = Outcome()
    for outcome in outcomes:
        whole.failures += outcome.failures
        for judged in outcome.judged:
            first = judged.dataset - judged.dataset % folds
            one = found.setdefault((first, judged.task.output), replace(judged, dataset=first, cases=[]))
            one.cases.extend(judged.cases)
    whole.judged = list(found.values())
    return whole


def _baselines(benchmark: Benchmark, parts: Sequence[Dataset], folds: int) -> None:
    """Judge the baselines on all images of each dataset."""
    from zoo.bench import baselines

    for first in range(0, len(parts), folds):
        own = parts[first : first + folds]
        dataset = replace(own[0], index=tuple(entry for part in own for entry in part.index))
        found, failures = baselines.judge(first, dataset, benchmark.tasks.get(first, []))
        benchmark.failures += failures
        for name, judged in found:
            place = (dataset.name, f"{dataset.split.partition('@')[0]} in {folds} folds")
            benchmark.add(name, place, judged, baseline=True, notes=[judged.task.note] if judged.task.note else [])
