"""From maps of probabilities and distances to objects (Schmidt et al. 2018, section 2.3; Weigert et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.stardist import native, suppress
from zoo.families.stardist.rays import Rays

Array = NDArray[Any]
NEAREST = 1e-3
"""Smallest distance: what a network says below it, or negative, becomes this."""


@dataclass(frozen=True)
class Stars:
    """Star-convex objects, strongest first: `points` (N, d) pixels, `prob` (N,), `dist` (N, R); `classes` (N, K + 1)
    probabilities with the background first, or None."""

    points: NDArray[np.int64]
    prob: NDArray[np.float32]
    dist: NDArray[np.float32]
    classes: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def take(self, places: Array) -> Stars:
        """Return some of them, in the order of `places`."""
        classes = None if self.classes is None else self.classes[places]
        return Stars(self.points[places], self.prob[places], self.dist[places], classes)


def candidates(
    prob: Array,
    dist: Array,
    grid: Sequence[int],
    threshold: float,
    border: Sequence[tuple[int, int]] | int = 2,
    classes: Array | None = None,
    most: int | None = None,
) -> Stars:
    """Return the grid points whose probability exceeds `threshold`, strongest first.

    `prob` (*G), `dist` (R, *G), `classes` (K + 1, *G). `border`: grid points at each side of each axis that give none.
    Raises `UserError` where there are more than `most`.
    """
    sides = ((border, border),) * prob.ndim if isinstance(border, int) else tuple(border)
    inner = tuple(slice(a, max(n - b, a)) for n, (a, b) in zip(prob.shape, sides, strict=True))
    chosen = np.zeros(prob.shape, bool)
    chosen[inner] = prob[inner] > threshold
    count = int(chosen.sum())
    if most is not None and count > most:
        raise UserError(
            f"stardist: {count} candidates with a probability over {threshold:g}. Expected at most {most}: the image "
            "may be unlike those that the model learnt from. Raise the threshold (prob=0.7), or max_candidates."
        )
    points = np.argwhere(chosen)
    values = prob[chosen]
    order = np.argsort(values)[::-1]
    return Stars(
        (points * np.asarray(grid, np.int64))[order],
        values[order].astype(np.float32),
        np.maximum(dist[:, chosen].T[order], NEAREST).astype(np.float32),
        None if classes is None else classes[:, chosen].T[order].astype(np.float32),
    )


def survivors(stars: Stars, threshold: float, rays: Rays | None = None) -> Stars:
    """Return the objects that suppression leaves; `rays` for volumes."""
    if rays is None:
        return stars.take(suppress.polygons(stars.dist, stars.points, threshold))
    # among equals the published order is that of a second sort; the outcome comes back in the first
    order = np.argsort(stars.prob)[::-1]
    kept = suppress.polyhedra(stars.dist[order], stars.points[order], rays, threshold)
    return stars.take(np.sort(order[kept]))


def draw_polygons(stars: Stars, shape: Sequence[int], points: Array | None = None, scale: Any = (1, 1)) -> Array:
    """Return (H, W) int32 labels: object k of the list is k + 1, stronger ones over weaker ones.

    `points` (N, 2) and `scale` place the polygons on another grid: vertices are points + scale * distance * ray.
    """
    if not len(stars):
        return np.zeros(tuple(shape), np.int32)
    where = stars.points if points is None else points
    found = native.module("geometry").polygons_to_label(
        stars.dist, where, shape=tuple(shape), prob=stars.prob, scale_dist=tuple(scale)
    )
    return np.asarray(found, np.int32)


def draw_polyhedra(
    stars: Stars, rays: Rays, shape: Sequence[int], points: Array | None = None, overlap: int | None = None
) -> NDArray[np.int32]:
    """Return (D, H, W) int32 labels: object k is k + 1, and a voxel of two belongs to the stronger.

    `overlap`: label of voxels of several, which none of them gets then. `points`: other centres, for another grid.
    """
    if not len(stars):
        return np.zeros(tuple(shape), np.int32)
    where = stars.points if points is None else points
    with suppress.keyboard_kept():
        found = native.module("geometry").polyhedron_to_label(
            stars.dist, where, rays, tuple(shape), prob=stars.prob, verbose=False, overlap_label=overlap
        )
    return np.asarray(found, np.int32)


def sequential(labels: NDArray[np.int32], stars: Stars) -> tuple[NDArray[np.int32], Stars]:
    """Return labels 1..N without gaps and the objects behind them; what paints no pixel is left out.

    Negative labels (an overlap) stay as they are.
    """
    present = np.unique(labels)
    present = present[present > 0]
    if len(present) == len(stars):
        return labels, stars
    table = np.zeros(len(stars) + 1, np.int32)
    table[present] = np.arange(1, len(present) + 1)
    return np.where(labels > 0, table[np.maximum(labels, 0)], labels).astype(np.int32), stars.take(present - 1)
