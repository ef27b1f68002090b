"""Things that lie about tissue with room round each, and are star-shaped: glands and vessels. Lengths in um."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, Noise, mix, uniform, word
from zoo.data.phantom.shapes import outline

_ANGLES = 96
_FAR = np.float32(-1e3)
AROUND = 32.0
"""How far outside a star its depth is known."""


@dataclass(frozen=True)
class Stars:
    """N stars: centres, (N, 96) radius at angles 0, 2 pi / 96, ... from the x axis towards the y axis, a key each."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    ring: Field
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: NDArray[Any]) -> Stars:
        """Return some of them."""
        return Stars(self.y[which], self.x[which], self.ring[which], self.key[which])

    @functools.cached_property
    def slope(self) -> Field:
        """Return (N, 96) how much nearer the outline is than along the radius: the cosine of the angle between."""
        turn = np.float32(4 * np.pi / _ANGLES)
        change = (np.roll(self.ring, -1, 1) - np.roll(self.ring, 1, 1)) / turn
        return np.asarray(1 / np.sqrt(1 + (change / self.ring) ** 2), np.float32)

    def curve(self, index: int, depth: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return y and x of the closed line that runs `depth` inside an outline; empty where there is none."""
        radius = self.ring[index] - depth / self.slope[index]
        if (radius < 1).any():
            return np.zeros(0), np.zeros(0)
        turn = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)
        return self.y[index] + radius * np.sin(turn), self.x[index] + radius * np.cos(turn)


def scatter(
    noise: Noise, key: str, pitch: float, radius: tuple[float, float], rough: float, stretch: float, reach: float
) -> Stars:
    """Return the stars near a window: one in each cell of a brick pattern, `pitch` from centre to centre, moved about
    and of radius `radius`. `reach`: how far from the window they are still wanted."""
    low = [o * noise.um - reach for o in noise.origin]
    high = [(o + n) * noise.um + reach for o, n in zip(noise.origin, noise.shape, strict=True)]
    tall = pitch * 0.87
    row = np.arange(int(np.floor(low[0] / tall)) - 1, int(np.ceil(high[0] / tall)) + 1)[:, None]
    column = np.arange(int(np.floor(low[1] / pitch)) - 1, int(np.ceil(high[1] / pitch)) + 1)[None]
    row, column = (a.ravel() for a in np.broadcast_arrays(row, column))
    bits = mix(noise.seed, word(key), row, column)
    draws = [uniform(mix(bits, k)) for k in range(5)]
    y = (row + 0.5 + 0.36 * (draws[0] - 0.5)) * tall
    x = (column + 0.5 + 0.5 * (row % 2) + 0.36 * (draws[1] - 0.5)) * pitch
    size = (radius[0] + (radius[1] - radius[0]) * draws[2]).astype(np.float32)
    longer = (1 + (stretch - 1) * draws[3]).astype(np.float32)[:, None]
    turn = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False, dtype=np.float32)[None]
    turn = turn - (np.pi * draws[4]).astype(np.float32)[:, None]
    ellipse = 1 / np.sqrt((np.cos(turn) / longer) ** 2 + (np.sin(turn) * longer) ** 2)
    wavy = outline(bits, np.full(len(bits), rough), 2, 7, _ANGLES)
    near = (y > low[0]) & (y < high[0]) & (x > low[1]) & (x < high[1])
    return Stars(y, x, np.asarray(size[:, None] * ellipse * wavy, np.float32), bits).take(near)


@dataclass(frozen=True)
class Depths:
    """(H, W) maps: um inside the nearest star (negative outside, -1000 far away), the same of the second nearest, and
    which star, 0 = none, i + 1 = the i-th."""

    first: Field
    second: Field
    which: NDArray[np.int32]


def depths(stars: Stars, noise: Noise) -> Depths:
    """Return how deep in which star the pixels of a window lie."""
    step = max(1, round(1.0 / noise.um))
    shape = tuple(-(-n // step) for n in noise.shape)
    first, second = np.full(shape, _FAR), np.full(shape, _FAR)
    which = np.zeros(shape, np.int32)
    rows, columns = (((np.arange(n) + 0.5) * step + o) * noise.um for n, o in zip(shape, noise.origin, strict=True))
    slope = stars.slope
    for i in range(len(stars)):
        far = float(stars.ring[i].max()) + AROUND
        r0, r1 = np.searchsorted(rows, (stars.y[i] - far, stars.y[i] + far))
        c0, c1 = np.searchsorted(columns, (stars.x[i] - far, stars.x[i] + far))
        if r0 >= r1 or c0 >= c1:
            continue
        window = (slice(r0, r1), slice(c0, c1))
        dy = (rows[r0:r1] - stars.y[i]).astype(np.float32)[:, None]
        dx = (columns[c0:c1] - stars.x[i]).astype(np.float32)[None]
        size = (r1 - r0, c1 - c0)
        # copies: OpenCV misreads an axis that is only repeated
        radius, turn = cv2.cartToPolar(np.broadcast_to(dx, size).copy(), np.broadcast_to(dy, size).copy())
        at = (turn * np.float32(_ANGLES / (2 * np.pi)) + np.float32(0.5)).astype(np.intp) % _ANGLES
        depth = (stars.ring[i][at] - radius) * slope[i][at]
        deeper = depth > first[window]
        second[window] = np.where(deeper, first[window], np.maximum(second[window], depth))
        which[window][deeper] = i + 1
        first[window] = np.maximum(first[window], depth)
    first, second = (enlarged(field, noise.shape, step) for field in (first, second))
    return Depths(first, second, _repeated(which, noise, step))


def enlarged(coarse: Field, shape: tuple[int, int], step: int) -> Field:
    """Return a map whose samples stand for `step` pixels each as a map of that shape, linear between."""
    if step == 1:
        return coarse
    size = (coarse.shape[1] * step, coarse.shape[0] * step)
    field = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(field[: shape[0], : shape[1]])


def _repeated(coarse: NDArray[np.int32], noise: Noise, step: int) -> NDArray[np.int32]:
    if step == 1:
        return coarse
    return np.ascontiguousarray(coarse.repeat(step, 0).repeat(step, 1)[: noise.shape[0], : noise.shape[1]])
