"""A copy of PixCell's first blocks that sees a mask and corrects the transformer, block by block.

Sources: Zhang et al. 2023 (ControlNet: zero-initialised connections); Yellapragada et al. 2025 (PixCell, cell masks).
Names of the state dict are those of the published folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn

from zoo.families.diffusion.networks.base import Condition, Network
from zoo.families.diffusion.networks.pixcell import PixCell


class PixCellControl(PixCell):
    """The first blocks of a transformer, with the mask's latent added to its patches: gives residuals, not noise.

    Its last projection is never used; the published file holds it. The mask's patches get the table of positions as
    well, so that positions count twice, as published.
    """

    def __init__(self, *, blocks: int, size: int, interpolation: float | None = None, **arguments: Any) -> None:
        super().__init__(size=size, interpolation=interpolation, **{**arguments, "layers": blocks})
        patch, inner = self.patch, self.proj_out.in_features
        scale = size / (32 * patch) if interpolation is None else interpolation
        self.cond_pos_embed = PatchEmbed(size, size, patch, self.channels, inner, interpolation_scale=scale)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(inner, inner) for _ in range(blocks))
        for part in (self.cond_pos_embed, self.controlnet_blocks):
            for weight in part.parameters():
                nn.init.zeros_(weight)

    def residuals(self, x: Tensor, t: Tensor, condition: Condition, scale: float | Tensor = 1.0) -> list[Tensor]:
        """Return what to add after each block, (B, N, D) each. Conditions: those of the transformer, and "mask"."""
        patches, modulation, _ = self.begin(x, t, condition)
        seen = condition.get("mask_patches")
        patches = patches + (self.cond_pos_embed(condition["mask"]) if seen is None else seen)
        found: list[Tensor] = []

        def keep(i: int, x: Tensor) -> Tensor:
            found.append(scale * self.controlnet_blocks[i](x))
            return x

        self.walk(patches, modulation, condition, keep)
        return found

    def remember(self, condition: Condition | None) -> Condition | None:
        """Return the condition with keys, values and the mask's patches computed."""
        kept = super().remember(condition)
        if kept is None or "mask_patches" in kept:
            return kept
        return {**kept, "mask_patches": self.cond_pos_embed(kept["mask"])}


class ControlledPixCell(Network):
    """A transformer with a ControlNet. Conditions: "embedding", and "mask", (B, channels, h, w), a mask's latent.

    Only the ControlNet learns, unless `train_base`; the base stays as it was, bit by bit.
    """

    takes = ("embedding", "mask")

    def __init__(
        self,
        *,
        control_blocks: int | None = None,
        null_residuals: Literal["none", "same"] = "none",
        scale: float = 1.0,
        train_base: bool = False,
        size: int = 32,
        layers: int = 28,
        interpolation: float | None = None,
        **arguments: Any,
    ) -> None:
        """`control_blocks`: none = all but the last; `null_residuals`: whether guidance's null half sees the mask.

        `scale`: factor on the residuals. Everything else is the transformer's (`networks.pixcell`).
        """
        super().__init__()
        blocks = layers - 1 if control_blocks is None else control_blocks
        if not 1 <= blocks <= layers:
            raise ValueError(f"network.arguments.control_blocks: {blocks} of {layers} layers. Expected 1 to {layers}")
        if null_residuals not in ("none", "same"):
            raise ValueError(f'network.arguments.null_residuals: "{null_residuals}" will not do. Expected none or same')
        more = {"size": size, "interpolation": interpolation, **arguments}
        self.base = PixCell(layers=layers, **more)
        self.control = PixCellControl(blocks=blocks, **more)
        self.channels, self.outputs = self.base.channels, self.base.outputs
        self.size, self.divisor = self.base.size, self.base.divisor
        self.width, self.tokens, self.classes = self.base.width, self.base.tokens, self.base.channels
        self.null_residuals, self.scale = null_residuals, scale
        self.bound = train_base
        if not train_base:
            self.base.requires_grad_(False)

    @classmethod
    def accepts(cls) -> list[str]:
        """Return the names of the constructor's arguments: its own, then the transformer's."""
        own = [key for key in super().accepts() if key != "arguments"]
        return [*own, *(key for key in PixCell.accepts() if key not in own)]

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed anew in the backward pass."""
        return self.base.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.base.checkpointing = self.control.checkpointing = value

    def start_control(self) -> None:
        """Copy the base's weights into the ControlNet's blocks and embeddings, its usual start."""
        own = self.control.state_dict()
        same = {name: value for name, value in self.base.state_dict().items() if name in own}
        self.control.load_state_dict({**own, **same})

    def adopted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a transformer's entries as those of the base, and of the ControlNet, which begins as its copy."""
        if any(name.startswith(("base.", "control.")) for name in state):
            return state
        return {f"{part}.{name}": value for part in ("base", "control") for name, value in state.items()}

    def complete(self, condition: Condition) -> Condition:
        """Return a condition with the null embedding where none is told."""
        return self.base.complete(condition)

    def null(self, condition: Condition) -> Condition | None:
        """Return the condition with the null embedding, and without residuals unless `null_residuals` is "same"."""
        found = self.base.null(condition)
        if found is None or self.null_residuals == "same":
            return found
        return {**found, "uncontrolled": len(found["embedding"])}

    def both(self, null: Condition, condition: Condition) -> Condition:
        """Return [null, conditional] as one batch; what is to see no mask stands first."""
        found = dict(super().both(null, condition))
        count = int(null.get("uncontrolled", 0))
        if count and "mask" in condition:
            found |= {"mask": condition["mask"], "uncontrolled": count}
        return found

    def remember(self, condition: Condition | None) -> Condition | None:
        """Return the condition with what both networks need of it."""
        if condition is None or "base" in condition:
            return condition
        condition = self.complete(condition)
        bare = int(condition.get("uncontrolled", 0))
        seen = {**condition, "embedding": condition["embedding"][bare:]}
        told = len(seen["embedding"]) > 0 and "mask" in condition
        control = self.control.remember(seen) if told else None
        return {**condition, "base": self.base.remember({"embedding": condition["embedding"]}), "control": control}

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return (B, outputs, h, w). Without a condition, what the base says without one."""
        if condition is None:
            return cast(Tensor, self.base(x, t))
        condition = self.complete(condition) if "base" not in condition else condition
        bare = int(condition.get("uncontrolled", 0))
        base = condition.get("base") or {"embedding": condition["embedding"]}
        if bare >= len(x) or "mask" not in condition:
            return cast(Tensor, self.base(x, t, base))
        control = condition.get("control")
        if control is None:
            mask = condition["mask"]
            control = {"embedding": condition["embedding"][bare:], "mask": mask[-(len(x) - bare) :]}
        times = t if t.ndim == 0 else t[bare:]
        residuals = self.control.residuals(x[bare:], times, control, self.scale)
        return cast(Tensor, self.base(x, t, {**base, "residuals": residuals}))
