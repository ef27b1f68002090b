"""Encoder and decoder of Deformable DETR (Zhu et al. 2021), after each layer the norm; names as in published files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn.deformable import DeformableAttention, Sizes
from zoo.nn.positions import token_centres

Heads = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, states (B, Q, D), references (B, Q, 2 or 4)) -> logits (B, Q, C) and boxes (B, Q, 4) in [0, 1]."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a transformer."""

    width: int
    heads: int
    levels: int
    feedforward: int
    dropout: float


@dataclass(frozen=True)
class Memory:
    """What the decoder looks at: `tokens` (B, S, D), `sizes` of the levels, `ratios` (B, L, 2) of what is no padding,
    `padding` (B, S) bool or None where there is none."""

    tokens: Tensor
    sizes: Sizes
    ratios: Tensor
    padding: Tensor | None


class _FeedForward(nn.Module):
    """What both kinds of layers end with."""

    linear1: nn.Linear
    linear2: nn.Linear

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.linear1 = nn.Linear(shape.width, shape.feedforward)
        self.linear2 = nn.Linear(shape.feedforward, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def feed(self, x: Tensor) -> Tensor:
        made: Tensor = self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x)))))
        return made


class EncoderLayer(_FeedForward):
    """Deformable self-attention of the tokens, then a feed-forward network."""

    def __init__(self, shape: Shape, points: int) -> None:
        super().__init__(shape)
        self.self_attn = DeformableAttention(shape.width, shape.levels, shape.heads, points)
        self.norm1 = nn.LayerNorm(shape.width)
        self.norm2 = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, sizes: Sizes, padding: Tensor) -> Tensor:
        """Return (B, S, D)."""
        x = self.norm1(x + self.dropout(self.self_attn(x + position, reference, x, sizes, padding)))
        made: Tensor = self.norm2(x + self.feed(x))
        return made


class Encoder(nn.Module):
    """Layers over the tokens of all levels."""

    def __init__(self, shape: Shape, points: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(shape, points) for _ in range(layers))

    def forward(self, tokens: Tensor, position: Tensor, sizes: Sizes, ratios: Tensor, padding: Tensor | None) -> Tensor:
        """Return (B, S, D)."""
        reference = token_centres(sizes, ratios)[:, :, None] * ratios[:, None]
        for layer in self.layers:
            tokens = layer(tokens, position, reference, sizes, padding)
        return tokens


class DecoderLayer(_FeedForward):
    """Self-attention of the queries, deformable attention to the tokens, then a feed-forward network."""

    def __init__(self, shape: Shape, points: int) -> None:
        super().__init__(shape)
        self.cross_attn = DeformableAttention(shape.width, shape.levels, shape.heads, points)
        self.norm1 = nn.LayerNorm(shape.width)
        self.self_attn = nn.MultiheadAttention(shape.width, shape.heads, dropout=shape.dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(shape.width)
        self.norm3 = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Memory, blocked: Tensor | None) -> Tensor:
        """Return (B, Q, D)."""
        query = x + position
        attended = self.self_attn(query, query, x, attn_mask=blocked, need_weights=False)[0]
        x = self.norm2(x + self.dropout(attended))
        looked = self.cross_attn(x + position, reference, memory.tokens, memory.sizes, memory.padding)
        x = self.norm1(x + self.dropout(looked))
        made: Tensor = self.norm3(x + self.feed(x))
        return made


class Decoder(nn.Module):
    """Layers over the queries; each layer's boxes may become the references of the next (`refine`)."""

    def __init__(self, shape: Shape, points: int, layers: int, refine: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(shape, points) for _ in range(layers))
        self.refine = refine

    def forward(
        self,
        content: Tensor,
        position: Tensor | Callable[[Tensor], Tensor],
        reference: Tensor,
        memory: Memory,
        heads: Heads,
        blocked: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return logits, boxes and states of each layer.

        `position`: (B, Q, D), or what makes it of references. `reference`: (B, Q, 2 or 4). `blocked`: (Q, Q) bool, True
        where a query may not see another.
        """
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        states: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            ratios = memory.ratios if reference.shape[-1] == 2 else torch.cat([memory.ratios, memory.ratios], -1)
            laid = reference[:, :, None] * ratios[:, None]
            where = position if isinstance(position, Tensor) else position(reference)
            content = layer(content, where, laid, memory, blocked)
            found, box = heads(number, content, reference)
            logits.append(found)
            boxes.append(box)
            states.append(content)
            if self.refine:
                reference = box.detach()
        return logits, boxes, states


class Layered(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, outputs)])

    @property
    def last(self) -> nn.Linear:
        """Return the layer of the outputs."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs)."""
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        made: Tensor = self.last(x)
        return made


def proposals(memory: Memory, smallest: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return the logits (B, S, 4) of a box at every token, +inf where there is none, and (B, S) bool: where there is.

    Centre: the token's; size: `smallest` on the first level and twice that on each next one. A box counts where the
    token is no padding and all four numbers lie within 0.01 to 0.99.
    """
    centres = token_centres(memory.sizes, memory.ratios)
    size = [centres.new_full((h * w,), smallest * 2.0**level) for level, (h, w) in enumerate(memory.sizes)]
    boxes = torch.cat([centres, torch.cat(size)[None, :, None].expand(len(centres), -1, 2)], -1)
    good = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding is not None:
        good = good & ~memory.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~good[..., None], float("inf"))
    return logits, good


def blocked_between(groups: Sequence[int], device: torch.device) -> Tensor | None:
    """Return (Q, Q) bool, True where a query may not see another, that of another group; None for one group.

    `groups`: the numbers of queries that stand in a row.
    """
    if len(groups) < 2:
        return None
    of = torch.repeat_interleave(torch.arange(len(groups), device=device), torch.tensor(groups, device=device))
    return of[:, None] != of[None]
