"""Outlines of nuclei, cells and glands, drawn many at a time, each from its own key: the same shape in any window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import mix, normal, uniform

_ANGLES = 64
WIDEST = 1.25
"""An outline never reaches farther than this many half axes."""


@dataclass(frozen=True)
class Blobs:
    """N rough ellipses, in pixels: centres, half axes, direction of the first axis, how rough their outline is, and the
    key that each is drawn from."""

    x: NDArray[Any]
    y: NDArray[Any]
    long: NDArray[Any]
    short: NDArray[Any]
    angle: NDArray[Any]
    rough: NDArray[Any]
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, which: NDArray[Any]) -> Blobs:
        """Return some of them."""
        return Blobs(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def outline(
    key: NDArray[np.uint64], rough: NDArray[Any], lowest: int = 2, highest: int = 5, count: int = _ANGLES
) -> NDArray[np.float32]:
    """Return (N, count) factors on the radius at angles 0, 2 pi / count, ...: harmonics that fall with their order."""
    orders = np.arange(lowest, highest + 1)
    bits = mix(np.asarray(key)[:, None], orders[None])
    phases = (2 * np.pi * uniform(bits)).astype(np.float32)[..., None]
    strengths = (normal(mix(bits, 1)) / orders.astype(np.float32))[..., None]
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False, dtype=np.float32)
    waves = strengths * np.cos(orders[None, :, None].astype(np.float32) * angles + phases)
    swing = np.clip(waves.sum(1) * np.asarray(rough, np.float32)[:, None], -0.35, WIDEST - 1)
    return np.asarray(1 + swing, np.float32)


def draw(blobs: Blobs) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]]:
    """Return (N, P, P) float32 patches of the relative radius (below 1 inside) and the rows and columns of their
    first pixels. A pixel's value is that of its centre."""
    reach = int(np.ceil(WIDEST * max(float(np.max(blobs.long, initial=1)), float(np.max(blobs.short, initial=1))))) + 2
    top, left = np.floor(blobs.y).astype(np.intp) - reach, np.floor(blobs.x).astype(np.intp) - reach
    line = np.arange(2 * reach + 1, dtype=np.float32) + np.float32(0.5)
    dy = (line[None] + (top - blobs.y)[:, None].astype(np.float32))[:, :, None]
    dx = (line[None] + (left - blobs.x)[:, None].astype(np.float32))[:, None, :]
    return relative(blobs, dy, dx, np.arange(len(blobs))[:, None, None]), top, left


def relative(blobs: Blobs, dy: NDArray[Any], dx: NDArray[Any], which: NDArray[Any]) -> NDArray[np.float32]:
    """Return the relative radius, below 1 inside, at offsets (pixels) from the centres of blobs `which`."""
    return _relative(outline(blobs.key, blobs.rough), *_turned(blobs, dy, dx, which), which)


def _turned(blobs: Blobs, dy: NDArray[Any], dx: NDArray[Any], which: NDArray[Any]) -> tuple[Any, Any]:
    cos, sin = (f(blobs.angle).astype(np.float32) for f in (np.cos, np.sin))
    long, short = (np.float32(1) / a.astype(np.float32) for a in (blobs.long, blobs.short))
    u = dx * (cos * long)[which] + dy * (sin * long)[which]
    return u, dy * (cos * short)[which] - dx * (sin * short)[which]


def _relative(
    factors: NDArray[np.float32], u: NDArray[Any], v: NDArray[Any], which: NDArray[Any]
) -> NDArray[np.float32]:
    places = np.rint(np.arctan2(v, u) * np.float32(_ANGLES / (2 * np.pi))).astype(np.intp) & (_ANGLES - 1)
    return np.asarray(np.sqrt(u * u + v * v) / factors[which, places], np.float32)


@dataclass(frozen=True)
class Spots:
    """The pixels that some blobs cover, as flat arrays: which `blob`, which `pixel` of the raveled canvas, the relative
    radius there, and the offset from the blob's centre in pixels."""

    blob: NDArray[np.intp]
    pixel: NDArray[np.intp]
    radius: NDArray[np.float32]
    dy: NDArray[np.float32]
    dx: NDArray[np.float32]

    def take(self, which: NDArray[Any]) -> Spots:
        """Return some of them."""
        return Spots(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def spots(blobs: Blobs, shape: tuple[int, int], widest: float = 1.2) -> Spots:
    """Return where blobs lie on an (H, W) canvas: every pixel whose relative radius is below `widest`, blob by blob."""
    parts: list[Spots] = []
    factors = outline(blobs.key, blobs.rough)
    limit = (factors.max(1, initial=1) * widest).astype(np.float32)
    reach = np.ceil(np.maximum(blobs.long, blobs.short) * limit + 1).astype(np.intp)
    step = np.maximum(2, reach // 4)
    reach = -(-reach // step) * step  # few sizes: blobs of about one size are drawn together
    for size in np.unique(reach):
        group = np.flatnonzero(reach == size)
        top, left = np.floor(blobs.y[group]).astype(np.intp), np.floor(blobs.x[group]).astype(np.intp)
        side = 2 * size + 1
        steps = np.arange(side) - size
        dy = ((top - blobs.y[group])[:, None] + steps + 0.5).astype(np.float32)[:, :, None]
        dx = ((left - blobs.x[group])[:, None] + steps + 0.5).astype(np.float32)[:, None, :]
        u, v = _turned(blobs, dy, dx, group[:, None, None])
        inside = u * u + v * v < (limit[group] ** 2)[:, None, None]
        y, x = top[:, None] + steps, left[:, None] + steps
        inside &= ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None]
        at = np.flatnonzero(inside)
        which, rest = np.divmod(at, side * side)
        row, column = np.divmod(rest, side)
        blob = group[which]
        radius = _relative(factors, u.ravel()[at], v.ravel()[at], blob)
        near = radius < widest
        which, row, column = which[near], row[near], column[near]
        pixel = y[which, row] * shape[1] + x[which, column]
        parts.append(Spots(blob[near], pixel, radius[near], dy[which, row, 0], dx[which, 0, column]))
    if not parts:
        none, nothing = np.zeros(0, np.intp), np.zeros(0, np.float32)
        return Spots(none, none, nothing, nothing, nothing)
    return Spots(*(np.concatenate([getattr(p, name) for p in parts]) for name in Spots.__dataclass_fields__))
