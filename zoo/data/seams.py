"""Which images are neighbouring tiles of one larger picture: their touching edges continue each other.

Published tiles often lost the name of the slide that they were cut from. Where the last column of one image continues
in the first column of another as smoothly as inside an image, the two are one field, and must not stand in two splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CORRELATION = 0.9  # of two edges, above which they may touch
STEP = 1.3  # largest step across the seam, relative to the step one pixel further inside
_FLAT = 2.0  # grey levels; an edge that varies less says nothing

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Edges:
    """The four edges of an image as grey values 0..255: for each side (2, L), the outermost line and the next."""

    top: F32
    bottom: F32
    left: F32
    right: F32


@dataclass(frozen=True, order=True)
class Seam:
    """`second` lies at the `side` ("right" or "below") of `first`; `correlation` of the two edges."""

    first: str
    second: str
    side: str
    correlation: float


def edges_of(rgb: NDArray[np.uint8]) -> Edges | None:
    """Return the edges of an image (C, H, W) uint8; None where it is smaller than 8 pixels."""
    if min(rgb.shape[1:]) < 8:
        return None

    def grey(lines: NDArray[np.uint8]) -> F32:
        return np.asarray(lines.astype(np.float32).mean(axis=0, dtype=np.float32))

    return Edges(
        top=grey(rgb[:, :2]),
        bottom=grey(rgb[:, :-3:-1]),
        left=grey(rgb[:, :, :2]).T.copy(),
        right=grey(rgb[:, :, :-3:-1]).T.copy(),
    )


def touching(edges: Mapping[str, Edges]) -> list[Seam]:
    """Return every pair of images whose edges continue each other, sorted."""
    found: list[Seam] = []
    for side, ends, starts in (("right", "right", "left"), ("below", "bottom", "top")):
        by_length: dict[int, list[str]] = {}
        for name, edge in edges.items():
            by_length.setdefault(getattr(edge, ends).shape[1], []).append(name)
        for names in by_length.values():
            last = np.stack([getattr(edges[n], ends) for n in names])
            first = np.stack([getattr(edges[n], starts) for n in names])
            found += _pairs(names, last, first, side)
    return sorted(found)


def _pairs(names: list[str], last: F32, first: F32, side: str) -> list[Seam]:
    """`last`, `first`: (N, 2, L), the ending and the starting edges of N images."""
    ends, starts = _unit(last[:, 0]), _unit(first[:, 0])
    seams = []
    for offset in range(0, len(names), 1024):
        correlation = ends[offset : offset + 1024] @ starts.T
        for row, b in np.argwhere(correlation > CORRELATION):
            a = offset + row
            across = np.abs(last[a, 0] - first[b, 0]).mean()
            inside = np.abs(last[a, 0] - last[a, 1]).mean() + 0.5
            if a != b and across < STEP * inside:
                seams.append(Seam(names[a], names[b], side, round(float(correlation[row, b]), 4)))
    return seams


def _unit(lines: F32) -> F32:
    centred = lines - lines.mean(axis=1, keepdims=True)
    centred[centred.std(axis=1) < _FLAT] = 0
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: F32 = centred / np.maximum(norm, 1e-6)
    return unit


def components(names: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Return the connected components, each in the order of `names`."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in pairs:
        parent[root(a)] = root(b)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(root(name), []).append(name)
    return list(found.values())
