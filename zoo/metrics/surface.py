"""Metrics of outlines: how far the border of a predicted region lies from that of the true one.

Conventions, for every function here:

- the outline of a mask is its pixels that have a pixel outside the mask beside them (sharing a side; what lies beyond
  the array is outside), as MONAI and DeepMind's `surface-distance` without sub-voxels have it;
- distances run from pixel centre to pixel centre, Euclidean, in pixels (or in the unit of `spacing`);
- a class in neither map has no distance (nan) and does not enter a mean; a class in one map only is as far away as can
  be: the diagonal of the array, and its surface Dice is 0. So a miss costs, and a mean stays finite;
- ignored pixels belong to no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """Two outlines of one class: `to_truth` the distance of each pixel of the predicted outline to the true one,
    `to_prediction` the other way round (empty where the other outline is), `sizes` pixels of the predicted and of the
    true outline, `diagonal` of the array."""

    to_truth: Floats
    to_prediction: Floats
    sizes: tuple[int, int]
    diagonal: float

    @property
    def absent(self) -> bool:
        """True where neither map has the class."""
        return self.sizes == (0, 0)


def outline(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the outline of a mask of any number of axes."""
    inside = np.asarray(mask, bool)
    return np.asarray(inside & ~ndimage.binary_erosion(inside, border_value=0))


def distances(targets: NDArray[np.bool_], spacing: Sequence[float] | None = None) -> Floats:
    """Return the distance of every pixel to the nearest target pixel; there must be one."""
    if targets.ndim == 2 and spacing is None:
        found: Floats = cv2.distanceTransform((~targets).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(
            np.float64
        )
        return np.sqrt(np.rint(found * found)) if found.max(initial=0) < 1024 else _exact(targets, None)
    return _exact(targets, spacing)


def _exact(targets: NDArray[np.bool_], spacing: Sequence[float] | None) -> Floats:
    return np.asarray(ndimage.distance_transform_edt(~targets, sampling=spacing), np.float64)


def surface(prediction: Any, truth: Any, spacing: Sequence[float] | None = None) -> Surface:
    """Return the outlines of two masks (bool, one shape, 2-D or 3-D) against each other.

    `spacing`: size of a pixel along each axis; None counts pixels. Raises `ValueError` for differing shapes.
    """
    predicted, true = np.asarray(prediction, bool), np.asarray(truth, bool)
    if predicted.shape != true.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {true.shape} differ in shape")
    step = np.ones(true.ndim) if spacing is None else np.asarray(spacing, np.float64)
    diagonal = float(np.linalg.norm(np.asarray(true.shape) * step))
    none = np.zeros(0, np.float64)
    whole = predicted | true
    if not whole.any():
        return Surface(none, none, (0, 0), diagonal)
    window = ndimage.find_objects(whole.astype(np.uint8))[0]
    ours, theirs = outline(predicted[window]), outline(true[window])
    sizes = int(ours.sum()), int(theirs.sum())
    if not all(sizes):
        return Surface(none, none, sizes, diagonal)
    return Surface(distances(theirs, spacing)[ours], distances(ours, spacing)[theirs], sizes, diagonal)


def surfaces(prediction: Any, truth: Any, classes: Sequence[int], ignore: Any = None) -> list[Surface]:
    """Return the outlines of each of `classes` in two maps.

    `prediction`, `truth`: (H, W) integer class indices, or (K, H, W) bool planes whose number is the class (then as
    many as `classes` names); `ignore`: (H, W) bool, True where nothing is counted.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    counted = None if ignore is None else ~np.asarray(ignore, bool)
    planes = predicted.dtype == bool and predicted.ndim == 3

    def mask(values: NDArray[Any], k: int) -> NDArray[np.bool_]:
        found = values[k].astype(bool) if planes else values == k
        return np.asarray(found if counted is None else found & counted)

    return [surface(mask(predicted, k), mask(true, k)) for k in classes]


def _mean(values: Sequence[float]) -> float:
    told = [v for v in values if not np.isnan(v)]
    return float(np.mean(told)) if told else float("nan")


def _hausdorff(one: Surface, percentile: float) -> float:
    if one.absent:
        return float("nan")
    if not all(one.sizes):
        return one.diagonal
    return float(max(np.percentile(one.to_truth, percentile), np.percentile(one.to_prediction, percentile)))


def hd95(found: Sequence[Surface], percentile: float = 95) -> float:
    """Return the mean over classes of max(P95(d(P, T)), P95(d(T, P))), d the distances of one outline to the other.

    Huttenlocher et al., IEEE TPAMI 1993, with the percentile of each direction (linear interpolation), as MONAI and the
    challenges since BraTS report it; `percentile` 100 is the Hausdorff distance.
    """
    return _mean([_hausdorff(one, percentile) for one in found])


def surface_dice(found: Sequence[Surface], tolerance: float = 2.0) -> float:
    """Return the mean over classes of the share of both outlines within `tolerance` (<=) of the other one.

    (|P within t of T| + |T within t of P|) / (|P| + |T|), counted in outline pixels: the normalised surface Dice of
    Nikolov et al., JMIR 2021.
    """
    values = []
    for one in found:
        near = int((one.to_truth <= tolerance).sum()) + int((one.to_prediction <= tolerance).sum())
        values.append(float("nan") if one.absent else near / sum(one.sizes))
    return _mean(values)
