"""How a step of training goes: noise at a random time, and what the network makes of it."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.families.base import Context, Family, Player, Procedure
from zoo.families.diffusion import trained, translation
from zoo.families.diffusion.kept import Kept, Where
from zoo.types import Batch

if TYPE_CHECKING:
    from zoo.families.diffusion.family import Diffusion


class Denoising(Procedure):
    """One player; everything random comes from the step's own generator, so that a run goes on bit for bit.

    `cache`: where latents and embeddings of pictures already seen are kept, by their content: none | memory | disk.
    """

    def __init__(self, cache: Where = "memory") -> None:
        super().__init__(cache=cache)
        if cache not in ("none", "memory", "disk"):
            raise ValueError(f'cache: "{cache}" will not do. Expected none, memory or disk')
        self.kept = Kept(cache)

    def players(self, family: Family) -> dict[str, Player]:
        """Return what moves of the network; a first stage stands still.

        Raises `UserError` for another family, `ValueError` as `trained.check` does.
        """
        if family.name != "diffusion":
            raise UserError(f"procedure denoising: works on the family diffusion, not on {family.name}. Leave it out.")
        own = cast("Diffusion", family)
        trained.check(own)
        network = own.network
        return {"model": Player([p for p in network.parameters() if p.requires_grad], groups=family.groups())}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step; pictures of further streams (another dataset) count as much as those of the main one."""
        own = cast("Diffusion", family)
        found: dict[str, list[Tensor]] = {}
        for _, part in batch.streams():
            for name, values in own.terms(part, ctx.generator, kept=self.kept).items():
                found.setdefault(name, []).append(values)
        terms = {name: torch.cat(values).mean() for name, values in found.items()}
        ctx.update("model", torch.stack(list(terms.values())).sum())
        ctx.log({name: value.detach() for name, value in terms.items()})

    def validation_loss(self, family: Family, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss at times spread over the schedule, with noise that depends on the pictures' names alone."""
        own = cast("Diffusion", family)
        names = " ".join(f"{meta.dataset} {meta.id}" for meta in batch.meta)
        generator = torch.Generator().manual_seed(zlib.crc32(names.encode()))
        terms = {k: v.mean() for k, v in own.terms(batch, generator, spread=True, kept=self.kept).items()}
        return {**terms, "total": torch.stack(list(terms.values())).sum()}


class Translating(Procedure):
    """The flow of embeddings learns, from pictures and their targets; the network stands still.

    Each embedding of a picture is a sample of its own. `cache`: as in `Denoising`.
    """

    def __init__(self, cache: Where = "memory") -> None:
        super().__init__(cache=cache)
        self.kept = Denoising(cache).kept

    def players(self, family: Family) -> dict[str, Player]:
        """Return the translator. Raises `ValueError` where the model has none."""
        translator = getattr(family, "translator", None)
        if translator is None:
            raise ValueError("the procedure embedding-flow trains model.translator, which is not there. Name one")
        if cast("Diffusion", family).options.target is None:
            raise ValueError(
                "the procedure embedding-flow learns from pictures and their targets, and no model.target is said. "
                "Name the truth that is the other stain"
            )
        return {"translator": Player(list(translator.parameters()))}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step over the pairs of every stream."""
        own = cast("Diffusion", family)
        losses = [translation.loss_of(own, part, ctx.generator, self.kept) for _, part in batch.streams()]
        loss = torch.stack(losses).mean()
        ctx.update("translator", loss)
        ctx.log({"flow": loss.detach()})

    def validation_loss(self, family: Family, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss at times that depend on the pictures' names alone."""
        names = " ".join(f"{meta.dataset} {meta.id}" for meta in batch.meta)
        generator = torch.Generator().manual_seed(zlib.crc32(names.encode()))
        loss = translation.loss_of(cast("Diffusion", family), batch, generator, self.kept)
        return {"flow": loss, "total": loss}
