"""A volume of nuclei under a confocal microscope: anisotropic, blurred along its axis, fading with depth, noisy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field

Shape = tuple[int, int, int]
Um = tuple[float, float, float]


@dataclass(frozen=True)
class Depths:
    """How hard a volume is. `gap`: relative distance that nuclei keep (below 1 they touch and press into each other);
    `filled`: share of the volume under nuclei that is tried for; `rough`: of outlines; `blur`: um of the point spread
    across, along the axis 2.5 times that; `photons`: at the brightest; `fade`: of the light through the depth;
    `haze`: background; `uneven`: deviation (log) of the nuclei's brightness."""

    gap: float
    filled: float
    rough: float
    blur: tuple[float, float]
    photons: tuple[float, float]
    fade: float
    haze: float
    uneven: float


DEPTHS: dict[str, Depths] = {
    "easy": Depths(1.12, 0.09, 0.05, (0.15, 0.3), (300, 600), 0.1, 0.02, 0.15),
    "medium": Depths(0.95, 0.16, 0.1, (0.3, 0.5), (80, 250), 0.4, 0.06, 0.3),
    "hard": Depths(0.84, 0.26, 0.16, (0.45, 0.75), (18, 60), 0.6, 0.14, 0.5),
}


@dataclass(frozen=True)
class Volume:
    """A field: `nuclei` (D, H, W) int32; `dye` (D, H, W) float32 amount of dye; `um` per voxel of each axis; `seed` and
    `flips` of the noise."""

    seed: int
    um: Um
    nuclei: NDArray[np.int32]
    dye: Field
    flips: tuple[bool, bool, bool] = (False, False, False)

    def flipped(self, axis: int) -> Volume:
        """Return the volume turned round along one axis."""
        z, y, x = (f != (i == axis) for i, f in enumerate(self.flips))
        nuclei, dye = np.flip(self.nuclei, axis).copy(), np.flip(self.dye, axis).copy()
        return replace(self, nuclei=nuclei, dye=dye, flips=(z, y, x))

    def _white(self, key: int) -> Field:
        bits = np.random.SFC64([self.seed, key])
        field = np.random.Generator(bits).standard_normal(self.nuclei.shape, np.float32)
        for axis, flip in enumerate(self.flips):
            field = np.flip(field, axis) if flip else field
        return field


def lay_out(seed: int, shape: Shape, um: Um, depths: Depths, radius: float = 3.6) -> Volume:
    """Return nuclei of about `radius` um in a volume of `shape` voxels of `um` um."""
    rng = np.random.default_rng([seed, 3])
    size = np.array(shape) * np.array(um)
    volume = 4 / 3 * np.pi * radius**3
    tries = max(1, int(1.6 * depths.filled * float(np.prod(size + 2 * radius)) / volume))
    centres = rng.uniform(-radius, size + radius, (tries, 3))
    radii = rng.normal(radius, 0.12 * radius, tries).clip(0.6 * radius, 1.5 * radius)
    centres, radii = _thinned(centres, radii, depths.gap)
    axes = radii[:, None] * np.exp(rng.normal(0, 0.14, (len(radii), 3)))
    nuclei, dye = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    owner = np.full(shape, np.inf, np.float32)
    texture = _texture(rng)
    for label, (centre, half) in enumerate(zip(centres, axes, strict=True), start=1):
        _draw(rng, label, centre, half, np.array(um), depths, (nuclei, dye, owner), texture)
    return Volume(seed, um, _compact(nuclei), dye)


