"""Images whose range is measured once, on the whole image, before a patch is cut from it.

A model that scales by percentiles sees the percentiles of the whole image when it predicts. A patch has others: one
without a nucleus would be stretched until its noise fills the range. So a training image is stretched as a whole, and
its patches are told which two values stand for the percentiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.types import Sample

LIMITS = (16.0, 224.0)
"""What the two percentiles become, of 255: some room is left for what is darker or brighter."""


def stretch(sample: Sample, low: float, high: float, joint: bool = False) -> Sample:
    """Return a sample whose channels, or all of them together (`joint`), have their percentiles at `LIMITS`.

    uint8 stays uint8, rounded; everything else becomes float32 with the limits at `LIMITS` / 255. What lies outside
    [0, 255] (or [0, 1]) is clipped.
    """
    image = sample.image
    flat = image.reshape(1 if joint else len(image), -1)
    bottom, top = np.percentile(flat, [low, high], axis=1).astype(np.float32)
    spread = np.maximum(top - bottom, 1e-6)
    shape = (-1,) + (1,) * (image.ndim - 1)
    unit = (image.astype(np.float32) - bottom.reshape(shape)) / spread.reshape(shape)
    scaled = np.clip(unit * (LIMITS[1] - LIMITS[0]) + LIMITS[0], 0, 255)
    if image.dtype == np.uint8:
        return sample.with_(image=np.rint(scaled).astype(np.uint8))
    return sample.with_(image=(scaled / 255).astype(np.float32))


def limits(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return (C, 2) float32: where the percentiles of a stretched image lie, in the numbers of its dtype."""
    unit = 1.0 if image.dtype == np.uint8 else 255.0
    return np.tile(np.asarray(LIMITS, np.float32) / np.float32(unit), (len(image), 1))
