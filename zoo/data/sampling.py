"""Which image comes at which position of an epoch: pure functions of (seed, epoch).

Without balancing, the epochs are cut from one endless row of permutations, so that every image comes equally often in
the long run, however many samples an epoch has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.data.resample import present_ids
from zoo.types import Instances, Sample, Semantic

Balance = Literal["none", "datasets", "batches", "classes", "foreground"]
FOREGROUND = ("", 0)
"""The focus of a patch that must hold something, whatever it is."""


@dataclass(frozen=True)
class Draw:
    """One position of an epoch: which image, and what its patch must contain.

    `focus`: a truth's key and a class index there; `FOREGROUND` for anything at all; None for a patch from anywhere.
    `use`: the epoch in which a patch that was cut in `epoch` is used; what changes with each use depends on it.
    """

    epoch: int
    position: int
    dataset: int
    image: int
    focus: tuple[str, int] | None = None
    use: int | None = None


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return random numbers that are a function of the seed and the key alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def stream(size: int, start: int, count: int, seed: int, key: int = 0) -> list[int]:
    """Return `count` places of an endless row of permutations of `range(size)`, beginning at place `start`."""
    found: list[int] = []
    block, inside = divmod(start, size)
    while len(found) < count:
        order = generator(seed, 1, key, block).permutation(size)
        found += order[inside : inside + count - len(found)].tolist()
        block, inside = block + 1, 0
    return found


def shares(count: int, weights: Sequence[float]) -> list[int]:
    """Return how many of `count` samples each weight gets: the largest remainders, so that the sum is exact."""
    exact = np.asarray(weights, float) / np.sum(weights) * count
    found = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - found), kind="stable")[: count - int(found.sum())]
    found[rest] += 1
    return [int(v) for v in found]


def mixture(counts: Sequence[int]) -> list[int]:
    """Return which of several kinds is at each place, kind k at `counts[k]` places, as evenly spread as can be.

    Smooth weighted round-robin: of equal counts, place j is of kind j mod T, the mixed batch of Cerberus (Graham et
    al. 2023); of others, every kind is within about one place of its share of any stretch.
    """
    total, credit = sum(counts), np.zeros(len(counts), int)
    found = []
    for _ in range(total):
        credit += counts
        kind = int(credit.argmax())
        credit[kind] -= total
        found.append(kind)
    return found


class Plan:
    """The order of samples of every epoch.

    `sizes`: images of each dataset; `weights`: their shares under "datasets", "batches"; `contents`: under "classes",
    for each image in order the (truth key, class) pairs that it contains; `foreground`: under "foreground", the share
    of patches that must hold something.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        samples: int,
        *,
        seed: int,
        balance: Balance = "none",
        weights: Sequence[float] = (),
        contents: Sequence[frozenset[tuple[str, int]]] = (),
        foreground: float = 0.5,
    ) -> None:
        self.foreground = foreground
        self.sizes, self.samples, self.seed, self.balance = list(sizes), samples, seed, balance
        self.weights = list(weights) or [1.0] * len(self.sizes)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(int)
        self.holders: dict[tuple[str, int], list[int]] = {}
        for image, classes in enumerate(contents):
            for name in sorted(classes):
                self.holders.setdefault(name, []).append(image)

    def epoch(self, epoch: int) -> list[Draw]:
        """Return one draw a position."""
        if self.balance in ("datasets", "batches"):
            pairs = self._by_dataset(epoch)
        elif self.balance == "classes" and self.holders:
            return self._by_class(epoch)
        else:
            total = int(self.starts[-1])
            pairs = [self._place(i) for i in stream(total, epoch * self.samples, self.samples, self.seed)]
        draws = [Draw(epoch, position, *pair) for position, pair in enumerate(pairs)]
        if self.balance == "foreground":  # not every patch: a model must also see fields with nothing in them
            draws = [replace(d, focus=FOREGROUND) if self._chosen(d.position) else d for d in draws]
        return draws

    def _chosen(self, position: int) -> bool:
        """Return whether a position is one of the `foreground` share, evenly spread."""
        return int((position + 1) * self.foreground) > int(position * self.foreground)

    def _place(self, image: int) -> tuple[int, int]:
        dataset = int(np.searchsorted(self.starts, image, side="right")) - 1
        return dataset, image - int(self.starts[dataset])

    def _by_dataset(self, epoch: int) -> list[tuple[int, int]]:
        counts = shares(self.samples, self.weights)
        own = [stream(self.sizes[d], epoch * n, n, self.seed, key=1 + d) for d, n in enumerate(counts)]
        if self.balance == "batches":
            rows = [iter(images) for images in own]
            return [(dataset, next(rows[dataset])) for dataset in mixture(counts)]
        pairs = [(dataset, image) for dataset, images in enumerate(own) for image in images]
        order = generator(self.seed, 2, epoch).permutation(len(pairs))
        return [pairs[i] for i in order]

    def _by_class(self, epoch: int) -> list[Draw]:
        """Every class equally often; within a class, every image that has it equally often."""
        names = sorted(self.holders)
        picks = stream(len(names), epoch * self.samples, self.samples, self.seed)
        rng = generator(self.seed, 3, epoch)
        draws = []
        for position, pick in enumerate(picks):
            images = self.holders[names[pick]]
            dataset, image = self._place(images[int(rng.integers(len(images)))])
            draws.append(Draw(epoch, position, dataset, image, names[pick]))
        return draws


def contents(sample: Sample) -> frozenset[tuple[str, int]]:
    """Return the (truth key, class) pairs that a sample's maps contain; background and ignored pixels do not count."""
    found: set[tuple[str, int]] = set()
    for key, truth in sample.truth.items():
        if isinstance(truth, Semantic):
            present = np.flatnonzero(truth.map.reshape(len(truth.map), -1).any(1)) if truth.multilabel else None
            values = np.unique(truth.map) if present is None else present
            skip = () if truth.multilabel else (0, truth.ignore)
            found |= {(key, int(v)) for v in values if int(v) not in skip}
        elif isinstance(truth, Instances):
            classes = truth.classes
            ids = present_ids(truth.map).tolist()
            found |= {(key, 1 if classes is None else classes[i]) for i in ids if classes is None or i in classes}
    return frozenset(found)


def places(sample: Sample, focus: tuple[str, int]) -> NDArray[np.intp]:
    """Return the flat places of the pixels that a focus means; empty where the sample has none."""
    key, index = focus
    if focus == FOREGROUND:
        maps: list[NDArray[Any]] = [t.map for t in sample.truth.values() if isinstance(t, Instances)]
        if not maps:
            maps = [_something(t) for t in sample.truth.values() if isinstance(t, Semantic)]
        return np.flatnonzero(maps[0]) if maps else np.empty(0, np.intp)
    truth = sample.truth.get(key)
    if isinstance(truth, Semantic):
        return np.flatnonzero(truth.map[index] if truth.multilabel else truth.map == index)
    if isinstance(truth, Instances):
        if truth.classes is None:
            return np.flatnonzero(truth.map)
        return np.flatnonzero(np.isin(truth.map, _ids(truth.classes, index)))
    return np.empty(0, np.intp)


def _something(truth: Semantic) -> NDArray[Any]:
    if truth.multilabel:
        return np.asarray(truth.map.any(0))
    return np.asarray((truth.map != 0) & (truth.map != (0 if truth.ignore is None else truth.ignore)))


def _ids(classes: Mapping[int, int], index: int) -> list[int]:
    return [i for i, c in classes.items() if c == index]
