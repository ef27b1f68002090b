"""How a step of training goes: the discriminator first, then the generator and the network on patch features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zoo.families.base import Context, Family, Player, Procedure
from zoo.families.translation.terms import TERMS, Pass
from zoo.losses import adversarial
from zoo.types import Batch

if TYPE_CHECKING:
    from zoo.families.translation.model import Translation


def discriminator_terms(step: Pass) -> dict[str, Tensor]:
    """Return the weighted terms of the discriminators' loss; their sum is minimised. The fake carries no gradient."""
    family = step.family
    options = family.options.discriminator
    assert options is not None
    assert family.judge is not None
    found: dict[str, Tensor] = {}
    ways: list[tuple[str, Any, Tensor, Tensor]] = [
        ("", lambda x: family.judged(step.a, x), step.b, step.fake.detach()),
    ]
    if family.judge_back is not None:
        ways.append(("_back", family.judge_back, step.a, step.back.detach()))
    for name, judge, real, fake in ways:
        found[f"fake{name}"] = options.share * adversarial.judged(judge(fake), False, options.mode)
        found[f"real{name}"] = options.share * adversarial.judged(judge(real), True, options.mode)
        if options.penalty == "r1":
            found[f"penalty{name}"] = options.penalty_weight * adversarial.r1_penalty(judge, real)
        elif options.penalty == "wgan-gp":
            penalty = adversarial.gradient_penalty(judge, real, fake, step.rng)
            found[f"penalty{name}"] = options.penalty_weight * penalty
    return found


def generator_terms(step: Pass) -> dict[str, Tensor]:
    """Return the weighted terms of the objective by name; their sum is minimised."""
    return {
        component.name: component.weight * TERMS[component.name].function(step, **component.arguments)
        for component in step.family.options.objective
    }


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of some terms."""
    return torch.stack([term.float() for term in terms.values()]).sum()


class Adversarial(Procedure):
    """Players: generator, and as the objective asks, features and discriminator."""

    def players(self, family: Family) -> dict[str, Player]:
        """Return the players."""
        own = cast("Translation", family)
        groups = {
            "generator": (own.generator, own.back),
            "features": (own.projector,),
            "discriminator": (own.judge, own.judge_back),
        }
        found = {name: [p for m in parts if m is not None for p in m.parameters()] for name, parts in groups.items()}
        return {name: Player([p for p in ps if p.requires_grad]) for name, ps in found.items() if ps}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step: everything that terms share is computed once."""
        own = cast("Translation", family)
        chosen = own.pictures(batch)
        if chosen is None:  # nothing in this batch has a target
            for player in self.players(family):
                ctx.update(player, torch.zeros(()))
            return
        flip = own.options.flip_equivariance and bool(torch.rand((), generator=ctx.generator) < 0.5)
        step = Pass(own, *chosen, progress=ctx.progress, rng=ctx.generator, flip=flip)
        told: dict[str, Tensor] = {}
        if own.judge is not None:
            against = discriminator_terms(step)
            ctx.update("discriminator", total(against))
            told |= {f"discriminator/{name}": value for name, value in against.items()}
        terms = generator_terms(step)
        if own.projector is not None:
            ctx.update("features", total({n: t for n, t in terms.items() if TERMS[n].contrast}), retain=True)
        ctx.update("generator", total(terms))
        ctx.log({name: value.detach() for name, value in (terms | told).items()})
