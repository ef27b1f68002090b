"""What a picture of an immunostain says of cells: amounts of haematoxylin and DAB, nuclei, and which are positive.

Everything is classical and fixed, so that no model judges another: Ruifrok's directions, a threshold between tissue and
what is dark in it, a watershed from the middles of what is left.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.metrics import picture
from zoo.metrics.immunostain import POSITIVE, Amounts
from zoo.postprocess.labels import Labels, components, means, regrow, remove_small
from zoo.stain.matrices import DAB, HAEMATOXYLIN, absorbance, stain_matrix

LEAST = 0.25
"""Optical density, of haematoxylin and DAB together, that a nucleus has at least: an empty field has no nuclei."""
MOST = 0.8
"""Optical density above which nothing counts as darker: brown nuclei must not hide the blue ones from the threshold."""
SMALLEST = 24
"""Pixels of the smallest nucleus."""


def unmixed(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the optical densities (H, W) of haematoxylin and of DAB in (3, H, W) uint8, at least 0.

    Directions of Ruifrok and Johnston (2001); what neither takes out of the light goes to a third one across both.
    """
    blue, brown = stain_matrix(HAEMATOXYLIN, DAB)
    third = np.cross(blue, brown)
    matrix = np.stack([blue, brown, third / np.linalg.norm(third)])
    amounts = np.tensordot(np.linalg.inv(matrix).T, absorbance(rgb), axes=1)
    return np.maximum(amounts[0], 0).astype(np.float32), np.maximum(amounts[1], 0).astype(np.float32)


def nuclei(density: NDArray[np.float32]) -> Labels:
    """Return (H, W) int32 nuclei, ids 1..N, of the optical density of haematoxylin and DAB together.

    Darker than Otsu's threshold of the field and than `LEAST`; touching ones are parted where they are narrow.
    """
    from skimage.filters import threshold_otsu

    smooth = ndimage.gaussian_filter(np.minimum(density, MOST), 1.0)
    if float(smooth.max(initial=0)) <= LEAST:
        return np.zeros(density.shape, np.int32)
    mask = ndimage.binary_opening(smooth > max(LEAST, float(threshold_otsu(smooth))), iterations=1)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.0)
    seeds = components((depth == ndimage.maximum_filter(depth, 9)) & mask, 2)
    return remove_small(regrow(seeds, mask, -depth), SMALLEST)


def amounts(rgb: NDArray[np.uint8]) -> Amounts:
    """Return what a picture (3, H, W) uint8 says."""
    blue, brown = unmixed(rgb)
    labels = nuclei(blue + brown)
    count = int(labels.max(initial=0))
    centres = np.asarray(ndimage.center_of_mass(labels > 0, labels, range(1, count + 1)), np.float64).reshape(-1, 2)
    return Amounts(brown, centres, means(labels, brown) >= POSITIVE)


@dataclass(frozen=True)
class Immunostain:
    """Two pictures of a field in red, green and blue, read when they are asked for."""

    both: picture.Pair

    @functools.cached_property
    def prediction(self) -> Amounts:
        """Return what the predicted picture says."""
        return amounts(self.both.prediction.astype(np.uint8))

    @functools.cached_property
    def truth(self) -> Amounts:
        """Return what the true picture says."""
        return amounts(self.both.truth.astype(np.uint8))

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Return where pictures count."""
        return self.both.valid


def fits(both: picture.Pair) -> bool:
    """Return whether two pictures can be read: 8 bits of red, green and blue."""
    return both.channels == ("red", "green", "blue") and both.spread == 255
