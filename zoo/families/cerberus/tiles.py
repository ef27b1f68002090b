"""Decoding tile by tile, with the very result of decoding whole: no object is cut or doubled where tiles meet.

The connected pieces of the picture are found tile by tile (what continues in the next tile is joined by what lies on
both sides of the border); then every object is decoded from the piece that it lies in, read as one window. Memory grows
with the tile and with the largest piece, not with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.families.cerberus import objects
from zoo.families.cerberus.objects import Labels, Mask, Plane, Rule, Window

Read = Callable[[Window], tuple[Plane, Plane]]
"""Gives inside and contour of a window of the picture."""


@dataclass(frozen=True)
class Region:
    """A connected piece: `first` pixel (row-major place in the picture), `box` (y0, x0, y1, x1), number of pixels."""

    first: int
    box: tuple[int, int, int, int]
    size: int

    @property
    def window(self) -> Window:
        """Return the box as slices."""
        y0, x0, y1, x1 = self.box
        return slice(y0, y1), slice(x0, x1)


class _Pieces:
    """Pieces of pieces, joined as their borders are seen."""

    def __init__(self) -> None:
        self.parent = [0]
        self.first = [0]
        self.size = [0]
        self.box: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, one: int, two: int) -> None:
        a, b = self.root(one), self.root(two)
        if a == b:
            return
        a, b = min(a, b), max(a, b)
        self.parent[b] = a
        self.first[a] = min(self.first[a], self.first[b])
        self.size[a] += self.size[b]
        p, q = self.box[a], self.box[b]
        self.box[a] = (min(p[0], q[0]), min(p[1], q[1]), max(p[2], q[2]), max(p[3], q[3]))

    def join_lines(self, one: NDArray[np.int64], two: NDArray[np.int64], corners: bool) -> None:
        """Join what touches across a border between two lines of pixels of the same length."""
        pairs = [np.stack([one, two])]
        if corners:
            pairs += [np.stack([one[1:], two[:-1]]), np.stack([one[:-1], two[1:]])]
        touching = np.concatenate(pairs, axis=1)
        touching = touching[:, (touching > 0).all(0)]
        for a, b in np.unique(touching, axis=1).T.tolist():
            self.join(a, b)

    def add(self, mask: Mask, y: int, x: int, width: int, structure: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return a tile's provisional ids."""
        found, count = ndimage.label(mask, structure)
        offset = len(self.parent) - 1
        self.parent += range(offset + 1, offset + count + 1)
        self.size += np.bincount(found.ravel(), minlength=count + 1)[1:].tolist()
        for number, box in enumerate(ndimage.find_objects(found), start=1):
            rows, columns = box
            column = int(np.argmax(found[rows.start, columns] == number)) + columns.start
            self.first.append((y + rows.start) * width + x + column)
            self.box.append((y + rows.start, x + columns.start, y + rows.stop, x + columns.stop))
        return np.where(found > 0, found + offset, 0).astype(np.int64)


def regions(
    mask_of: Callable[[Window], Mask], shape: tuple[int, int], tile: int, corners: bool = False
) -> list[Region]:
    """Return the connected pieces of a mask that is seen tile by tile, in the order of their first pixels.

    `corners`: whether pixels that share a corner only are connected.
    """
    height, width = shape
    structure = ndimage.generate_binary_structure(2, 2 if corners else 1)
    pieces = _Pieces()
    above: NDArray[np.int64] | None = None
    for y in range(0, height, tile):
        bottom = np.zeros(width, np.int64)
        left: NDArray[np.int64] | None = None
        for x in range(0, width, tile):
            window = (slice(y, min(y + tile, height)), slice(x, min(x + tile, width)))
            ids = pieces.add(mask_of(window), y, x, width, structure)
            if left is not None:
                pieces.join_lines(left, ids[:, 0], corners)
            if above is not None:
                first, last = max(0, x - 1), min(width, x + tile + 1)
                line = np.zeros(last - first, np.int64)
                line[x - first : x - first + ids.shape[1]] = ids[0]
                pieces.join_lines(above[first:last], line, corners)
            left, bottom[window[1]] = ids[:, -1].copy(), ids[-1]
        above = bottom
    roots = [i for i in range(1, len(pieces.parent)) if pieces.root(i) == i]
    found = [Region(pieces.first[i], pieces.box[i], pieces.size[i]) for i in roots]
    return sorted(found, key=lambda region: region.first)


@dataclass(frozen=True)
class Object:
    """One object: its id, where its window begins, and its mask there. Later objects lie over earlier ones."""

    id: int
    window: Window
    mask: Mask


