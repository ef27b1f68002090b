"""Label maps: components, sizes, holes, growing back over boundaries, joining blocks. Pure functions on arrays.

A label map is integer, 0 background, ids from 1. Functions take and return (H, W) or (D, H, W) unless they say
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]


def components(mask: NDArray[Any], connectivity: int = 1) -> Labels:
    """Return the connected components of a mask as ids 1..N, in the order of their first pixel.

    `connectivity`: 1 joins pixels that share a side, 2 those that share a corner too (3 for volumes).
    """
    structure = ndimage.generate_binary_structure(mask.ndim, min(connectivity, mask.ndim))
    found, _ = ndimage.label(mask, structure)
    return np.asarray(found, np.int32)


def relabel(labels: NDArray[Any]) -> Labels:
    """Return the same objects with ids 1..N without gaps, in the order of their ids."""
    return _keep(labels, np.bincount(labels.ravel(), minlength=1) > 0)


def _keep(labels: NDArray[Any], kept: NDArray[np.bool_]) -> Labels:
    kept = kept.copy()
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    kept_labels: Labels = table[labels]
    return kept_labels


def remove_small(labels: NDArray[Any], min_size: float) -> Labels:
    """Return the objects of at least `min_size` pixels, with ids 1..N."""
    return _keep(labels, np.bincount(labels.ravel(), minlength=1) >= max(min_size, 1))


def remove_small_mask(mask: NDArray[Any], min_size: float, connectivity: int = 1) -> Mask:
    """Return a mask without its components of fewer than `min_size` pixels."""
    return np.asarray(remove_small(components(mask, connectivity), min_size) > 0)


def fill_holes(labels: NDArray[Any], max_size: float | None = None) -> Labels:
    """Return objects whose holes are filled: background that one object alone encloses.

    `max_size`: only holes of at most so many pixels; None = all. A hole that touches the array's border is none.
    """
    filled: Labels = labels.astype(np.int32, copy=True)
    holes = components(labels == 0)
    count = int(holes.max(initial=0))
    if count == 0:
        return filled
    open_ = np.zeros(count + 1, bool)
    open_[0] = True
    for axis in range(labels.ndim):
        open_[np.unique(np.take(holes, [0, -1], axis))] = True
    if max_size is not None:
        open_ |= np.bincount(holes.ravel(), minlength=count + 1) > max_size
    if open_.all():
        return filled
    lowest, highest = _neighbours(filled, holes, count)
    owner = np.where(~open_ & (lowest == highest), lowest, 0).astype(np.int32)
    inside = owner[holes] > 0
    filled[inside] = owner[holes][inside]
    return filled


def _neighbours(labels: Labels, holes: Labels, count: int) -> tuple[Labels, Labels]:
    """Return, for each component of the background, the lowest and the highest id that it touches (by a side)."""
    lowest = np.full(count + 1, np.iinfo(np.int32).max, np.int32)
    highest = np.zeros(count + 1, np.int32)
    for axis in range(labels.ndim):
        for here, there in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            a, b = [slice(None)] * labels.ndim, [slice(None)] * labels.ndim
            a[axis], b[axis] = here, there
            touching = (holes[tuple(a)] > 0) & (labels[tuple(b)] > 0)
            hole, label = holes[tuple(a)][touching], labels[tuple(b)][touching]
            np.minimum.at(lowest, hole, label)
            np.maximum.at(highest, hole, label)
    return lowest, highest


def regrow(seeds: NDArray[Any], mask: NDArray[Any], height: NDArray[Any] | None = None) -> Labels:
    """Return seeds grown over a mask: every pixel of it that a seed can reach gets the id of one.

    `height`: (…) float, flooded from low to high (a watershed); None = the distance to the nearest seed. Seeds outside
    the mask stay; pixels of the mask that no seed reaches stay 0.
    """
    allowed = mask.astype(bool) | (seeds > 0)
    if not (seeds > 0).any() or not (allowed & (seeds == 0)).any():
        return seeds.astype(np.int32)
    from skimage.segmentation import watershed

    ground = ndimage.distance_transform_edt(seeds == 0) if height is None else height
    return np.asarray(watershed(ground, seeds.astype(np.int32), mask=allowed), np.int32)


def separate(foreground: NDArray[Any], boundary: NDArray[Any], min_size: float = 0, min_seed: float = 1) -> Labels:
    """Return objects from a foreground and the boundaries between them, ids 1..N.

    Components of the foreground without its boundary are seeds (of at least `min_seed` pixels); they grow back over the
    boundary. A component of the foreground that holds no seed (a thin or tiny object, all boundary) is an object of its
    own. Objects of fewer than `min_size` pixels go.
    """
    inside = foreground.astype(bool)
    seeds = remove_small(components(inside & ~boundary.astype(bool)), min_seed)
    grown = regrow(seeds, inside)
    lost = components(inside & (grown == 0))
    grown = np.where(lost > 0, lost + int(grown.max(initial=0)), grown).astype(np.int32)
    return remove_small(grown, min_size)


def majority(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the plane that is strongest in each object, (N,): `values` (K, …) float, summed over its pixels."""
    count = int(labels.max(initial=0))
    flat = labels.ravel()
    sums = np.stack([np.bincount(flat, v.ravel(), minlength=count + 1)[1:] for v in values])
    return np.asarray(sums.argmax(0), np.int64)


