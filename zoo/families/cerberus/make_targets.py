"""From a sample's truths to targets, and from dataset cards to options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.cards import DatasetCard, TruthCard
from zoo.data import truths
from zoo.errors import DataError
from zoo.families.cerberus.options import BACKGROUND, CerberusOptions, Task
from zoo.families.cerberus.targets import IGNORE
from zoo.types import Boxes, Instances, Kind, Label, Sample, Semantic

KINDS: Mapping[str, tuple[Kind, ...]] = {
    "objects": ("instances", "boxes"),
    "classes": ("instances", "semantic"),
    "patch": ("label", "semantic"),
}
"""Kind of a task -> kinds of truth that it can learn from."""
WEIGHT = ".weight"
"""Ends the name of the weight map of an objects task's target."""


def learns(options: CerberusOptions, card: DatasetCard) -> dict[str, TruthCard]:
    """Return task -> truth for what a dataset annotates. A truth without the classes of a task teaches it nothing."""
    found: dict[str, TruthCard] = {}
    for name, task in options.tasks.items():
        truth = card.truths.get(options.truth_of(name))
        if truth is None or truth.kind not in KINDS[task.kind]:
            continue
        if task.kind == "classes" and not _names_classes(task, truth):
            continue
        found[name] = truth
    return found


def _names_classes(task: Task, truth: TruthCard) -> bool:
    """Return whether a truth tells a task's classes apart: it has several, or the task's own."""
    own = truths.foreground(truth.classes)
    if task.classes is None:
        return len(own) > 1
    known = {name for sources in task.merge.values() for name in sources} | set(task.foreground)
    return bool(known & set(own))


def resolve(options: CerberusOptions, cards: Sequence[DatasetCard]) -> CerberusOptions:
    """Return options with the classes of every task filled in from the cards. Raises `ValueError`."""
    tasks: dict[str, Any] = {}
    for name, task in options.tasks.items():
        told = [(card, found[name]) for card in cards if name in (found := learns(options, card))]
        classes = task.classes or _classes(name, task, told)
        tasks[name] = task.model_dump() | {"classes": classes, "truth": options.truth_of(name)}
    resolved = CerberusOptions.model_validate(options.model_dump() | {"tasks": tasks})
    for card in cards:
        for name, truth in learns(resolved, card).items():
            _check(name, resolved.tasks[name], card, truth)
    return resolved


def _classes(name: str, task: Task, told: Sequence[tuple[DatasetCard, TruthCard]]) -> tuple[str, ...]:
    if task.kind == "objects":
        lists = {truths.foreground(truth.classes) for _, truth in told}
        only = next(iter(lists)) if len(lists) == 1 else ()
        return only if len(only) == 1 else (name,)
    if not told:
        raise ValueError(f"task {name}: its classes are not known. Write them down: classes: [...]")
    card, truth = told[0]
    named = truths.foreground(truth.classes)
    if task.merge:
        named = tuple(key for key in task.merge if key not in ("ignore", BACKGROUND))
    elif any(truths.foreground(other.classes) != named for _, other in told):
        other = next(c for c, t in told if truths.foreground(t.classes) != named)
        raise ValueError(
            f"task {name}: datasets {card.name} and {other.name} differ in their classes. Write them down: classes: "
            "[...], and merge where names differ"
        )
    if not named:
        raise ValueError(f"task {name}: the truth of dataset {card.name} names no classes. Write them down: classes")
    return (BACKGROUND, *named) if task.kind == "patch" and BACKGROUND in truth.classes else named


def _check(name: str, task: Task, card: DatasetCard, truth: TruthCard) -> None:
    if task.kind == "objects":
        return
    try:
        _table(task, truth)
    except ValueError as error:
        raise ValueError(f"task {name}: dataset {card.name}: {error}") from None


def _table(task: Task, truth: TruthCard) -> dict[str, int | None]:
    """Return class of the dataset -> index among the task's, None = not learnt from.

    Classes are matched by name; several datasets may each annotate some of a task's classes.
    """
    merge = dict(task.merge)
    for name in merge:
        if name != "ignore" and name not in (task.classes or ()):
            raise ValueError(f'merge: the task has no class "{name}"')
    own = task.classes or ()
    ours = own if task.kind == "patch" else (BACKGROUND, *task.foreground)
    found: dict[str, int | None] = {name: ours.index(name) for name in truth.classes if name in ours}
    for name, sources in merge.items():
        found |= {s: None if name == "ignore" else ours.index(name) for s in sources if s in truth.classes}
    least = 0 if task.kind == "patch" else 1
    if not any(value is not None and value >= least for value in found.values()):
        have, want = ", ".join(truth.classes), ", ".join(own)
        raise ValueError(f"it has none of the classes {want} (it has {have}). Map them with merge")
    return found


