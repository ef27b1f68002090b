"""Optical density of 8-bit pictures, where the tissue is, and where a pen was.

The numerics are those that TIAToolbox publishes, so that matrices and masks agree with it to the last digit. Natural
logarithm; white is 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FLOOR = 1e-6
"""Least optical density: white counts as this much."""
TISSUE = 0.8
"""Luminosity below which a pixel of the stretched picture is tissue, for estimating stains."""
FAINT = 0.1
"""Mean optical density below which a pixel is glass, whatever the picture's contrast is."""

_DENSITY = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 255.0), FLOOR)


def optical_density(rgb: Bytes) -> Floats:
    """Return `max(-ln(max(v, 1) / 255), 1e-6)` of uint8 values, any shape, float64."""
    return np.asarray(np.take(_DENSITY, rgb))


def to_bytes(values: NDArray[Any]) -> Bytes:
    """Return values clipped to [0, 255] and truncated (not rounded) to uint8, as the published tools store them."""
    return np.asarray(np.clip(values, 0, 255), np.float64).astype(np.uint8)


def stretched(rgb: Bytes, low: float = 2, high: float = 98) -> Bytes:
    """Return (H, W, 3) uint8 whose `low` and `high` percentiles, over pixels and channels together, become 0 and 255.

    Where both percentiles are one value, the extremes are taken; a picture of one value stays as it is.
    """
    bounds = np.percentile(rgb, (low, high))
    if bounds[0] >= bounds[1]:
        bounds = np.array([rgb.min(), rgb.max()], np.float64)
    if bounds[0] >= bounds[1]:
        return rgb.astype(np.uint8)
    scale = (np.clip(np.arange(256), *bounds) - bounds[0]) / (bounds[1] - bounds[0])
    return np.asarray(np.take((scale * 255).astype(np.uint8), rgb))


def tissue_mask(rgb: Bytes, threshold: float = TISSUE, low: float = 2, high: float = 98) -> Mask:
    """Return (H, W) bool: where the luminosity (L of CIELAB, in [0, 1]) of the stretched picture is below `threshold`.

    `rgb`: (H, W, 3) uint8. The threshold follows the picture's own contrast: of an empty picture its noise is "tissue".
    """
    import cv2

    lab = cv2.cvtColor(np.ascontiguousarray(stretched(rgb, low, high)), cv2.COLOR_RGB2LAB)
    return np.asarray(lab[..., 0] / 255.0 < threshold)


def stained(density: NDArray[Any]) -> Mask:
    """Return (...) bool: pixels (..., 3) whose mean optical density shows that something was stained."""
    return np.asarray(density.mean(-1) > FAINT)


def pen_mask(density: NDArray[Any]) -> Mask:
    """Return (...) bool: pixels (..., 3) of optical density that no stain of tissue has.

    Blue and green ink take far more red than green out of the light, which haematoxylin, eosin and DAB never do; red
    ink takes green and blue alike and leaves red alone; black ink takes everything.
    """
    red, green, blue = np.moveaxis(density, -1, 0)
    cold = (red > 1.5 * green) & (red > 0.35)
    hot = (green > 0.5) & (red < 0.12 * green) & (blue > 0.75 * green) & (blue < 1.2 * green)
    black = (density.min(-1) > 1.5) & (np.ptp(density, axis=-1) < 0.45)
    return np.asarray(cold | hot | black)
