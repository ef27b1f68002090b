"""Metrics of instances that need more than overlaps: distances between objects.

Conventions, for every function here: an object is the set of its pixels' centres, as in `zoo.metrics.instances`;
distances are Euclidean, in pixels; no object in either map gives nan; objects in one map only: a distance is the
diagonal of the array (a miss costs, and a mean stays finite), a share is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.metrics.instances import Overlap, assign_sparse, best_partner, overlap
from zoo.metrics.surface import distances

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Side:
    """One map: `labels` with ids 1..N in the order of the table, and where each object lies."""

    labels: NDArray[Any]

    @cached_property
    def windows(self) -> list[Window]:
        """Return the smallest window round each object, in order."""
        return list(ndimage.find_objects(self.labels))

    @cached_property
    def corners(self) -> NDArray[np.int64]:
        """Return (N, 2 * axes): first row, first column, ..., last row, last column of each object."""
        rows = [[*(s.start for s in w), *(s.stop - 1 for s in w)] for w in self.windows]
        return np.asarray(rows, np.int64).reshape(-1, 2 * self.labels.ndim)

    @cached_property
    def centroids(self) -> NDArray[np.float64]:
        """Return (N, axes): the mean position of each object's pixels."""
        where = np.nonzero(self.labels)
        ids = self.labels[where] - 1
        count = np.bincount(ids)
        if not len(count):
            return np.zeros((0, self.labels.ndim))
        return np.stack([np.bincount(ids, axis) / count for axis in where], 1)


@dataclass(frozen=True)
class Shapes:
    """Two label maps with their table of overlaps."""

    table: Overlap
    prediction: Side
    truth: Side

    @property
    def diagonal(self) -> float:
        """Return the largest distance that there can be."""
        return float(np.linalg.norm(self.truth.labels.shape))


def shapes(prediction: Any, truth: Any, ignore: Any = None, table: Overlap | None = None) -> Shapes:
    """Return the evidence of two label maps (as `instances.overlap` takes them; `table`: that, where it is there).

    Stacks of maps, (K, H, W) with ids distinct over planes, are volumes here: give one plane after another.
    """
    found = table if table is not None else overlap(prediction, truth, ignore)
    ours, theirs = (np.asarray(labels) for labels in (prediction, truth))
    if ignore is not None:
        ours, theirs = (np.where(ignore, 0, labels) for labels in (ours, theirs))
    return Shapes(found, Side(_ordered(ours, found.prediction_ids)), Side(_ordered(theirs, found.truth_ids)))


def _ordered(labels: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the same objects as 1..N in the order of `ids`."""
    highest = int(labels.max(initial=0))
    if highest <= 8 * labels.size + 1024:
        names = np.zeros(highest + 1, np.int32)
        names[ids] = np.arange(1, len(ids) + 1)
        found: NDArray[np.int32] = names[labels]
        return found
    place = np.searchsorted(ids, labels.ravel())
    return np.where(labels.ravel() > 0, place + 1, 0).reshape(labels.shape).astype(np.int32)


# --- GlaS: object-level Hausdorff distance ----------------------------------------------------------------------------


def _between(one: Side, i: int, other: Side, j: int) -> float:
    """Return the Hausdorff distance of two objects: the largest distance of a pixel of either to the nearest of the
    other."""
    window = tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one.windows[i], other.windows[j], strict=True)
    )
    a, b = one.labels[window] == i + 1, other.labels[window] == j + 1
    only_a, only_b = a & ~b, b & ~a
    far = 0.0
    if only_a.any():
        far = float(distances(b)[only_a].max())
    if only_b.any():
        far = max(far, float(distances(a)[only_b].max()))
    return far


def _nearest(one: Side, i: int, other: Side) -> float:
    """Return the smallest Hausdorff distance of an object to any of the other map.

    The difference of two bounding boxes along any side is a lower bound, so few candidates are looked at.
    """
    bound = np.abs(other.corners - one.corners[i]).max(1)
    best = np.inf
    for j in np.argsort(bound, kind="stable"):
        if bound[j] >= best:
            break
        best = min(best, _between(one, i, other, int(j)))
    return float(best)


def object_hausdorff(found: Shapes) -> float:
    """Return the object-level Hausdorff distance of the GlaS challenge (Sirinukunwattana et al., MedIA 2017, 4.3).

    (sum_i g_i H(G_i, S(G_i)) + sum_j s_j H(G(S_j), S_j)) / 2, H the Hausdorff distance of two sets of pixels, weights
    the shares of area; S(G) is the object that shares most pixels with G (the lowest id of equals), or, where none
    shares any, the one at the smallest Hausdorff distance.
    """
    table = found.table
    if table.empty:
        return float("nan")
    if not len(table.truth_ids) or not len(table.prediction_ids):
        return found.diagonal
    known: dict[tuple[int, int], float] = {}
    total = 0.0
    for side, own, other, area in (
        ((found.truth, found.prediction), table.rows, table.columns, table.truth_area),
        ((found.prediction, found.truth), table.columns, table.rows, table.prediction_area),
    ):
        partner = np.full(len(area), -1, np.int64)
        best = best_partner(own, table.area, other)
        partner[own[best]] = other[best]
        far = np.empty(len(area))
        for i, j in enumerate(partner):
            if j < 0:
                far[i] = _nearest(side[0], i, side[1])
                continue
            pair = (i, int(j)) if side[0] is found.truth else (int(j), i)
            if pair not in known:
                known[pair] = _between(found.truth, pair[0], found.prediction, pair[1])
            far[i] = known[pair]
        total += float((area * far).sum() / area.sum())
    return total / 2


# --- detection by centroids -------------------------------------------------------------------------------------------


def centroid_pairs(prediction: Any, truth: Any, radius: float) -> NDArray[np.int64]:
    """Return (M, 2) indices (truth, prediction) of points matched one to one, at most `radius` (<=) apart.

    `prediction` (P, axes), `truth` (T, axes). Of all matchings the one with most pairs is taken, of those the one whose
    distances have the smallest sum.
    """
    from scipy.spatial import cKDTree

    ours, theirs = np.atleast_2d(prediction), np.atleast_2d(truth)
    if not ours.size or not theirs.size:
        return np.zeros((0, 2), np.int64)
    near = cKDTree(theirs).sparse_distance_matrix(cKDTree(ours), radius, output_type="coo_matrix")
    rows, columns = near.row.astype(np.int64), near.col.astype(np.int64)
    pairs = min(len(ours), len(theirs))
    weight = 1 + (radius - near.data) / (2 * radius * pairs + 1e-12)
    taken = assign_sparse(rows, columns, weight, (len(theirs), len(ours)))
    return np.stack([rows[taken], columns[taken]], 1)


def centroid_f1(found: Shapes, radius: float = 12.0) -> float:
    """Return 2 TP / (2 TP + FP + FN), objects being matched one to one by centroids at most `radius` pixels apart.

    12 pixels are 3 um at 40x (0.25 um), the radius of HoVer-Net's and CoNSeP's detection scores; give the radius that
    fits your resolution: `centroid_f1@6`.
    """
    ours, theirs = len(found.table.prediction_ids), len(found.table.truth_ids)
    if not ours + theirs:
        return float("nan")
    return 2 * len(centroid_pairs(found.prediction.centroids, found.truth.centroids, radius)) / (ours + theirs)
