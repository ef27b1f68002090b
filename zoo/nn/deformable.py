"""Multi-scale deformable attention (Zhu et al. 2021, Deformable DETR, section 4.1) in plain PyTorch.

A query looks at a few points on each level of a feature pyramid, wherever it wants; the values there are read with
bilinear interpolation and mixed. Reading and mixing are one weighted sum of rows of a table (four corners a point), so
that the sampled features are never held in memory, and there is no loop over images, levels, heads or queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError

Sizes = Sequence[tuple[int, int]]
"""(height, width) of each level, finest first."""


def deformable_sample(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, M * d): for each query and head the weighted sum of the values at its points.

    `value`: (B, S, M, d), the tokens of all levels, row by row, M heads. `locations`: (B, Q, M, L, K, 2), (x, y) in
    [0, 1] of each level; what lies outside counts as 0. `weights`: (B, Q, M, L, K). A point lies at `location * size -
    0.5` between the centres of pixels, as in `grid_sample(align_corners=False)`. Computes in float32; the result has
    the dtype of `value`.
    """
    B, S, M, d = value.shape
    Q = locations.shape[1]
    if sum(h * w for h, w in sizes) != S:
        raise UserError(f"attention: {S} tokens do not fit levels of {list(sizes)}. Expected one token a pixel.")
    device = value.device
    with torch.autocast(device.type, enabled=False):
        size = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=device)[:, None]  # (L, 1, 2)
        first = torch.tensor([sum(h * w for h, w in sizes[:i]) for i in range(len(sizes))], device=device)
        pixel = locations.float() * size - 0.5
        low = pixel.detach().floor()
        high_share = pixel - low
        at = torch.stack([low, low + 1], 3)  # (B, Q, M, 2, L, K, 2): left and right, above and below
        share = torch.stack([1 - high_share, high_share], 3) * ((at >= 0) & (at < size))
        x, y = torch.minimum(at.clamp_min(0), size - 1).to(torch.int64).unbind(-1)
        row = y * size[..., 0].to(torch.int64) + first[:, None]
        image = torch.arange(B, device=device).view(B, 1, 1, 1, 1, 1) * S
        head = torch.arange(M, device=device).view(M, 1, 1, 1, 1)
        index = ((row + image)[:, :, :, :, None] + x[:, :, :, None]) * M + head  # (B, Q, M, 2, 2, L, K)
        across, down = share.unbind(-1)
        mixed = (down * weights.float()[:, :, :, None])[:, :, :, :, None] * across[:, :, :, None]
        table = value.float().reshape(B * S * M, d)
        rows, shares = index.flatten(3).flatten(0, 2), mixed.flatten(3).flatten(0, 2)
        found: Tensor
        if device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = _Mix.apply(table, rows, shares)
        else:
            found = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
    return found.view(B, Q, M * d).to(value.dtype)


class _Mix(torch.autograd.Function):
    """Weighted sums of rows of a table, with a gradient that is one too: that of a row is a sum over the bags it is in.

    On a CPU torch's own gradient of the table takes most of a step's time.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
        """Return (N, d) for a table (T, d), rows (N, k) and shares (N, k)."""
        ctx.save_for_backward(table, rows, shares)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of the table and of the shares."""
        table, rows, shares = ctx.saved_tensors
        gradient, flat, k = gradients[0].contiguous(), rows.flatten(), rows.shape[1]
        of_table = of_shares = None
        if ctx.needs_input_grad[0]:
            order = flat.argsort()
            counts = torch.bincount(flat, minlength=len(table))
            bags = torch.div(order, k, rounding_mode="floor")
            of_table = F.embedding_bag(
                bags, gradient, counts.cumsum(0) - counts, mode="sum", per_sample_weights=shares.flatten()[order]
            )
        if ctx.needs_input_grad[2]:
            offsets = torch.arange(len(rows), device=rows.device)
            of_shares = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gradient, table, flat, offsets * k, offsets.repeat_interleave(k), 0
            ).view_as(shares)
        return of_table, None, of_shares


class DeformableAttention(nn.Module):
    """Attention of queries to a pyramid of L levels, with M heads and K points a head and level.

    Names of the layers are those of the published state dicts. Offsets begin as a ring of directions, one a head, at
    distances 1 to K pixels; weights begin equal.
    """

    def __init__(self, width: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"attention: a width of {width} has no {heads} equal heads. Choose a multiple.")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset()

    def reset(self) -> None:
        """Set the weights as at the beginning of training."""
        angle = torch.arange(self.heads, device=self.value_proj.weight.device) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, device=ring.device)
        bias = ring[:, None, None] * steps[:, None]
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).reshape(-1))
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, sizes: Sizes, padding: Tensor | None = None
    ) -> Tensor:
        """Return (B, Q, D).

        `query`: (B, Q, D). `reference`: (B, Q, L, 2) points (x, y), or (B, Q, L, 4) boxes (x, y, w, h) around whose
        centres points are laid in units of their size; in [0, 1] of each level. `tokens`: (B, S, D). `padding`: (B, S)
        bool, True where a token is padding, whose value counts as 0.
        """
        B, Q, D = query.shape
        value = self.value_proj(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(B, -1, self.heads, D // self.heads)
        shape = (B, Q, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(*shape, 2).float()
        weights = self.attention_weights(query).view(*shape[:3], -1).float().softmax(-1).view(shape)
        place = reference[:, :, None, :, None].float()
        if reference.shape[-1] == 2:
            size = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=query.device)
            locations = place + offsets / size[:, None]
        else:
            locations = place[..., :2] + offsets / self.points * place[..., 2:] * 0.5
        mixed: Tensor = self.output_proj(deformable_sample(value, sizes, locations, weights))
        return mixed
