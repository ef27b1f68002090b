"""A velocity field on embeddings: one stain's embedding is carried to another's along straight lines.

Sources: Lipman et al. 2023 (flow matching, section 4.1); Li et al. 2024 (the residual network on tokens of MAR);
Yellapragada et al. 2025 (PixCell, virtual staining). Names of the state dict are those of the published files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

SPAN = 999.0
"""The network's time at the end of the way, t = 1."""


class FlowBlock(nn.Module):
    """Two linear layers with the time added between them, as a residual."""

    def __init__(self, width: int, inner: int, time: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, inner))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, inner))
        self.out_layers = nn.Sequential(nn.LayerNorm(inner), nn.SiLU(), nn.Dropout(dropout), nn.Linear(inner, width))
        last = cast(nn.Linear, self.out_layers[3])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (N, width)."""
        return cast(Tensor, x + self.out_layers(self.in_layers(x) + self.emb_layers(time)))


class EmbeddingFlow(nn.Module):
    """Velocity of embeddings (N, width) at times t in [0, 1]; each embedding by itself."""

    def __init__(
        self,
        *,
        width: int = 1536,
        inner: int = 1024,
        bottleneck: int | None = None,
        time_width: int | None = None,
        outputs: int | None = None,
        blocks: int = 6,
        dropout: float = 0.0,
    ) -> None:
        """`inner`: channels between the blocks; `bottleneck`: inside a block; `time_width`: of the time, as `inner`."""
        super().__init__()
        self.width, self.inner = width, inner
        time = time_width or inner
        self.time_embed = nn.Sequential(nn.Linear(inner, time), nn.SiLU(), nn.Linear(time, time))
        self.input_proj = nn.Linear(width, inner)
        self.res_blocks = nn.ModuleList(FlowBlock(inner, bottleneck or inner, time, dropout) for _ in range(blocks))
        self.out = nn.Sequential(nn.LayerNorm(inner, eps=1e-6), nn.SiLU(), nn.Linear(inner, outputs or width))
        last = cast(nn.Linear, self.out[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def time_waves(self, t: Tensor) -> Tensor:
        """Return (N, inner), cosines then sines of times t (N,) in [0, 1]."""
        waves = get_timestep_embedding(SPAN * t.float(), self.inner, flip_sin_to_cos=True, downscale_freq_shift=0)
        return cast(Tensor, waves)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return velocities (N, outputs) of embeddings (N, width) at t (N,)."""
        time = self.time_embed(self.time_waves(t).to(x.dtype))
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, time)
        return cast(Tensor, self.out(x))


def flow_loss(network: Callable[[Tensor, Tensor], Tensor], start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Return the mean squared error of the velocity on the straight line from `start` to `end` (N, width) at t (N,)."""
    share = t[:, None]
    between = share * end + (1 - share) * start
    return (network(between, t) - (end - start)).square().mean()


def carry(
    network: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    steps: int = 100,
    grid: Literal["left", "inner"] = "left",
) -> Tensor:
    """Return embeddings carried from t = 0 to 1 in Euler steps, of (N, width).

    `grid`: velocities are taken at 0, 1/steps, .. ("left"), or at times evenly from 0.001 to 0.999 ("inner").
    """
    times = torch.arange(steps) / steps if grid == "left" else torch.linspace(1e-3, 1 - 1e-3, steps)
    x = start
    for time in times.tolist():
        x = x + network(x, torch.full((len(x),), time, device=x.device)) / steps
    return x
