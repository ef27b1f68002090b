"""Objects of a volume (or a picture) of any size: candidates from parts, one suppression, drawing in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.stardist import suppress
from zoo.families.stardist.decode import Stars
from zoo.families.stardist.rays import Rays

Box = Sequence[tuple[int, int]]


def in_core(stars: Stars, read: Box, core: Box) -> Stars:
    """Return the candidates of a part whose points lie in its core, in pixels of the whole."""
    points = stars.points + np.array([begin for begin, _ in read], np.int64)
    low, high = np.array(core).T
    return Stars(points, stars.prob, stars.dist, stars.classes).take(
        np.flatnonzero(((points >= low) & (points < high)).all(1))
    )


def joined(parts: Sequence[Stars], most: int) -> Stars:
    """Return the candidates of all parts, strongest first; of equals the first by place, whatever the parts were.

    Raises `UserError` where there are more than `most`.
    """
    count = sum(map(len, parts))
    if count > most:
        raise UserError(
            f"stardist: {count} candidates in the volume. Expected at most {most}: the volume may be unlike those that "
            "the model learnt from. Raise the threshold (prob=0.7), or max_candidates where memory allows."
        )
    points = np.concatenate([p.points for p in parts])
    prob = np.concatenate([p.prob for p in parts])
    known = [p.classes for p in parts if p.classes is not None]
    everything = Stars(
        points,
        prob,
        np.concatenate([p.dist for p in parts]),
        np.concatenate(known) if len(known) == len(parts) else None,
    )
    return everything.take(np.lexsort((*points.T[::-1], -prob)))


def painter(
    stars: Stars, rays: Rays, scales: Sequence[float], offset: Sequence[float] = (0.0, 0.0, 0.0)
) -> Callable[[Sequence[int], Sequence[int]], NDArray[np.int32]]:
    """Return what draws the window (begin, size) of a volume: labels k + 1, a voxel of two belongs to the stronger.

    `scales`: model voxels per voxel of what is drawn; `offset`: what is added to points, in model voxels.
    """
    from zoo.families.stardist import kernels, loops

    scale = np.asarray(scales, float)
    plain = bool((scale == 1).all())
    points = stars.points + np.asarray(offset, np.float64)
    centres = points if plain else (points + 0.5) / scale - 0.5
    turned = rays if plain else rays.scaled(1 / scale)
    faces, inverse, beside, _ = suppress.cones(turned)
    start = kernels.starts(suppress.CUBE, inverse, beside)
    boxes, grid = np.empty((len(stars), 6)), np.empty((len(stars), 6), np.int64)
    loops.boxes_of(centres, stars.dist, turned.vertices.astype(np.float64), boxes, grid)

    def paint(begin: Sequence[int], size: Sequence[int]) -> NDArray[np.int32]:
        first, last = np.asarray(begin, np.int64), np.asarray(begin) + np.asarray(size)
        here = np.flatnonzero(((grid[:, 3:] > first) & (grid[:, :3] < last)).all(1))
        labels = np.zeros(tuple(size), np.int32)
        reciprocal = 1 / stars.dist[here].astype(np.float64)
        ids = (here + 1).astype(np.int32)
        loops.paint(
            labels, first, centres[here], reciprocal, grid[here], ids, faces, inverse, beside, start, suppress.CUBE
        )
        return labels

    return paint


def told(stars: Stars) -> tuple[Any, Any]:
    """Return the class (an index without background) and the score of each object."""
    kinds = np.zeros(len(stars), np.int64)
    if stars.classes is not None:
        kinds = stars.classes[:, 1:].argmax(1).astype(np.int64)
    return kinds, stars.prob
