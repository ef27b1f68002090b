"""Weights x datasets -> rows with intervals, comparisons, files, a report.

Everything that can be known to be wrong is said before anything starts. After that nothing stops the others: a broken
file of weights, an image that cannot be read, a prediction that fails, a process that the system ends is written down
as a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.bench import analysis, baselines, operating, processes, report, work
from zoo.bench.cache import Cache
from zoo.bench.open import leaked, notes_on, open_all, open_named, refuse_leaks
from zoo.bench.perturb import PERTURBATIONS
from zoo.bench.results import Failure, Results, Row
from zoo.bench.work import Judged, Outcome, Say, Settings, Unit, Weights
from zoo.data.datasets import Dataset
from zoo.errors import UserError, suggest
from zoo.families import score
from zoo.families.score import Task
from zoo.inference.averaged import TURNS

__all__ = ["Settings", "Weights", "bench", "open_named"]


def bench(
    weights: Sequence[str],
    datasets: Sequence[str],
    out: Path | str,
    *,
    allow_leakage: bool = False,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    mpp: float | tuple[float, ...] | str | None = None,
    device: str = "cpu",
    seed: int = 0,
    save_pictures: bool = True,
    say: Say | None = None,
    jobs: int = 0,
    tta: str = "none",
    robustness: Sequence[str] = (),
    operating_on: str | None = None,
    cache: bool = True,
    **options: Any,
) -> Results:
    """Judge weights on datasets and write results.json, table.md, report.html, per_image.parquet and .csv into `out`.

    `weights`: names, run folders or files; `A+B` is their ensemble. `datasets`: `NAME` or `NAME:SPLIT`; without a split
    it is "test" where the dataset has one, else "all". `metrics`: names (`zoo list metrics`), None for those that fit.
    `limit`: the first so many images of each dataset. `mpp`: um per pixel of images whose dataset does not know it, or
    "native". `jobs`: processes at a time, each judging one file of weights and dying alone; 0 judges in this process.
    `tta`: "flips" or "d4". `robustness`: perturbations (`zoo.bench.perturb`) whose curves are wanted. `operating_on`:
    `NAME:SPLIT` on which thresholds are chosen before. `cache`: whether predictions are kept under `ZOO_CACHE` and
    found again. `options`: those of prediction (tile, overlap, batch, and the family's own). Rows of Otsu's threshold
    and of all-foreground (of a picture: the unchanged input) stand under every table.

    Raises `Problems` (a `UserError`) with everything that is wrong before anything is started: unknown names, and
    weights that have seen images or groups of a dataset unless `allow_leakage`, which marks such rows. Afterwards
    failures are collected: `Results.failures`, `Results.status`.
    """
    if metrics is not None:
        score.check_metrics(metrics)
    _check(tta, robustness, jobs)
    kept = Cache.usual().folder if cache else None
    settings = Settings(
        tuple(metrics) if metrics else None,
        limit,
        mpp,
        device,
        seed,
        save_pictures,
        tta,
        tuple(robustness),
        kept,
        dict(options),
    )
    found, opened = open_all([str(w) for w in weights], datasets, limit)
    if not allow_leakage:
        refuse_leaks(found, opened)
    chosen_on = None if operating_on is None else open_named(operating_on, limit)
    if chosen_on is not None:
        operating.refuse(chosen_on, opened)
    prepare(Path(out))
    benchmark = Benchmark(Path(out), settings, opened, say or (lambda _: None))
    if chosen_on is not None:
        found = benchmark.choose(found, chosen_on)
    benchmark.judge(found, jobs)
    return benchmark.finish([w.label for w in found])


def _check(tta: str, robustness: Sequence[str], jobs: int) -> None:
    if tta not in TURNS:
        raise UserError(f'bench: --tta: no augmentation "{tta}". Expected one of {", ".join(TURNS)}.')
    for name in robustness:
        if name not in PERTURBATIONS:
            raise UserError(f'bench: --robustness: no perturbation "{name}". {suggest(name, PERTURBATIONS)}')
    if jobs < 0:
        raise UserError(f"bench: --jobs: {jobs} processes will not do. Expected 1 or more; 0 judges in this process.")


def prepare(out: Path) -> None:
    """Make the folder, and remove the pictures of an earlier benchmark in it. Raises `UserError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "results.json").is_file() and (out / "pictures").is_dir():
            shutil.rmtree(out / "pictures")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Name another folder: --out DIR") from None


class Benchmark:
    """Rows and failures as they come."""

    def __init__(self, out: Path, settings: Settings, datasets: Sequence[Dataset], say: Say) -> None:
        self.out, self.settings, self.datasets, self.say = out, settings, tuple(datasets), say
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.curves: list[analysis.Curve] = []
        self.points: list[operating.Point] = []
        self.notes: list[str] = []
        self.recipes: dict[str, tuple[str, str]] = {}
        self.tasks: dict[int, list[Task]] = {}

    def choose(self, weights: Sequence[Weights], dataset: Dataset) -> list[Weights]:
        """Choose the operating point of each on a dataset; what has none, or fails, is judged as it is."""
        found = []
        for each in weights:
            try:
                chosen, point = operating.choose(each, dataset, self.settings, self.out)
                if point is None:
                    self.notes.append(f"{each.label}: the model has no threshold to choose.")
                else:
                    self.points.append(point)
                found.append(chosen)
            except Exception as error:
                self.failures.append(work.failure(each.label, dataset.name, "", error))
                found.append(each)
        return found

    def judge(self, weights: Sequence[Weights], jobs: int) -> None:
        """Judge every file of weights on every dataset, then the baselines."""
        numbered = tuple(enumerate(self.datasets))
        self.take(weights, self.work([self.unit(each, numbered) for each in weights], jobs))
        self.judge_baselines()

    def unit(self, weights: Weights, datasets: Sequence[tuple[int, Dataset]]) -> Unit:
        """Return the unit of work of weights on some of the datasets."""
        return Unit(weights, tuple(datasets), self.settings, self.out)

    def work(self, units: Sequence[Unit], jobs: int) -> list[Outcome]:
        """Return an outcome a unit, worked on here (`jobs` 0) or in processes of their own."""
        if jobs == 0:
            return [work.judge(unit, self.say, lambda *_: None) for unit in units]
        if jobs > len(units):  # more processes than weights: a unit a dataset
            split = [replace(u, datasets=(d,)) for u in units for d in u.datasets]
            found = iter(self._isolated(split, jobs))
            return [_merged([next(found) for _ in u.datasets]) for u in units]
        return self._isolated(units, jobs)

    def _isolated(self, units: Sequence[Unit], jobs: int) -> list[Outcome]:
        threads = None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // min(jobs, len(units)))
        return processes.run(units, work.judge, jobs, self.say, threads)

    def take(self, weights: Sequence[Weights], outcomes: Sequence[Outcome]) -> None:
        """Make rows and curves of what the units gave."""
        places = {number: (d.name, d.split) for number, d in enumerate(self.datasets)}
        for each, outcome in zip(weights, outcomes, strict=True):
            self._remember(each)
            self.failures += outcome.failures
            self.notes += [f"{each.label} on {self.datasets[n].name}: {text}." for n, text in outcome.notes]
            for judged in outcome.judged:
                if not judged.level.name:
                    self.tasks.setdefault(judged.dataset, []).append(judged.task)
                    self._own_row(each, judged)
            self.curves += analysis.curves(each.label, places, outcome.judged, self.settings.seed)
        self.notes = list(dict.fromkeys(self.notes))

    def _remember(self, weights: Weights) -> None:
        """Remember of which recipe and seed weights are."""
        if len(weights.members) == 1 and (key := analysis.recipe_key(weights.record.metadata)):
            self.recipes[weights.label] = key

    def _own_row(self, weights: Weights, judged: Judged) -> None:
        dataset = self.datasets[judged.dataset]
        leaks = len(leaked(weights, dataset))
        notes = [*([judged.task.note] if judged.task.note else []), *notes_on(weights, dataset, leaks)]
        self.add(weights.label, (dataset.name, dataset.split), judged, leaks=leaks, notes=notes)

    def add(
        self,
        label: str,
        place: tuple[str, str],
        judged: Judged,
        *,
        baseline: bool = False,
        leaks: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        """Add a row; one without cases is left out."""
        if not judged.cases:
            return
        task, cases = judged.task, tuple(judged.cases)
        means = analysis.means_of(task.metrics, cases, self.settings.seed)
        self.rows.append(
            Row(
                label,
                *place,
                task.output,
                task.truth,
                task.kind,
                tuple(means),
                cases,
                means,
                baseline,
                leaks,
                tuple(notes),
            )
        )

    def judge_baselines(self) -> None:
        """Judge what needs no model on the truths that some weights were judged on."""
        known = {(f.dataset, f.image) for f in self.failures}
        for number, dataset in enumerate(self.datasets):
            found, failures = baselines.judge(number, dataset, self.tasks.get(number, []))
            self.failures += [f for f in failures if (f.dataset, f.image) not in known]
            for name, judged in found:
                notes = [judged.task.note] if judged.task.note else []
                self.add(name, (dataset.name, dataset.split), judged, baseline=True, notes=notes)

    def finish(self, labels: Sequence[str]) -> Results:
        """Write everything and return it."""
        import torch

        from zoo.training.folder import environment

        found = Results(
            tuple(self.rows),
            tuple(self.failures),
            {"weights": list(labels), **self.settings.plain()},
            environment(self.settings.device, 1, torch.get_num_threads(), None),
            self.out,
        )
        more = {"curves": tuple(self.curves), "points": tuple(self.points), "notes": tuple(self.notes)}
        return report.publish(
            replace(found, analysis=analysis.analyse(found.tables(), self.settings.seed, self.recipes, **more))
        )


def _merged(outcomes: Sequence[Outcome]) -> Outcome:
    found = Outcome()
    for outcome in outcomes:
        found.judged += outcome.judged
        found.failures += [f for f in outcome.failures if f not in found.failures]
        found.notes += outcome.notes
    return found
