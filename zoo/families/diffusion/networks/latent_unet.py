"""A U-Net with cross-attention to projections of self-supervised embeddings.

Sources: Rombach et al. 2022 (latent diffusion); Graikos et al. 2024 (embeddings as conditions). The U-Net is diffusers'
`UNet2DConditionModel`, which computes the same as the published one (tests/parity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from zoo.families.diffusion.networks.base import Condition, Network


class Embedder(nn.Module):
    """Embeddings to context tokens: of the patch, and of the region around it where the model knows one."""

    def __init__(self, width: int, context: int, region: int = 0, normalise: bool = True) -> None:
        super().__init__()
        self.patch_fc = nn.Linear(width, context)
        self.region_fc = nn.Linear(region, context) if region else None
        self.normalise = normalise

    def forward(self, patch: Tensor, region: Tensor | None = None) -> Tensor:
        """Return (B, 1 or 2, context) of (B, width) and (B, region); a region that is not known counts as zeros."""
        tokens = [self.patch_fc(self._scaled(patch))]
        if self.region_fc is not None:
            if region is None:
                region = patch.new_zeros(len(patch), self.region_fc.in_features)
            tokens.append(self.region_fc(self._scaled(region)))
        return torch.stack(tokens, 1)

    def _scaled(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalise else x


class LatentUNet(Network):
    """A U-Net on latents. Conditions: "embedding" (B, 1, width), and with `region_width` "region" (B, region_width).

    The null condition is an embedding of zeros, of which the projection leaves its bias.
    """

    tokens = 1

    def __init__(
        self,
        *,
        size: int = 64,
        channels: int = 3,
        outputs: int | None = None,
        base: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 5),
        blocks: int = 2,
        attention: Sequence[int] = (8, 4, 2),
        heads: int | None = 1,
        head_width: int | None = None,
        depth: int = 1,
        context: int = 512,
        width: int = 768,
        region_width: int = 0,
        normalise: bool = True,
    ) -> None:
        """`base`, `multipliers`: channels a level; `blocks`: residual blocks a level on the way down; `attention`:
        factors of reduction at which there is attention, `heads` or heads of `head_width` channels; `depth` of each.
        """
        super().__init__()
        self.size, self.channels, self.outputs = size, channels, outputs or channels
        self.divisor, self.width = 2 ** (len(multipliers) - 1), width
        self.takes = ("embedding", "region") if region_width else ("embedding",)
        self.region_width = region_width
        levels = [base * m for m in multipliers]
        attends = [2**i in attention for i in range(len(levels))]
        counts = [n // head_width for n in levels] if head_width else [heads or 1] * len(levels)
        self.unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=self.outputs,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            block_out_channels=tuple(levels),
            layers_per_block=blocks,
            attention_head_dim=tuple(counts),  # means the number of heads there
            transformer_layers_per_block=depth,
            cross_attention_dim=context,
        )
        self.embedder = Embedder(width, context, region_width, normalise)

    def context(self, condition: Condition) -> Tensor:
        """Return context tokens. Raises `ValueError` for embeddings of another width."""
        embedding = condition["embedding"]
        if embedding.ndim != 3 or tuple(embedding.shape[1:]) != (1, self.width):
            raise ValueError(f"embedding {tuple(embedding.shape)}. Expected (B, 1, {self.width})")
        return cast(Tensor, self.embedder(embedding[:, 0], condition.get("region")))

    def null(self, condition: Condition) -> Condition | None:
        """Return embeddings of zeros."""
        found: dict[str, Any] = {**condition, "embedding": torch.zeros_like(condition["embedding"])}
        if self.region_width:
            batch, like = len(found["embedding"]), found["embedding"]
            found["region"] = like.new_zeros(batch, self.region_width)
        return found

    def both(self, null: Condition, condition: Condition) -> Condition:
        """Return [null, conditional] as one batch; a region that is not given counts as zeros."""
        if self.region_width and "region" not in condition:
            condition = {**condition, "region": null["region"]}
        return super().both(null, condition)

    def remember(self, condition: Condition | None) -> Condition | None:
        """Return the condition with its context tokens."""
        if condition is None or "context" in condition:
            return condition
        return {**condition, "context": self.context(condition)}

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return (B, outputs, h, w)."""
        if condition is None:
            condition = {"embedding": x.new_zeros(len(x), 1, self.width)}
        context = condition["context"] if "context" in condition else self.context(condition)
        return cast(Tensor, self.unet(x, t, context, return_dict=False)[0])
