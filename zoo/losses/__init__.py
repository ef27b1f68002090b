"""Losses: pure functions on tensors, raw logits in. How pixels and samples are averaged: `zoo.losses.common`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo import registry
from zoo.errors import suggest
from zoo.losses.common import Mode, Reduction, Weights
from zoo.losses.overlap import dice, lovasz, tversky
from zoo.losses.pixelwise import boundary_cross_entropy, cross_entropy, focal
from zoo.schema import Component, wrong_arguments

__all__ = [
    "Mode",
    "Reduction",
    "Weights",
    "arguments",
    "boundary_cross_entropy",
    "check",
    "check_weights",
    "cross_entropy",
    "dice",
    "focal",
    "lovasz",
    "tversky",
    "weighted_sum",
]

_GIVEN = ("mode", "valid", "has", "ignore", "weight")
"""What the caller of a loss decides, never a recipe."""


def arguments(name: str) -> list[str]:
    """Return the arguments that a recipe may give to the loss of that name."""
    known = inspect.signature(registry.get("loss", name)).parameters
    return [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY and n not in _GIVEN]


def check(component: Component) -> None:
    """Raise `ValueError` with one sentence where a loss, or an argument of it, does not exist or cannot be."""
    if component.name not in registry.table("loss"):
        raise ValueError(registry.unknown("loss", component.name))
    known = arguments(component.name)
    for name in component.arguments:
        if name not in known:
            raise ValueError(f'loss {component.name} has no argument "{name}". {suggest(name, known)}'.strip())
    for name, what in wrong_arguments(registry.get("loss", component.name), component.arguments).items():
        raise ValueError(f"loss {component.name}: {name}: {what}")
    if component.arguments.get("reduction") == "none":
        raise ValueError(f"loss {component.name}: reduction: none gives no number to learn from. Write sample or batch")
    check_weights(component.arguments.get("weights"), f"loss {component.name}: weights")
    if not 0 <= component.weight < math.inf:
        what = f"loss {component.name}: weight: {component.weight:g} will not do. Expected a number of 0 or more"
        raise ValueError(what)


def check_weights(weights: Sequence[float] | None, where: str) -> None:
    """Raise `ValueError` for class weights that are all zero: nothing would be learnt."""
    if weights is not None and not any(weights):
        raise ValueError(f"{where}: all are 0, so that nothing counts. Write one above 0")


def weighted_sum(
    components: Sequence[Component],
    logits: Tensor,
    target: Tensor,
    shared: Mapping[str, Any],
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return loss name -> scalar times the component's weight; a name that stands twice gets a number.

    `shared`: keyword arguments of every loss (mode, class weights, masks); a component's own arguments win. `weight`:
    the (B, *S) map for losses that take one.
    """
    terms: dict[str, Tensor] = {}
    for component in components:
        function = registry.get("loss", component.name)
        own = dict(shared) | component.arguments
        if "weight" in inspect.signature(function).parameters:
            own["weight"] = weight
        name = component.name if component.name not in terms else f"{component.name}_{len(terms) + 1}"
        terms[name] = component.weight * function(logits, target, **own)
    return terms
