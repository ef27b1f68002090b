"""Instance norm whose gradient is right in every memory format."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _in_rows(gradient: Tensor) -> Tensor:
    return gradient.contiguous()


def settled(normed: Tensor) -> Tensor:
    """Return an instance norm's output, whose gradient will be laid out row by row before the norm sees it.

    torch computes an instance norm as a batch norm of one picture of B * C channels. Of a single picture whose gradient
    comes with its channels last (torch 2.15, CPU) it takes the gradient's numbers in the wrong order: no error is
    raised, and what lies below learns noise.
    """
    if normed.requires_grad and len(normed) == 1 and not torch.compiler.is_compiling():
        normed.register_hook(_in_rows)  # type: ignore[no-untyped-call]
    return normed


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, with the gradient of `settled`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return settled(super().forward(x))


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, with the gradient of `settled`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, D, H, W)."""
        return settled(super().forward(x))
