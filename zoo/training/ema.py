"""A running average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a module's parameters, warmed up (decay at most (1 + n) / (10 + n)).

    Buffers (running statistics of a norm) are not averaged: those of the module are used.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(module.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def update(self, player: str, parameters: Sequence[nn.Parameter]) -> None:
        """Average the parameters of a player that has just moved."""
        count = self.counts[player] = self.counts.get(player, 0) + 1
        decay = min(self.decay, (1 + count) / (10 + count))
        names = [self.names[id(p)] for p in parameters]
        if names:
            torch._foreach_lerp_(
                [self.values[n] for n in names], [self.parameters[n].detach() for n in names], 1 - decay
            )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the context the module carries the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def state(self) -> dict[str, Any]:
        """Return tensors and counts that `load` takes back."""
        return {"values": self.values, "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.counts = dict(state["counts"])
        for name, value in state["values"].items():
            target: Tensor = self.values[name]
            target.copy_(value)
