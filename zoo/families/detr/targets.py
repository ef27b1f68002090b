"""From a sample's boxes or objects to what a detector learns from, and from dataset cards to its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.cards import DatasetCard, TruthCard, dataset_card
from zoo.data.truths import boxes_of, match_classes
from zoo.errors import DataError, UserError, suggest
from zoo.families.detr.options import DetrOptions
from zoo.metrics import boxes
from zoo.types import Boxes, Instances, Kind, Sample

KINDS: tuple[Kind, ...] = ("boxes", "instances")


def truth_key(options: DetrOptions, card: DatasetCard) -> str:
    """Return the key of a dataset's boxes. Raises `ValueError` where there are none, or several and none is chosen."""
    fitting = [key for key, truth in card.truths.items() if truth.kind in KINDS]
    if options.truth is not None:
        if options.truth in fitting:
            return options.truth
        have = ", ".join(f"{key} ({truth.kind})" for key, truth in card.truths.items())
        raise ValueError(f'dataset {card.name} has no boxes "{options.truth}". It has {have}. Set model.truth')
    for kind in KINDS:
        keys = [key for key in fitting if card.truths[key].kind == kind]
        if len(keys) == 1:
            return keys[0]
        if keys:
            raise ValueError(f"dataset {card.name} has several: {', '.join(keys)}. Choose one with model.truth")
    raise ValueError(f"dataset {card.name} has no boxes and no objects. Train on a dataset that has some")


def _names(truth: TruthCard) -> tuple[str, ...]:
    return truth.classes or ("object",)


def resolve(options: DetrOptions, cards: Sequence[DatasetCard]) -> DetrOptions:
    """Return options with classes, truth key and attributes filled in from the cards. Raises `ValueError`."""
    if not cards:
        return options
    truths = [card.truths[truth_key(options, card)] for card in cards]
    changes: dict[str, Any] = {}
    keys = {truth_key(options, card) for card in cards}
    if len(keys) == 1:
        changes["truth"] = keys.pop()
    if options.classes is None:
        changes["classes"] = _classes(options, cards, truths)
    if options.attributes is not None and options.attributes.values is None:
        values = {name: tuple(v) for truth in truths for name, v in truth.attributes.items()}
        if not values:
            raise ValueError(f"dataset {cards[0].name} has no attributes. Leave model.attributes out")
        changes["attributes"] = options.attributes.model_dump() | {"values": values}
    options = options.changed(**changes)
    _known_attributes(options, cards, truths)
    for card, truth in zip(cards, truths, strict=True):
        classes_of(options, card.name, truth)
        attribute_columns(options, card.name, truth.attributes)
    return options


def _known_attributes(options: DetrOptions, cards: Sequence[DatasetCard], truths: Sequence[TruthCard]) -> None:
    """Raise `ValueError` for an attribute of the model that no card has: its head would learn nothing, untold."""
    theirs = dict.fromkeys(name for truth in truths for name in truth.attributes)
    for name in (options.attributes and options.attributes.values) or {}:
        if name not in theirs:
            whose = ", ".join(dict.fromkeys(card.name for card in cards))
            known = f"Known: {', '.join(theirs)}" if theirs else "There are none: leave model.attributes out"
            raise ValueError(f'attributes: no attribute "{name}" on the card of {whose}. {known}')


def _classes(options: DetrOptions, cards: Sequence[DatasetCard], truths: Sequence[TruthCard]) -> tuple[str, ...]:
    if options.merge:
        return tuple(name for name in options.merge if name != "ignore")
    first = _names(truths[0])
    for card, truth in zip(cards, truths, strict=True):
        if _names(truth) != first:
            raise ValueError(
                f"datasets {cards[0].name} and {card.name} differ in their classes ({', '.join(first)}; "
                f"{', '.join(_names(truth))}). Say which with model.classes or model.merge"
            )
    return first


def classes_of(options: DetrOptions, name: str, truth: TruthCard) -> dict[int, int]:
    """Return class index of the data (from 1) -> class index of the model (from 0, -1 = left out).

    A class of the data that the model does not know is background: its boxes are no boxes. Raises `ValueError`.
    """
    classes = options.classes or ()
    theirs = _names(truth)
    try:
        found = match_classes(theirs, classes, options.merge)
    except ValueError as error:
        raise ValueError(f"dataset {name}: {error}") from None
    table = {}
    for index, own in enumerate(theirs, 1):
        target = found.get(own)
        if own in found:
            table[index] = -1 if target is None else int(target)
    return table


