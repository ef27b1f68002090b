"""From a model's grid to the pixels of its source image."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.types import Geometry


def to_source(maps: Tensor, geometry: Geometry) -> Tensor:
    """Return (C, *shape) values at the centres of the source's pixels, by linear interpolation.

    `maps`: (C, *S) float on the model's grid. The source pixel with its centre at p lies at p * scale - offset of the
    array (`Geometry`); beyond the array its edge is repeated. Where nothing was resampled this is a crop, bit for bit.
    """
    for axis, (size, scale, offset) in enumerate(
        zip(geometry.shape, geometry.scale, geometry.offset, strict=True), start=1
    ):
        maps = _along(maps, axis, size, scale, offset)
    return maps


def _along(maps: Tensor, axis: int, size: int, scale: float, offset: float) -> Tensor:
    have = maps.shape[axis]
    if scale == 1.0 and offset == 0.0 and have == size:
        return maps
    if scale == 1.0 and float(offset).is_integer():
        start = -int(offset)
        index = torch.arange(start, start + size, device=maps.device).clamp_(0, have - 1)
        return maps.index_select(axis, index)
    position = (torch.arange(size, dtype=torch.float64, device=maps.device) + 0.5) * scale - offset - 0.5
    position = position.clamp_(0, have - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(have - 1)
    share = (position - low).to(maps.dtype)
    share = share.view([-1 if d == axis else 1 for d in range(maps.ndim)])
    return maps.index_select(axis, low) * (1 - share) + maps.index_select(axis, high) * share
