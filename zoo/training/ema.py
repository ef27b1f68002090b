"""A running average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zoo.training.shard import fill, is_cut, local


class Average:
    """An exponential moving average of a module's parameters, warmed up (decay at most (1 + n) / (10 + n)).

    Running statistics of a norm are averaged with the same decay: those of the weights of the moment fit averaged
    weights badly while the rate is high. `update` is told which parameters moved; `follow` takes the buffers along,
    once a step and after ranks have agreed on them. Of parameters that are cut, each process averages its part.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(module.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.buffers = {name: b for name, b in module.named_buffers() if b.is_floating_point()}
        self.values = {name: t.detach().clone() for name, t in (self.parameters | self.buffers).items()}
        self.counts: dict[str, int] = {}
        self._decay: float | None = None

    @torch.no_grad()
    def update(self, player: str, parameters: Sequence[nn.Parameter]) -> None:
        """Average the parameters of a player that has just moved."""
        count = self.counts[player] = self.counts.get(player, 0) + 1
        decay = self._decay = min(self.decay, (1 + count) / (10 + count))
        names = [self.names[id(p)] for p in parameters]
        if names:
            torch._foreach_lerp_(
                [local(self.values[n]) for n in names], [local(self.parameters[n]) for n in names], 1 - decay
            )

    @torch.no_grad()
    def follow(self) -> None:
        """Average the buffers, where a player has moved since the last call."""
        if self._decay is not None and self.buffers:
            averages = [self.values[name] for name in self.buffers]
            torch._foreach_lerp_(averages, list(self.buffers.values()), 1 - self._decay)
        self._decay = None

    @torch.no_grad()
    def keep(self) -> None:
        """Give the module the averaged weights for good."""
        for name, tensor in (self.parameters | self.buffers).items():
            local(tensor).copy_(local(self.values[name]))

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
        for name, tensor in (self.parameters | self.buffers).items():
            if is_cut(tensor):  # its memory is what is gathered from
                before = local(tensor).clone()
                local(tensor).copy_(local(self.values[name]))
                local(self.values[name]).copy_(before)
            else:
                tensor.data, self.values[name] = self.values[name], tensor.data

    def state(self) -> dict[str, Any]:
        """Return tensors and counts that `load` takes back."""
        return {"values": self.values, "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave; what is not averaged is passed over."""
        self.counts = dict(state["counts"])
        for name, target in self.values.items():
            fill(target, state["values"][name])
