"""Colour statistics: Reinhard's transfer, and the random templates of RandStainNA.

Pictures are (H, W, 3) uint8 RGB. "lab" and "hsv" are OpenCV's 8-bit spaces, "hed" is scikit-image's in floats.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.stain.density import Bytes, Floats, to_bytes

Space = Literal["lab", "hsv", "hed"]
SPACES: tuple[str, ...] = get_args(Space)
LEAST_STD = 1e-4
_SHIFT, _SCALE = np.array([0, 128, 128], np.float32), np.array([2.55, 1, 1], np.float32)


class Statistics(NamedTuple):
    """What a set of pictures looks like in one space, (3,) each: mean and deviation over pictures of a picture's mean,
    then of its standard deviation."""

    mean_of_means: tuple[float, ...]
    std_of_means: tuple[float, ...]
    mean_of_stds: tuple[float, ...]
    std_of_stds: tuple[float, ...]


PUBLISHED: dict[str, dict[str, Statistics]] = {
    "crc": {
        "lab": Statistics(
            (158.033, 151.187, 116.812), (48.792, 10.958, 6.643), (36.899, 8.134, 6.129), (14.383, 2.822, 2.013)
        ),
        "hsv": Statistics(
            (144.115, 79.862, 185.404), (20.718, 43.756, 41.451), (22.595, 30.394, 32.755), (16.568, 12.883, 14.146)
        ),
        "hed": Statistics((0.033, 0.021, 0.029), (0.031, 0.014, 0.023), (0.025, 0.013, 0.013), (0.019, 0.016, 0.009)),
    },
    "monuseg": {
        "lab": Statistics(
            (137.552, 154.865, 114.412), (30.272, 6.521, 5.339), (45.823, 8.367, 7.472), (10.565, 2.155, 1.294)
        ),
        "hsv": Statistics(
            (151.931, 95.51, 170.347), (8.317, 26.658, 28.238), (16.403, 36.024, 42.388), (6.124, 9.026, 8.978)
        ),
        "hed": Statistics((0.043, 0.022, 0.033), (0.027, 0.011, 0.011), (0.037, 0.011, 0.014), (0.015, 0.003, 0.004)),
    },
}
"""Statistics that RandStainNA (Shen et al., MICCAI 2022) ships: colorectal tiles, and MoNuSeg."""


# --- spaces -----------------------------------------------------------------------------------------------------------


def to_space(rgb: Bytes, space: str) -> NDArray[Any]:
    """Return (H, W, 3): uint8 for "lab" and "hsv", float64 for "hed"."""
    import cv2

    if space == "hed":
        from skimage.color import rgb2hed

        return np.asarray(rgb2hed(rgb))
    code = {"lab": cv2.COLOR_RGB2LAB, "hsv": cv2.COLOR_RGB2HSV}[space]
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), code))


def from_space(values: NDArray[Any], space: str) -> Bytes:
    """Return (H, W, 3) uint8 RGB; "hed" is stretched so that its extremes become 0 and 255, as RandStainNA does."""
    import cv2

    if space == "hed":
        from skimage.color import hed2rgb

        rgb = hed2rgb(values)
        low, high = float(rgb.min()), float(rgb.max())
        return to_bytes((rgb - low) / max(high - low, 1e-12) * 255)
    code = {"lab": cv2.COLOR_LAB2RGB, "hsv": cv2.COLOR_HSV2RGB}[space]
    return np.asarray(cv2.cvtColor(to_bytes(values), code), np.uint8)


def moments(values: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return mean and population standard deviation of each channel, (3,) each, over all pixels of (..., 3)."""
    flat = values.reshape(-1, 3).astype(np.float64)
    return flat.mean(0), flat.std(0)


# --- Reinhard ---------------------------------------------------------------------------------------------------------


def reinhard_space(rgb: Bytes) -> NDArray[np.float32]:
    """Return (H, W, 3) float32: L in [0, 100], a and b in [-128, 127]."""
    return np.asarray((to_space(rgb, "lab").astype(np.float32) - _SHIFT) / _SCALE)


def reinhard_moments(rgb: Bytes) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of L, a and b, (3,) each, over all pixels, glass included."""
    return moments(reinhard_space(rgb))


def reinhard(rgb: Bytes, source: tuple[Floats, Floats], target: tuple[Floats, Floats]) -> Bytes:
    """Return the picture with the moments (mean, deviation) of `source` replaced by those of `target`.

    Source: Reinhard et al., IEEE CG&A 21 (2001), section "Color processing"; OpenCV's Lab as in TIAToolbox.
    """
    moved = (reinhard_space(rgb) - source[0]) * (target[1] / np.maximum(source[1], LEAST_STD)) + target[0]
    return from_space(moved * _SCALE + _SHIFT, "lab")


# --- RandStainNA ------------------------------------------------------------------------------------------------------


def gather(looks: NDArray[Any]) -> Statistics:
    """Return the statistics of a set from (N, 2, 3): mean and deviation of each picture (population deviations)."""
    found = (looks[:, 0].mean(0), looks[:, 0].std(0), looks[:, 1].mean(0), looks[:, 1].std(0))
    return Statistics(*(tuple(float(v) for v in part) for part in found))


def draw_template(
    rng: np.random.Generator, statistics: Statistics, hyper: float = 0.0, distribution: str = "normal"
) -> Floats:
    """Return (3, 2): a mean and a standard deviation for each channel, drawn channel by channel.

    `hyper`: the spread is multiplied by 1 + hyper. "uniform" is +- 3 deviations, whatever `hyper`. A standard deviation
    is never drawn below 0, which would invert the contrast. Source: Shen et al., MICCAI 2022, section 2.2.
    """

    def draw(centre: float, spread: float) -> float:
        if distribution == "uniform":
            return float(rng.uniform(centre - 3 * spread, centre + 3 * spread))
        pull = rng.laplace if distribution == "laplace" else rng.normal
        return float(pull(centre, max(spread * (1 + hyper), 0.0)))

    pairs = zip(*statistics, strict=True)
    return np.array([[draw(m, ms), max(draw(s, ss), LEAST_STD)] for m, ms, s, ss in pairs])


def retemplate(rgb: Bytes, space: str, template: NDArray[Any]) -> Bytes:
    """Return the picture with each channel's mean and deviation in a space replaced by those of a (3, 2) template."""
    values = to_space(rgb, space)
    mean, std = moments(values)
    scale = template[:, 1] / np.clip(std, LEAST_STD, 255)
    moved = (values.astype(np.float64) - mean) * scale + template[:, 0]
    if space == "hsv":
        moved[..., 0] = np.clip(moved[..., 0], 0, 255)
    return from_space(moved, space)
