"""Weights x datasets -> rows with intervals, files, a report.

Everything that can be known to be wrong is said before anything starts. After that nothing stops the others: a broken
file of weights, an image that cannot be read, a prediction that fails is written down as a failure.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.bench import baselines, leakage, pictures, report, results
from zoo.bench.results import Case, Failure, Results, Row
from zoo.bench.statistics import mean_by_group
from zoo.data.datasets import Dataset, open_dataset
from zoo.data.truths import foreground
from zoo.errors import DataError, Problem, Problems, UserError
from zoo.families import build, score
from zoo.families.base import Family
from zoo.families.score import Task
from zoo.types import Picture, PicturePrediction, Prediction, Sample, Semantic, SemanticPrediction, Truth
from zoo.weights import store
from zoo.weights.store import Found

Say = Callable[[str], None]

SIDES = 32
"""Images of a dataset on which the side of Otsu's threshold is decided, spread evenly."""


@dataclass(frozen=True)
class Settings:
    """How to predict and what to count. `options`: those of `zoo.inference.predict.predict_array`."""

    metrics: tuple[str, ...] | None = None
    limit: int | None = None
    mpp: float | tuple[float, ...] | str | None = None
    device: str = "cpu"
    seed: int = 0
    pictures: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return plain values for results.json."""
        found = {"metrics": list(self.metrics) if self.metrics else None, "limit": self.limit, "mpp": self.mpp}
        return {**found, "device": self.device, "seed": self.seed, **self.options}


@dataclass(frozen=True)
class Weights:
    """Weights to be judged: the name in the tables, the file, what they were trained on."""

    label: str
    found: Found
    record: leakage.Record


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
    **options: Any,
) -> Results:
    """Judge weights on datasets and write results.json, table.md, report.html, per_image.parquet and .csv into `out`.

    `weights`: names, run folders or files. `datasets`: `NAME` or `NAME:SPLIT`; without a split it is "test" where the
    dataset has one, else "all". `metrics`: names (`zoo list metrics`), None for those that fit. `limit`: the first so
    many images of each dataset. `mpp`: um per pixel of images whose dataset does not know it, or "native". `options`:
    those of prediction (tile, overlap, batch, and the family's own). Rows of Otsu's threshold and of all-foreground (of
    a picture: the unchanged input) stand under every table.

    Raises `Problems` (a `UserError`) with everything that is wrong before anything is started: unknown names, and
    weights that have seen images or groups of a dataset unless `allow_leakage`, which marks such rows. Afterwards
    failures are collected: `Results.failures`, `Results.status`.
    """
    if metrics is not None:
        score.check_metrics(metrics)
    settings = Settings(tuple(metrics) if metrics else None, limit, mpp, device, seed, save_pictures, dict(options))
    found, opened = _open(weights, datasets, limit)
    if not allow_leakage:
        _refuse_leaks(found, opened)
    _clear(Path(out))
    work = _Work(Path(out), settings, say or (lambda _: None))
    for each in found:
        work.judge(each, opened)
    for dataset in opened:
        work.judge_baselines(dataset)
    return work.finish([w.label for w in found])


# --- before anything starts -------------------------------------------------------------------------------------------


def open_named(text: str, limit: int | None = None) -> Dataset:
    """Return the dataset of `NAME`, `NAME:SPLIT` or `NAME:SPLIT@FOLD/FOLDS`, the images that a fold holds back.

    Without a split it is "test" where there is one, else "all".
    """
    name, colon, split = text.rpartition(":")
    if colon and not Path(text).exists():
        split, at, fold = split.partition("@")
        if not at:
            return open_dataset(name, split=split, limit=limit)
        number, slash, folds = fold.partition("/")
        if not (slash and number.isdigit() and folds.isdigit() and int(folds) > 1):
            raise UserError(f"{text}: the fold will not do. Expected NAME:SPLIT@FOLD/FOLDS, as in {name}:{split}@0/5")
        found = open_dataset(name, split=split, fold=int(number), folds=int(folds), part="validate", limit=limit)
        return replace(found, split=f"{split}@{fold}")
    try:
        return open_dataset(text, split="test", limit=limit)
    except UserError as error:
        if 'no split "test"' not in str(error):
            raise
        return open_dataset(text, split="all", limit=limit)


def _open(weights: Sequence[str], datasets: Sequence[str], limit: int | None) -> tuple[list[Weights], list[Dataset]]:
    problems: list[Problem] = []
    found: list[Found] = []
    opened: list[Dataset] = []
    if not weights or not datasets:
        what = "weights" if not weights else "datasets"
        raise UserError(f"bench: no {what}. Expected at least one. Name it: --{what} NAME")
    for name in weights:
        try:
            found.append(store.find(name))
        except UserError as error:
            problems.append(Problem(where="bench", what=str(error)))
    for text in datasets:
        try:
            dataset = open_named(text, limit)
            if len(dataset) == 0:
                raise UserError(f"{text}: the split holds no image. Choose another split.")
            opened.append(dataset)
        except UserError as error:
            problems.append(Problem(where="bench", what=str(error)))
    if problems:
        raise Problems(problems)
    return [Weights(*pair) for pair in _labelled(found, weights)], opened


def _labelled(found: Sequence[Found], given: Sequence[str]) -> Iterator[tuple[str, Found, leakage.Record]]:
    """Yield label, file and record; where two files have one name, what the user typed tells them apart."""
    names = [f.name for f in found]
    for each, text in zip(found, given, strict=True):
        yield (each.name if names.count(each.name) == 1 else str(text)), each, leakage.record_of(each)


def _leaked(weights: Weights, dataset: Dataset) -> list[str]:
    return leakage.overlap(weights.record.trained or (), dataset.name, dataset.split, dataset.index)


def _refuse_leaks(weights: Sequence[Weights], datasets: Sequence[Dataset]) -> None:
    found = [
        Problem(what=leakage.sentence(w.label, d.name, d.split, leaked, len(d)))
        for w in weights
        for d in datasets
        if (leaked := _leaked(w, d))
    ]
    if found:
        raise Problems(found)


def _clear(out: Path) -> None:
    """Make the folder, and remove the pictures of an earlier benchmark in it. Raises `UserError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "results.json").is_file() and (out / "pictures").is_dir():
            shutil.rmtree(out / "pictures")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Name another folder: --out DIR") from None


# --- the work ---------------------------------------------------------------------------------------------------------


class _Work:
    """Rows and failures as they come."""

    def __init__(self, out: Path, settings: Settings, say: Say) -> None:
        self.out, self.settings, self.say = out, settings, say
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.judged: dict[tuple[str, str], list[Task]] = {}

    def fail(self, weights: str, dataset: str, image: str, error: BaseException) -> None:
        """Write a failure down."""
        known = isinstance(error, DataError | UserError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        self.failures.append(Failure(weights, dataset, image, text))
        self.say(f"failed: {' '.join(part for part in (weights, dataset, image) if part)}: {text}")

    def judge(self, weights: Weights, datasets: Sequence[Dataset]) -> None:
        """Judge one file of weights on every dataset."""
        try:
            family = build.load(weights.found.path, device=self.settings.device)
        except Exception as error:  # a broken file must not lose the others
            self.fail(weights.label, "", "", error)
            return
        for dataset in datasets:
            try:
                wanted = score.tasks(family, dataset.card, self.settings.metrics)
                if not wanted:
                    raise UserError("none of the model's outputs answers to a truth of the dataset. Choose another.")
                self._judge(weights, family, dataset, wanted)
            except Exception as error:
                self.fail(weights.label, dataset.name, "", error)

    def _judge(self, weights: Weights, family: Family, dataset: Dataset, wanted: Sequence[Task]) -> None:
        self.judged.setdefault((dataset.name, dataset.split), []).extend(wanted)
        cases: dict[str, list[Case]] = {task.output: [] for task in wanted}
        started = time.perf_counter()
        for position, entry in enumerate(dataset.index):
            try:
                sample = dataset[position]
                predictions, seconds = self._predict(family, sample)
            except UserError:
                raise  # it would be the same for every image
            except Exception as error:
                self.fail(weights.label, dataset.name, entry.id, error)
                continue
            for task in wanted:
                self._case(cases[task.output], weights.label, task, sample, predictions, seconds, entry.unit)
        for task in wanted:
            self._row(weights, dataset, task, cases[task.output])
        self.say(f"{weights.label} on {dataset.name}:{dataset.split}: {time.perf_counter() - started:.0f} s")

    def _predict(self, family: Family, sample: Sample) -> tuple[dict[str, Prediction], float]:
        image = sample.image[0] if len(sample.image) == 1 else np.moveaxis(sample.image, 0, -1)
        mpp: Any = self.settings.mpp
        if sample.spacing:
            mpp = sample.spacing if sample.axes == "CZYX" else sample.spacing[-1]
        started = time.perf_counter()
        predict = registry.get("engine", "predict")
        found = predict(family, image, mpp=mpp, seed=self.settings.seed, **self.settings.options)
        return found, time.perf_counter() - started

    def _case(
        self,
        cases: list[Case],
        label: str,
        task: Task,
        sample: Sample,
        predictions: dict[str, Prediction],
        seconds: float | None,
        group: str,
    ) -> None:
        """Score one output on one image and draw it; an image without that truth is left out."""
        truth = sample.truth.get(task.truth)
        if truth is None or task.output not in predictions:
            return
        try:
            scores = score.score(task, predictions[task.output], truth)
            draws = self.settings.pictures and seconds is not None  # baselines are not shown
            drawn = pictures.draw(self.out, label, task, sample, truth, predictions[task.output]) if draws else {}
        except Exception as error:
            self.fail(label, sample.dataset, sample.id, error)
            return
        cases.append(Case(sample.id, group, scores, seconds, drawn))

    def _row(self, weights: Weights | str, dataset: Dataset, task: Task, cases: Sequence[Case]) -> None:
        if not cases:
            return
        baseline = isinstance(weights, str)
        notes = [task.note] if task.note else []
        leaks = 0
        if not isinstance(weights, str):
            leaks = len(_leaked(weights, dataset))
            notes += _notes(weights, dataset, leaks)
        groups = [case.group for case in cases]
        metrics = tuple(name for name in task.metrics if any(name in case.scores for case in cases))
        means = {
            name: mean_by_group([case.scores.get(name, math.nan) for case in cases], groups, seed=self.settings.seed)
            for name in metrics
        }
        self.rows.append(
            Row(
                weights if isinstance(weights, str) else weights.label,
                dataset.name,
                dataset.split,
                task.output,
                task.truth,
                task.kind,
                metrics,
                tuple(cases),
                means,
                baseline,
                leaks,
                tuple(notes),
            )
        )

    # baselines

    def judge_baselines(self, dataset: Dataset) -> None:
        """Judge what needs no model on the truths that some weights were judged on."""
        tasks = _baseline_tasks(self.judged.get((dataset.name, dataset.split), []))
        if dataset.card.axes != "CYX" or not tasks:
            return
        maps = any(task.kind == "semantic" for _, task in tasks)
        dark = baselines.objects_are_dark(_brightness(dataset)) if maps else False
        cases: list[list[Case]] = [[] for _ in tasks]
        for position, entry in enumerate(dataset.index):
            try:
                sample = dataset[position]
                image = baselines.grey(sample.image) if maps else None
            except Exception as error:
                if not any(f.dataset == dataset.name and f.image == entry.id for f in self.failures):
                    self.fail("", dataset.name, entry.id, error)
                continue
            for (name, task), found in zip(tasks, cases, strict=True):
                prediction = _baseline(name, sample, sample.truth.get(task.truth), image, dark)
                if prediction is not None:
                    drawn = {task.output: prediction}
                    self._case(found, name, task, sample, drawn, None, entry.unit)
        for (name, task), found in zip(tasks, cases, strict=True):
            side = "the darker side is taken" if dark else "the brighter side is taken"
            note = f"{side}, decided from the images alone" if name == "otsu" else ""
            self._row(name, dataset, _noted(task, note), found)

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
        results.write(found)
        report.write(found)
        return found


def _notes(weights: Weights, dataset: Dataset, leaks: int) -> list[str]:
    notes = []
    if leaks:
        notes.append(f"{leaks} of {len(dataset)} images, or their patients or slides, were trained on")
    if weights.record.trained is None:
        notes.append("the weights do not say what they were trained on, so leakage cannot be checked")
    if leakage.overlap(weights.record.validated, dataset.name, dataset.split, dataset.index) and not leaks:
        notes.append("the best weights were chosen on these images or their groups")
    return notes


def _brightness(dataset: Dataset) -> Iterator[NDArray[np.uint8]]:
    for position in np.unique(np.linspace(0, len(dataset) - 1, min(SIDES, len(dataset))).round().astype(int)):
        try:
            yield baselines.grey(dataset[int(position)].image)
        except Exception:
            continue


def _baseline_tasks(judged: Sequence[Task]) -> list[tuple[str, Task]]:
    """Return (baseline, task) for each truth that was judged, with the metrics of all the outputs that answer to it."""
    found: list[tuple[str, Task]] = []
    for truth in dict.fromkeys(task.truth for task in judged):
        same = [task for task in judged if task.truth == truth]
        metrics = tuple(dict.fromkeys(name for task in same for name in task.metrics))
        if same[0].kind == "picture":
            found.append(("unchanged input", Task("picture", "picture", truth, (), (), metrics)))
        elif same[0].kind in ("semantic", "instances"):
            classes = same[0].truth_classes
            kinds = foreground(classes)
            note = f"foreground ({', '.join(kinds)}) against the rest" if len(kinds) > 1 else ""
            merge = {"foreground": kinds}
            task = Task("mask", "semantic", truth, ("background", "foreground"), classes, metrics, merge, note)
            found += [(name, task) for name in baselines.NAMES]
    return found


def _noted(task: Task, note: str) -> Task:
    from dataclasses import replace

    return replace(task, note="; ".join(part for part in (note, task.note) if part))


def _baseline(
    name: str, sample: Sample, truth: Truth | None, image: NDArray[np.uint8] | None, dark: bool
) -> Prediction | None:
    if isinstance(truth, Picture):
        same = len(sample.image) == len(truth.data) and sample.image.dtype == truth.data.dtype
        return PicturePrediction(sample.image, truth.channels, truth.encoding) if same else None
    if truth is None or image is None:
        return None
    mask = baselines.foreground(name, image, dark)
    if isinstance(truth, Semantic) and truth.multilabel:
        return SemanticPrediction(mask[None], ("foreground",), multilabel=True)
    return SemanticPrediction(mask.astype(np.uint8), ("background", "foreground"))