def means(labels: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean of (…) `values` over each object's pixels, (N,) float32; ids must be 1..N."""
    count = int(labels.max(initial=0))
    flat = labels.ravel()
    total = np.bincount(flat, values.ravel(), minlength=count + 1)[1:]
    area = np.bincount(flat, minlength=count + 1)[1:]
    return (total / np.maximum(area, 1)).astype(np.float32)


# --- blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A label map of a part of an image: `labels` (h, w) with its first pixel at (`row`, `column`)."""

    labels: NDArray[Any]
    row: int
    column: int


def merge_blocks(blocks: Sequence[Block], shape: tuple[int, int], overlap: float = 0.5) -> Labels:
    """Return one label map of `shape` from maps of blocks that overlap, ids 1..N.

    Two objects of different blocks are one where, within what the two blocks share, they have at least `overlap` of the
    smaller one's pixels there in common. A pixel that several objects claim goes to the one whose block covers it
    deepest, so that what a block saw only at its own border yields to a block that saw it whole.
    """
    offsets = np.cumsum([0, *(int(b.labels.max(initial=0)) for b in blocks)])
    parent = np.arange(offsets[-1] + 1)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for i, first in enumerate(blocks):
        for j in range(i + 1, len(blocks)):
            for a, b in same_objects(first, blocks[j], overlap):
                one, two = root(int(a + offsets[i])), root(int(b + offsets[j]))
                parent[max(one, two)] = min(one, two)
    out = np.zeros(shape, np.int32)
    depth = np.full(shape, -1, np.int32)
    for block, offset in zip(blocks, offsets, strict=False):
        h, w = block.labels.shape
        window = (slice(block.row, block.row + h), slice(block.column, block.column + w))
        mine = _depth(block, shape)
        ids = np.array([0, *(root(int(offset) + k) for k in range(1, int(block.labels.max(initial=0)) + 1))])
        better = mine > depth[window]
        out[window][better] = ids[block.labels][better]
        depth[window][better] = mine[better]
    return relabel(out)


def _depth(block: Block, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return each pixel's distance to the nearest side of its block that lies inside the image."""
    h, w = block.labels.shape
    far = max(shape) + max(h, w)
    rows, columns = np.arange(h), np.arange(w)
    up = rows if block.row > 0 else np.full(h, far)
    down = rows[::-1] if block.row + h < shape[0] else np.full(h, far)
    left = columns if block.column > 0 else np.full(w, far)
    right = columns[::-1] if block.column + w < shape[1] else np.full(w, far)
    found: NDArray[np.int32] = np.minimum.outer(np.minimum(up, down), np.minimum(left, right)).astype(np.int32)
    return found


def same_objects(a: Block, b: Block, overlap: float) -> Iterable[tuple[int, int]]:
    """Yield the pairs of ids of two blocks that are one object (see `merge_blocks`)."""
    top, left = max(a.row, b.row), max(a.column, b.column)
    bottom = min(a.row + a.labels.shape[0], b.row + b.labels.shape[0])
    right = min(a.column + a.labels.shape[1], b.column + b.labels.shape[1])
    if top >= bottom or left >= right:
        return
    one, two = (x.labels[top - x.row : bottom - x.row, left - x.column : right - x.column] for x in (a, b))
    sizes_one, sizes_two = np.bincount(one.ravel()), np.bincount(two.ravel())
    both = (one > 0) & (two > 0)
    pairs, counts = np.unique(np.stack([one[both], two[both]]), axis=1, return_counts=True)
    for (i, j), count in zip(pairs.T, counts, strict=True):
        if count >= overlap * min(sizes_one[i], sizes_two[j]):
            yield int(i), int(j)
