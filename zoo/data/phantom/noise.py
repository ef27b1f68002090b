"""Random fields that tissue is made of: smooth, fractal and fibrous ones."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


def smooth(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Field:
    """Return (H, W) noise of mean 0 and deviation about 1 whose bumps are `scale` pixels wide."""
    if scale <= 1:
        return rng.standard_normal(shape, np.float32)
    coarse = (int(shape[0] / scale) + 3, int(shape[1] / scale) + 3)
    grid = rng.standard_normal(coarse, np.float32)
    size = (round(coarse[1] * scale), round(coarse[0] * scale))
    field = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    y, x = (int(rng.integers(0, have - want + 1)) for have, want in zip(field.shape, shape, strict=True))
    return np.ascontiguousarray(field[y : y + shape[0], x : x + shape[1]]) * np.float32(1.25)


def fractal(rng: np.random.Generator, shape: tuple[int, int], scale: float, octaves: int = 3) -> Field:
    """Return a sum of smooth fields, each half as wide and 0.6 times as strong as the one before; deviation about 1."""
    total = np.zeros(shape, np.float32)
    strength, sum_of_squares = 1.0, 0.0
    for octave in range(octaves):
        total += np.float32(strength) * smooth(rng, shape, scale / 2**octave)
        sum_of_squares += strength**2
        strength *= 0.6
    return total / np.float32(np.sqrt(sum_of_squares))


def along(field: Field, angle: Field, length: float) -> Field:
    """Return a field averaged along a direction: fibres, where `field` is fine noise.

    `angle`: (H, W) radians, from the x axis towards the y axis; `length`: pixels from end to end. The deviation is
    brought back to 1. (Line integral convolution, Cabral and Leedom, SIGGRAPH 1993, in passes of three points each
    whose distance triples.)
    """
    rows, columns = np.indices(field.shape, dtype=np.float32)
    dx, dy = np.cos(angle), np.sin(angle)
    total = field
    for distance in (length / 27, length / 9, length / 3):
        d = np.float32(distance)
        for_and_back = [
            cv2.remap(total, columns + s * dx, rows + s * dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
            for s in (d, -d)
        ]
        total = total + for_and_back[0] + for_and_back[1]
    return np.asarray(total / np.float32(max(float(total.std()), 1e-6)), np.float32)


def step(values: NDArray[Any], low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high`, a smooth step between."""
    t = np.clip((values - low) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
    return t * t * (3 - 2 * t)
