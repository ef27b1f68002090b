"""Judging one file of weights on datasets: the part of a benchmark that may run in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry
from zoo.bench import leakage, pictures
from zoo.bench.cache import Cache, Kept, key_of, settled
from zoo.bench.perturb import PERTURBATIONS
from zoo.bench.results import Case, Failure
from zoo.data.datasets import Dataset
from zoo.errors import DataError, UserError
from zoo.families import build, score
from zoo.families.base import Family
from zoo.families.score import Task
from zoo.inference.averaged import average
from zoo.types import Prediction, Sample, SemanticPrediction
from zoo.weights import store
from zoo.weights.store import Found

Say = Callable[[str], None]
Begin = Callable[[int, str], None]
"""Called with a dataset's number and an image's id before that image is touched."""


@dataclass(frozen=True)
class Settings:
    """How to predict and what to count. `options`: those of `zoo.inference.predict.predict_array`; `disturb`: names of
    perturbations whose curves are wanted; `cache`: folder of kept predictions, None keeps nothing."""

    metrics: tuple[str, ...] | None = None
    limit: int | None = None
    mpp: float | tuple[float, ...] | str | None = None
    device: str = "cpu"
    seed: int = 0
    pictures: bool = True
    tta: str = "none"
    disturb: tuple[str, ...] = ()
    cache: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return plain values for results.json."""
        found = {"metrics": list(self.metrics) if self.metrics else None, "limit": self.limit, "mpp": self.mpp}
        more = {"tta": self.tta, "robustness": list(self.disturb)}
        return {**found, "device": self.device, "seed": self.seed, **more, **self.options}


@dataclass(frozen=True)
class Weights:
    """Weights to be judged: the name in the tables, the file (or files: an ensemble), what they were trained on, and
    options of prediction of their own (an operating point)."""

    label: str
    members: tuple[Found, ...]
    record: leakage.Record
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, settings: Settings) -> Family:
        """Return the module, several averaged into one."""
        return average([build.load(f.path, device=settings.device) for f in self.members], settings.tta)

    def content(self, settings: Settings) -> str:
        """Return what identifies the prediction's weights by content."""
        return "+".join([*(store.checksum(f.path) for f in self.members), settings.tta])


@dataclass(frozen=True)
class Level:
    """A dataset as it is (`name` empty), or disturbed by a perturbation at one of its levels."""

    name: str = ""
    value: float = 0.0


@dataclass
class Judged:
    """One output on one dataset at one level: the task and its cases."""

    dataset: int
    task: Task
    level: Level
    cases: list[Case] = field(default_factory=list)


