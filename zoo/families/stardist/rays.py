"""Directions in which distances are measured: equal angles in a plane, and sets of rays with triangles in space.

Schmidt et al. 2018, section 2; Weigert et al. 2020, section 3.1 (golden spiral).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.families.stardist import native

KINDS = {
    "golden-spiral": "Rays_GoldenSpiral",
    "cartesian": "Rays_Cartesian",
    "tetra": "Rays_Tetra",
    "octo": "Rays_Octo",
    "explicit": "Rays_Explicit",
}
"""Name in a recipe -> class of the package. Classes are looked up here and never evaluated."""


@dataclass(frozen=True)
class Rays:
    """`vertices` (R, 3) float32 unit vectors (z, y, x), `faces` (F, 3) int: triangles that point outward."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.vertices)

    def scaled(self, scale: Any) -> Rays:
        """Return rays whose vectors are stretched along each axis; they are no unit vectors any more."""
        return Rays((self.vertices * np.asarray(scale, np.float32)).astype(np.float32), self.faces)


def circle(n: int) -> NDArray[np.float64]:
    """Return (n, 2) unit vectors (y, x): the angle of ray k is 2 pi k / n, ray 0 along x."""
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def make(name: str, arguments: dict[str, Any]) -> Rays:
    """Return the rays of a kind in `KINDS` with the package's own arguments. Raises `ValueError`."""
    if name not in KINDS:
        raise ValueError(f'rays: no kind "{name}". Expected one of {", ".join(KINDS)}')
    return _made(name, json.dumps(arguments, sort_keys=True, default=list))


@cache
def _made(name: str, text: str) -> Rays:
    arguments = json.loads(text)
    try:
        made = getattr(native.module("rays3d"), KINDS[name])(**arguments)
    except TypeError as error:
        raise ValueError(f"rays {name}: {str(error).split('() ')[-1]}") from None
    vertices, faces = np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int64)
    vertices.flags.writeable = faces.flags.writeable = False
    return Rays(vertices, faces)


def golden_spiral(n: int, anisotropy: Sequence[float] | None = None) -> Rays:
    """Return `n` rays evenly spread over a sphere that is squeezed by `anisotropy` (z, y, x)."""
    return make("golden-spiral", {"n": n, "anisotropy": None if anisotropy is None else tuple(anisotropy)})


def volume(dist: NDArray[Any], rays: Rays) -> NDArray[np.float64]:
    """Return the volumes of star-convex polyhedra, (...,) for distances (..., R)."""
    corners = (np.asarray(dist, np.float64)[..., None] * rays.vertices)[..., rays.faces, :]
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    return np.asarray(-np.einsum("...i,...i->...", a, np.cross(b, c)).sum(-1) / 6)