@dataclass(frozen=True)
class CerberusTargets:
    """Makes, for the tasks that a dataset annotates: TASK (H, W) uint8 and TASK.weight (H, W) float32 of objects, TASK
    (H, W) uint8 of classes, TASK () int64 of a patch; 255 where nothing is annotated."""

    options: CerberusOptions
    dataset: str
    truths: Mapping[str, TruthCard]

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return targets for a sample. Raises `DataError` where its truth is not what the card says."""
        made: dict[str, NDArray[Any]] = {}
        for name, card in self.truths.items():
            truth = sample.truth.get(self.options.truth_of(name))
            if truth is None:
                continue
            task = self.options.tasks[name]
            try:
                if task.kind == "objects":
                    made |= self._objects(name, task, truth, sample.shape)
                elif task.kind == "classes":
                    made[name] = class_map(truth, task, card)
                else:
                    made[name] = np.asarray(self._patch(task, card, truth, sample.shape), np.int64)
            except ValueError as error:
                raise DataError(f"{self.dataset}: {sample.id}: {self.options.truth_of(name)}: {error}.") from None
        return made

    def _objects(self, name: str, task: Task, truth: Any, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        unknown: NDArray[Any] | None = None
        if isinstance(truth, Boxes):
            draw = registry.get("target", "cerberus_ellipses")
            crowd = np.zeros(len(truth.xyxy), bool) if truth.crowd is None else truth.crowd
            labels = draw(truth.xyxy[~crowd], shape)
            unknown = draw(truth.xyxy[crowd], shape) > 0 if crowd.any() else None
        elif isinstance(truth, Instances):
            labels, unknown = whole_numbers(truth.map), truth.ignore
        else:
            raise ValueError(f"a truth of kind {truth.kind} has no objects. Expected instances or boxes")
        make = registry.get("target", "cerberus_objects")
        target, weight = make(labels, task.rule_of(name).contour, w0=task.border)
        if unknown is not None:
            target = np.where(unknown, IGNORE, target).astype(np.uint8)
        return {name: target, name + WEIGHT: weight}

    def _patch(self, task: Task, card: TruthCard, truth: Any, shape: tuple[int, ...]) -> int:
        window = task.window
        if window is not None and min(shape) < window:
            raise ValueError(
                f"a patch of {min(shape)} pixels is too small for a head that looks at {window}. Expected {window} or "
                "more. Raise data.train.size, or lower the task's window"
            )
        table = _table(task, card)
        if isinstance(truth, Label):
            return _index(card, table, truth.value)
        if not isinstance(truth, Semantic) or truth.multilabel:
            raise ValueError("a patch's class wants a label, or a map of one class a pixel")
        make = registry.get("target", "cerberus_patch_class")
        return int(make(class_map(truth, task, card), window or max(shape)))

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return targets that say "not annotated" for a sample of that shape."""
        made: dict[str, NDArray[Any]] = {}
        for name in self.truths:
            kind = self.options.tasks[name].kind
            made[name] = np.asarray(IGNORE, np.int64) if kind == "patch" else np.full(shape, IGNORE, np.uint8)
            if kind == "objects":
                made[name + WEIGHT] = np.ones(shape, np.float32)
        return made


def whole_numbers(labels: NDArray[Any]) -> NDArray[Any]:
    """Return a label map of any dtype as integers. Raises `ValueError` for what is no label map."""
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.floor(labels)).any():
            raise ValueError("the label map holds numbers that are not whole. Expected one id an object")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"a label map of type {labels.dtype} will not do. Expected whole numbers")
    if labels.dtype.kind == "i" and int(labels.min(initial=0)) < 0:
        raise ValueError(f"the label map holds {int(labels.min())}. Expected 0 for the background and ids from 1")
    return labels


def _index(card: TruthCard, table: Mapping[str, int | None], value: int) -> int:
    if not 0 <= value < len(card.classes):
        raise ValueError(f"the class {value} is not on the card, which has {len(card.classes)}. Expected one of them")
    found = table.get(card.classes[value])
    return IGNORE if found is None else found


def class_map(truth: Any, task: Task, card: TruthCard) -> NDArray[np.uint8]:
    """Return a class a pixel over the task's classes, uint8: 0 none (or the first of a patch task), 255 unknown.

    A class of the dataset that the task does not know is not learnt from. Raises `ValueError` for a class id that is
    not on the card.
    """
    table = _table(task, card)
    if isinstance(truth, Instances):
        labels = whole_numbers(truth.map)
        known, places = np.unique(labels, return_inverse=True)
        values = np.full(len(known), IGNORE, np.uint8)
        for position, label in enumerate(known.tolist()):
            if label == 0:
                values[position] = 0
                continue
            number = 1 if truth.classes is None else truth.classes.get(label)
            if number is not None:
                if not 1 <= number <= len(card.classes):
                    have = len(card.classes)
                    raise ValueError(f"object {label} has class {number}, which is not on the card (1 to {have})")
                values[position] = _index(card, table, number - 1)
        mapped = values[places].reshape(labels.shape)
        return mapped if truth.ignore is None else np.where(truth.ignore, IGNORE, mapped).astype(np.uint8)
    if not isinstance(truth, Semantic) or truth.multilabel:
        raise ValueError(f"a truth of kind {truth.kind} has no class map. Expected instances, or one class a pixel")
    lut = np.full(256, IGNORE, np.uint8)
    for value, name in enumerate(card.classes):
        found = table.get(name, 0 if name == BACKGROUND and task.kind == "classes" else None)
        lut[value] = IGNORE if found is None else found
    bad = (truth.map < 0) | (truth.map >= len(card.classes))
    if truth.ignore is not None:
        bad &= truth.map != truth.ignore
    if bad.any():
        value = int(truth.map[bad].flat[0])
        raise ValueError(f"the map holds the class {value}, which is not on the card (0 to {len(card.classes) - 1})")
    mapped = lut[np.clip(truth.map, 0, 255).astype(np.uint8)]
    return mapped if truth.ignore is None else np.where(truth.map == truth.ignore, IGNORE, mapped).astype(np.uint8)


def make(options: CerberusOptions, card: DatasetCard) -> CerberusTargets:
    """Return the target maker of one dataset."""
    return CerberusTargets(options, card.name, learns(options, card))
