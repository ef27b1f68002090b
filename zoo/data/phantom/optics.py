"""Light, lens and camera: what reaches the file of a picture. Sites are fixed draws of all that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, Noise, mix, uniform, word

Difficulty = Literal["easy", "medium", "hard"]
Site = Literal["a", "b", "c", "d", "e", "f"]
_SITES = 0x51735
_WITHIN = 0.15
"""How much slides of one site differ, as a share of how much sites differ."""


@dataclass(frozen=True)
class Draws:
    """Numbers that belong to a slide: each a function of (slide, key). Slides of one site have nearly the same ones."""

    slide: tuple[int, ...]
    site: Site | None = None

    def unit(self, key: str) -> float:
        """Return a number in [0, 1)."""
        own = float(uniform(mix(*self.slide, word(key))))
        if self.site is None:
            return own
        home = float(uniform(mix(_SITES, ord(self.site), word(key))))
        return min(max(home + _WITHIN * (own - 0.5), 0.0), 0.999999)

    def __call__(self, key: str, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit(key)

    def spread(self, key: str, count: int, deviation: float) -> NDArray[np.float32]:
        """Return (count,) numbers around 0 of about that deviation."""
        units = [self.unit(f"{key}/{i}") + self.unit(f"{key}/{i}'") - 1 for i in range(count)]
        return np.asarray(units, np.float32) * np.float32(deviation * 2.45)


@dataclass(frozen=True)
class Range:
    """How hard pictures of a difficulty are to read, as ranges. `blur`: um of the point spread; `noise`: grey levels of
    255; `uneven`: fall of light to the border; `quality`: of JPEG, 100 = none; `cast`: deviation of the white point."""

    blur: tuple[float, float]
    noise: tuple[float, float]
    uneven: float
    quality: tuple[float, float]
    cast: float


RANGES: dict[str, Range] = {
    "easy": Range((0.1, 0.3), (1.0, 2.0), 0.03, (100, 100), 2.0),
    "medium": Range((0.2, 0.5), (1.5, 4.0), 0.08, (80, 105), 4.0),
    "hard": Range((0.3, 0.8), (2.5, 6.0), 0.16, (55, 100), 8.0),
}


@dataclass(frozen=True)
class Camera:
    """One slide's way into a file: `white` (3,) grey levels of no tissue, `quality` of JPEG or None."""

    white: NDArray[np.float32]
    blur: float
    noise: float
    fall: float
    centre: tuple[float, float]
    quality: int | None
    gamma: float


def camera(draws: Draws, limits: Range) -> Camera:
    """Return the camera of a slide."""
    white = draws("white", 232, 250) + draws.spread("cast", 3, limits.cast)
    quality = round(draws("quality", *limits.quality))
    return Camera(
        np.clip(white, 190, 255).astype(np.float32),
        draws("blur", *limits.blur),
        draws("noise", *limits.noise),
        draws("fall", 0, limits.uneven),
        (draws("cy", -0.4, 0.4), draws("cx", -0.4, 0.4)),
        quality if quality < 98 else None,
        draws("gamma", 0.92, 1.08),
    )


def mixed(matrix: NDArray[np.float32], amounts: list[Field]) -> Field:
    """Return the (3, H, W) share of light that passes (S, H, W) amounts of stains whose absorbances are the rows of
    `matrix`, (S, 3): Beer and Lambert."""
    light = np.empty((3, *amounts[0].shape), np.float32)
    for plane, column in zip(light, matrix.T, strict=True):
        np.multiply(amounts[0], -column[0], out=plane)
        for amount, value in zip(amounts[1:], column[1:], strict=True):
            plane -= amount * value
    return np.exp(light, out=light)


def focus(light: Field, sigma: float) -> Field:
    """Return (C, H, W) light blurred by a point spread of `sigma` pixels."""
    if sigma <= 0.2:
        return light
    return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in light])


def expose(light: Field, shot: Camera, noise: Noise) -> NDArray[np.uint8]:
    """Return the (3, H, W) uint8 picture of (3, H, W) light in [0, 1], blurred already: unevenly lit, tinted, noisy and
    packed as JPEG. `noise` is that of the picture's window."""
    height, width = light.shape[1:]
    if shot.fall:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(shot.centre[0])
        x = np.linspace(-1, 1, width, dtype=np.float32)[None] - np.float32(shot.centre[1])
        light = light * noise.oriented(1 - np.float32(shot.fall / 2) * (y**2 + x**2))
    picture = light ** np.float32(shot.gamma) if abs(shot.gamma - 1) > 0.01 else light.copy()
    picture *= shot.white[:, None, None]
    grain = noise.white("grain", 3)
    grain *= np.float32(shot.noise)
    picture += grain
    picture += np.float32(0.5)
    np.clip(picture, 0, 255, out=picture)
    return packed(picture.astype(np.uint8), shot.quality)


def packed(picture: NDArray[np.uint8], quality: int | None) -> NDArray[np.uint8]:
    """Return a (3, H, W) picture as JPEG of that quality leaves it."""
    if quality is None:
        return picture
    bgr = np.ascontiguousarray(np.moveaxis(picture[::-1], 0, -1))
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    back: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(np.moveaxis(back, -1, 0)[::-1])
