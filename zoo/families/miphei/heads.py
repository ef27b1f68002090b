"""One small head a marker: where on the tissue it may be, then how bright."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """Multiplies a map by one spatial gate that it computes from the map (attention gate, Oktay et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.psi = nn.Sequential(
            nn.Conv2d(width, half, 1), nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, 1, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W)."""
        gated: Tensor = x * self.psi(x)
        return gated


class Heads(nn.ModuleList):
    """(B, width, H, W) -> (B, markers, H, W): what goes into tanh. Markers share no weights."""

    def __init__(self, width: int, markers: int, gated: bool = True) -> None:
        last = [nn.Conv2d(width, 1, 3, padding=1) for _ in range(markers)]
        super().__init__(nn.Sequential(Gate(width) if gated else nn.Identity(), conv) for conv in last)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        """Return a plane a marker."""
        if self.gated:
            return torch.cat([head(x) for head in self], 1)
        lasts: list[Any] = [head[1] for head in self]  # type: ignore[index]
        weight, bias = torch.cat([c.weight for c in lasts]), torch.cat([c.bias for c in lasts])
        return F.conv2d(x, weight, bias, padding=1)  # one convolution in place of many


class WithForeground(nn.Module):
    """Heads, and one convolution beside them that says where each marker is: (B, width, H, W) -> (B, 2 M, H, W), what
    goes into tanh first, then the logits of the foreground."""

    def __init__(self, heads: Heads, width: int) -> None:
        super().__init__()
        self.paint = heads
        self.foreground = nn.Conv2d(width, len(heads), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return two planes a marker."""
        return torch.cat([self.paint(x), self.foreground(x)], 1)
