"""Outlines of nuclei and glands, drawn many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ANGLES = 64


@dataclass(frozen=True)
class Blobs:
    """N rough ellipses, in pixels: centres, half axes, direction of the first axis, and how rough their outline is."""

    x: NDArray[Any]
    y: NDArray[Any]
    long: NDArray[Any]
    short: NDArray[Any]
    angle: NDArray[Any]
    rough: NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)


def outline(rng: np.random.Generator, rough: NDArray[Any], lowest: int = 2, highest: int = 5) -> NDArray[np.float32]:
    """Return (N, 64) factors on the radius at angles 0, 2 pi / 64, ...: harmonics that fall with their order."""
    orders = np.arange(lowest, highest + 1)
    phases = rng.uniform(0, 2 * np.pi, (len(rough), len(orders), 1))
    strengths = rng.normal(0, 1, (len(rough), len(orders), 1)) / orders[None, :, None]
    angles = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)
    waves = strengths * np.cos(orders[None, :, None] * angles + phases)
    factors = 1 + np.clip(waves.sum(1) * np.asarray(rough)[:, None], -0.35, 0.35)
    return np.asarray(factors, np.float32)


def draw(rng: np.random.Generator, blobs: Blobs) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]]:
    """Return (N, P, P) float32 patches of the relative radius (below 1 inside) and the rows and columns of their
    first pixels. A pixel's value is that of its centre."""
    reach = int(np.ceil(1.35 * max(float(np.max(blobs.long, initial=1)), float(np.max(blobs.short, initial=1))))) + 2
    top, left = np.floor(blobs.y).astype(np.intp) - reach, np.floor(blobs.x).astype(np.intp) - reach
    line = np.arange(2 * reach + 1, dtype=np.float32) + 0.5
    dy = (line[None] + (top - blobs.y)[:, None]).astype(np.float32)[:, :, None]
    dx = (line[None] + (left - blobs.x)[:, None]).astype(np.float32)[:, None, :]
    cos, sin = (f(blobs.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    u = (dx * cos + dy * sin) / blobs.long.astype(np.float32)[:, None, None]
    v = (dy * cos - dx * sin) / blobs.short.astype(np.float32)[:, None, None]
    turn = np.arctan2(v, u) * np.float32(_ANGLES / (2 * np.pi))
    places = np.rint(turn).astype(np.intp) % _ANGLES
    factors = np.take_along_axis(outline(rng, blobs.rough), places.reshape(len(blobs), -1), 1).reshape(u.shape)
    return np.hypot(u, v) / factors, top, left
