"""Optimisers and learning-rate schedules by registry name.

An optimiser is a function `(groups, **arguments) -> torch.optim.Optimizer`. A schedule is an object that says by which
factor the base learning rate is multiplied at a batch; its clock is batches, not optimiser steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from zoo import registry
from zoo.errors import UserError, suggest
from zoo.families.base import Player
from zoo.schema import Component

Groups = list[dict[str, Any]]
Share = Annotated[float, Field(ge=0, lt=1)]


def adamw(
    groups: Groups,
    *,
    lr: float = 1e-3,
    weight_decay: NonNegativeFloat = 1e-2,
    betas: tuple[Share, Share] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps)


def adam(
    groups: Groups,
    *,
    lr: float = 1e-3,
    weight_decay: NonNegativeFloat = 0.0,
    betas: tuple[Share, Share] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
) -> torch.optim.Optimizer:
    """Return Adam (Kingma and Ba 2015, algorithm 1); weight decay is added to the gradient."""
    return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps)


def sgd(
    groups: Groups,
    *,
    lr: float = 1e-2,
    momentum: Share = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with momentum."""
    if nesterov and not momentum:
        raise ValueError("nesterov wants momentum. Expected a momentum above 0")
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


class Constant:
    """Factor 1 after a linear warm-up over the first `warmup` share of all batches."""

    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup = {warmup} is no share of all batches. Expected 0 <= warmup < 1")
        self.warmup = warmup

    def factor(self, batch: int, total: int) -> float:
        """Return the factor at batch number `batch` (from 0) of `total`."""
        rising = round(self.warmup * total)
        if batch < rising:
            return (batch + 1) / rising
        return self.after((batch - rising) / max(1, total - rising))

    def after(self, share: float) -> float:
        """Return the factor after warm-up; `share` in [0, 1) of what remains."""
        return 1.0

    def observe(self, value: float, lower: bool) -> None:
        """Take note of a validation; `lower` says that smaller values are better."""

    def state(self) -> dict[str, Any]:
        """Return plain values that `load` takes back."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""


class Cosine(Constant):
    """Half a cosine from 1 to `end` (Loshchilov and Hutter 2017, equation 5, without restarts)."""

    def __init__(self, warmup: float = 0.0, end: Share = 0.0) -> None:
        super().__init__(warmup)
        self.end = end

    def after(self, share: float) -> float:
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * share))


class Poly(Constant):
    """`(1 - share) ** power` (Chen et al. 2017, section 3.3)."""

    def __init__(self, warmup: float = 0.0, power: PositiveFloat = 0.9) -> None:
        super().__init__(warmup)
        self.power = power

    def after(self, share: float) -> float:
        return float((1 - share) ** self.power)


class LinearDecay(Constant):
    """1 for `constant` epochs, then a step down each epoch so that `decay` more would leave 0: `1 - n / (decay + 1)`.

    The schedule of pix2pix, CycleGAN and CUT. The numbers are shares of the training, whatever its real epochs are.
    """

    def __init__(self, warmup: float = 0.0, constant: int = 100, decay: int = 100) -> None:
        super().__init__(warmup)
        if constant < 0 or decay < 1:
            raise ValueError(f"constant = {constant}, decay = {decay} will not do. Expected 0 or more, and 1 or more")
        self.constant, self.decay = constant, decay

    def after(self, share: float) -> float:
        epoch = int(share * (self.constant + self.decay) + 1e-6) + 1
        return 1 - max(0, epoch - self.constant) / (self.decay + 1)


class WarmHold(Constant):
    """Up in a straight line over `warmup_batches`, 1 up to half of all batches, down in a straight line to 0 (the
    schedule of MIPHEI-ViT)."""

    def __init__(self, warmup_batches: int = 400) -> None:
        super().__init__()
        if warmup_batches < 0:
            raise ValueError(f"warmup_batches = {warmup_batches} will not do. Expected 0 or more")
        self.batches = warmup_batches

    def factor(self, batch: int, total: int) -> float:
        falls = total // 2
        if batch < self.batches:
            return batch / self.batches
        return 1.0 if batch < falls else 1 - (batch - falls) / max(1, total - falls)


class Plateau(Constant):
    """Multiply by `reduce` after `patience` validations without a better monitored value, down to `end`."""

    def __init__(self, warmup: float = 0.0, reduce: float = 0.1, patience: PositiveInt = 10, end: Share = 1e-3) -> None:
        super().__init__(warmup)
        if not 0 < reduce < 1:
            raise ValueError(f"reduce = {reduce} does not make the rate smaller. Expected 0 < reduce < 1")
        self.reduce, self.patience, self.end = reduce, patience, end
        self.scale, self.waited = 1.0, 0
        self.best: float | None = None

    def after(self, share: float) -> float:
        return self.scale

    def observe(self, value: float, lower: bool) -> None:
        if self.best is None or (value < self.best if lower else value > self.best):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.scale, self.waited = max(self.end, self.scale * self.reduce), 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "waited": self.waited, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        self.scale, self.waited, self.best = state["scale"], state["waited"], state["best"]


def make(kind: str, component: Component, *given: Any) -> Any:
    """Return the part that a component names, called with `given` and its arguments. Raises `UserError`."""
    made: Callable[..., Any] = registry.get(kind, component.name)
    known = [p.name for p in inspect.signature(made).parameters.values()][len(given) :]
    for name in component.arguments:
        if name not in known:
            raise UserError(f'{kind} {component.name}: unknown argument "{name}". {suggest(name, known)}')
    try:
        return made(*given, **component.arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"{kind} {component.name}: {error}. See the arguments in the recipe.") from None


def groups_of(player: Player, component: Component) -> Groups:
    """Return torch's groups for a player: those of the family where it has any, without parameters that stand still.

    `lr_scale` of a group becomes its learning rate; parameters that no group names form one more.
    """
    lr = component.arguments.get("lr", _default_lr(component))
    found: Groups = []
    grouped: set[int] = set()
    for group in player.groups or []:
        parameters: list[nn.Parameter] = [p for p in group["params"] if p.requires_grad]
        grouped.update(map(id, parameters))
        more = {k: v for k, v in group.items() if k not in ("params", "lr_scale") and v is not None}
        if parameters:
            found.append({"params": parameters, "lr": lr * group.get("lr_scale", 1.0), **more})
    rest = [p for p in player.parameters if p.requires_grad and id(p) not in grouped]
    return [*found, {"params": rest, "lr": lr}] if rest else found


def _default_lr(component: Component) -> float:
    made = registry.get("optimizer", component.name)
    return float(inspect.signature(made).parameters["lr"].default)
