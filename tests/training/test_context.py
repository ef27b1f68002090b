"""`ctx.update` against slow, obvious twins: hand-written loops with torch's own tools."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families.base import Player
from zoo.recipe import Train
from zoo.schema import Component
from zoo.training.context import StepContext, groups_of, movers_of, step_seed, synchronise
from zoo.training.ema import Average

SGD = Component(name="sgd", arguments={"lr": 0.1, "momentum": 0.9})
CONSTANT = Component(name="constant")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(3, 3)
        self.judge = nn.Linear(3, 1)


class Game:
    """Stands for a procedure: two players."""

    def __init__(self, clip: float | None = None) -> None:
        self.clip = clip

    def players(self, module: Any) -> dict[str, Player]:
        return {
            "generator": Player(list(module.generator.parameters()), clip=self.clip),
            "judge": Player(list(module.judge.parameters())),
        }


def make(module: nn.Module, accumulate: int = 1, game: Any = None, **more: Any) -> StepContext:
    train = Train(optimizer=SGD, schedule=CONSTANT, accumulate=accumulate)
    movers = movers_of(module, game or Game(), train, False)  # type: ignore[arg-type]
    return StepContext(movers, accumulate=accumulate, **more)


def twin(module: nn.Module) -> tuple[Any, Any]:
    return tuple(  # type: ignore[return-value]
        torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in (module.generator, module.judge)
    )


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_two_players_equal_a_loop_written_by_hand() -> None:
    torch.manual_seed(0)
    ours = Two()
    theirs = copy.deepcopy(ours)
    context = make(ours)
    first, second = twin(theirs)
    for step in range(5):
        x = torch.randn(4, 3)
        context.begin(step, 0.0, step)
        fake = ours.generator(x)
        context.update("judge", ours.judge(fake.detach()).mean())
        context.update("generator", -ours.judge(fake).mean())

        fake = theirs.generator(x)
        second.zero_grad()
        theirs.judge(fake.detach()).mean().backward()
        second.step()
        first.zero_grad()
        (-theirs.judge(fake).mean()).backward()
        first.step()
        assert equal(ours, theirs)


def test_a_loss_that_players_share_moves_each_by_its_gradient_before_either_moved() -> None:
    torch.manual_seed(0)
    ours = Two()
    theirs = copy.deepcopy(ours)
    x = torch.randn(4, 3)
    context = make(ours)
    context.begin(0, 0.0, 0)
    loss = (ours.judge(ours.generator(x)) ** 2).mean()
    context.update("judge", loss, retain=True)
    assert equal(ours, theirs)  # put off: the generator's gradient needs the judge as it was
    context.update("generator", loss)

    optimizers = twin(theirs)
    (theirs.judge(theirs.generator(x)) ** 2).mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert equal(ours, theirs)


def test_a_player_moved_with_retain_moves_at_the_end_of_the_step() -> None:
    ours = Two()
    before = copy.deepcopy(ours)
    context = make(ours)
    context.begin(0, 0.0, 0)
    context.update("judge", ours.judge(torch.ones(1, 3)).mean(), retain=True)
    assert equal(ours, before)
    context.flush()
    assert not torch.equal(ours.judge.weight, before.judge.weight)


def test_an_update_reaches_that_players_parameters_only() -> None:
    ours = Two()
    context = make(ours, accumulate=2)
    context.begin(0, 0.0, 0)
    context.update("generator", ours.judge(ours.generator(torch.ones(2, 3))).mean())
    assert all(p.grad is None for p in ours.judge.parameters())
    assert all(p.grad is not None for p in ours.generator.parameters())


def test_accumulated_batches_equal_one_large_batch() -> None:
    torch.manual_seed(0)
    small, large = Two(), Two()
    large.load_state_dict(small.state_dict())
    x = torch.randn(6, 3)
    one, other = make(small, accumulate=3), make(large)
    for step in range(3):
        one.begin(step, 0.0, step)
        one.update("generator", (small.generator(x[2 * step : 2 * step + 2]) ** 2).mean())
    other.begin(0, 0.0, 0)
    other.update("generator", (large.generator(x) ** 2).mean())
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_gradients_that_wait_at_the_end_are_their_mean() -> None:
    torch.manual_seed(0)
    some, all_ = Two(), Two()
    all_.load_state_dict(some.state_dict())
    x = torch.randn(4, 3)
    one, other = make(some, accumulate=3), make(all_)
    for step in range(2):  # two of three
        one.begin(step, 0.0, step)
        one.update("generator", (some.generator(x[2 * step : 2 * step + 2]) ** 2).mean())
    one.flush(everything=True)
    other.begin(0, 0.0, 0)
    other.update("generator", (all_.generator(x) ** 2).mean())
    torch.testing.assert_close(some.generator.weight, all_.generator.weight, atol=1e-6, rtol=0)


def test_a_loss_without_a_gradient_moves_nothing() -> None:
    ours = Two()
    before = copy.deepcopy(ours)
    average = Average(ours, 0.5)
    context = make(ours, average=average)
    context.begin(0, 0.0, 0)
    context.update("generator", torch.zeros(()))
    assert equal(ours, before)
    assert average.counts == {}


def test_clip_bounds_the_norm_of_one_player() -> None:
    ours = Two()
    context = make(ours, game=Game(clip=0.01))
    before = ours.generator.weight.detach().clone()
    context.begin(0, 0.0, 0)
    context.update("generator", 1000 * ours.generator(torch.ones(1, 3)).sum())
    moved = (ours.generator.weight - before).norm()
    assert 0 < moved <= 0.1 * 0.01 * 1.001


def test_two_updates_of_one_player_in_a_step_are_refused() -> None:
    ours = Two()
    context = make(ours)
    context.begin(0, 0.0, 0)
    context.update("generator", ours.generator(torch.ones(1, 3)).sum())
    with pytest.raises(RuntimeError, match="twice"):
        context.update("generator", ours.generator(torch.ones(1, 3)).sum())


def test_a_shared_parameter_is_refused() -> None:
    class Shared(Game):
        def players(self, module: Any) -> dict[str, Player]:
            return {"a": Player(list(module.parameters())), "b": Player(list(module.judge.parameters()))}

    with pytest.raises(UserError, match=r'"a" and "b".*share a parameter'):
        make(Two(), game=Shared())


def test_an_unknown_player_in_the_recipe_is_refused() -> None:
    train = Train.model_validate({"players": {"critic": {"clip": 1.0}}})
    with pytest.raises(UserError, match=r'no player "critic".*generator, judge'):
        movers_of(Two(), Game(), train, False)  # type: ignore[arg-type]


def test_a_recipe_changes_single_players() -> None:
    train = Train.model_validate(
        {"optimizer": SGD, "players": {"judge": {"optimizer": {"name": "adam", "arguments": {"lr": 0.5}}, "clip": 2.0}}}
    )
    movers = movers_of(Two(), Game(), train, False)  # type: ignore[arg-type]
    assert isinstance(movers["generator"].optimizer, torch.optim.SGD)
    assert isinstance(movers["judge"].optimizer, torch.optim.Adam)
    assert (movers["generator"].clip, movers["judge"].clip) == (None, 2.0)
    assert movers["judge"].base == [0.5]


def test_groups_scale_the_rate_and_leave_nothing_out() -> None:
    module = Two()
    module.judge.bias.requires_grad_(False)
    group = {"params": [module.generator.weight], "lr_scale": 0.1, "weight_decay": 0.0}
    found = groups_of(Player(list(module.parameters()), groups=[group]), SGD)
    assert [g["lr"] for g in found] == pytest.approx([0.01, 0.1])
    assert found[0]["weight_decay"] == 0.0
    named = [id(p) for g in found for p in g["params"]]
    assert sorted(named) == sorted(map(id, (module.generator.weight, module.generator.bias, module.judge.weight)))


def test_the_state_holds_waiting_gradients() -> None:
    torch.manual_seed(0)
    ours = Two()
    context = make(ours, accumulate=2)
    context.begin(0, 0.0, 0)
    context.update("generator", (ours.generator(torch.ones(1, 3)) ** 2).sum())
    state = copy.deepcopy(context.state(lambda value: [value]))
    other = Two()
    other.load_state_dict(ours.state_dict())
    again = make(other, accumulate=2)
    again.load(state)
    for module, c in ((ours, context), (other, again)):
        c.begin(1, 0.0, 1)
        c.update("generator", module.generator(torch.ones(1, 3)).sum())
    assert equal(ours, other)


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=8, max_size=8))
def test_synchronise_is_the_mean_with_absent_gradients_as_zero(world: int, present: list[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = [[nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))] for _ in range(world)]
    gradients: list[list[Tensor | None]] = []
    for r in range(world):
        has = present[2 * r : 2 * r + 2]
        gradients.append(
            [torch.randn(p.shape, generator=generator) if h else None for p, h in zip(ranks[r], has, strict=True)]
        )
        for parameter, gradient in zip(ranks[r], gradients[r], strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
    flats: list[Tensor] = []

    def record(flat: Tensor) -> Tensor:
        flats.append(flat.clone())
        return flat

    kept = [[None if p.grad is None else p.grad.clone() for p in rank] for rank in ranks]
    for rank in ranks:
        synchronise(rank, record)
    mean = torch.stack(flats).mean(0)
    for rank, own in zip(ranks, kept, strict=True):
        for parameter, gradient in zip(rank, own, strict=True):
            parameter.grad = gradient
        synchronise(rank, lambda flat: mean)
        for index, parameter in enumerate(rank):
            parts = [g[index] for g in gradients]
            if all(p is None for p in parts):
                assert parameter.grad is None
            else:
                expected = sum(torch.zeros(parameter.shape) if p is None else p for p in parts) / world
                torch.testing.assert_close(parameter.grad, expected)


@given(st.integers(0, 10), st.integers(0, 50), st.integers(0, 3))
def test_seeds_differ_by_each_of_seed_batch_and_rank(seed: int, batch: int, rank: int) -> None:
    here = step_seed(seed, batch, rank)
    assert here == step_seed(seed, batch, rank)
    assert 0 <= here < 2**63
    assert len({here, step_seed(seed + 1, batch, rank), step_seed(seed, batch + 1, rank)}) == 3
    assert here != step_seed(seed, batch, rank + 1)


def test_the_average_equals_its_formula_and_swaps_in_and_out() -> None:
    module = nn.Linear(2, 1)
    average = Average(module, 0.9)
    expected = module.weight.detach().clone()
    for count in range(1, 30):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update("model", list(module.parameters()))
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)
    now = module.weight.detach().clone()
    with average.swapped():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, now)
    again = Average(nn.Linear(2, 1), 0.9)
    again.load(copy.deepcopy(average.state()))
    assert torch.equal(again.values["weight"], average.values["weight"])
    assert again.counts == {"model": 29}


def test_running_statistics_are_averaged_with_the_weights_that_they_belong_to() -> None:
    module = nn.BatchNorm1d(2)
    average = Average(module, 0.9)
    expected = module.running_mean.clone() if module.running_mean is not None else torch.zeros(2)
    average.follow()  # nothing moved: nothing to follow
    for count in range(1, 20):
        module(torch.randn(8, 2) + count)
        average.update("model", list(module.parameters()))
        average.follow()
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * module.running_mean  # type: ignore[operator]
    torch.testing.assert_close(average.values["running_mean"], expected)
    now = module.running_mean.clone()  # type: ignore[union-attr, operator]
    with average.swapped():
        torch.testing.assert_close(module.running_mean, expected)
    assert torch.equal(module.running_mean, now)  # type: ignore[arg-type]
    average.keep()
    torch.testing.assert_close(module.state_dict()["running_mean"], expected)
