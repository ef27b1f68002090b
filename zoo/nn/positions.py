"""Where a token is: sine and learned encodings of positions, and what padding does to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000.0


def _waves(angle: Tensor, features: int, temperature: float) -> Tensor:
    """Return (..., features): sine and cosine in turn of an angle (...), over falling frequencies."""
    k = torch.arange(features, dtype=torch.float32, device=angle.device)
    period = temperature ** (2 * torch.div(k, 2, rounding_mode="floor") / features)
    turns = angle[..., None] / period
    return torch.stack([turns[..., 0::2].sin(), turns[..., 1::2].cos()], -1).flatten(-2)


def sine_positions(
    padding: Tensor, features: int = 128, temperature: float = TEMPERATURE, scale: float = 2 * math.pi
) -> Tensor:
    """Return (B, 2 * features, H, W): sine encoding of row, then of column (Carion et al. 2020, DETR).

    `padding`: (B, H, W) bool, True on padding; positions count valid pixels only and run to `scale` at the last one.
    What stands in rows or columns that are wholly padding means nothing.
    """
    valid = (~padding).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y - 0.5) / (y[:, -1:] + 1e-6) * scale
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * scale
    waves = torch.cat([_waves(y, features, temperature), _waves(x, features, temperature)], -1)
    return waves.permute(0, 3, 1, 2)


def sine_of_boxes(boxes: Tensor, features: int, temperature: float = TEMPERATURE) -> Tensor:
    """Return (B, N, 4 * features): sine encoding of each of four numbers in [0, 1], in the order that they stand."""
    return _waves(boxes * (2 * math.pi), features, temperature).flatten(-2)


class LearnedPositions(nn.Module):
    """A learned vector a column and a row, of a grid of up to `most` each; further ones share the last."""

    def __init__(self, features: int, most: int = 200) -> None:
        super().__init__()
        self.most = most
        self.row_embed = nn.Embedding(most, features)
        self.col_embed = nn.Embedding(most, features)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """Return (B, 2 * features, H, W) for (B, H, W): the column's vector, then the row's."""
        B, H, W = padding.shape
        rows, columns = (torch.arange(n, device=padding.device).clamp_max(self.most - 1) for n in (H, W))
        column = self.col_embed(columns)[None].expand(H, -1, -1)
        row = self.row_embed(rows)[:, None].expand(-1, W, -1)
        return torch.cat([column, row], -1).permute(2, 0, 1)[None].expand(B, -1, -1, -1)


def resize_padding(padding: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, h, w) of (B, H, W) bool by the nearest pixel: the source index is cut to a whole number."""
    return F.interpolate(padding[:, None].float(), size=size, mode="nearest")[:, 0].to(torch.bool)


def valid_ratio(padding: Tensor) -> Tensor:
    """Return (B, 2), the shares (x, y) of width and height that are no padding, counted in the first row and column."""
    height, width = padding.shape[1:]
    down, across = (~padding[:, :, 0]).sum(1), (~padding[:, 0]).sum(1)
    return torch.stack([across / width, down / height], -1)


def token_centres(sizes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """Return (B, S, 2), the centre (x, y) of every token in [0, 1] of its image without padding.

    `ratios`: (B, L, 2), `valid_ratio` of each level.
    """
    found = []
    for level, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(
            torch.arange(height, device=ratios.device) + 0.5,
            torch.arange(width, device=ratios.device) + 0.5,
            indexing="ij",
        )
        inside = ratios[:, level, None] * torch.tensor([width, height], dtype=ratios.dtype, device=ratios.device)
        found.append(torch.stack([x, y], -1).view(1, -1, 2) / inside)
    return torch.cat(found, 1)
