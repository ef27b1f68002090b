"""Training with a discriminator (arXiv 2505.10294, methods): it first, then the generator.

Its labels are those of the published code: 1 says fake, 0 real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from zoo.families.base import Context, Family, Player, Procedure
from zoo.losses.adversarial import noisy_labels
from zoo.types import Batch

if TYPE_CHECKING:
    from zoo.families.miphei.model import Miphei


def generator_term(fake: Tensor) -> Tensor:
    """Return how far the discriminator is from calling raw scores of fake pictures real."""
    return noisy_labels(fake, 0.0)


def discriminator_term(fake: Tensor, real: Tensor, amount: float, noise: tuple[Tensor, Tensor]) -> Tensor:
    """Return the discriminator's loss: the mean over fake and real ones. `noise` (fake, real) in [0, 1)."""
    return (noisy_labels(fake, 1.0, amount * noise[0]) + noisy_labels(real, 0.0, amount * noise[1])) / 2


class Adversarial(Procedure):
    """Players: generator and discriminator."""

    def players(self, family: Family) -> dict[str, Player]:
        """Return the players."""
        own = cast("Miphei", family)
        assert own.judge is not None
        judge = list(own.judge.parameters())
        inside = {id(p) for p in judge}
        rest = [p for p in family.parameters() if p.requires_grad and id(p) not in inside]
        return {"generator": Player(rest, groups=family.groups()), "discriminator": Player(judge)}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step."""
        own = cast("Miphei", family)
        options = own.options.discriminator
        assert options is not None
        inputs = family.prepare(family.inputs_of(batch))
        maps = family.forward(inputs)
        terms = family.loss(maps, batch, ctx.progress)
        pair = own.pair(maps, batch)
        if pair is None:  # nothing in this batch shows all that the discriminator looks at
            ctx.update("discriminator", torch.zeros(()))
        else:
            image, fake, real = pair
            said = own.judged(image, fake.detach()), own.judged(image, real)
            noise = [torch.rand(s.shape, generator=ctx.generator).to(s) for s in said]
            against = discriminator_term(*said, options.noise, (noise[0], noise[1]))
            ctx.update("discriminator", against)
            ctx.log({"discriminator/loss": against.detach()})
            terms["gan"] = options.weight * generator_term(own.judged(image, fake))
        ctx.update("generator", torch.stack([t.float() for t in terms.values()]).sum())
        ctx.log({name: value.detach() for name, value in terms.items()})
