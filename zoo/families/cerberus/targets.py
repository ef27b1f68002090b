"""What Cerberus's heads learn from: insides and contours of objects, weights between neighbours, the class of a patch.

Graham et al. 2022, "One model is all you need"; the numbers are those of the published target generator. Pure functions
on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.families.cerberus.objects import Labels, element

REACH = 10
"""Pixels around a component within which it pushes the weight up."""
IGNORE = 255
"""Value of a target where nothing is annotated."""


MOST = 2**16
"""Ids from which a label map is renumbered first: tables are indexed by id, and there may be gaps of millions."""


def compact(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the same objects in the same order, with small ids."""
    if int(labels.max(initial=0)) < MOST:
        return labels
    known, places = np.unique(labels, return_inverse=True)
    numbers = np.arange(len(known)) + (known[0] != 0)
    return np.asarray(numbers[places].reshape(labels.shape), np.int32)


def split_pieces(labels: NDArray[Any]) -> Labels:
    """Return a label map in which every id is one piece (pixels that share a side).

    Augmentation that reflects makes an id label several blobs. The first piece keeps the id, the others get new ones
    above the highest, in the order of the ids.
    """
    out = labels.astype(np.int32, copy=True)
    highest = int(out.max(initial=0))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        found, count = ndimage.label(labels[box] == number)
        if count > 1:
            more = found > 1
            out[box][more] = found[more] - 1 + highest
            highest += count - 1
    return out


def inner_and_contour(
    labels: NDArray[Any], size: int, considered: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Return (H, W) uint8: 1 inside objects, 2 on their contours, 0 elsewhere.

    Inside is what erosion by an elliptic element of `size` pixels leaves of an object, its contour what dilation adds
    to that; touching objects share one band. Beyond the picture everything continues. `considered`: pixels of the
    objects that are drawn (None: all); the others only limit their neighbours.
    """
    kernel = element(size)
    values = labels.astype(np.float32)
    drawn = labels > 0 if considered is None else considered
    alike = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
    inside = drawn & np.asarray(alike)
    near = np.asarray(cv2.dilate(drawn.astype(np.uint8), kernel)) > 0
    return np.where(inside, 1, np.where(near, 2, 0)).astype(np.uint8)


def border_weights(inside: NDArray[np.bool_], sigma: float, w0: float = 10.0) -> NDArray[np.float32]:
    """Return 1 + w0 exp(-((d1 + d2) / sigma)^2 / 2) between objects, 1 on them (Ronneberger et al. 2015, eq. 2).

    `d1`, `d2`: distances to the two nearest components of `inside`, (H, W) bool, of which each is seen only within
    its box grown by ten pixels; where fewer than two are seen nothing is added.
    """
    weights = np.ones(inside.shape, np.float32)
    pieces, count = ndimage.label(inside)
    if count < 2:
        return weights
    nearest = np.full(inside.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        window = tuple(slice(max(0, s.start - REACH), s.stop + REACH) for s in box)
        distance = np.asarray(ndimage.distance_transform_edt(pieces[window] != number), np.float32)
        first, other = nearest[window], second[window]
        second[window] = np.minimum(other, np.maximum(first, distance))
        nearest[window] = np.minimum(first, distance)
    between = (pieces == 0) & np.isfinite(second)
    total = (nearest[between] + second[between]).astype(np.float64)
    weights[between] += (w0 * np.exp(-((total / sigma) ** 2) / 2)).astype(np.float32)
    return weights


def object_targets(
    labels: NDArray[Any], size: int, shape: Sequence[int] | None = None, w0: float = 10.0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the target (0, 1 inside, 2 contour; uint8) and the weight map (float32) of a map of instances.

    `labels`: (H, W) integer, 0 background. `size`: of the elliptic element (gland 11, lumen 3, nuclei 3 at 0.5 um per
    pixel); it is the weights' sigma too. `shape`: of the centre that is returned; everything is computed on the whole
    map, of the objects that the centre shows. `w0` 0: weights of one.
    """
    whole = split_pieces(compact(labels))
    window = centre(labels.shape, shape or labels.shape)
    drawn = whole > 0
    if shape is not None:
        shown = np.zeros(int(whole.max(initial=0)) + 1, bool)
        shown[np.unique(whole[window])] = True
        shown[0] = False
        drawn = shown[whole]
    target = inner_and_contour(whole, size, drawn)
    weight = border_weights(target == 1, size, w0) if w0 else np.ones(labels.shape, np.float32)
    return target[window], weight[window]


def centre(whole: Sequence[int], shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the middle window of that shape; where it cannot be the very middle, the one nearer the origin."""
    starts = [int((have - want) * 0.5) for have, want in zip(whole, shape, strict=True)]
    return slice(starts[0], starts[0] + shape[0]), slice(starts[1], starts[1] + shape[1])


def patch_class(classes: NDArray[Any], window: int, ignore: int = IGNORE) -> int:
    """Return the most frequent class of the middle `window` pixels of a class map; `ignore` where nothing is known."""
    height, width = classes.shape
    middle = classes[centre(classes.shape, (min(window, height), min(window, width)))]
    counts = np.bincount(middle[middle != ignore].ravel().astype(np.int64))
    return int(counts.argmax()) if counts.size and counts.max() > 0 else ignore


def ellipses(xyxy: NDArray[Any], shape: Sequence[int]) -> Labels:
    """Return instances (H, W) int32 for boxes (N, 4): the ellipse in each, ids 1..N, smaller ones over larger ones.

    For cells that are annotated by boxes only: a round cell fills its box but for the corners.
    """
    out = np.zeros(tuple(shape), np.int32)
    size = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1) if len(xyxy) else np.zeros(0)
    for number in np.argsort(-size, kind="stable").tolist():
        x0, y0, x1, y1 = (float(v) for v in xyxy[number])
        top, left = max(0, int(np.floor(y0))), max(0, int(np.floor(x0)))
        bottom, right = min(out.shape[0], int(np.ceil(y1))), min(out.shape[1], int(np.ceil(x1)))
        y, x = np.ogrid[top:bottom, left:right]
        across, down = (x + 0.5 - (x0 + x1) / 2) / max(x1 - x0, 1e-6), (y + 0.5 - (y0 + y1) / 2) / max(y1 - y0, 1e-6)
        out[top:bottom, left:right][across**2 + down**2 <= 0.25] = number + 1
    return out
