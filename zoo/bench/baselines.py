"""What one gets without a model: the floor under every table.

None of these looks at a truth. `otsu` takes the darker or the brighter side of Otsu's threshold; which of the two is
decided once a dataset, from its images alone (`objects_are_dark`). `all-foreground` says that everything is tissue of
interest; it has the best recall there is, and shows what a high Dice is worth where the foreground is large.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.io.images import to_rgb8

NAMES = ("otsu", "all-foreground")


def grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return (H, W) uint8 brightness of a (C, H, W) image of any dtype: the mean of its channels, stretched as the zoo
    shows pictures (`zoo.io.images.to_rgb8`)."""
    if len(image) == 3:
        rgb, _ = to_rgb8(np.moveaxis(image, 0, -1))
        return np.asarray(rgb.mean(-1).round(), np.uint8)
    planes = [to_rgb8(plane)[0][..., 0] for plane in image]
    return np.asarray(np.mean(planes, axis=0).round(), np.uint8)


def objects_are_dark(images: Iterable[NDArray[np.uint8]]) -> bool:
    """Return whether a dataset is bright-field, so that what is stained is darker than what is not.

    `images`: brightness from `grey`. The median over images of an image's median brightness lies above the middle of
    the range in bright-field (light comes through the glass) and below it in fluorescence (most pixels do not shine).
    """
    medians = [float(np.median(image)) for image in images]
    return bool(medians) and float(np.median(medians)) > 127.5


def otsu_threshold(image: NDArray[np.uint8]) -> int:
    """Return Otsu's threshold t (IEEE TSMC 1979): values <= t are one class, > t the other; the first of equals."""
    counts = np.bincount(image.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = mass / below - (mass[-1] - mass) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return int(between.argmax())


def foreground(name: str, image: NDArray[np.uint8], dark: bool) -> NDArray[np.bool_]:
    """Return the mask that a baseline draws on one image of brightness `image`."""
    if name == "all-foreground":
        return np.ones(image.shape, bool)
    threshold = otsu_threshold(image)
    return np.asarray(image <= threshold if dark else image > threshold)
