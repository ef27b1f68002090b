"""Augmentations that lay pictures out anew: one smaller or larger in its frame, or four in one frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.crop import crop, random_start
from zoo.data.resample import resize
from zoo.data.steps import Range, Step, in_range, number, with_xyxy
from zoo.types import Boxes, Instances, Picture, Sample, Semantic, Truth

Partner = Callable[[np.random.Generator], Sample]
"""Draws another sample of the same dataset."""


def rolled(sample: Sample, shift: Sequence[int]) -> Sample:
    """Return a sample whose content is moved by whole pixels (rows, columns); what leaves comes in opposite."""
    if not any(shift):
        return sample
    axes = tuple(range(-len(shift), 0))

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        return np.roll(array, tuple(shift), axes)

    truth: dict[str, Truth] = {}
    for key, old in sample.truth.items():
        if isinstance(old, Semantic):
            truth[key] = replace(old, map=turn(old.map))
        elif isinstance(old, Instances):
            truth[key] = replace(old, map=turn(old.map), ignore=None if old.ignore is None else turn(old.ignore))
        elif isinstance(old, Picture):
            truth[key] = replace(old, data=turn(old.data), valid=None if old.valid is None else turn(old.valid))
        elif isinstance(old, Boxes):
            truth[key] = with_xyxy(old, old.xyxy + np.array([shift[1], shift[0]] * 2, np.float32))
        else:
            truth[key] = old
    return sample.with_(image=turn(sample.image), truth=truth)


def framed(sample: Sample, shape: Sequence[int], rng: np.random.Generator) -> Sample:
    """Return a sample in a frame of `shape`: a random window of it where it is larger, at a random place where it is
    smaller, padded as crops are (never mirrored)."""
    before = sample.shape
    cut = crop(sample, random_start(before, shape, rng), shape)
    room = [max(0, new - old) for new, old in zip(shape, before, strict=True)]
    return rolled(cut, [int(rng.integers(r + 1)) for r in room])


class Zoom(Step):
    """Scale by a random factor and keep the frame's size: a window of what is larger, padding around what is smaller.

    Boxes follow exactly; `scale` is the range of the factor, drawn evenly in its logarithm.
    """

    planar = True

    def __init__(self, scale: Range = (0.7, 1.4), p: float = 1.0) -> None:
        super().__init__(p)
        self.scale = in_range(scale, 0.1, 10, "scale")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = math.exp(rng.uniform(*np.log(self.scale)))
        shape = [max(1, round(n * factor)) for n in sample.shape]
        return framed(resize(sample, shape), sample.shape, rng)


class Mixing(Step):
    """A step that needs further samples: `mix(sample, others, rng)` with `partners` of them."""

    partners = 1

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample

    def mix(self, sample: Sample, others: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """Return one sample made of several."""
        raise NotImplementedError


class Mosaic(Mixing):
    """Four pictures in one frame, each scaled by a factor from `scale` (Bochkovskiy et al. 2020, YOLOv4).

    They meet at a random point of the frame's middle half. Of a truth that one of the four lacks, nothing is known.
    """

    planar = True
    partners = 3

    def __init__(self, scale: Range = (0.5, 1.0), p: float = 0.5) -> None:
        super().__init__(number(p, 0, 1, "p"))
        self.scale = in_range(scale, 0.1, 10, "scale")

    def mix(self, sample: Sample, others: Sequence[Sample], rng: np.random.Generator) -> Sample:
        height, width = sample.shape
        y, x = (int(rng.integers(n // 4, n - n // 4 + 1)) if n >= 4 else n // 2 for n in (height, width))
        sizes = [(y, x), (y, width - x), (height - y, x), (height - y, width - x)]
        parts = []
        for own, size in zip([sample, *others], sizes, strict=True):
            factor = math.exp(rng.uniform(*np.log(self.scale)))
            shape = [max(1, round(n * factor)) for n in own.shape]
            parts.append(framed(resize(own, shape), size, rng))
        image = _four([part.image for part in parts])
        keys = [key for key in sample.truth if all(key in part.truth for part in parts)]
        corners = [(0, 0), (0, x), (y, 0), (y, x)]
        truth = {key: _joined([part.truth[key] for part in parts], corners) for key in keys}
        return sample.with_(image=image, truth={key: made for key, made in truth.items() if made is not None})


def _four(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.concatenate(arrays[:2], -1), np.concatenate(arrays[2:], -1)], -2)


def _joined(truths: Sequence[Truth], corners: Sequence[tuple[int, int]]) -> Truth | None:
    """Return one truth of four parts of a frame; None for a kind that says something of the whole picture."""
    first = truths[0]
    if isinstance(first, Boxes):
        return _boxes([t for t in truths if isinstance(t, Boxes)], corners)
    if isinstance(first, Semantic):
        same = [t for t in truths if isinstance(t, Semantic) and t.ignore == first.ignore]
        return replace(first, map=_four([t.map for t in same])) if len(same) == len(truths) else None
    if isinstance(first, Instances):
        return _instances([t for t in truths if isinstance(t, Instances)])
    if isinstance(first, Picture):
        found = [t for t in truths if isinstance(t, Picture)]
        valid = [np.ones(t.data.shape[1:], bool) if t.valid is None else t.valid for t in found]
        return replace(first, data=_four([t.data for t in found]), valid=_four(valid))
    return None


def _boxes(parts: Sequence[Boxes], corners: Sequence[tuple[int, int]]) -> Boxes:
    moved = [p.xyxy + np.array([x, y, x, y], np.float32) for p, (y, x) in zip(parts, corners, strict=True)]
    attributes = [p.attributes for p in parts if p.attributes is not None]
    crowd = [np.zeros(len(p.xyxy), bool) if p.crowd is None else p.crowd for p in parts]
    return Boxes(
        np.concatenate(moved).astype(np.float32),
        np.concatenate([p.classes for p in parts]),
        np.concatenate(attributes) if len(attributes) == len(parts) else None,
        np.concatenate(crowd) if any(p.crowd is not None for p in parts) else None,
    )


def _instances(parts: Sequence[Instances]) -> Instances:
    maps: list[NDArray[Any]] = []
    classes: dict[int, int] = {}
    values: dict[int, NDArray[np.float32]] = {}
    highest = 0
    for part in parts:
        maps.append(np.where(part.map > 0, part.map + highest, 0).astype(np.int32))
        classes |= {i + highest: c for i, c in (part.classes or {}).items()}
        values |= {i + highest: v for i, v in (part.values or {}).items()}
        highest += int(part.map.max(initial=0))
    ignore = [np.zeros(p.map.shape, bool) if p.ignore is None else p.ignore for p in parts]
    return Instances(
        _four(maps),
        classes if parts[0].classes is not None else None,
        _four(ignore) if any(p.ignore is not None for p in parts) else None,
        values if parts[0].values is not None else None,
    )
