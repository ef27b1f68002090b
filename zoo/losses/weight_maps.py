"""Maps that say how much a pixel counts: more near the borders of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def unet_weights(instances: NDArray[Any], w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """Return 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) in the background, 1 on objects (Ronneberger et al. 2015, eq. 2).

    `instances`: (H, W) or (D, H, W) integer, 0 background. `d1`, `d2`: distances in pixels to the nearest and the
    second nearest object; where there is only one object nothing is added.
    """
    weights = np.ones(instances.shape, np.float32)
    boxes = ndimage.find_objects(instances)
    reach = int(np.ceil(4 * sigma)) + 1  # beyond it the term is below 3e-4 of w0
    nearest = np.full(instances.shape, np.inf, np.float32)
    second = nearest.copy()
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(instances[window] != label).astype(np.float32)
        first, other = nearest[window], second[window]
        second[window] = np.minimum(other, np.maximum(first, distance))
        nearest[window] = np.minimum(first, distance)
    near = (instances == 0) & np.isfinite(second)
    weights[near] += w0 * np.exp(-((nearest[near] + second[near]) ** 2) / (2 * sigma**2))
    return weights


def border_weights(classes: NDArray[Any], w0: float = 5.0, sigma: float = 3.0) -> NDArray[np.float32]:
    """Return 1 + w0 exp(-d^2 / (2 sigma^2)), d the distance in pixels to the nearest pixel of another value.

    `classes`: integer class or instance map of any number of axes. Where all is of one value nothing is added.
    """
    border = np.zeros(classes.shape, bool)
    for axis in range(classes.ndim):
        first, last = [slice(None)] * classes.ndim, [slice(None)] * classes.ndim
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        step = classes[tuple(first)] != classes[tuple(last)]
        border[tuple(first)] |= step
        border[tuple(last)] |= step
    if not border.any():
        return np.ones(classes.shape, np.float32)
    distance = ndimage.distance_transform_edt(~border) + 1  # a pixel at the border is one step from the other value
    weights: NDArray[np.float32] = (1 + w0 * np.exp(-(distance**2) / (2 * sigma**2))).astype(np.float32)
    return weights
