"""What a procedure asks of the trainer during a step: one code for one optimiser or three."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families.base import Family, Player, Procedure
from zoo.recipe import Train
from zoo.training.ema import Average
from zoo.training.optim import Constant, groups_of, make
from zoo.training.shard import Shards, mean_gradient, optimizer_state


def step_seed(seed: int, batch_index: int, rank: int) -> int:
    """Return the seed of one step, in [0, 2**63): a function of (seed, batch index, rank) and of nothing else."""
    digest = hashlib.sha256(f"{seed} {batch_index} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def reseed(seed: int) -> None:
    """Set every global random state of this process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (for code that draws from numpy's global state)
    random.seed(seed)


@dataclass
class Mover:
    """A player at work: its optimiser, schedule, and the gradients that wait for a step."""

    name: str
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Constant
    clip: float | None
    scaler: Any = None
    pending: int = 0
    due: bool = False
    base: list[float] = field(default_factory=list)

    def set_rate(self, batch: int, total: int) -> float:
        """Set the learning rate for a batch and return that of the first group."""
        factor = self.schedule.factor(batch, total)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return float(self.optimizer.param_groups[0]["lr"])


def movers_of(family: Family, procedure: Procedure, train: Train, fp16: bool) -> dict[str, Mover]:
    """Return the procedure's players with their optimisers. Raises `UserError`."""
    players = procedure.players(family)
    strangers = sorted(set(train.players) - set(players))
    if strangers:
        raise UserError(f"train.players: {unknown_player(strangers[0], players)}")
    found = {name: _mover(name, player, train, fp16) for name, player in players.items()}
    seen: dict[int, str] = {}
    for name, mover in found.items():
        for parameter in mover.parameters:
            if seen.setdefault(id(parameter), name) != name:
                raise UserError(
                    f'players "{seen[id(parameter)]}" and "{name}" of the procedure share a parameter. '
                    "Expected each parameter in one player."
                )
    return found


def unknown_player(name: str, players: Iterable[str]) -> str:
    """Return the sentence that says there is no such player, with the names that there are."""
    return f'the procedure has no player "{name}". Expected one of {", ".join(players)}.'


def _mover(name: str, player: Player, train: Train, fp16: bool) -> Mover:
    said = train.players.get(name)
    component = (said and said.optimizer) or player.optimizer or train.optimizer
    schedule = (said and said.schedule) or player.schedule or train.schedule
    groups = groups_of(player, component)
    if not groups:
        raise UserError(f'player "{name}" has no parameter that may move. Expected some: see `freeze` in the recipe.')
    optimizer = make("optimizer", component, groups)
    return Mover(
        name=name,
        parameters=[p for group in groups for p in group["params"]],
        optimizer=optimizer,
        schedule=make("schedule", schedule),
        clip=(said and said.clip) or player.clip or train.clip,
        scaler=torch.amp.GradScaler("cuda") if fp16 else None,
        base=[group["lr"] for group in optimizer.param_groups],
    )


class StepContext:
    """The `Context` of a stage (zoo.families.base): backward, scaling, accumulation, clipping, averaging and
    synchronisation.

    A loss that several players share is computed once: `update(..., retain=True)` puts the player's move off until the
    graph is used up (the next update without `retain`, or the end of the step), because weights that moved in the
    meantime would make the other players' gradients wrong.
    """

    def __init__(
        self,
        movers: dict[str, Mover],
        *,
        accumulate: int,
        average: Average | None = None,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
        shards: Shards | None = None,
    ) -> None:
        """`all_reduce` gives the mean over processes of what each holds whole; `shards` the parts where it does not."""
        self.movers = movers
        self.shards = shards
        self.accumulate = accumulate
        self.average = average
        self.all_reduce = all_reduce
        self.progress = 0.0
        self.batch_index = 0
        self.generator = torch.Generator()
        self.terms: dict[str, Tensor | float] = {}
        self._updated: set[str] = set()

    def begin(self, batch_index: int, progress: float, seed: int) -> None:
        """Begin a step: random state, clock, an empty record."""
        self.batch_index, self.progress, self.terms = batch_index, progress, {}
        self._updated.clear()
        reseed(seed)
        self.generator.manual_seed((seed + 1) % 2**63)

    def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
        """Backward into that player's parameters only; synchronise, clip, step, average when it is time."""
        mover = self.movers[player]
        if player in self._updated:
            raise RuntimeError(f'player "{player}" was updated twice in one step; the procedure must sum its losses')
        self._updated.add(player)
        if loss.requires_grad or self.shards is not None:
            share = loss / self.accumulate if self.accumulate > 1 else loss
            if mover.scaler is not None:
                share = mover.scaler.scale(share)
            with torch.autocast(share.device.type, enabled=False):
                if self.shards is not None:
                    turn = list(self.movers).index(player), len(self.movers)
                    self.shards.backward(share, mover.parameters, turn, retain)
                else:
                    torch.autograd.backward(share, retain_graph=retain, inputs=mover.parameters)
        mover.pending += 1
        mover.due = mover.due or mover.pending >= self.accumulate
        if not retain:
            self.flush()

    def flush(self, everything: bool = False) -> None:
        """Move the players whose gradients are complete; `everything` also those that still wait for more."""
        ready = [m for m in self.movers.values() if m.due or (everything and m.pending)]
        for mover in ready:
            self._move(mover)
        if ready and self.shards is not None:
            self.shards.moved(more=len(self._updated) < len(self.movers))

    def log(self, terms: Mapping[str, Tensor | float]) -> None:
        """Record named numbers of this step."""
        self.terms.update({k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()})

    def _move(self, mover: Mover) -> None:
        if self.all_reduce is not None:
            synchronise(mover.parameters, self.all_reduce)
        if all(p.grad is None for p in mover.parameters):  # nothing in these batches spoke of this player
            mover.pending, mover.due = 0, False
            return
        if mover.pending < self.accumulate:
            for parameter in mover.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.accumulate / mover.pending)
        if mover.scaler is not None:
            mover.scaler.unscale_(mover.optimizer)
        if mover.clip is not None:
            torch.nn.utils.clip_grad_norm_(mover.parameters, mover.clip)
        if mover.scaler is not None:
            mover.scaler.step(mover.optimizer)
            mover.scaler.update()
        else:
            mover.optimizer.step()
        mover.optimizer.zero_grad(set_to_none=True)
        mover.pending, mover.due = 0, False
        if self.average is not None:
            self.average.update(mover.name, mover.parameters)

    # state

    def state(self, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Return tensors and plain values that `load` takes back.

        Gradients that wait for a step are among them, those of every rank: `gather` collects them. Where parameters are
        cut, every rank calls this and the first one gets all of it whole.
        """
        whole = self.shards.collect if self.shards is not None else lambda value: value
        if self.shards is not None:
            gather = lambda value: [whole(value)]  # noqa: E731  (they are already the mean over ranks)
        return {
            name: {
                "optimizer": whole(m.optimizer.state_dict()),
                "schedule": m.schedule.state(),
                "scaler": None if m.scaler is None else m.scaler.state_dict(),
                "pending": m.pending,
                "gradients": gather([p.grad for p in m.parameters]) if m.pending else [],
            }
            for name, m in self.movers.items()
        }

    def load(self, state: Mapping[str, Any], rank: int = 0) -> None:
        """Restore what `state` gave, with the waiting gradients of this rank."""
        for name, mover in self.movers.items():
            kept = state[name]
            mover.optimizer.load_state_dict(optimizer_state(mover.optimizer, kept["optimizer"]))
            mover.schedule.load(kept["schedule"])
            if mover.scaler is not None and kept["scaler"]:
                mover.scaler.load_state_dict(kept["scaler"])
            mover.pending = kept["pending"]
            ranks = kept["gradients"]
            for parameter, *own in zip(mover.parameters, *ranks, strict=True) if ranks else ():
                if self.shards is not None:
                    parameter.grad = mean_gradient(parameter, own)
                elif (gradient := own[rank % len(own)]) is not None:
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)


def synchronise(parameters: list[nn.Parameter], all_reduce: Callable[[Tensor], Tensor]) -> None:
    """Replace each gradient by its mean over ranks, with one flat all-reduce; `all_reduce` gives the mean.

    A parameter without a gradient on some ranks counts as zero there; without one on any rank it keeps none.
    """
    device = parameters[0].device
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    parts = [
        torch.zeros(p.numel(), device=device) if p.grad is None else p.grad.reshape(-1).float() for p in parameters
    ]
    flat = all_reduce(torch.cat([*parts, has]))
    present = flat[-len(parameters) :].tolist()
    start = 0
    for parameter, part, share in zip(parameters, parts, present, strict=True):
        if share > 0:
            mean = flat[start : start + part.numel()].view(parameter.shape)
            if parameter.grad is None:
                parameter.grad = mean.to(parameter.dtype).clone()
            else:
                parameter.grad.copy_(mean)
        start += part.numel()
