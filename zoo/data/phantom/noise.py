"""Random fields that tissue is made of, each a function of (seed, key, place): any window of an endless plane.

`Noise` belongs to a layout. Flipping a layout flips its noise, so that every rendering is flipped with it; a window
elsewhere on the same plane continues the fields of this one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

_FINE = 5.0
"""Lattices closer than this many pixels are drawn for the window and not for the plane: nobody sees them break off."""
_DENSE = 2.5
"""Samples per lattice point that a spline is computed at before it is enlarged."""
_SPLINE = np.float32(2.06)
"""Brings a cubic B-spline of a lattice of deviation 1 to about deviation 1."""


def mix(*words: Any) -> NDArray[np.uint64]:
    """Return 64 random bits of some whole numbers (arrays broadcast): SplitMix64's finaliser, a word at a time."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            bits = np.asarray(word).astype(np.int64).view(np.uint64)
            state = (state ^ bits) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return numbers in [0, 1)."""
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def normal(bits: NDArray[np.uint64]) -> Field:
    """Return numbers of mean 0 and deviation 1, about normal: four uniform ones added up."""
    mask = np.uint64(0xFFFF)
    total = sum(((bits >> np.uint64(16 * k)) & mask).astype(np.float32) for k in range(4))
    return np.asarray((total / np.float32(65536) - np.float32(2)) * np.float32(1.7320508), np.float32)


def word(key: str) -> int:
    """Return a whole number that stands for a name, the same in every process."""
    return zlib.crc32(key.encode())


@dataclass(frozen=True)
class Noise:
    """The random fields of one window.

    `seed`: of the plane. `shape`: (H, W) of the window, `origin`: row and column of its first pixel on the plane;
    `um`: um per pixel. `flips`: whether rows and columns run backwards.
    """

    seed: int
    shape: tuple[int, int]
    um: float
    origin: tuple[int, int] = (0, 0)
    flips: tuple[bool, bool] = (False, False)

    def rng(self, *key: Any) -> np.random.Generator:
        """Return a generator for a key: for draws that have no place."""
        return np.random.default_rng([self.seed, *(word(k) if isinstance(k, str) else int(k) for k in key)])

    def flipped(self, axis: int) -> Noise:
        """Return the noise of the flipped window."""
        rows, columns = (f != (i == axis) for i, f in enumerate(self.flips))
        return replace(self, flips=(rows, columns))

    def cut(self, margin: int) -> Noise:
        """Return the noise of the window without `margin` pixels on each side."""
        if not margin:
            return self
        shape = (self.shape[0] - 2 * margin, self.shape[1] - 2 * margin)
        return replace(self, shape=shape, origin=(self.origin[0] + margin, self.origin[1] + margin))

    def oriented(self, field: NDArray[Any]) -> NDArray[Any]:
        """Return a field of this window, (..., H, W), turned as the window is."""
        if not any(self.flips):
            return field
        for axis, flip in enumerate(self.flips):
            if flip:
                field = np.flip(field, axis - 2)
        return np.ascontiguousarray(field)

    def white(self, key: str, planes: int = 0) -> Field:
        """Return (H, W), or (planes, H, W), of mean 0 and deviation 1, nothing shared between pixels."""
        shape = (planes, *self.shape) if planes else self.shape
        found = np.empty(int(np.prod(shape)), np.float32)
        bank, piece = _bank(), _BANK // 2
        starts = mix(self.seed, word(key), *self.origin, np.arange(-(-found.size // piece))) % np.uint64(piece)
        for k, start in enumerate(starts.tolist()):
            part = found[k * piece : (k + 1) * piece]
            part[:] = bank[start : start + part.size]
        return self.oriented(found.reshape(shape))

    def smooth(self, key: str, scale: float) -> Field:
        """Return (H, W) of mean 0 and deviation about 1 whose bumps are `scale` um wide."""
        pixels = scale / self.um
        if pixels <= 1.2:
            return self.white(key)
        if pixels < _FINE:
            return self._fine(key, pixels)
        return self.oriented(_spline(mix(self.seed, word(key)), self.origin, self.shape, pixels))

    def _fine(self, key: str, pixels: float) -> Field:
        shape = tuple(int(n / pixels) + 3 for n in self.shape)
        grid = Noise(self.seed, (shape[0], shape[1]), 1.0, self.origin).white(key)
        size = (round(shape[1] * pixels), round(shape[0] * pixels))
        field = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[: self.shape[0], : self.shape[1]]
        return self.oriented(field * np.float32(1.25))

    def fractal(self, key: str, scale: float, octaves: int = 3) -> Field:
        """Return smooth fields added up, each half as wide and 0.6 times as strong as the one before."""
        strengths = 0.6 ** np.arange(octaves)
        strengths /= np.sqrt((strengths**2).sum())
        total = np.zeros(self.shape, np.float32)
        for octave, strength in enumerate(strengths):
            total += np.float32(strength) * self.smooth(f"{key}/{octave}", scale / 2**octave)
        return total


_BANK = 1 << 21
_banked: list[Field] = []


def _bank() -> Field:
    """Return numbers that white noise is cut from, at random places: a hundred times faster than drawing it."""
    if not _banked:
        _banked.append(np.random.default_rng(1).standard_normal(_BANK, np.float32))
    return _banked[0]


def _spline(seed: Any, origin: tuple[int, int], shape: tuple[int, int], pixels: float) -> Field:
    """Return a window of the cubic B-spline of a lattice of random numbers, `pixels` apart."""
    step = 1
    while pixels / (2 * step) >= _DENSE:
        step *= 2
    starts = [o // step - 1 for o in origin]
    counts = [(o + n - 1) // step + 2 - s for o, n, s in zip(origin, shape, starts, strict=True)]
    rows, columns = (_weights((np.arange(s, s + n) + 0.5) * step / pixels) for s, n in zip(starts, counts, strict=True))
    values = normal(mix(seed, rows[1][:, None], columns[1][None]))
    coarse = rows[0] @ values @ columns[0].T * _SPLINE
    if step > 1:
        coarse = cv2.resize(coarse, (counts[1] * step, counts[0] * step), interpolation=cv2.INTER_LINEAR)
    y, x = (o - s * step for o, s in zip(origin, starts, strict=True))
    return np.asarray(coarse[y : y + shape[0], x : x + shape[1]], np.float32)


def _weights(places: NDArray[Any]) -> tuple[Field, NDArray[np.int64]]:
    """Return (N, M) weights of lattice points for N places, and the numbers of the M points."""
    base = np.floor(places - 0.5).astype(np.int64)
    t = places - 0.5 - base
    first = int(base.min()) - 1
    points = np.arange(first, int(base.max()) + 3)
    table = np.zeros((len(places), len(points)), np.float32)
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    at = np.arange(len(places))
    for k, part in enumerate(parts):
        table[at, base - first - 1 + k] = part / 6
    return table, points


def cloud(seed: int, key: str, scale: float, y: NDArray[Any], x: NDArray[Any]) -> Field:
    """Return the smooth field of `Noise.smooth` at points y, x (um, broadcast), any number of them."""
    base = mix(seed, word(key))
    if y.ndim == 2 and x.ndim == 2 and y.shape[1] == 1 and x.shape[0] == 1:
        rows, columns = (_weights(a.astype(np.float64).ravel() / scale) for a in (y, x))
        values = normal(mix(base, rows[1][:, None], columns[1][None]))
        return np.asarray(rows[0] @ values @ columns[0].T * _SPLINE, np.float32)
    parts = []
    for place in (y, x):
        at = np.asarray(place, np.float64) / scale
        first = np.floor(at - 0.5).astype(np.int64)
        t = (at - 0.5 - first).astype(np.float32)
        parts.append((first, ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)))
    (row, down), (column, across) = parts
    total = np.zeros(np.broadcast_shapes(row.shape, column.shape), np.float32)
    for i, a in enumerate(down):
        for j, b in enumerate(across):
            total += a * b * normal(mix(base, row + (i - 1), column + (j - 1)))
    return total * (_SPLINE / np.float32(36))


def step(values: NDArray[Any], low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high`, a smooth step between."""
    t = np.clip((values - low) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)
