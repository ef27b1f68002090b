"""Samples at another resolution: the image by area or linear interpolation, label maps by the nearest pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.types import Boxes, Instances, Picture, Sample, Semantic, Truth


def target_shape(shape: Sequence[int], spacing: Sequence[float], mpp: float | Sequence[float]) -> tuple[int, ...]:
    """Return the spatial shape at `mpp` um per pixel of an image of that shape and spacing; at least 1 an axis."""
    wanted = (mpp,) * len(shape) if isinstance(mpp, int | float) else tuple(mpp)
    return tuple(max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True))


def nearest(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return the last axes of an array at another shape: each new pixel takes the old one that its centre lies in."""
    found = labels
    first = labels.ndim - len(shape)
    for axis, (new, old) in enumerate(zip(shape, labels.shape[first:], strict=True)):
        if new != old:
            centres = ((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
            found = np.take(found, np.minimum(centres, old - 1), axis=first + axis)
    return found


def _plane(plane: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    smaller = shape[0] < plane.shape[0] or shape[1] < plane.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    source = plane if plane.dtype in (np.uint8, np.uint16, np.float32) else plane.astype(np.float32)
    resized: NDArray[Any] = cv2.resize(source, (shape[1], shape[0]), interpolation=how)
    return resized


def _depth(volume: NDArray[Any], depth: int) -> NDArray[Any]:
    """Interpolate (D, H, W) linearly along its first axis."""
    old = volume.shape[0]
    at = np.clip((np.arange(depth) + 0.5) * (old / depth) - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.intp)
    share = (at - low).reshape(-1, 1, 1).astype(np.float32)
    return np.asarray(volume[low] * (1 - share) + volume[np.minimum(low + 1, old - 1)] * share, np.float32)


def image(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return (C, H, W) or (C, D, H, W) at another spatial shape and in its own dtype.

    An axis that shrinks is averaged over the area of the new pixel, one that grows is interpolated linearly.
    """
    if array.shape[1:] == tuple(shape):
        return array
    found: NDArray[Any]
    if array.ndim == 3:
        found = np.stack([_plane(plane, shape) for plane in array])
    else:
        found = np.stack([_depth(np.stack([_plane(p, shape[1:]) for p in volume]), shape[0]) for volume in array])
    if found.dtype == array.dtype:
        return found
    if np.issubdtype(array.dtype, np.integer):
        bounds = np.iinfo(array.dtype)
        found = np.clip(np.rint(found), bounds.min, bounds.max)
    return found.astype(array.dtype)


def truth_at(truth: Truth, old: Sequence[int], shape: Sequence[int]) -> Truth:
    """Return a truth of spatial shape `old` at another shape; what has no place in the image stays as it is."""
    if isinstance(truth, Semantic):
        return Semantic(nearest(truth.map, shape), truth.ignore, truth.multilabel)
    if isinstance(truth, Instances):
        labels = nearest(truth.map, shape)
        ignore = None if truth.ignore is None else nearest(truth.ignore, shape)
        return replace(truth, map=labels, classes=kept(truth, labels), ignore=ignore)
    if isinstance(truth, Boxes):
        y, x = (new / was for new, was in zip(shape[-2:], old[-2:], strict=True))
        return Boxes((truth.xyxy * [x, y, x, y]).astype(np.float32), truth.classes, truth.attributes, truth.crowd)
    if isinstance(truth, Picture):
        valid = None if truth.valid is None else nearest(truth.valid, shape)
        return Picture(image(truth.data, shape), truth.channels, valid, truth.encoding)
    return truth


def kept(truth: Instances, labels: NDArray[Any]) -> dict[int, int] | None:
    """Return the classes of those objects that `labels` still holds."""
    if truth.classes is None:
        return None
    present = set(present_ids(labels).tolist())
    return {i: c for i, c in truth.classes.items() if i in present}


def present_ids(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return the values that a label map holds, without 0, in ascending order."""
    largest = int(labels.max(initial=0))
    if largest <= 4 * labels.size:  # counting is much faster than sorting
        found = np.flatnonzero(np.bincount(labels.ravel(), minlength=1))
    else:
        found = np.unique(labels).astype(np.intp)
    return found[found > 0]


def resample(sample: Sample, mpp: float | Sequence[float]) -> Sample:
    """Return a sample at `mpp` um per pixel, with its truths; the sample itself where its spacing is not known.

    The new spacing is exact (the old extent over the new number of pixels), so it may differ from `mpp` by the rounding
    to whole pixels. Objects that vanish lose their class entry.
    """
    if sample.spacing is None:
        return sample
    shape = target_shape(sample.shape, sample.spacing, mpp)
    if shape == sample.shape:
        return sample
    return resize(sample, shape)


def resize(sample: Sample, shape: Sequence[int]) -> Sample:
    """Return a sample at another spatial shape, with its truths; its spacing, where it is known, changes along."""
    if tuple(shape) == sample.shape:
        return sample
    spacing = sample.spacing
    if spacing is not None:
        spacing = tuple(s * old / new for s, old, new in zip(spacing, sample.shape, shape, strict=True))
    truth = {key: truth_at(value, sample.shape, shape) for key, value in sample.truth.items()}
    return sample.with_(image=image(sample.image, shape), spacing=spacing, truth=truth)
