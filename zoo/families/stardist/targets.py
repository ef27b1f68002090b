"""From label maps to what a StarDist network learns from, and from dataset cards to its options.

Probability is the distance to the object's border, normalised to 1 at its centre (Schmidt et al. 2018, section 2.1);
distances run along rays to where the object ends. Both come from the package's native code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.cards import DatasetCard
from zoo.data.resample import present_ids
from zoo.data.truths import foreground, match_classes
from zoo.errors import DataError
from zoo.families.stardist import native
from zoo.families.stardist.options import StarDistOptions, grid_for
from zoo.families.stardist.rays import Rays
from zoo.types import Instances, Sample

Array = NDArray[Any]
Classes = Mapping[int, int | None]
"""Object id -> class from 1, 0 for background, None for "not annotated"."""
MOST_IDS = 65535


def compact(labels: Array) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return a label map with ids 1..N in 16 bits, which is what the native code takes, and the id each had.

    Raises `ValueError` where there are more than 65 535 objects.
    """
    ids = present_ids(labels).astype(np.int64)
    if len(ids) > MOST_IDS:
        raise ValueError(f"the map holds {len(ids)} objects. Expected at most {MOST_IDS}; cut it into parts")
    if len(ids) == 0:
        return np.zeros(labels.shape, np.uint16), ids
    if ids[-1] <= MOST_IDS:
        table = np.zeros(int(ids[-1]) + 1, np.uint16)
        table[ids] = np.arange(1, len(ids) + 1)
        return table[labels], ids
    places = np.searchsorted(ids, labels)
    hit = labels > 0
    return np.where(hit, places + 1, 0).astype(np.uint16), ids