def each(read: Read, shape: tuple[int, int], tile: int, rule: Rule, factor: float = 1.0) -> Iterator[Object]:
    """Yield the objects of a picture of `shape`, in the order of their ids; ids are those of `objects.instances`."""
    if rule.method == "watershed":
        yield from _nuclei(read, shape, tile, rule)
        return
    least = objects.smallest(rule, factor)
    found = regions(lambda w: objects.inside(*read(w), rule), shape, tile)
    for number, region in enumerate((r for r in found if r.size >= least), start=1):
        seed = _piece(objects.inside(*read(region.window), rule), region, shape[1])
        window, mask = objects.grow(seed, region.window, shape, rule, factor)
        yield Object(number, window, mask)


def instances(read: Read, shape: tuple[int, int], tile: int, rule: Rule, factor: float = 1.0) -> Labels:
    """Return what `objects.instances` returns for the whole picture, reading at most a tile or a piece at once."""
    out = np.zeros(shape, np.int32)
    for found in each(read, shape, tile, rule, factor):
        out[found.window][found.mask] = found.id
    return out


def _piece(mask: Mask, region: Region, width: int, corners: bool = False) -> Mask:
    """Return the one component of a region's window that holds its first pixel."""
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(2, 2 if corners else 1))
    y, x = divmod(region.first, width)
    number = labels[y - region.box[0], x - region.box[1]]
    return np.asarray(labels == number)


def _nuclei(read: Read, shape: tuple[int, int], tile: int, rule: Rule) -> Iterator[Object]:
    """Yield nuclei. A piece that lies in a hole of another is decoded with it: a marker's holes are filled."""
    found = regions(lambda w: objects.support(*read(w), rule), shape, tile, corners=True)
    starts = {region.first for region in found}
    nested: set[int] = set()
    made: list[tuple[int, Window, Mask]] = []
    for group in _groups(found, tile):
        chosen = [region for region in group if region.first not in nested]
        if not chosen:
            continue
        boxes = np.array([region.box for region in chosen])
        top, left = np.maximum(boxes[:, :2].min(0) - 1, 0).tolist()
        bottom, right = np.minimum(boxes[:, 2:].max(0) + 1, shape).tolist()
        inner, contour = read((slice(top, bottom), slice(left, right)))
        labels, count = ndimage.label(objects.support(inner, contour, rule), ndimage.generate_binary_structure(2, 2))
        rows, columns = np.divmod([region.first for region in chosen], shape[1])
        wanted = np.zeros(count + 1, bool)
        wanted[labels[rows - top, columns - left]] = True
        pieces = wanted[labels]
        whole = objects.filled(pieces)
        rows, columns = np.nonzero(whole & ~pieces)
        nested |= starts & set(((rows + top) * shape[1] + columns + left).tolist())
        parted, markers = objects.watershed(np.where(whole, inner, 0), np.where(whole, contour, 0), rule)
        made += [
            ((y + top) * shape[1] + x + left, (_shifted(box[0], top), _shifted(box[1], left)), mask)
            for y, x, box, mask in _marked(parted, markers)
        ]
    for number, (_, window, mask) in enumerate(sorted(made, key=lambda item: item[0]), start=1):
        if mask.any():
            yield Object(number, window, mask)


def _groups(found: list[Region], tile: int) -> Iterator[list[Region]]:
    """Yield pieces to be decoded together, whatever encloses others before what it encloses.

    First large ones, each alone, the largest box before the others; then small ones by the tile that their boxes begin
    in, row by row. No hole lies between pieces that do not touch, so that those of a tile do not disturb each other.
    """
    large = [r for r in found if max(r.box[2] - r.box[0], r.box[3] - r.box[1]) > tile // 4]
    for region in sorted(large, key=lambda r: -(r.box[2] - r.box[0]) * (r.box[3] - r.box[1])):
        yield [region]
    alone = {region.first for region in large}
    tiles: dict[tuple[int, int], list[Region]] = {}
    for region in found:
        if region.first not in alone:
            tiles.setdefault((region.box[0] // tile, region.box[1] // tile), []).append(region)
    for place in sorted(tiles):
        yield tiles[place]


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _marked(labels: Labels, markers: Labels) -> Iterator[tuple[int, int, Window, Mask]]:
    """Yield each marker's first pixel (row, column), and its object's box and mask; a marker may own no pixel."""
    boxes = [*ndimage.find_objects(labels), *[None] * int(markers.max(initial=0))]
    for number, place in enumerate(ndimage.find_objects(markers), start=1):
        row = place[0].start
        column = int(np.argmax(markers[row] == number))
        box = boxes[number - 1] or place
        yield row, column, (box[0], box[1]), labels[box] == number