@dataclass
class Outcome:
    """What judging one file of weights gave; `notes`: (dataset, sentence)."""

    judged: list[Judged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def fail(self, one: Failure, say: Say) -> None:
        """Write a failure down and say it."""
        self.failures.append(one)
        say(f"failed: {' '.join(part for part in (one.weights, one.dataset, one.image) if part)}: {one.error}")


@dataclass(frozen=True)
class Unit:
    """Weights and the datasets (with their numbers in the whole benchmark) that one process judges them on; `skip`:
    images (dataset number, id) that ended an earlier process."""

    weights: Weights
    datasets: tuple[tuple[int, Dataset], ...]
    settings: Settings
    out: Path
    skip: frozenset[tuple[int, str]] = frozenset()


def judge(unit: Unit, say: Say, begin: Begin) -> Outcome:
    """Judge one unit; nothing that goes wrong with an image, a dataset or the file stops the rest."""
    outcome = Outcome()
    try:
        family = unit.weights.load(unit.settings)
        content = unit.weights.content(unit.settings)
    except Exception as error:  # a broken file must not lose the others
        outcome.fail(failure(unit.weights.label, "", "", error), say)
        return outcome
    for number, dataset in unit.datasets:
        try:
            _Pair(unit, number, dataset, family, content, outcome, begin).judge(say)
        except Exception as error:
            outcome.fail(failure(unit.weights.label, dataset.name, "", error), say)
    return outcome


def failure(weights: str, dataset: str, image: str, error: BaseException) -> Failure:
    """Return how a failure is written down."""
    known = isinstance(error, DataError | UserError)
    return Failure(weights, dataset, image, str(error) if known else f"{type(error).__name__}: {error}")


def _nothing_to_judge(family: Family, dataset: Dataset, metrics: Sequence[str] | None) -> str:
    """Return why a model cannot be judged on a dataset: its outputs do not fit, or only the chosen metrics do not."""
    if metrics and score.tasks(family, dataset.card, None):
        return f"none of the metrics chosen ({', '.join(metrics)}) fits the model's outputs here. Leave --metrics away."
    return "none of the model's outputs answers to a truth of the dataset. Choose another."


class _Pair:
    """One file of weights on one dataset."""

    def __init__(
        self,
        unit: Unit,
        number: int,
        dataset: Dataset,
        family: Family,
        content: str,
        outcome: Outcome,
        begin: Begin,
    ) -> None:
        self.unit, self.number, self.dataset, self.family = unit, number, dataset, family
        self.content, self.outcome, self.begin = content, outcome, begin
        self.settings, self.label = unit.settings, unit.weights.label
        self.cache = Cache(unit.settings.cache)

    def judge(self, say: Say) -> None:
        wanted = score.tasks(self.family, self.dataset.card, self.settings.metrics)
        if not wanted:
            raise UserError(_nothing_to_judge(self.family, self.dataset, self.settings.metrics))
        clean = [Judged(self.number, task, Level()) for task in wanted]
        self.outcome.judged += clean
        found: dict[Level, list[Judged]] = {}
        started = time.perf_counter()
        for position, entry in enumerate(self.dataset.index):
            try:
                self.begin(self.number, entry.id)
                if (self.number, entry.id) in self.unit.skip:
                    raise DataError("the process that predicted it was ended by the system, as where memory runs out")
                sample = self.dataset[position]
                self._image(clean, sample, entry.unit, Level(), say)
                for level, changed in self._disturbed(sample):
                    judged = found.setdefault(level, [Judged(self.number, task, level) for task in wanted])
                    self._image(judged, changed, entry.unit, level, say)
            except UserError:
                raise  # it would be the same for every image
            except Exception as error:
                self.outcome.fail(failure(self.label, self.dataset.name, entry.id, error), say)
        for judged in found.values():
            self.outcome.judged += judged
        say(f"{self.label} on {self.dataset.name}:{self.dataset.split}: {time.perf_counter() - started:.0f} s")

    def _disturbed(self, sample: Sample) -> Iterator[tuple[Level, Sample]]:
        for name in self.settings.disturb:
            perturbation = PERTURBATIONS[name]
            if not perturbation.fits(sample):
                note = (self.number, f"{name}: does not fit these images, left out")
                if note not in self.outcome.notes:
                    self.outcome.notes.append(note)
                continue
            for value in perturbation.levels:
                if value != perturbation.clean:
                    yield Level(name, value), perturbation(sample, value)

    def _image(self, judged: Sequence[Judged], sample: Sample, group: str, level: Level, say: Say) -> None:
        kept = self._predict(sample, with_probability(task.task for task in judged))
        for each in judged:
            truth = sample.truth.get(each.task.truth)
            if truth is None or each.task.output not in kept.predictions:
                continue
            prediction = kept.predictions[each.task.output]
            try:
                found = score.judge(each.task, prediction, truth)
            except DataError as error:  # another truth of the image may still be judged
                self.outcome.fail(failure(self.label, self.dataset.name, sample.id, error), say)
                continue
            drawn: dict[str, str] = {}
            if self.settings.pictures and not level.name and each.task.kind != "cells":
                drawn = pictures.draw(self.unit.out, self.label, each.task, sample, truth, prediction)
            each.cases.append(
                Case(
                    sample.id,
                    group,
                    found.scores,
                    kept.seconds,
                    drawn,
                    memory=kept.memory,
                    center=sample.center,
                    records=found.records,
                    confusion=found.confusion,
                )
            )

    def _predict(self, sample: Sample, probability: bool) -> Kept:
        mpp = spacing_of(sample, self.settings)
        options = {**self.settings.options, **self.unit.weights.options}
        said = {**options, "mpp": mpp, "seed": self.settings.seed, "device": self.settings.device.partition(":")[0]}
        key = key_of(self.content, sample, said) if self.settings.cache else ""
        for name in ([f"{key}p"] if probability else [key, f"{key}p"]) if key else []:
            if kept := self.cache.get(name):
                return kept
        image = sample.image[0] if len(sample.image) == 1 else np.moveaxis(sample.image, 0, -1)
        meter = Meter(self.settings.device)
        started = time.perf_counter()
        predict = registry.get("engine", "predict")
        found = predict(self.family, image, mpp=mpp, seed=self.settings.seed, **options)
        seconds = time.perf_counter() - started
        if not probability:
            found = {name: without_probability(p) for name, p in found.items()}
        fresh = settled(Kept(found, seconds, meter.peak()))
        if key:
            self.cache.put(f"{key}p" if probability else key, fresh)
        return fresh


def spacing_of(sample: Sample, settings: Settings) -> float | tuple[float, ...] | str | None:
    """Return the um per pixel of a sample (of a volume: of each axis), else what the settings say."""
    if sample.spacing:
        return sample.spacing if sample.axes == "CZYX" else sample.spacing[-1]
    return settings.mpp


def with_probability(tasks: Any) -> bool:
    """Return whether some metric looks at probabilities: only then are they kept."""
    from zoo.metrics import METRICS

    return any(METRICS[name].kind == "calibration" for task in tasks for name in task.metrics)


def without_probability(prediction: Prediction) -> Prediction:
    """Return a prediction without its probabilities, which take most of the room."""
    return replace(prediction, probability=None) if isinstance(prediction, SemanticPrediction) else prediction


class Meter:
    """The peak of memory between making and asking, in MiB: of the device, or of the process where the system says."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.known = False
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
            self.known = True
        except OSError:
            return

    def peak(self) -> float | None:
        """Return MiB, None where the system does not say."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        if not self.known:
            return None
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return None
