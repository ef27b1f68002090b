"""Stains as directions of absorbance, and what one can do with them.

Light through tissue obeys Beer and Lambert: `intensity = white * exp(-concentrations @ matrix)`, where row s of the
(S, 3) `matrix` is the absorbance of stain s in red, green and blue, of length 1. Natural logarithm throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

HAEMATOXYLIN = (0.650, 0.704, 0.286)
"""Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23 (2001), table 2 (values as published, not normalised)."""
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)


def stain_matrix(*stains: Sequence[float]) -> Array:
    """Return the (S, 3) float32 matrix of some stains, each of length 1."""
    rows = np.asarray(stains, np.float64)
    unit: Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


HED = stain_matrix(HAEMATOXYLIN, EOSIN, DAB)
"""Haematoxylin, eosin and DAB, (3, 3)."""


def absorbance(rgb: NDArray[Any], white: float = 255.0) -> Array:
    """Return the absorbance of uint8 values, any shape, float32: `-ln((v + 1) / (white + 1))`; 0 for white."""
    table = -np.log((np.arange(256, dtype=np.float32) + 1) / np.float32(white + 1))
    return np.take(table, rgb)


def intensity(absorbed: NDArray[Any], white: float = 255.0) -> NDArray[np.uint8]:
    """Return the uint8 values of an absorbance; the inverse of `absorbance` up to rounding."""
    value = np.exp(-absorbed, dtype=np.float32) * np.float32(white + 1) - np.float32(0.5)
    found: NDArray[np.uint8] = np.clip(value, 0, 255).astype(np.uint8)
    return found


def jitter_matrix(scale: NDArray[Any], stains: Array = HED) -> Array:
    """Return the (3, 3) matrix that multiplies each stain's concentration by `scale`: absorbance row @ matrix."""
    return np.asarray(np.linalg.inv(stains) @ np.diag(scale) @ stains, np.float32)


def stain_jitter(rgb: NDArray[np.uint8], scale: NDArray[Any], shift: NDArray[Any], stains: Array = HED) -> NDArray[Any]:
    """Return (3, H, W) uint8 with the concentration c of each stain replaced by `c * scale + shift`.

    `scale`, `shift`: (3,), in the order of `stains`. Source: Tellez et al., IEEE TMI 37 (2018), section III.C.
    """
    absorbed = absorbance(rgb).reshape(3, -1)
    mixed = jitter_matrix(scale, stains).T @ absorbed
    mixed += (np.asarray(shift, np.float32) @ stains)[:, None]
    return intensity(mixed).reshape(rgb.shape)
