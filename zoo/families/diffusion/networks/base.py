"""What a network of this family is, so that training, sampling and published layouts know no single one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Condition = Mapping[str, Any]
"""What a picture is to be like, by name, each batch first: "embedding" (B, T, C) float; "mask" (B, K, h, w) float at
the size of what is denoised (classes one-hot, or the latent of a mask's picture); whatever else a network takes."""


class Network(nn.Module):
    """Predicts noise (or velocity, or what the recipe says) from a noised picture or latent.

    Attributes that every network sets in its constructor. `channels`: of what is denoised. `outputs`: channels that
    come out, 2 * `channels` where the variance is learned as well. `size`: side of what is denoised that it was made
    for, None = any. `divisor`: the side must be a multiple of it. `takes`: names of the conditions that it looks at.
    `width`, `tokens`: of the condition "embedding" (0 where it takes none). `classes`: planes of the condition "mask".
    `bound`: whether a learned variance is trained; where only a correction learns, it is not.
    """

    channels: int
    outputs: int
    size: int | None = None
    divisor: int = 1
    takes: tuple[str, ...] = ()
    width: int = 0
    tokens: int = 0
    classes: int = 0
    bound: bool = True

    @classmethod
    def accepts(cls) -> list[str]:
        """Return the names of the constructor's arguments."""
        return [key for key in inspect.signature(cls).parameters if key != "self"]

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return (B, outputs, h, w) for (B, channels, h, w), times (B,) as trained (0..999) and a condition.

        `condition` may be what `remember` made of one; None is the null condition where there is one.
        """
        raise NotImplementedError

    def complete(self, condition: Condition) -> Condition:
        """Return a condition in which what is not told, and has a null condition of its own, is that."""
        return condition

    def null(self, condition: Condition) -> Condition | None:
        """Return the condition that guidance leads away from, of the same batch; None where the network has none."""
        return None

    def both(self, null: Condition, condition: Condition) -> Condition:
        """Return [null, conditional] as one batch, for guidance in one call. Default: tensors are joined by name."""
        found: dict[str, Any] = {}
        for name, value in condition.items():
            other = null.get(name)
            if isinstance(value, Tensor) and isinstance(other, Tensor):
                value = torch.cat([other, value])
            found[name] = value
        return found

    def drop(self, condition: Condition, dropped: Tensor) -> Condition:
        """Return a condition in which the samples (B,) bool `dropped` have the null condition, for training.

        Raises `ValueError` where the network has no null condition.
        """
        null = self.null(condition)
        if null is None:
            raise ValueError("the network has no null condition: nothing to drop to")
        found: dict[str, Any] = dict(condition)
        for name in self.takes:
            value, empty = condition.get(name), null.get(name)
            if isinstance(value, Tensor) and isinstance(empty, Tensor):
                found[name] = empty.where(dropped.view(-1, *[1] * (value.ndim - 1)), value)
        return found

    def adopted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return entries of another network's state dict under this one's names. Default: as they are."""
        return state

    @staticmethod
    def batch_of(condition: Condition) -> int:
        """Return the samples of a condition."""
        return next(len(value) for value in condition.values() if isinstance(value, Tensor))

    def remember(self, condition: Condition | None) -> Condition | None:
        """Return a condition with everything computed in advance that does not depend on `x` and `t`.

        For sampling, where the same condition is used in every step; not for training. Default: as it is.
        """
        return condition
