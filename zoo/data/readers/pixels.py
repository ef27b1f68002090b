"""What several readers share: pictures as CYX arrays, label images, files by stem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.io.images import read_image, read_indices, to_rgb8


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Return a picture as (3, H, W) uint8."""
    image = read_image(path)
    rgb, _ = to_rgb8(image.read())
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def read_labels(path: Path, shape: Sequence[int], image: Path) -> NDArray[Any]:
    """Return a label image (H, W) of the size of its image. Raises `DataError` where the sizes differ."""
    labels = read_indices(path)
    if tuple(labels.shape) != tuple(shape):
        raise DataError(
            f"{path}: the mask has {labels.shape[0]} x {labels.shape[1]} pixels, its image {image.name} has "
            f"{shape[0]} x {shape[1]}. Expected the same size. Export the mask again at the image's size."
        )
    return labels


def map_values(
    labels: NDArray[Any], values: dict[int, int], path: Path, unknown: int | None = None
) -> NDArray[np.uint8]:
    """Return class indices (H, W) uint8 of stored values; others become `unknown`, or raise `DataError` naming them."""
    found = np.unique(labels)
    strays = [v for v in found.tolist() if v not in values]
    if strays and unknown is None:
        raise DataError(f"{path}: {unknown_values(strays, labels, values)}")
    out = np.full(labels.shape, 255 if unknown is None else unknown, np.uint8)
    for stored, index in values.items():
        out[labels == stored] = index
    return out


def unknown_values(strays: Iterable[Any], labels: NDArray[Any], values: Iterable[int]) -> str:
    """Return the sentence about values of a mask that the card does not know."""
    shown = list(strays)
    counted = ", ".join(f"{v} ({int((labels == v).sum())} pixels)" for v in shown[:5])
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return (
        f"the mask holds unknown values {counted}{more}. Expected {', '.join(map(str, values))}. "
        "Name them in the card, or clean the mask."
    )


def instances_of(labels: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Return object ids as int32. Raises `DataError` for fractions, negative or too large numbers."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int32)
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        raise DataError(f"{path}: the label image holds fractions. Expected whole object numbers, 0 for background.")
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise DataError(f"{path}: object numbers reach from {labels.min()} to {labels.max()}. Expected 0 to 2^31 - 1.")
    return labels.astype(np.int32)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts train_2 before train_10."""
    import re

    return [(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"(\d+)", text) if t]
