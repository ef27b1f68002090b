"""Items of a step become a `Batch`: stacking, padding to the largest, and what is known about which item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.types import Batch, Meta, Sample


class Targets(Protocol):
    """What the loader needs of a family's target maker (`zoo.families.base.TargetMaker`)."""

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return name -> array for the truths that the sample carries."""

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return name -> array that says "nothing is known", for a sample of that spatial shape."""


class NoTargets:
    """Targets of whoever only wants the images."""

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        return {}

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        return {}


@dataclass(frozen=True)
class Item:
    """One item of a step: `image` (C, H, W) or (C, D, H, W); `valid` its spatial shape, bool; `targets` by name;
    `range` (C, 2), the values that stand for the percentiles of the image that this is a part of, or None."""

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    targets: dict[str, NDArray[Any]]
    maker: Targets
    meta: Meta
    range: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape[1:]


def numbers(image: NDArray[Any]) -> NDArray[Any]:
    """Return an image in a dtype that torch computes with: uint8 stays; other unsigned integers become float32 in
    [0, 1] of their type's range; floats become float32 as they are."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(image.dtype, np.unsignedinteger):
        return (image / np.float32(np.iinfo(image.dtype).max)).astype(np.float32)
    return image.astype(np.float32)


def border_value(image: NDArray[Any]) -> NDArray[Any]:
    """Return (C,) medians of the border's pixels: what padding is filled with, neither a mirror nor an edge."""
    axes = image.ndim - 1
    sides = [image[(slice(None), *[slice(None)] * a, at)] for a in range(axes) for at in (0, -1)]
    flat = np.concatenate([side.reshape(len(image), -1) for side in sides], axis=1)
    middle = flat.shape[1] // 2
    return np.partition(flat, middle, axis=1)[:, middle]


def pad_image(image: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return an image padded at the far sides to a spatial shape, with the median of its border."""
    if image.shape[1:] == tuple(shape):
        return image
    fill = border_value(image).reshape(-1, *[1] * len(shape))
    padded = np.broadcast_to(fill, (len(image), *shape)).copy()
    padded[(slice(None), *map(slice, image.shape[1:]))] = image
    return padded


def paste(array: NDArray[Any], onto: NDArray[Any]) -> NDArray[Any] | None:
    """Return `onto` with `array` laid into its first corner; None where it does not fit."""
    if array.ndim != onto.ndim or any(a > b for a, b in zip(array.shape, onto.shape, strict=True)):
        return None
    if array.shape == onto.shape:
        return array
    laid = onto.copy()
    laid[tuple(map(slice, array.shape))] = array
    return laid


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor of an array; a dtype that torch hardly knows becomes the next wider one."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(array.dtype)
    found = np.ascontiguousarray(array if wider is None else array.astype(wider))
    return torch.from_numpy(found if found.flags.writeable else found.copy())  # what a cache holds is read-only


def collate(items: Sequence[Item]) -> Batch:
    """Return the batch of some items.

    Items of different sizes are padded at the far sides to the largest; `valid` is False there, and a target has there
    what its maker's `blank` says. A target of which nothing is known is its blank, with `has` False. A target whose
    blank has no elements (boxes: (0, 4)) is a list of tensors, every other one is stacked.
    """
    shape = tuple(max(sizes) for sizes in zip(*(item.shape for item in items), strict=True))
    images = [pad_image(item.image, shape) for item in items]
    if len({image.dtype for image in images}) > 1:
        images = [i.astype(np.float32) / 255 if i.dtype == np.uint8 else i for i in images]
    valid = np.zeros((len(items), *shape), bool)
    for place, item in enumerate(items):
        valid[place][tuple(map(slice, item.shape))] = item.valid
    targets, has = _targets(items, shape)
    return Batch(
        inputs={"image": tensor(np.stack(images)), **_ranges(items, images)},
        targets=targets,
        has=has,
        valid=tensor(valid),
        meta=[item.meta for item in items],
    )


def _ranges(items: Sequence[Item], images: Sequence[NDArray[Any]]) -> dict[str, torch.Tensor]:
    found = []
    for item, image in zip(items, images, strict=True):
        if item.range is None:
            return {}
        found.append(item.range / np.float32(255) if item.image.dtype != image.dtype else item.range)
    return {"range": tensor(np.stack(found))}


def _targets(
    items: Sequence[Item], shape: tuple[int, ...]
) -> tuple[dict[str, torch.Tensor | list[torch.Tensor]], dict[str, torch.Tensor]]:
    blanks = [item.maker.blank(shape) for item in items]
    names = sorted({name for known in (*blanks, *(item.targets for item in items)) for name in known})
    found: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    has: dict[str, torch.Tensor] = {}
    for name in names:
        known = [name in item.targets for item in items]
        has[name] = torch.tensor(known)
        arrays: list[NDArray[Any]] = []
        ragged = False
        for item, blank in zip(items, blanks, strict=True):
            default = blank.get(name)
            if default is None:  # another dataset's target: its own blank does for this one
                default = next(b[name] for b in blanks if name in b)
            array = item.targets.get(name, default)
            laid = paste(array, default) if default.size else None
            ragged = ragged or laid is None
            arrays.append(array if laid is None else laid)
        found[name] = [tensor(a) for a in arrays] if ragged else tensor(np.stack(arrays))
    return found, has
