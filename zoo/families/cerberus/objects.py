"""From probabilities to objects, as Cerberus makes them. Pure functions on arrays.

A head says for each pixel how likely it is the inside of an object and how likely its contour. Glands and lumina are
grown back from their insides; touching nuclei are told apart by a watershed (Graham et al. 2022, "One model is all you
need"; the numbers are those of the published post-processing). Every object depends on nothing but the connected piece
of the maps that it lies in, which is what makes decoding in tiles exact (`zoo.families.cerberus.tiles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Rule:
    """How one tissue's objects are made.

    `method`: "grown" (inside above `threshold` and not contour; dilated by an elliptic element of `grow` pixels, holes
    filled) or "watershed". `min_size`: pixels of the smallest object before growing. `min_seed`: of the smallest
    watershed marker. `contour`: elliptic element of the targets, in pixels.
    """

    method: Literal["grown", "watershed"]
    threshold: float
    min_size: int
    grow: int
    contour: int
    min_seed: int = 4


RULES = {
    "gland": Rule("grown", 0.55, 1000, 10, 11),
    "lumen": Rule("grown", 0.5, 150, 2, 3),
    "nuclei": Rule("watershed", 0.5, 8, 0, 3),
}
"""The published rules, for 0.5 um per pixel."""

CROSS: NDArray[np.uint8] = np.asarray(cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.uint8)


def instances(inner: Plane, contour: Plane, rule: Rule, factor: float = 1.0) -> Labels:
    """Return (H, W) int32 instances from the probabilities of inside and contour, (H, W) float32 in [0, 1].

    Ids follow the order of first pixels, row by row; some may be missing, where an object was covered by a later one.
    `factor`: side of the maps' pixels at which the rule's sizes hold, over their own (0.5: maps at half the
    resolution); a watershed has no sizes that it would change.
    """
    if rule.method == "watershed":
        return watershed(inner, contour, rule)[0]
    out = np.zeros(inner.shape, np.int32)
    seeds = seeds_of(inner, contour, rule, factor)
    for number, box in enumerate(ndimage.find_objects(seeds), start=1):
        window, grown = grow(seeds[box] == number, box, inner.shape, rule, factor)
        out[window][grown] = number
    return out


# --- glands and lumina ------------------------------------------------------------------------------------------------


def inside(inner: Plane, contour: Plane, rule: Rule) -> Mask:
    """Return the pixels that are inside objects: above the threshold, and the contour at most 0.5."""
    return np.asarray((contour <= 0.5) & (inner > rule.threshold), bool)


def smallest(rule: Rule, factor: float) -> int:
    """Return the fewest pixels of an object before growing."""
    return int(rule.min_size * factor**2)


def seeds_of(inner: Plane, contour: Plane, rule: Rule, factor: float = 1.0) -> Labels:
    """Return the objects before growing: components (pixels that share a side) that are large enough, ids 1..N."""
    return large_components(inside(inner, contour, rule), smallest(rule, factor))


def large_components(mask: NDArray[Any], least: int) -> Labels:
    """Return the components of at least `least` pixels, ids 1..N in the order of their first pixels."""
    found, count = ndimage.label(mask)
    kept = np.bincount(found.ravel(), minlength=count + 1) >= least
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    labels: Labels = table[found]
    return labels


def grow(
    seed: Mask, box: tuple[slice, ...], shape: tuple[int, ...], rule: Rule, factor: float = 1.0
) -> tuple[Window, Mask]:
    """Return the window and the mask of one object that has grown back over its contour.

    `seed`: the object within its `box`. The window is the box grown by twice the element on each side that stays
    inside the picture; a side that would not stays as it is, and there the object does not grow beyond its box.
    """
    size = int(rule.grow * factor)
    (y0, y1), (x0, x1) = ((s.start, s.stop) for s in box)
    pad = 2 * size
    up = pad if y0 - pad >= 0 else 0
    left = pad if x0 - pad >= 0 else 0
    down = pad if y1 + pad <= shape[0] - 1 else 0
    right = pad if x1 + pad <= shape[1] - 1 else 0
    mask = np.pad(seed.astype(np.uint8), ((up, down), (left, right)))
    if size >= 1:
        mask = np.asarray(cv2.dilate(mask, element(size)))
    return (slice(y0 - up, y1 + down), slice(x0 - left, x1 + right)), filled(mask)


def element(size: int) -> NDArray[np.uint8]:
    """Return the elliptic structuring element of `size` x `size` pixels; even ones are not symmetric."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)


def filled(mask: NDArray[Any]) -> Mask:
    """Return a mask whose holes are filled: background that does not reach the border through shared sides."""
    outside = np.pad(mask.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), 2)
    return np.asarray(outside[1:-1, 1:-1] != 2)


# --- nuclei -----------------------------------------------------------------------------------------------------------


def support(inner: Plane, contour: Plane, rule: Rule) -> Mask:
    """Return the pixels that belong to anything; a nucleus lies within one piece of them (corners joined)."""
    return np.asarray((inner + contour > rule.threshold) | (inner > rule.threshold), bool)


