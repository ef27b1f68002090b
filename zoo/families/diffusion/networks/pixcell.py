"""PixCell's transformer: PixArt conditioned on embeddings of a pathology encoder in place of text.

Sources: Chen et al. 2024 (PixArt-alpha, section 2.3: one modulation for all blocks); Yellapragada et al. 2025
(PixCell). Patch embedding, time embedding, attention and feed-forward are those of diffusers; names of the state dict
are those of the published folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed, PixArtAlphaTextProjection, get_2d_sincos_pos_embed_from_grid
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.families.diffusion.networks.base import Condition, Network
from zoo.nn.lora import add_low_rank

Keys = tuple[Tensor, Tensor]
"""Keys and values of a condition in one block, (B, heads, T, width of a head) each."""


def condition_positions(width: int, tokens: int, base: int, interpolation: float) -> Tensor:
    """Return (1, T, width), the fixed positions of a square of condition tokens, row by row, in patches of the image.

    `base`: patches along the image's side that `interpolation` 1 stands for. Tokens are base / sqrt(T) / interpolation
    apart and begin at base // T, as published: the centres of their parts of an image of 1024 pixels.
    """
    side = round(tokens**0.5)
    place = torch.arange(side) / (side / base) / interpolation + base // tokens
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy")).float()
    return cast(Tensor, get_2d_sincos_pos_embed_from_grid(width, grid[:, None], output_type="pt").float()[None])


@dataclass(frozen=True)
class Remembered:
    """What cross-attention needs of a condition, block by block: keys and values, or of a single token the answer."""

    blocks: tuple[Keys | Tensor, ...]


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; time shifts, scales and gates the first and the last."""

    def __init__(self, width: int, heads: int, more: Mapping[str, Any]) -> None:
        super().__init__()
        affine, eps = more["norm_affine"], more["norm_eps"]
        attention = {
            "heads": heads,
            "dim_head": width // heads,
            "dropout": more["dropout"],
            "bias": more["attention_bias"],
            "upcast_attention": more["upcast_attention"],
        }
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=affine)
        self.attn1 = Attention(width, **attention)
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=affine)
        self.attn2 = Attention(width, cross_attention_dim=width, **attention)
        self.ff = FeedForward(width, dropout=more["dropout"], activation_fn=more["activation"])
        self.heads = heads

    def remember(self, tokens: Tensor) -> Keys | Tensor:
        """Return keys and values of condition tokens (B, T, width); of one token what attention to it always says."""
        attn = self.attn2
        values = attn.to_v(tokens)
        if tokens.shape[1] == 1:  # the softmax over one key is 1, whatever the query
            return cast(Tensor, attn.to_out[0](values))
        return self._split(attn.to_k(tokens)), self._split(values)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _cross(self, x: Tensor, condition: Tensor | Keys) -> Tensor:
        """Return what `x` learns from keys and values, or from the answer to a single token (B, 1, width)."""
        if isinstance(condition, Tensor):
            return condition
        found = F.scaled_dot_product_attention(self._split(self.attn2.to_q(x)), *condition)
        return cast(Tensor, self.attn2.to_out[0](found.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor, condition: Tensor | Keys, modulation: Tensor, remembered: bool = False) -> Tensor:
        """Return (B, N, width) for tokens (B, T, width), or what `remember` gave, and a modulation (B, 6 width)."""
        table = self.scale_shift_table + modulation.view(len(x), 6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.to(x.dtype).chunk(6, 1)
        x = x + gate_a * self.attn1(self.norm1(x) * (1 + scale_a) + shift_a)
        x = x + (self._cross(x, condition) if remembered else self.attn2(x, condition))
        return cast(Tensor, x + gate_m * self.ff(self.norm2(x) * (1 + scale_m) + shift_m))


class PixCell(Network):
    """A transformer over patches of a latent, told by one, four or sixteen embeddings what tissue is where.

    Condition "embedding": (B, tokens, width) as the encoder gives them; of a larger image row by row. With `sizes`,
    "resolution" (B, 2) and "aspect_ratio" (B, 1) as well. "residuals": tensors (b, N, D) added after the first blocks,
    for the last b samples of the batch (`networks.control`).
    """

    takes = ("embedding",)

    def __init__(
        self,
        *,
        size: int = 32,
        channels: int = 16,
        learned_variance: bool = True,
        patch: int = 2,
        layers: int = 28,
        heads: int = 16,
        head_width: int = 72,
        width: int = 1536,
        tokens: int = 1,
        interpolation: float | None = None,
        dropout: float = 0.0,
        attention_bias: bool = True,
        activation: str = "gelu-approximate",
        norm_affine: bool = False,
        norm_eps: float = 1e-6,
        upcast_attention: bool = False,
        sizes: bool = False,
        token_positions: bool = True,
        adapter_rank: int = 0,
        adapter_alpha: float | None = None,
    ) -> None:
        """`interpolation`: patches per unit of the position table; none = size / 64, so that every size spans [0, 32).

        `adapter_rank`: low-rank adapters on every cross-attention (0 = none), the rest then stands still.
        """
        super().__init__()
        inner = heads * head_width
        if round(tokens**0.5) ** 2 != tokens:
            raise ValueError(f"tokens is {tokens}. Expected a square: 1, 4, 16")
        if size % patch:
            raise ValueError(f"size is {size}. Expected a multiple of the patch, {patch}")
        self.channels, self.outputs = channels, channels * (2 if learned_variance else 1)
        self.size, self.divisor, self.patch = size, patch, patch
        self.width, self.tokens, self.sizes = width, tokens, sizes
        self.checkpointing = False
        interpolation = size / (32 * patch) if interpolation is None else interpolation
        self.pos_embed = PatchEmbed(size, size, patch, channels, inner, interpolation_scale=interpolation)
        self.adaln_single = AdaLayerNormSingle(inner, use_additional_conditions=sizes)
        self.caption_projection = PixArtAlphaTextProjection(width, inner)
        self.caption_projection.register_buffer("uncond_embedding", torch.randn(tokens, width) / width**0.5)
        self.token_positions = token_positions and tokens > 1
        if self.token_positions:
            self.y_pos_embed = nn.Module()
            table = condition_positions(width, tokens, size // patch, interpolation)
            self.y_pos_embed.register_buffer("y_pos_embed", table)
        more = {
            "dropout": dropout,
            "attention_bias": attention_bias,
            "activation": activation,
            "norm_affine": norm_affine,
            "norm_eps": norm_eps,
            "upcast_attention": upcast_attention,
        }
        self.transformer_blocks = nn.ModuleList(Block(inner, heads, more) for _ in range(layers))
        self.norm_out = nn.LayerNorm(inner, 1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, inner) / inner**0.5)
        self.proj_out = nn.Linear(inner, patch * patch * self.outputs)
        self._begin()
        if adapter_rank:
            self.adapt(adapter_rank, adapter_alpha)

    def _begin(self) -> None:
        """Set the initial weights as PixArt does: an untrained network predicts zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        small = [self.adaln_single, self.caption_projection]
        for linear in (m for part in small for m in part.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
        for block in self.transformer_blocks:
            nn.init.zeros_(cast(Block, block).attn2.to_out[0].weight)
        nn.init.zeros_(self.proj_out.weight)

    def adapt(self, rank: int, alpha: float | None = None) -> None:
        """Add low-rank adapters to every cross-attention; everything else stands still."""
        self.requires_grad_(False)
        self.bound = False
        for block in self.transformer_blocks:
            attn = cast(Block, block).attn2
            for layer in (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]):
                add_low_rank(layer, rank, alpha=alpha)

    def complete(self, condition: Condition) -> Condition:
        """Return a condition with the null embedding where none is told."""
        return condition if "embedding" in condition else cast(Condition, self.null(condition))

    def null(self, condition: Condition) -> Condition | None:
        """Return the fixed embedding that stands for none, of the batch of `condition`."""
        empty = self.caption_projection.uncond_embedding.expand(self.batch_of(condition), -1, -1)
        return {**condition, "embedding": empty}

    def project(self, embedding: Tensor) -> Tensor:
        """Return condition tokens (B, T, D) of embeddings (B, T, width). Raises `ValueError` for other numbers."""
        if embedding.ndim != 3 or tuple(embedding.shape[1:]) != (self.tokens, self.width):
            raise ValueError(f"embedding {tuple(embedding.shape)}. Expected (B, {self.tokens}, {self.width})")
        if self.token_positions:
            embedding = embedding + self.y_pos_embed.get_buffer("y_pos_embed")
        return cast(Tensor, self.caption_projection(embedding.to(self.proj_out.weight.dtype)))

    def remember(self, condition: Condition | None) -> Condition | None:
        """Return the condition with keys and values of every block computed."""
        if condition is None or "remembered" in condition:
            return condition
        tokens = self.project(self.complete(condition)["embedding"])
        kept = Remembered(tuple(cast(Block, block).remember(tokens) for block in self.transformer_blocks))
        return {**condition, "remembered": kept}

    def begin(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Return patches (B, N, D) with their positions, the modulation (B, 6 D) and the time (B, D)."""
        sizes = {name: condition[name] for name in ("resolution", "aspect_ratio")} if self.sizes else None
        patches = self.pos_embed(x)
        modulation, time = self.adaln_single(t, sizes, batch_size=len(x), hidden_dtype=patches.dtype)
        return patches, modulation, time

    def walk(self, x: Tensor, modulation: Tensor, condition: Condition, each: Any = None) -> Tensor:
        """Return patches after all blocks; `each(i, patches) -> patches` is asked after block i."""
        kept = condition.get("remembered")
        tokens = None if isinstance(kept, Remembered) else self.project(condition["embedding"])
        for i, block in enumerate(self.transformer_blocks):
            what = kept.blocks[i] if isinstance(kept, Remembered) else tokens
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, what, modulation, tokens is None, use_reentrant=False)
            else:
                x = block(x, what, modulation, tokens is None)
            x = x if each is None else each(i, x)
        return x

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return (B, outputs, h, w): noise, then the value of the variance where it is learned."""
        if condition is None or not {"embedding", "remembered"} & set(condition):
            empty = self.caption_projection.uncond_embedding.expand(len(x), -1, -1)
            condition = {**(condition or {}), "embedding": empty}
        height, width = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        residuals: Sequence[Tensor] = condition.get("residuals", ())
        patches, modulation, time = self.begin(x, t, condition)
        bare = len(x) - len(residuals[0]) if residuals else 0

        def add(i: int, found: Tensor) -> Tensor:
            if i >= len(residuals):
                return found
            return torch.cat([found[:bare], found[bare:] + residuals[i]]) if bare else found + residuals[i]

        patches = self.walk(patches, modulation, condition, add)
        shift, scale = (self.scale_shift_table + time[:, None]).to(patches.dtype).chunk(2, 1)
        found = self.proj_out(self.norm_out(patches) * (1 + scale) + shift)
        found = found.view(len(x), height, width, self.patch, self.patch, self.outputs)
        return cast(Tensor, found.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, *x.shape[-2:]))