def _thinned(centres: NDArray[Any], radii: NDArray[Any], gap: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the points that keep their distance from every earlier one that stayed."""
    kept: list[int] = []
    for i in range(len(centres)):
        if kept:
            near = np.linalg.norm(centres[kept] - centres[i], axis=1)
            if (near < gap * (radii[kept] + radii[i])).any():
                continue
        kept.append(i)
    return centres[kept], radii[kept]


def _texture(rng: np.random.Generator) -> Field:
    """Return (64, 64, 64) chromatin that repeats: clumps of about three voxels; every nucleus shows a piece of it."""
    field = rng.standard_normal((64, 64, 64), np.float32)
    for axis in range(3):
        field = sum(np.roll(field, s, axis) * w for s, w in ((-1, 0.3), (0, 0.5), (1, 0.3)))  # type: ignore[assignment]
    return np.asarray(field / field.std(), np.float32)


def _draw(
    rng: np.random.Generator,
    label: int,
    centre: NDArray[Any],
    half: NDArray[Any],
    um: NDArray[Any],
    depths: Depths,
    onto: tuple[NDArray[np.int32], Field, Field],
    texture: Field,
) -> None:
    """Draw one nucleus: a turned ellipsoid with a wavy surface. A voxel of two nuclei belongs to the one whose relative
    radius is smaller there."""
    nuclei, dye, owner = onto
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    waves, phases = rng.normal(0, 1.1, (3, 3)), rng.uniform(0, 2 * np.pi, 3)
    brightness = float(np.exp(rng.normal(0, depths.uneven)))
    piece = rng.integers(0, 64, 3)
    reach = 1.25 * float(half.max())
    low = np.maximum(np.floor((centre - reach) / um), 0).astype(int)
    high = np.minimum(np.ceil((centre + reach) / um), nuclei.shape).astype(int)
    if (low >= high).any():
        return
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    line = [
        ((np.arange(a, b) + 0.5) * u - c).astype(np.float32) for a, b, u, c in zip(low, high, um, centre, strict=True)
    ]
    z, y, x = line[0][:, None, None], line[1][None, :, None], line[2][None, None]
    axes = (turn / half[:, None]).astype(np.float32)
    p, q, r = (axes[k, 0] * z + axes[k, 1] * y + axes[k, 2] * x for k in range(3))
    radius = np.sqrt(p * p + q * q + r * r)
    wave = sum(
        np.sin(np.float32(w[0]) * p + np.float32(w[1]) * q + np.float32(w[2]) * r + np.float32(f))
        for w, f in zip(waves * 1.6, phases, strict=True)
    )
    relative = radius * (1 - np.float32(depths.rough * 0.6) * wave)
    inside = (relative < 1) & (relative < owner[window])
    owner[window][inside] = relative[inside]
    nuclei[window][inside] = label
    index = [(piece[k] + np.arange(low[k], high[k])) % 64 for k in range(3)]
    chromatin = texture[np.ix_(*index)]
    amount = brightness * (0.75 + 0.2 * np.clip((relative - 0.6) / 0.4, 0, 1) + 0.17 * chromatin)
    dye[window][inside] = np.clip(amount, 0.1, None)[inside]


def _compact(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return labels without gaps, of objects of at least 8 voxels."""
    keep = np.bincount(labels.ravel(), minlength=1) >= 8
    keep[0] = False
    return np.asarray((np.cumsum(keep) * keep).astype(np.int32)[labels])


def render(volume: Volume, depths: Depths) -> NDArray[np.uint16]:
    """Return the (1, D, H, W) uint16 picture of a volume."""
    rng = np.random.default_rng([volume.seed, 4])
    sigma, photons = float(rng.uniform(*depths.blur)), float(rng.uniform(*depths.photons))
    haze, fade = depths.haze * float(rng.uniform(0.4, 1.2)), float(rng.uniform(0.3, 1)) * depths.fade
    depth, height, width = volume.nuclei.shape
    across = [_blur(plane, sigma / volume.um[1], sigma / volume.um[2]) for plane in volume.dye]
    flat = np.stack(across).reshape(depth, height * width)
    along = _blur(flat, 2.5 * sigma / volume.um[0], 0.0).reshape(volume.nuclei.shape)
    far = np.linspace(0, 1, depth, dtype=np.float32)
    far = far[::-1] if volume.flips[0] else far
    light = along * np.exp(-np.float32(fade * 1.5) * far)[:, None, None] + np.float32(haze)
    light *= np.float32(photons)
    light += volume._white(1) * np.sqrt(light + np.float32(2))
    light *= np.float32(rng.uniform(9000, 26000) / photons)
    light += np.float32(rng.uniform(200, 900))
    picture: NDArray[np.uint16] = np.clip(light, 0, 65535).astype(np.uint16)[None]
    return picture


def _blur(plane: NDArray[Any], sigma_y: float, sigma_x: float) -> Field:
    """Return a plane blurred by so many pixels down and across."""
    if max(sigma_x, sigma_y) < 0.2:
        return np.asarray(plane, np.float32)
    sizes = [2 * int(np.ceil(3 * s)) + 1 if s >= 0.2 else 1 for s in (sigma_x, sigma_y)]
    found = cv2.GaussianBlur(plane, (sizes[0], sizes[1]), max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01))
    return np.asarray(found, np.float32)
