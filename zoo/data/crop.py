"""Patches of a sample: image and truths cut to the same window, padded where the image is smaller.

Padding is never a mirror (a mirrored object is not one): the image is filled with the median of its border, labels with
"not annotated", and the map under `VALID` says where the sample ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.collate import pad_image
from zoo.data.resample import kept
from zoo.types import Boxes, Instances, Picture, Sample, Semantic, Truth

VALID = "\0valid"
"""Key of the map that travels with a sample through crops and augmentation: 1 inside the image, 0 outside."""
VISIBLE = 0.25
"""Share of its area that a box must keep in a patch; a box with less is dropped."""


def with_valid(sample: Sample) -> Sample:
    """Return a sample that carries the map of its own extent."""
    valid = Semantic(np.ones(sample.shape, np.uint8), ignore=0)
    return sample.with_(truth={**sample.truth, VALID: valid})


def take_valid(sample: Sample) -> tuple[Sample, NDArray[np.bool_]]:
    """Return the sample without the map of its extent, and that map as bool."""
    truth = dict(sample.truth)
    valid = truth.pop(VALID)
    assert isinstance(valid, Semantic)
    return sample.with_(truth=truth), valid.map != 0


def _window(start: Sequence[int], size: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(s, s + n) for s, n in zip(start, size, strict=True)))


def _labels(labels: NDArray[Any], start: Sequence[int], size: Sequence[int], fill: Any) -> NDArray[Any]:
    cut: NDArray[Any] = labels[_window(start, size)]
    missing = [n - have for n, have in zip(size, cut.shape[cut.ndim - len(size) :], strict=True)]
    if not any(missing):
        return cut
    widths = [(0, 0)] * (cut.ndim - len(size)) + [(0, m) for m in missing]
    return np.pad(cut, widths, constant_values=fill)


def crop_boxes(boxes: Boxes, window: Sequence[float], visible: float = VISIBLE) -> Boxes:
    """Return the boxes of a window (x0, y0, x1, y1), in its coordinates, clipped to it; those of which less than
    `visible` of the area is left are dropped."""
    x0, y0, x1, y1 = window
    low, high = np.array([x0, y0, x0, y0], np.float32), np.array([x1, y1, x1, y1], np.float32)
    clipped = np.clip(boxes.xyxy, low, high)
    whole = np.prod(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2], axis=1)
    left = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1)
    keep = (left > 0) & (left >= visible * whole)
    return Boxes(
        (clipped - low)[keep].astype(np.float32),
        boxes.classes[keep],
        None if boxes.attributes is None else boxes.attributes[keep],
        None if boxes.crowd is None else boxes.crowd[keep],
    )


def _truth(truth: Truth, start: Sequence[int], size: Sequence[int]) -> Truth:
    if isinstance(truth, Semantic):
        fill = 0 if truth.ignore is None else truth.ignore
        return Semantic(_labels(truth.map, start, size, fill), truth.ignore, truth.multilabel)
    if isinstance(truth, Instances):
        labels = _labels(truth.map, start, size, 0)
        ignore = None if truth.ignore is None else _labels(truth.ignore, start, size, True)
        return replace(truth, map=labels, classes=kept(truth, labels), ignore=ignore)
    if isinstance(truth, Boxes):
        (y, x), (h, w) = start[-2:], size[-2:]
        return crop_boxes(truth, (x, y, x + w, y + h))
    if isinstance(truth, Picture):
        valid = truth.valid if truth.valid is not None else np.ones(truth.data.shape[1:], bool)
        data = pad_image(truth.data[_window(start, size)], size)
        cut = _labels(valid, start, size, False)
        return Picture(data, truth.channels, None if cut.all() else cut, truth.encoding)
    return truth


def crop(sample: Sample, start: Sequence[int], size: Sequence[int]) -> Sample:
    """Return the window of a sample that begins at `start` and has that size, with its truths.

    What lies beyond the far sides is padded. Objects that are not in the window lose their class entry.
    """
    if tuple(size) == sample.shape and not any(start):
        return sample
    image = pad_image(sample.image[_window(start, size)], size)
    truth = {key: _truth(value, start, size) for key, value in sample.truth.items()}
    return sample.with_(image=image, truth=truth)


def centre_start(shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Return where the middle window of that size begins."""
    return tuple(max(0, n - s) // 2 for n, s in zip(shape, size, strict=True))


def random_start(
    shape: Sequence[int], size: Sequence[int], rng: np.random.Generator, pixel: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return where a random window of that size begins; one that contains `pixel` where one is given."""
    start = []
    for axis, (n, s) in enumerate(zip(shape, size, strict=True)):
        low, high = 0, max(0, n - s)
        if pixel is not None:
            low, high = max(low, pixel[axis] - s + 1), min(high, pixel[axis])
        start.append(int(rng.integers(low, high + 1)))
    return tuple(start)
