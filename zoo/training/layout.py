"""In which precision a forward runs, and how weights and images lie in memory for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from zoo.families.base import Family
from zoo.nn.precision import low_dtype
from zoo.types import Batch


def autocast_of(precision: str, device: torch.device) -> Callable[[], Any]:
    """Return what makes a context in which forward runs in a precision, or in 32 bits where a CPU has no other."""
    half = low_dtype(precision, device)
    return nullcontext if half is None else lambda: torch.autocast(device.type, dtype=half)


def memory_format(family: Family, channels_last: bool, weights: bool = True) -> Any:
    """Lay a module's weights out for convolutions and return the format of its images, or None.

    `weights` False leaves them as they are: cut ones lie as they are cut, and images so laid out are enough.
    """
    if not channels_last:
        return None
    flat = family.spec.axes == "CYX"
    chosen = torch.channels_last if flat else torch.channels_last_3d
    for module in family.modules() if weights else ():
        wanted = torch.nn.Conv2d | torch.nn.ConvTranspose2d if flat else torch.nn.Conv3d | torch.nn.ConvTranspose3d
        if isinstance(module, wanted):
            module.to(memory_format=chosen)
    return chosen


def laid_out(batch: Batch, chosen: Any) -> Batch:
    """Return a batch whose images lie in memory as `memory_format` said."""
    if chosen is not None:
        axes = 4 if chosen is torch.channels_last else 5
        for _, part in batch.streams():
            for name, value in part.inputs.items():
                if value.ndim == axes:
                    part.inputs[name] = value.contiguous(memory_format=chosen)
    return batch
