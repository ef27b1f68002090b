"""A family as prediction runs it on many tiles: fused (`zoo.nn.fuse`), after it has been seen to compute the same."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zoo.families.base import Family
from zoo.nn import fuse

LEAST = 8
"""Tiles from which fusing is worth its own time."""
PROBE = 128
"""Side of the picture, rounded up to what the family takes, on which the two are compared."""
CLOSE = 1e-4
"""How far a map may differ, as a share of its largest value; rounding alone gives about a hundredth of it."""

_known: WeakKeyDictionary[Family, tuple[fuse.Pair, ...] | None] = WeakKeyDictionary()


def fast(family: Family, tiles: int) -> Family:
    """Return a family that computes the same maps faster, or `family` itself where there is nothing to gain.

    What can be fused is found out once a family, by a run on a small picture; weights are read anew at each call.
    """
    if tiles < LEAST or type(family).infer is not Family.infer:
        return family
    if family not in _known:
        _known[family] = _tried(family)
    found = _known[family]
    return family if found is None else _fused(family, found)


def _fused(family: Family, found: tuple[fuse.Pair, ...]) -> Family:
    return fuse.fused(family, found, upsampled=family.device.type == "cpu")


@torch.inference_mode()
def _tried(family: Family) -> tuple[fuse.Pair, ...] | None:
    """Return what can be fused, or None where the result would not be the same."""
    side = -(-min(PROBE, family.spec.tile) // family.spec.divisor) * family.spec.divisor
    noise = torch.rand((1, len(family.spec.channels), side, side), generator=torch.Generator().manual_seed(0))
    inputs = family.prepare({"image": noise.to(family.device)})
    try:
        found = fuse.pairs(family, lambda: family.forward(inputs))
        clone = _fused(family, found)
    except (TypeError, RuntimeError) as error:  # a module of somebody's own that cannot be copied, say
        logging.getLogger(__name__).debug("not fused: %s", error)
        return None
    ours, theirs = clone.forward(inputs), family.forward(inputs)
    return found if all(_close(ours[name], theirs[name]) for name in theirs) else None


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().max()) <= CLOSE * float(theirs.abs().max())