def attribute_columns(options: DetrOptions, name: str, theirs: Mapping[str, Sequence[str]]) -> list[list[int] | None]:
    """Return for each attribute of the model the index of its values among those of the data; None = not annotated.

    Raises `ValueError` where the data know a value that the model does not.
    """
    found: list[list[int] | None] = []
    for attribute, values in ((options.attributes and options.attributes.values) or {}).items():
        if attribute not in theirs:
            found.append(None)
            continue
        for value in theirs[attribute]:
            if value not in values:
                raise ValueError(
                    f'dataset {name}: attribute {attribute} has the value "{value}", which the model does not know. '
                    f"{suggest(value, values)}".strip()
                )
        found.append([values.index(value) for value in theirs[attribute]])
    return found


@dataclass(frozen=True)
class BoxTargets:
    """Makes `boxes` (N, 4) float32, x0, y0, x1, y1 in pixels; `classes` (N,) int64 from 0; and, in a model of
    attributes, `attributes` (N, A) int64, -1 = not known. Crowd boxes and boxes without an area are left out."""

    dataset: str
    key: str
    table: Mapping[int, int]
    order: tuple[str, ...]
    columns: tuple[list[int] | None, ...]
    names: tuple[str, ...] = ()

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return targets for a sample. Raises `DataError` where its truth is not what the card says."""
        truth = sample.truth.get(self.key)
        if truth is None:
            return {}
        if isinstance(truth, Instances):
            truth = boxes_of(truth)
        if not isinstance(truth, Boxes):
            raise DataError(f"{self.dataset}: {sample.id}: {self.key}: a truth of kind {truth.kind}. Expected boxes.")
        height, width = sample.shape[-2:]
        xyxy = np.clip(truth.xyxy.reshape(-1, 4), 0, [width, height, width, height]).astype(np.float32)
        of = np.array([self.table.get(int(c), -1) for c in truth.classes], np.int64)
        keep = (of >= 0) & (xyxy[:, 2:] > xyxy[:, :2]).all(1)
        if truth.crowd is not None:
            keep &= ~truth.crowd
        made: dict[str, NDArray[Any]] = {"boxes": xyxy[keep], "classes": of[keep]}
        if self.columns:
            made["attributes"] = self._attributes(truth)[keep]
        return made

    def _attributes(self, truth: Boxes) -> NDArray[np.int64]:
        found = np.full((len(truth.xyxy), len(self.columns)), -1, np.int64)
        if truth.attributes is None:
            return found
        for place, (name, values) in enumerate(zip(self.names, self.columns, strict=True)):
            if values is not None and name in self.order:
                stored = truth.attributes[:, self.order.index(name)]
                known = (stored >= 0) & (stored < len(values))
                found[known, place] = np.asarray(values, np.int64)[stored[known]]
        return found

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return targets of nothing; that nothing is annotated, the loader says."""
        made: dict[str, NDArray[Any]] = {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int64)}
        if self.columns:
            made["attributes"] = np.zeros((0, len(self.columns)), np.int64)
        return made


def true_boxes(options: DetrOptions, sample: Sample) -> boxes.Boxes | None:
    """Return the boxes of a sample with the model's classes (from 1), crowds and left-out classes as crowds; None where
    it has none, or where its dataset's card is not to be had."""
    try:
        card = dataset_card(sample.dataset)
        key = truth_key(options, card)
        table = classes_of(options, card.name, card.truths[key])
    except (UserError, ValueError):
        return None
    truth = sample.truth.get(key)
    if isinstance(truth, Instances):
        truth = boxes_of(truth)
    if not isinstance(truth, Boxes):
        return None
    of = np.array([table.get(int(c), -2) for c in truth.classes], np.int64)
    known = of > -2
    crowd = (of == -1) if truth.crowd is None else (of == -1) | truth.crowd
    return boxes.Boxes(truth.xyxy[known], np.maximum(of[known], 0) + 1, None, crowd[known])


def make(options: DetrOptions, card: DatasetCard) -> BoxTargets:
    """Return the target maker of one dataset. Raises `ValueError` where options and card do not fit."""
    key = truth_key(options, card)
    truth = card.truths[key]
    names = tuple((options.attributes and options.attributes.values) or ())
    return BoxTargets(
        card.name,
        key,
        classes_of(options, card.name, truth),
        tuple(truth.attributes),
        tuple(attribute_columns(options, card.name, truth.attributes)),
        names,
    )
