"""One small head a marker: where on the tissue it may be, then how bright."""

from __future__ import annotations

import torch
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

    def forward(self, x: Tensor) -> Tensor:
        """Return a plane a marker."""
        return torch.cat([head(x) for head in self], 1)
