"""From a sample's truth to what a semantic network learns from, and from dataset cards to its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.cards import DatasetCard, TruthCard
from zoo.data import truths
from zoo.errors import DataError
from zoo.families.unet.options import UNetOptions
from zoo.losses import weight_maps
from zoo.types import Instances, Kind, Sample


def kinds(options: UNetOptions) -> tuple[Kind, ...]:
    """Return the kinds of truth that the options can learn from."""
    objects = options.boundary or (options.weighs_borders and options.border.kind == "objects")
    return ("instances",) if objects else ("semantic", "instances")


def truth_key(options: UNetOptions, card: DatasetCard) -> str:
    """Return the key of a dataset's truth. Raises `ValueError` where there is none, or several and none is chosen."""
    fitting = [key for key, truth in card.truths.items() if truth.kind in kinds(options)]
    expected = " or ".join(kinds(options))
    if options.truth is not None:
        if options.truth in fitting:
            return options.truth
        have = ", ".join(f"{key} ({truth.kind})" for key, truth in card.truths.items()) or "no truth"
        raise ValueError(
            f'dataset {card.name} has no {expected} truth "{options.truth}". It has {have}. Set model.truth'
        )
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ValueError(f"dataset {card.name} has no {expected} truth. Train on a dataset that has one")
    raise ValueError(f"dataset {card.name} has several truths: {', '.join(fitting)}. Choose one with model.truth")


def _names(truth: TruthCard) -> tuple[str, ...]:
    """Return class names as `zoo.data.truths` counts them: with the background for a semantic truth."""
    return truth.classes or (("object",) if truth.kind == "instances" else ())


def resolve(options: UNetOptions, cards: Sequence[DatasetCard]) -> UNetOptions:
    """Return options with classes, truth key, channels and mode filled in from the cards. Raises `ValueError`."""
    changes: dict[str, Any] = {}
    if cards:
        keys = [truth_key(options, card) for card in cards]
        if len(set(keys)) == 1:
            changes["truth"] = keys[0]
        if options.channels is None:
            _one(cards, [card.channels for card in cards], "channels")
            changes["channels"] = cards[0].channels
        if options.classes is None:
            changes["classes"] = _classes(options, cards, keys)
    classes = changes.get("classes", options.classes)
    if classes is None:
        raise ValueError("the classes are not known. Write them down: classes: [background, ...]")
    options = options.model_copy(update=changes)
    options = UNetOptions.model_validate(options.model_dump() | {"mode": options.resolved_mode(classes)})
    for card, key in zip(cards, keys if cards else [], strict=True):
        _check(options, card, card.truths[key])
    return options


def _one(cards: Sequence[DatasetCard], values: Sequence[Any], what: str) -> None:
    for card, value in zip(cards, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"datasets {cards[0].name} and {card.name} differ in their {what} ({', '.join(values[0])}; "
                f"{', '.join(value)}). Say which with model.{what}"
            )


def _classes(options: UNetOptions, cards: Sequence[DatasetCard], keys: Sequence[str]) -> tuple[str, ...]:
    """Return class names from the cards, or from `merge` where it is given."""
    if options.merge:
        named = tuple(name for name in options.merge if name not in ("ignore", truths.BACKGROUND))
    else:
        lists = [truths.foreground(_names(card.truths[key])) for card, key in zip(cards, keys, strict=True)]
        if any(len(found) != 1 for found in lists):
            _one(cards, lists, "classes")
        named = lists[0]
    if not named:
        where = "merge" if options.merge else f"dataset {cards[0].name}"
        raise ValueError(
            f"{where} has no class beside the background, so that nothing can be learnt. Name at least one"
        )
    return named if options.mode == "multilabel" else (truths.BACKGROUND, *named)


def _check(options: UNetOptions, card: DatasetCard, truth: TruthCard) -> None:
    names = _names(truth)
    names = (truths.BACKGROUND, *names) if truth.kind == "instances" else names
    wanted = options.classes or ()
    wanted = (truths.BACKGROUND, *wanted) if options.mode == "multilabel" else wanted
    try:
        truths.match_classes(names, wanted, options.merge)
    except ValueError as error:
        raise ValueError(f"dataset {card.name}: {error}") from None


@dataclass(frozen=True)
class SemanticTargets:
    """Makes `semantic`: (H, W) uint8 class indices, or (K, H, W) uint8 planes of 0 and 1 in a multi-label model, with
    `options.ignore` where nothing is annotated; and `weight` (H, W) float32 for losses that want a weight map."""

    options: UNetOptions
    dataset: str
    key: str
    names: tuple[str, ...]

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return targets for a sample. Raises `DataError` where its truth is not what the card says."""
        truth = sample.truth.get(self.key)
        if truth is None:
            return {}
        classes = self.options.classes or ()
        try:
            if self.options.mode == "multilabel":
                target = truths.as_planes(truth, self.names, classes, self.options.merge)
            else:
                target = truths.as_semantic(truth, self.names, classes, self.options.merge).map
        except ValueError as error:
            raise DataError(f"{self.dataset}: {sample.id}: {self.key}: {error}.") from None
        target = target.astype(np.uint8)
        objects = self.options.instances
        if objects is not None and objects.boundary != "none":
            assert isinstance(truth, Instances)
            edge = truths.instance_boundaries(truth.map, objects.width, objects.boundary)
            target[edge & (target != 0) & (target != truths.IGNORE)] = len(classes)
        made: dict[str, NDArray[Any]] = {}
        if self.options.weighs_borders:
            border = self.options.border
            source = truth.map if isinstance(truth, Instances) else target
            weigh = weight_maps.unet_weights if border.kind == "objects" else weight_maps.border_weights
            if source.ndim > len(sample.shape):  # planes: borders of any of them
                made["weight"] = np.max([weigh(plane, border.w0, border.sigma) for plane in source], axis=0)
            else:
                made["weight"] = weigh(source, border.w0, border.sigma)
        if self.options.ignore != truths.IGNORE:
            target[target == truths.IGNORE] = self.options.ignore
        return {"semantic": target, **made}

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return targets that say "not annotated" for a sample of that shape."""
        planes = (len(self.options.classes or ()),) if self.options.mode == "multilabel" else ()
        made: dict[str, NDArray[Any]] = {"semantic": np.full((*planes, *shape), self.options.ignore, np.uint8)}
        if self.options.weighs_borders:
            made["weight"] = np.zeros(shape, np.float32)
        return made


def make(options: UNetOptions, card: DatasetCard) -> SemanticTargets:
    """Return the target maker of one dataset. Raises `ValueError` where options and card do not fit."""
    key = truth_key(options, card)
    _check(options, card, card.truths[key])
    return SemanticTargets(options, card.name, key, _names(card.truths[key]))