def probability(labels: Array, anisotropy: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Return, for each pixel of an object, its distance to the nearest pixel that is not of it, over the object's
    largest such distance; 0 outside objects. The image's border is no border of an object."""
    if not labels.any():
        return np.zeros(labels.shape, np.float32)
    spacing = None if anisotropy is None else tuple(float(a) for a in anisotropy)
    found = native.module("utils").edt_prob(labels.astype(np.int32), anisotropy=spacing)
    return np.asarray(found, np.float32)


def distances(labels: NDArray[np.uint16], rays: int | Rays, grid: Sequence[int]) -> NDArray[np.float32]:
    """Return the distance along each ray to where the object ends, in pixels, (R, *ceil(S / grid)); 0 outside."""
    geometry = native.module("geometry")
    step = tuple(int(g) for g in grid)
    if isinstance(rays, Rays):
        found = geometry.star_dist3D(np.ascontiguousarray(labels), rays, grid=step)
    else:
        found = geometry.star_dist(np.ascontiguousarray(labels), rays, grid=step)
    return np.ascontiguousarray(np.moveaxis(np.asarray(found, np.float32), -1, 0))


def categories(labels: Array, count: int, classes: Classes) -> NDArray[np.float32]:
    """Return one plane a class and one for the background, (count + 1, *S): 1 where a pixel is of it. Objects without a
    known class are -1 everywhere but in the background's plane. Raises `ValueError` for an id that has no entry."""
    planes = np.zeros((count + 1, *labels.shape), np.float32)
    planes[0] = labels == 0
    for i in present_ids(labels).tolist():
        if i not in classes:
            raise ValueError(f"object {i} has no class. Give each object one, or none for not annotated")
        kind, here = classes[i], labels == i
        if kind is None:
            planes[1:, here] = -1
        elif kind > 0:
            planes[kind, here] = 1
    return planes


def on_grid(array: Array, grid: Sequence[int], axes: int) -> Array:
    """Return every `grid`-th pixel of the last `axes` axes, from the first."""
    steps = (slice(None, None, g) for g in grid)
    return array[(*(slice(None),) * (array.ndim - axes), *steps)]


def make(
    labels: Array,
    rays: int | Rays,
    grid: Sequence[int],
    *,
    anisotropy: Sequence[float] | None = None,
    classes: Classes | None = None,
    count: int | None = None,
    crop: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Return the targets of one patch of labels; negative labels are not annotated.

    `prob` (1, *G), -1 where not annotated; `dist` (R, *G); `mask` (1, *G), the weight of distances; with `count`,
    `prob_class` (count + 1, *G). G = ceil(S / grid). `crop` pixels at each side are lost, and objects at the border
    then teach no distances (shape completion). Raises `ValueError`.
    """
    unknown = labels < 0
    known = np.where(unknown, 0, labels) if unknown.any() else labels
    axes = labels.ndim
    inner = tuple(slice(crop, n - crop) for n in labels.shape) if crop else (slice(None),) * axes
    small, _ = compact(known)
    whole = _without_border(small) if crop else small
    seen = small[inner]
    if axes == 2:
        prob = probability(on_grid(seen, grid, axes))
        mask = probability(on_grid(whole[inner], grid, axes)) if crop else prob
        dist = distances(whole, rays, (1,) * axes if crop else grid)
        dist = on_grid(dist[(slice(None), *inner)], grid, axes) if crop else dist
    else:
        prob = mask = np.ascontiguousarray(on_grid(probability(seen, anisotropy), grid, axes))
        dist = distances(small, rays, grid)
    hidden = on_grid(unknown[inner], grid, axes)
    found = {"prob": np.where(hidden, np.float32(-1), prob)[None], "dist": dist, "mask": mask[None]}
    if count is not None:
        planes = categories(known[inner], count, classes or {})
        # scipy's zoom maps end points onto end points, which plain striding does not: this is what is published
        zoomed = ndimage.zoom(planes, (1, *(1 / g for g in grid)), order=0) if max(grid) > 1 else planes
        planes = zoomed if zoomed.shape[1:] == prob.shape else on_grid(planes, grid, axes)
        found["prob_class"] = np.where(hidden[None], np.float32(-1), planes)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def _without_border(labels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the labels without objects that touch the border."""
    touching = np.concatenate([np.unique(labels.take(at, axis)) for axis in range(labels.ndim) for at in (0, -1)])
    return np.where(np.isin(labels, touching), 0, labels).astype(np.uint16)


# --- options from the data --------------------------------------------------------------------------------------------


def truth_key(options: StarDistOptions, card: DatasetCard) -> str:
    """Return the key of a dataset's truth. Raises `ValueError` where there is none, or several and none is chosen."""
    fitting = [key for key, truth in card.truths.items() if truth.kind == "instances"]
    if options.truth is not None:
        if options.truth in fitting:
            return options.truth
        have = ", ".join(f"{key} ({truth.kind})" for key, truth in card.truths.items())
        raise ValueError(f'dataset {card.name} has no instances "{options.truth}". It has {have}. Set model.truth')
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ValueError(f"dataset {card.name} has no truth of kind instances. Train on a dataset that has one")
    raise ValueError(f"dataset {card.name} has several truths: {', '.join(fitting)}. Choose one with model.truth")


def resolve(options: StarDistOptions, cards: Sequence[DatasetCard]) -> StarDistOptions:
    """Return options with classes, truth and channels filled in from the cards. Raises `ValueError`."""
    wanted = "CYX" if options.dims == 2 else "CZYX"
    changes: dict[str, Any] = {}
    for card in cards:
        if card.axes != wanted:
            raise ValueError(
                f"dataset {card.name} has axes {card.axes} and dims is {options.dims}. Expected {wanted}. "
                f"Set model.dims to {3 if options.dims == 2 else 2} or train on another dataset"
            )
    keys = [truth_key(options, card) for card in cards]
    if cards:
        if len(set(keys)) == 1:
            changes["truth"] = keys[0]
        if options.channels is None:
            changes["channels"] = _same([card.channels for card in cards], cards, "channels")
        if options.classes is None:
            lists = [foreground(card.truths[key].classes) or ("object",) for card, key in zip(cards, keys, strict=True)]
            changes["classes"] = lists[0] if all(len(n) == 1 for n in lists) else _same(lists, cards, "classes")
    found = options.model_copy(update=changes)
    return StarDistOptions.model_validate(found.model_dump())


def _same(values: Sequence[Any], cards: Sequence[DatasetCard], what: str) -> Any:
    for card, value in zip(cards, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"datasets {cards[0].name} and {card.name} differ in their {what} ({', '.join(values[0])}; "
                f"{', '.join(value)}). Say which with model.{what}"
            )
    return values[0]


def derive(options: StarDistOptions, samples: Sequence[Sample]) -> StarDistOptions:
    """Return options with anisotropy and grid from the sizes of the objects in some samples, and spacing from theirs.

    Weigert et al. 2020, section 3.2: anisotropy is the largest median extent over that of each axis.
    """
    changes: dict[str, Any] = {}
    lists: list[NDArray[np.int64]] = []
    spacings = set()
    for index in range(len(samples)):
        if options.grid is not None and (options.anisotropy is not None or options.dims == 2) and options.spacing:
            break
        try:
            sample = samples[index]
        except DataError:
            continue
        spacings.add(sample.spacing)
        for truth in sample.truth.values():
            if isinstance(truth, Instances) and truth.map.ndim == options.dims:
                lists += extents(truth.map)
    if not lists:
        return options
    median = np.maximum(np.median(np.stack(lists), axis=0), 1.0)
    anisotropy = options.anisotropy or tuple(float(a) for a in np.round(median.max() / median, 3))
    if options.dims == 3 and options.anisotropy is None:
        changes["anisotropy"] = anisotropy
    if options.grid is None:
        changes["grid"] = grid_for(anisotropy, median)
    if options.spacing is None and len(spacings) == 1 and options.dims == 3 and (only := spacings.pop()) is not None:
        changes["spacing"] = only
    return StarDistOptions.model_validate(options.model_copy(update=changes).model_dump())


def extents(labels: Array) -> list[NDArray[np.int64]]:
    """Return the size of each object's box along each axis."""
    small, _ = compact(np.maximum(labels, 0))
    boxes = ndimage.find_objects(small)
    return [np.array([s.stop - s.start for s in box], np.int64) for box in boxes if box is not None]


# --- the target maker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StarTargets:
    """Makes `prob`, `dist`, `mask` and, where classes are learnt, `prob_class`: see `make`."""

    options: StarDistOptions
    dataset: str
    key: str
    names: tuple[str, ...]

    @property
    def _grid(self) -> tuple[int, ...]:
        return self.options.grid or (1,) * self.options.dims

    @property
    def _crop(self) -> int:
        return 0 if self.options.completion is None else self.options.completion.crop

    def __call__(self, sample: Sample) -> dict[str, Array]:
        """Return targets for a sample. Raises `DataError` where its truth is not what the card says."""
        truth = sample.truth.get(self.key)
        if truth is None:
            return {}
        if not isinstance(truth, Instances) or truth.map.ndim != self.options.dims:
            raise DataError(
                f"{self.dataset}: {sample.id}: {self.key} is no map of objects of {self.options.dims} axes."
            )
        labels = truth.map if truth.ignore is None else np.where(truth.ignore, -1, truth.map)
        try:
            return make(
                labels,
                self.options.ray_count if self.options.dims == 2 else self.options.directions,
                self._grid,
                anisotropy=self.options.anisotropy,
                classes=self._classes(truth),
                count=self.options.class_count,
                crop=self._crop,
            )
        except ValueError as error:
            raise DataError(f"{self.dataset}: {sample.id}: {self.key}: {error}.") from None

    def _classes(self, truth: Instances) -> Classes | None:
        """Return object -> class of the model; a class that the model does not know is not annotated."""
        if self.options.class_count is None:
            return None
        ours = self.options.classes or ()
        matched = match_classes(("background", *self.names), ("background", *ours))
        of = truth.classes or {}
        found: dict[int, int | None] = {}
        for i in present_ids(truth.map).tolist():
            index = of.get(i)
            name = self.names[index - 1] if index is not None and 0 < index <= len(self.names) else None
            found[i] = (matched.get(name) or None) if name is not None else None
        return found

    def blank(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return targets that say "not annotated" for a sample of that shape."""
        inner = tuple(max(n - 2 * self._crop, 0) for n in shape)
        grid = tuple(-(-n // g) for n, g in zip(inner, self._grid, strict=True))
        found: dict[str, Array] = {
            "prob": np.full((1, *grid), -1, np.float32),
            "dist": np.zeros((self.options.ray_count, *grid), np.float32),
            "mask": np.zeros((1, *grid), np.float32),
        }
        if self.options.class_count is not None:
            found["prob_class"] = np.full((self.options.class_count + 1, *grid), -1, np.float32)
        return found


def maker(options: StarDistOptions, card: DatasetCard) -> StarTargets:
    """Return the target maker of one dataset. Raises `ValueError` where options and card do not fit."""
    key = truth_key(options, card)
    return StarTargets(options, card.name, key, card.truths[key].classes or ("object",))
