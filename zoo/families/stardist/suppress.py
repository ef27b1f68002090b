"""Suppression of weaker candidates that overlap stronger ones, many times faster than pair by pair and with the same
outcome.

The rule is the published one (Schmidt et al. 2018, section 2.3; Weigert et al. 2020, section 3.3): strongest first, a
candidate is dropped where its intersection with a kept one, over the smaller of the two, exceeds the threshold. The
package spends its time on convex hulls and half-space intersections of pairs whose answer is plain. Here pixels or
voxels of pairs are counted in compiled loops; a candidate that something clearly covers is dropped at once, and only
where nothing does and the count is within a margin of the threshold is the package's own test asked, for those pairs.

The order is fixed and one thread does it all, so the result does not depend on threads (the package's 3-D routine has a
race between its threads).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.families.stardist import native
from zoo.families.stardist.rays import Rays, circle

Array = NDArray[Any]
CUBE = 32
"""Cells along an edge of the cube on which triangles of rays are looked up."""


def polygons(dist: Array, points: Array, threshold: float, counts: dict[str, int] | None = None) -> NDArray[np.intp]:
    """Return the places of the polygons that are kept.

    `dist` (n, R) positive, `points` (n, 2) pixels (y, x), strongest first; `threshold` in (0, 1). `counts` takes how
    many pairs the package was asked about ("asked").
    """
    if not len(dist):
        return np.zeros(0, np.intp)
    from zoo.families.stardist import loops

    dist, points = np.ascontiguousarray(dist, np.float32), np.ascontiguousarray(points, np.float32)
    n, step = len(dist), circle(dist.shape[1]).astype(np.float32)
    vertices, boxes, girth = np.empty((n, len(step), 2), np.int32), np.empty((n, 6)), np.zeros(n)
    loops.corners_of(points, dist, step, vertices, boxes, girth)
    centres = np.concatenate([np.zeros((n, 1)), points], 1)

    def ask(some: list[int]) -> bool:
        scores = np.arange(len(some), 0.0, -1.0)
        kept = native.module("nms").non_maximum_suppression_inds(
            dist[some], points[some], scores, thresh=threshold, verbose=0
        )
        return not bool(np.asarray(kept)[-1])

    return _Planes(vertices, boxes, centres, girth, threshold).run(ask, counts)


def polyhedra(
    dist: Array, points: Array, rays: Rays, threshold: float, counts: dict[str, int] | None = None
) -> NDArray[np.intp]:
    """Return the places of the polyhedra that are kept; `points` (n, 3) voxels (z, y, x), otherwise as `polygons`."""
    if not len(dist):
        return np.zeros(0, np.intp)
    dist, points = np.ascontiguousarray(dist, np.float32), np.ascontiguousarray(points, np.float32)

    def package(some: Any) -> Array:
        chosen, scores = dist[some], np.arange(len(dist[some]), 0.0, -1.0)
        with keyboard_kept():
            found: Array = native.module("nms").non_maximum_suppression_3d_inds(
                chosen, points[some], rays, scores, thresh=threshold, verbose=0
            )
        return found

    def ask(some: list[int]) -> bool:
        return not bool(package(some)[-1])

    if not _spread(rays):  # rays that coincide (cartesian ones at the poles) bound no surface that could be counted
        return np.flatnonzero(package(slice(None)))

    return _Volumes(dist, points.astype(np.float64), rays, threshold).run(ask, counts)


@contextmanager
def keyboard_kept() -> Iterator[None]:
    """Put Python's answer to Ctrl-C back, which the package's 3-D routines replace."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


class _Loop:
    """What both loops share: the cells of kept objects, and arrays that grow."""

    def __init__(self, boxes: NDArray[np.float64]) -> None:
        n = len(boxes)
        self.boxes = np.ascontiguousarray(boxes)
        self.low = boxes[:, :3].min(0)
        extent = boxes[:, 3:].max(0) - self.low
        self.side = np.maximum(np.median(boxes[:, 3:] - boxes[:, :3], axis=0), 1.0)
        cells = np.floor(extent / self.side).astype(np.int64) + 1
        while cells.prod() > max(4 * n, 4096):  # candidates far apart: coarser cells
            self.side *= 1.5
            cells = np.floor(extent / self.side).astype(np.int64) + 1
        self.cells = cells
        self.head = np.full(int(cells.prod()), -1, np.int64)
        self.entry, self.link = np.empty(4096, np.int64), np.empty(4096, np.int64)
        self.used = 0
        self.stamp = np.full(n, -1, np.int64)
        self.found, self.far = np.empty(n, np.int64), np.empty(n)
        self.kept = np.zeros(n, bool)
        self.asked = np.empty(n, np.int64)
        self.begins = np.zeros(n, np.int64)

    def _more_entries(self) -> None:
        self.entry, self.link = (np.concatenate([a, np.empty_like(a)]) for a in (self.entry, self.link))

    def neighbours(self) -> tuple[Any, ...]:
        """Return what the loops need to find neighbours."""
        return (self.low, self.side, self.cells, self.head, self.entry, self.link, self.used)

    def advance(self, j: int, decided: bool) -> tuple[int, int, int]:
        """Run the compiled loop from candidate j; return where it stopped, why, and a number."""
        raise NotImplementedError

    def more_room(self, size: int) -> None:
        """Grow what kept objects are stored in by `size` or more."""
        raise NotImplementedError

    def run(self, ask: Callable[[list[int]], bool], counts: dict[str, int] | None) -> NDArray[np.intp]:
        """Return the kept candidates; `ask` tells whether the last of a few is suppressed where the loop cannot. The
        others of those few are kept, so they do not suppress each other."""
        from zoo.families.stardist import loops

        j, decided, asked = 0, False, 0
        while True:
            j, why, number = self.advance(j, decided)
            if why == loops.DONE:
                break
            if why == loops.MORE_ENTRIES:
                self._more_entries()
            elif why == loops.MORE_ROOM:
                self.more_room(number)
            else:
                asked += number
                if ask([*sorted(self.asked[:number].tolist()), j]):
                    j, decided = j + 1, False
                    continue
            decided = True  # it has been tested, whether it waits for room or was asked about
        if counts is not None:
            counts["asked"] = counts.get("asked", 0) + asked
        return np.flatnonzero(self.kept)


