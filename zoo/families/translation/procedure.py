"""How a step of training goes: the discriminator first, then the generator and the network on patch features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from zoo.encoders.base import decayed
from zoo.families.base import Context, Family, Player, Procedure
from zoo.families.translation.terms import TERMS, Pass
from zoo.losses import adversarial
from zoo.types import Batch

if TYPE_CHECKING:
    from zoo.families.translation.model import Translation


class Pool:
    """Pictures that a generator painted earlier (Shrivastava et al., CVPR 2017; 50 in CycleGAN, section 4).

    Of each new picture a coin decides whether it is shown, or one of the pool in its place, whose place it takes. A
    discriminator that sees them forgets less, and oscillates less.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pictures: list[Tensor] = []

    def __call__(self, pictures: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return as many pictures as are given, (B, C, H, W), new ones or old ones; random numbers come from `rng`.

        Until the pool is full every picture is kept and shown. Pictures of another size empty it.
        """
        if self.size == 0:
            return pictures
        if self.pictures and self.pictures[0].shape != pictures.shape[1:]:
            self.pictures.clear()
        shown = []
        for picture in pictures.detach():
            if len(self.pictures) < self.size:
                self.pictures.append(picture.clone())
                shown.append(picture)
                continue
            coin, place = torch.rand((), generator=rng), int(torch.randint(self.size, (), generator=rng))
            if float(coin) < 0.5:
                shown.append(picture)
            else:
                shown.append(self.pictures[place])
                self.pictures[place] = picture.clone()
        return torch.stack(shown)


def discriminator_terms(step: Pass, pools: Mapping[str, Pool] | None = None) -> dict[str, Tensor]:
    """Return the weighted terms of the discriminators' loss; their sum is minimised. The fake carries no gradient.

    `pools`: earlier pictures of each way ("", "_back") that stand in for new ones.
    """
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
        if pools and options.conditional:  # a picture is kept with the input that it was painted from
            shown = family.judge(pools[name](torch.cat([step.a, fake], 1), step.rng))
        else:
            shown = judge(pools[name](fake, step.rng) if pools else fake)
        found[f"fake{name}"] = options.share * adversarial.judged(shown, False, options.mode)
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
    """Players: generator, and as the objective asks, features and discriminator.

    Where the discriminator has a pool of earlier pictures, that is part of the state: a resumed run shows the same
    ones. On several devices each has a pool of its own, of which the first one's is kept.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pools: dict[str, Pool] = {}
        self._restored: Mapping[str, Any] = {}

    def players(self, family: Family) -> dict[str, Player]:
        """Return the players."""
        own = cast("Translation", family)
        groups = {
            "generator": (own.generator, own.back),
            "features": (own.projector,),
            "discriminator": (own.judge, own.judge_back),
        }
        found = {}
        for name, parts in groups.items():
            whole = nn.ModuleList(m for m in parts if m is not None)
            parameters = [p for p in whole.parameters() if p.requires_grad]
            if parameters:
                found[name] = Player(parameters, groups=decayed(whole))
        return found

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step: everything that terms share is computed once."""
        own = cast("Translation", family)
        chosen = own.pictures(batch)
        if chosen is None:  # nothing here has a target; other processes may have some, and move players in this order
            players = self.players(family)
            for player in ("discriminator", "features", "generator"):
                if player in players:
                    ctx.update(player, torch.zeros(()), retain=player == "features")
            return
        flip = own.options.flip_equivariance and bool(torch.rand((), generator=ctx.generator) < 0.5)
        step = Pass(own, *chosen, progress=ctx.progress, rng=ctx.generator, flip=flip)
        told: dict[str, Tensor] = {}
        if own.judge is not None:
            against = discriminator_terms(step, self._pooled(own, step.a.device))
            ctx.update("discriminator", total(against))
            told |= {f"discriminator/{name}": value for name, value in against.items()}
        terms = generator_terms(step)
        if own.projector is not None:
            ctx.update("features", total({n: t for n, t in terms.items() if TERMS[n].contrast}), retain=True)
        ctx.update("generator", total(terms))
        ctx.log({name: value.detach() for name, value in (terms | told).items()})

    def _pooled(self, family: Translation, device: torch.device) -> dict[str, Pool]:
        """Return the pools, begun or restored."""
        assert family.options.discriminator is not None
        size = family.options.discriminator.pool
        if size and not self.pools:
            self.pools = {name: Pool(size) for name in ("", "_back")}
            for name, pool in self.pools.items():
                pool.pictures = [picture.to(device) for picture in self._restored.get(f"pool{name}", ())]
        return self.pools

    def state(self) -> dict[str, Any]:
        """Return the pictures of the pools."""
        if not self.pools:
            return dict(self._restored)
        return {f"pool{name}": list(pool.pictures) for name, pool in self.pools.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; the pools are filled at the next step."""
        self.pools, self._restored = {}, state
