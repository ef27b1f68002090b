"""What a picture is drawn from: class maps as planes, and embeddings of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zoo.cards import DatasetCard, TruthCard
from zoo.data import truths
from zoo.encoders import Encoder, build_encoder
from zoo.errors import DataError
from zoo.families.diffusion.options import DiffusionOptions, MaskOptions
from zoo.schema import Component
from zoo.types import Instances, Kind, Picture, Sample, Vector

HIDDEN = truths.IGNORE
"""Index of a class map where nothing is told."""


# --- class maps -------------------------------------------------------------------------------------------------------


def planes(classes: Tensor, edge: Tensor | None, count: int) -> Tensor:
    """Return (B, count, H, W) float32, one plane a class, and one more for `edge` where it is given.

    `classes`: (B, H, W) integers, `HIDDEN` where nothing is told (all planes are 0 there); `edge`: (B, H, W) bool or 0
    and 1, the outlines of objects.
    """
    index = torch.arange(count, device=classes.device).view(1, -1, 1, 1)
    found = (classes.long()[:, None] == index).float()
    if edge is None:
        return found
    return torch.cat([found, (edge[:, None].bool() & (classes[:, None] != HIDDEN)).float()], 1)


COLOURS = np.array(
    [(245, 245, 245), (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)],
    np.uint8,
)
"""Of classes from the background on (Okabe and Ito 2008)."""


def shown(classes: Tensor, edge: Tensor | None) -> list[NDArray[np.uint8]]:
    """Return class maps (B, H, W) as pictures (H, W, 3) to look at: a colour a class, outlines darker, hidden grey."""
    found = []
    for i, plane in enumerate(classes.cpu().numpy()):
        picture = COLOURS[(plane.astype(int) - 1) % 6 + 1]
        picture[plane == 0], picture[plane == HIDDEN] = COLOURS[0], 128
        if edge is not None:
            picture[edge[i].bool().cpu().numpy()] //= 2
        found.append(picture)
    return found


def outline(objects: NDArray[Any], width: int) -> NDArray[np.uint8]:
    """Return (H, W) uint8, 1 on the pixels of objects within `width` of anything else. `objects`: ids, 0 background."""
    return truths.instance_boundaries(objects, width, "outline").astype(np.uint8)


def kinds(options: MaskOptions) -> tuple[Kind, ...]:
    """Return the kinds of truth that class maps are made of."""
    return ("instances",) if options.boundary else ("semantic", "instances")


def truth_key(options: MaskOptions, card: DatasetCard) -> str:
    """Return the key of a dataset's class map. Raises `ValueError` where there is none, or several."""
    wanted = kinds(options)
    fitting = [key for key, truth in card.truths.items() if truth.kind in wanted]
    if options.truth is not None:
        if options.truth in fitting:
            return options.truth
        have = ", ".join(f"{key} ({truth.kind})" for key, truth in card.truths.items()) or "none"
        raise ValueError(
            f'dataset {card.name} has no {" or ".join(wanted)} truth "{options.truth}". It has {have}. Set '
            "model.mask.truth, or model.mask.boundary: 0 for truths without objects"
        )
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ValueError(
            f"dataset {card.name} has no {' or '.join(wanted)} truth to draw from. Train on a dataset that has one"
        )
    raise ValueError(f"dataset {card.name} has several truths: {', '.join(fitting)}. Choose one with model.mask.truth")


def class_names(truth: TruthCard) -> tuple[str, ...]:
    """Return a truth's class names as `zoo.data.truths` counts them: with the background for a semantic one."""
    return truth.classes or (("object",) if truth.kind == "instances" else ())