class _Planes(_Loop):
    def __init__(self, vertices: Array, boxes: Array, centres: Array, girth: Array, threshold: float) -> None:
        super().__init__(boxes)
        n = len(vertices)
        self.vertices, self.centres, self.girth, self.threshold = vertices, centres, girth, threshold
        self.values, self.counts = np.empty(1 << 16), np.empty(1 << 15, np.int64)
        self.widths, self.rows_at = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.areas = np.zeros(n)
        self.filled = np.zeros(2, np.int64)

    def advance(self, j: int, decided: bool) -> tuple[int, int, int]:
        from zoo.families.stardist import loops

        j, why, number, self.used, *_ = loops.advance_planes(
            j, decided, self.vertices, self.boxes, self.centres, self.girth, self.threshold,
            *self.neighbours(), self.stamp, self.found, self.far,
            self.values, self.counts, self.widths, self.begins, self.rows_at, self.areas, self.filled,
            self.kept, self.asked,
        )  # fmt: skip
        return int(j), int(why), int(number)

    def more_room(self, size: int) -> None:
        self.values = np.concatenate([self.values, np.empty(max(size, len(self.values)))])
        self.counts = np.concatenate([self.counts, np.empty(max(size, len(self.counts)), np.int64)])


class _Volumes(_Loop):
    def __init__(self, dist: Array, points: Array, rays: Rays, threshold: float) -> None:
        from zoo.families.stardist import kernels, loops

        boxes, grid = np.empty((len(dist), 6)), np.empty((len(dist), 6), np.int64)
        vertices = rays.vertices.astype(np.float64)
        loops.boxes_of(points, dist, vertices, boxes, grid)
        super().__init__(boxes)
        self.dist, self.points, self.grid, self.threshold = dist, points, grid, threshold
        self.faces, self.inverse, self.beside, determinants = cones(rays)
        self.start = kernels.starts(CUBE, self.inverse, self.beside)
        self.volumes = kernels.volumes_of(dist, self.faces, determinants)
        self.mask = np.empty(1 << 20, bool)
        self.filled = 0

    def advance(self, j: int, decided: bool) -> tuple[int, int, int]:
        from zoo.families.stardist import loops

        j, why, number, self.used, self.filled = loops.advance_volumes(
            j, decided, self.points, self.dist, self.boxes, self.grid, self.volumes, self.threshold,
            *self.neighbours(), self.stamp, self.found, self.far,
            self.faces, self.inverse, self.beside, self.start, CUBE, self.mask, self.begins, self.filled,
            self.kept, self.asked,
        )  # fmt: skip
        return int(j), int(why), int(number)

    def more_room(self, size: int) -> None:
        self.mask = np.concatenate([self.mask, np.empty(max(size, len(self.mask)), bool)])


def _spread(rays: Rays) -> bool:
    """Return whether every triangle of rays spans a cone."""
    sizes = np.abs(np.linalg.det(rays.vertices.astype(np.float64)[rays.faces]))
    return bool(sizes.min() > 1e-6 * np.median(sizes))


def cones(rays: Rays) -> tuple[Array, Array, Array, Array]:
    """Return triangles (F, 3), inverse matrices (F, 3, 3) that give a point's weights, the neighbour (F, 3) across the
    edge opposite to each corner, and the positive determinants (F,)."""
    faces = np.ascontiguousarray(rays.faces, np.int64)
    corners = rays.vertices.astype(np.float64)[faces]
    determinants = np.abs(np.linalg.det(corners))
    inverse = np.ascontiguousarray(np.linalg.inv(corners.transpose(0, 2, 1)))
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for f, face in enumerate(faces.tolist()):
        for k in range(3):
            a, b = sorted((face[(k + 1) % 3], face[(k + 2) % 3]))
            edges.setdefault((a, b), []).append((f, k))
    beside = np.repeat(np.arange(len(faces))[:, None], 3, axis=1)
    for sides in edges.values():
        if len(sides) == 2:
            (f, k), (g, m) = sides
            beside[f, k], beside[g, m] = g, f
    return faces, inverse, beside, determinants