def watershed(inner: Plane, contour: Plane, rule: Rule) -> tuple[Labels, Labels]:
    """Return instances and markers, both (H, W) int32 with the same ids, in the order of the markers' first pixels.

    The mask is eroded once, which takes back the outer half of the contour; pieces of the mask and markers that are too
    small go. A piece with one marker is that marker's: only pieces with several are flooded.
    """
    mask = (inner + contour > rule.threshold).astype(np.uint8)
    mask = np.asarray(cv2.erode(mask, CROSS))
    places, piece = pieces_of(mask, rule.min_size)
    seeds, _ = pieces_of((inner > rule.threshold).astype(np.uint8), rule.min_seed)
    large = np.zeros(mask.shape, np.uint8)
    large.reshape(-1)[seeds] = 1
    markers = np.asarray(ndimage.label(filled(large))[0], np.int32)
    out = np.zeros(mask.shape, np.int32)
    marker = markers.reshape(-1)[places]
    seeded = marker > 0
    owner = np.zeros(int(piece.max(initial=0)) + 1, np.int32)
    owner[piece[seeded]] = marker[seeded]
    several = np.zeros(len(owner), bool)
    several[piece[seeded & (owner[piece] != marker)]] = True
    owner[several] = 0
    out.reshape(-1)[places] = owner[piece]
    if several.any():
        flooded = several[piece]
        _flood(out, places[flooded], piece[flooded], markers, inner)
    return out, markers


def pieces_of(mask: NDArray[np.uint8], least: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return the pixels in components of at least `least` pixels, as row-major places, and the component of each.

    Components are numbered from 1, in no order.
    """
    count, found = cv2.connectedComponents(mask, connectivity=4, ltype=cv2.CV_32S)
    places = np.flatnonzero(mask)
    component = np.asarray(found.reshape(-1)[places], np.int32)
    kept = (np.bincount(component, minlength=count) >= least)[component]
    return places[kept], component[kept]


def _flood(out: Labels, places: NDArray[np.intp], piece: NDArray[np.int32], markers: Labels, inner: Plane) -> None:
    """Flood pieces from the markers in them, into `out`.

    A marker's pixel that touches nothing free is its own, and water never passes on from it: most need no queue.
    """
    from zoo.postprocess.flood import flood

    own = markers.reshape(-1)[places]
    out.reshape(-1)[places] = own
    free = np.zeros(out.shape, np.uint8)
    free.reshape(-1)[places[own == 0]] = 1
    near = np.asarray(cv2.dilate(free, CROSS)).reshape(-1)[places] > 0
    asked = near & (own > 0)
    flood(out, -inner, free, places[asked], piece[asked], np.bincount(piece[near], minlength=int(piece.max()) + 1))


# --- what is said of objects ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """What is known of N objects.

    `ids`; `boxes` (N, 4) row0, column0, row1, column1, half-open; `centroids` (N, 2) x, y of pixel indices; `contours`
    (M, 2) x, y through the outermost pixels; `types` and `shares`: the most frequent class and its share of the
    object's pixels (empty where there are no classes).
    """

    ids: NDArray[np.int32]
    boxes: NDArray[np.int32]
    centroids: NDArray[np.float64]
    contours: tuple[NDArray[np.int32], ...]
    types: NDArray[np.int32]
    shares: NDArray[np.float64]


def records(labels: Labels, classes: NDArray[Any] | None = None, *, thin: bool = False) -> Records:
    """Return the records of the objects of a label map; `classes`: (H, W) class indices, 0 none.

    An object whose first contour has fewer than three points is left out, unless `thin`.
    """
    rows: list[tuple[int, list[int], tuple[float, float], NDArray[np.int32], int, float]] = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        mask = (labels[box] == number).astype(np.uint8)
        y, x = box[0].start, box[1].start
        found, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        contour = np.asarray(found[0], np.int32).reshape(-1, 2)
        if len(contour) < 3 and not thin:
            continue
        moments = cv2.moments(mask, binaryImage=True)
        centre = (moments["m10"] / moments["m00"] + x, moments["m01"] / moments["m00"] + y)
        kind, share = (0, 0.0) if classes is None else vote(classes[box][mask > 0])
        rows.append((number, [y, x, box[0].stop, box[1].stop], centre, contour, kind, share))
    return Records(
        np.array([r[0] for r in rows], np.int32),
        np.array([r[1] for r in rows], np.int32).reshape(-1, 4),
        np.array([r[2] for r in rows], np.float64).reshape(-1, 2),
        tuple(r[3] for r in rows),
        np.array([r[4] for r in rows] if classes is not None else [], np.int32),
        np.array([r[5] for r in rows] if classes is not None else [], np.float64),
    )


def vote(values: NDArray[Any]) -> tuple[int, float]:
    """Return an object's class and its share of the pixels: the most frequent value, the smaller one of equals.

    Where that is 0 (no class) and another value occurs, the second most frequent is taken.
    """
    counts = np.bincount(values.ravel())
    order = np.argsort(-counts, kind="stable")
    best = int(order[0])
    if best == 0 and len(order) > 1 and counts[order[1]] > 0:
        best = int(order[1])
    return best, float(counts[best] / (values.size + 1e-6))


def keep_inside(labels: Labels, around: Labels) -> Labels:
    """Return objects cut to what lies in other objects: lumina, which only glands have."""
    return np.where(around > 0, labels, 0).astype(np.int32)