@dataclass(frozen=True)
class ConditionTargets:
    """Makes `mask` (H, W) uint8 class indices, `HIDDEN` where nothing is told, `edge` (H, W) uint8, and `embedding`
    (T, D) float32, as the options ask; a sample without the truth gives nothing."""

    options: DiffusionOptions
    dataset: str
    key: str | None = None
    names: tuple[str, ...] = ()

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return what the sample's truths tell. Raises `DataError` where they are not what the card says."""
        return {**self._mask(sample), **self._embedding(sample), **self._picture(sample)}

    def _picture(self, sample: Sample) -> dict[str, NDArray[Any]]:
        key = self.options.target
        truth = sample.truth.get(key) if key is not None else None
        if not isinstance(truth, Picture):
            return {}
        where = f"{self.dataset}: {sample.id}: {key}"
        if truth.data.dtype != np.uint8 or truth.data.shape != (3, *sample.shape):
            have = f"{truth.data.dtype} of shape {truth.data.shape}"
            raise DataError(f"{where}: {have}. Expected red, green and blue of 8 bits, {sample.shape} pixels.")
        return {"picture": np.ascontiguousarray(truth.data)}

    def _mask(self, sample: Sample) -> dict[str, NDArray[Any]]:
        options, truth = self.options.mask, sample.truth.get(self.key or "")
        if options is None or truth is None:
            return {}
        try:
            found = truths.as_semantic(truth, self.names, options.classes or (), options.merge).map
        except ValueError as error:
            raise DataError(f"{self.dataset}: {sample.id}: {self.key}: {error}.") from None
        made = {"mask": found.astype(np.uint8)}
        if options.boundary:
            assert isinstance(truth, Instances)
            made["edge"] = outline(truth.map, options.boundary) * (found > 0)
        return made

    def _embedding(self, sample: Sample) -> dict[str, NDArray[Any]]:
        options = self.options.embedding
        if options is None or options.truth is None or options.truth not in sample.truth:
            return {}
        truth = sample.truth[options.truth]
        assert options.width is not None
        if not isinstance(truth, Vector) or truth.data.size != options.tokens * options.width:
            what = f"{truth.data.size} numbers" if isinstance(truth, Vector) else f"a truth of kind {truth.kind}"
            raise DataError(
                f"{self.dataset}: {sample.id}: {options.truth}: {what}. Expected a vector of {options.tokens} x "
                f"{options.width} numbers."
            )
        return {"embedding": truth.data.astype(np.float32).reshape(options.tokens, options.width)}

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return what tells nothing."""
        made: dict[str, NDArray[Any]] = {}
        mask, embedding = self.options.mask, self.options.embedding
        if mask is not None:
            made["mask"] = np.full(shape, HIDDEN, np.uint8)
            if mask.boundary:
                made["edge"] = np.zeros(shape, np.uint8)
        if embedding is not None and embedding.truth is not None:
            made["embedding"] = np.zeros((embedding.tokens, embedding.width or 0), np.float32)
        if self.options.target is not None:
            made["picture"] = np.zeros((3, *shape), np.uint8)
        return made


def make_targets(options: DiffusionOptions, card: DatasetCard) -> ConditionTargets:
    """Return the target maker of one dataset. Raises `ValueError` where options and card do not fit."""
    if options.mask is None or (options.mask.truth is not None and options.mask.truth not in card.truths):
        return ConditionTargets(options, card.name)  # pictures of a dataset without class maps are drawn untold
    key = truth_key(options.mask, card)
    return ConditionTargets(options, card.name, key, class_names(card.truths[key]))


def resolve_mask(options: MaskOptions, cards: Sequence[DatasetCard]) -> MaskOptions:
    """Return options with truth and classes filled in from the cards. Raises `ValueError`."""
    keys = [truth_key(options, card) for card in cards]
    lists = [
        truths.foreground(class_names(card.truths[key])) for card, key in zip(cards, keys, strict=True)
    ]  # without the background
    classes = options.classes
    if classes is None and options.merge:
        classes = (truths.BACKGROUND, *(name for name in options.merge if name not in ("ignore", truths.BACKGROUND)))
    if classes is None:
        for card, names in zip(cards, lists, strict=True):
            if names != lists[0] and len(names) != 1:
                raise ValueError(
                    f"datasets {cards[0].name} and {card.name} differ in their classes ({', '.join(lists[0])}; "
                    f"{', '.join(names)}). Say which with model.mask.classes and model.mask.merge"
                )
        classes = (truths.BACKGROUND, *lists[0]) if lists else None
    if classes is None:
        raise ValueError("the classes are not known. Write them down: model.mask.classes: [background, ...]")
    for card, names, key in zip(cards, lists, keys, strict=True):
        known = (truths.BACKGROUND, *names) if card.truths[key].kind == "instances" else class_names(card.truths[key])
        try:
            truths.match_classes(known, classes, options.merge)
        except ValueError as error:
            raise ValueError(f"dataset {card.name}: {error}") from None
    truth = keys[0] if len(set(keys)) == 1 else options.truth
    return options.model_copy(update={"classes": classes, "truth": truth})


# --- embeddings -------------------------------------------------------------------------------------------------------


def embedder(component: Component, weights: str) -> Encoder:
    """Return the frozen encoder behind embeddings; one without weights is the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_encoder(component.name, weights=weights, **component.arguments)
    return made.eval().requires_grad_(False)


CELLS = 16
"""Cells an encoder sees at a time: small ones are told much faster together than one by one."""


@torch.no_grad()
def embed(encoder: Encoder, pictures: Tensor, tokens: int = 1, seen: int | None = None) -> Tensor:
    """Return (B, tokens, D) float32 features of pictures (B, 3, H, W) in [0, 1].

    Of several tokens, each is of one cell of a square grid, row by row, seen alone; `seen`: resized to that side. A
    feature is a transformer's class token, or the spatial mean of the coarsest map.
    """
    side = round(tokens**0.5)
    height, width = (max(1, size // side) for size in pictures.shape[2:])
    mean, std = (
        torch.tensor(v, device=pictures.device, dtype=torch.float32).view(1, -1, 1, 1)
        for v in (encoder.mean, encoder.std)
    )
    cells = [
        pictures[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width].float()
        for row in range(side)
        for column in range(side)
    ]
    if seen is not None and (height, width) != (seen, seen):
        cells = [F.interpolate(c, (seen, seen), mode="bilinear", antialias=True).clamp(0, 1) for c in cells]
    found = []
    for first in range(0, len(cells), CELLS):
        group = cells[first : first + CELLS]
        with torch.autocast(pictures.device.type, enabled=False):
            features = encoder((torch.cat(group) - mean) / std)
        prefix = features.prefix[-1] if features.prefix else None
        told = prefix[:, 0] if prefix is not None and prefix.shape[1] else features.maps[-1].mean((2, 3))
        found.extend(told.float().chunk(len(group)))
    return torch.stack(found, 1)
