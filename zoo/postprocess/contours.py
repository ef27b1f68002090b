"""Outlines of objects as polygons along pixel edges.

A pixel of row i, column j covers [j, j + 1) x [i, i + 1), so a ring runs along integer coordinates, encloses exactly
the object's pixels, and filling it gives the object back. Rings are closed (the first point is repeated), points are
(x, y). With y pointing down, outer rings have positive area by the shoelace formula and inner rings (holes) negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Ring = NDArray[np.int64]
Point = tuple[int, int]


@dataclass
class Polygon:
    """One connected part of an object: `outer` ring and the `holes` inside it, each (M, 2) closed."""

    outer: Ring
    holes: list[Ring] = field(default_factory=list)


def ring_area(ring: NDArray[Any]) -> float:
    """Return the signed area of a closed ring (shoelace); positive for outer rings."""
    x, y = ring[:-1, 0].astype(float), ring[:-1, 1].astype(float)
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def mask_polygons(mask: NDArray[Any], offset: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """Return the polygons of a (H, W) mask, one for each part that is connected by sides.

    `offset`: (row, column) of the mask's first pixel in the image. Every pixel edge between inside and outside is
    walked once, the inside on its right hand; where two pixels of the mask meet only at a corner the walk keeps to its
    own part, so rings never cross themselves.
    """
    rings = [simple for ring in _walk(mask.astype(bool)) for simple in _split(ring)]
    found = [_trim(ring) + np.array([offset[1], offset[0]]) for ring in rings]
    outers = [ring for ring in found if ring_area(ring) > 0]
    polygons = [Polygon(ring) for ring in outers]
    for hole in (ring for ring in found if ring_area(ring) < 0):
        home = polygons[0] if len(polygons) == 1 else _home(hole, polygons)
        home.holes.append(hole)
    return polygons


def _split(ring: list[Point]) -> Iterator[Ring]:
    """Yield the simple rings of a closed walk that may pass through a point twice."""
    path: list[Point] = []
    seen: dict[Point, int] = {}
    for point in ring:
        if point in seen:
            start = seen[point]
            yield np.array([*path[start:], point], np.int64)
            for gone in path[start + 1 :]:
                del seen[gone]
            del path[start + 1 :]
        else:
            seen[point] = len(path)
            path.append(point)


def _walk(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Return closed rings of unit steps along the mask's edges, the inside on the right hand (y points down)."""
    inside = np.pad(mask, 1)
    edges: dict[Point, list[Point]] = {}
    for axis, shift, (x0, y0), (x1, y1) in (
        (0, 1, (0, 0), (1, 0)),  # top edge, eastwards
        (1, -1, (1, 0), (1, 1)),  # right edge, southwards
        (0, -1, (1, 1), (0, 1)),  # bottom edge, westwards
        (1, 1, (0, 1), (0, 0)),  # left edge, northwards
    ):
        rows, columns = np.nonzero(inside & ~np.roll(inside, shift, axis))
        for i, j in zip((rows - 1).tolist(), (columns - 1).tolist(), strict=True):
            edges.setdefault((j + x0, i + y0), []).append((j + x1, i + y1))
    rings = []
    while edges:
        start = next(iter(edges))
        ring = [start]
        point, heading = start, (0, 0)
        while True:
            following = edges[point]
            step = following[0] if len(following) == 1 else _right_turn(point, heading, following)
            following.remove(step)
            if not following:
                del edges[point]
            heading = (step[0] - point[0], step[1] - point[1])
            point = step
            ring.append(point)
            if point == start:
                break
        rings.append(ring)
    return rings


def _right_turn(point: tuple[int, int], heading: tuple[int, int], options: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the next point that turns right (y points down), which keeps to the pixel whose edge was walked."""
    right = (point[0] - heading[1], point[1] + heading[0])
    return right if right in options else options[0]


def _trim(ring: Ring) -> Ring:
    """Return a ring without the points in the middle of straight runs, still closed."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    corners = points[(before != after).any(1)]
    return np.concatenate([corners, corners[:1]])


def _home(hole: Ring, polygons: list[Polygon]) -> Polygon:
    """Return the smallest polygon whose outer ring encloses a hole."""
    # a point just inside the hole: its ring has the object on the right hand, so the hole lies to the left
    (x0, y0), (x1, y1) = hole[0], hole[1]
    dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
    x, y = x0 + 0.5 * dx + 0.5 * dy, y0 + 0.5 * dy - 0.5 * dx
    around = [p for p in polygons if _inside(float(x), float(y), p.outer)]
    return min(around, key=lambda p: ring_area(p.outer))


def _inside(x: float, y: float, ring: Ring) -> bool:
    x0, y0, x1, y1 = ring[:-1, 0], ring[:-1, 1], ring[1:, 0], ring[1:, 1]
    crossed = ((y0 > y) != (y1 > y)) & (x0 > x) & (x0 == x1)  # only vertical edges cross a horizontal ray
    return bool(np.count_nonzero(crossed) % 2)


def label_polygons(labels: NDArray[Any]) -> dict[int, list[Polygon]]:
    """Return id -> polygons of every object of a (H, W) label map (more than one where an object is in pieces)."""
    found: dict[int, list[Polygon]] = {}
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            found[label] = mask_polygons(labels[box] == label, (box[0].start, box[1].start))
    return found


def outer_rings(labels: NDArray[Any]) -> tuple[Ring, ...]:
    """Return the outer ring of the largest piece of each object, for ids 1..N in order."""
    return tuple(
        max((p.outer for p in polygons), key=ring_area) for _, polygons in sorted(label_polygons(labels).items())
    )
