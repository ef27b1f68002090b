"""Schedules against their formulas; mistakes in a recipe's components."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo import registry
from zoo.errors import UserError
from zoo.schema import Component
from zoo.training.optim import Constant, Cosine, LinearDecay, Plateau, Poly, WarmHold, make


def test_cosine_after_warm_up() -> None:
    schedule = Cosine(warmup=0.1, end=0.2)
    found = [schedule.factor(b, 100) for b in range(100)]
    assert found[:10] == pytest.approx([(b + 1) / 10 for b in range(10)])
    assert found[10] == pytest.approx(1.0)
    assert found[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert found[99] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_poly_and_constant() -> None:
    assert Poly(power=0.9).factor(50, 100) == pytest.approx(0.5**0.9)
    assert [Constant().factor(b, 3) for b in range(3)] == [1.0, 1.0, 1.0]


def test_plateau_waits_then_reduces_down_to_its_end() -> None:
    schedule = Plateau(reduce=0.1, patience=2, end=0.05)
    factors = []
    for value in (1.0, 0.9, 0.95, 0.9, 0.8, 0.81, 0.82, 0.83, 0.84):
        schedule.observe(value, lower=True)
        factors.append(schedule.factor(5, 10))
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    again = Plateau(reduce=0.1, patience=2, end=0.05)
    again.load(schedule.state())
    assert again.state() == schedule.state()


@given(st.sampled_from([Constant, Cosine, Poly]), st.integers(1, 500), st.floats(0, 0.9), st.integers(0, 499))
def test_a_factor_is_in_0_1_and_never_rises_after_warm_up(
    kind: type[Constant], total: int, warmup: float, b: int
) -> None:
    schedule = kind(warmup=warmup)
    batch = min(b, total - 1)
    here = schedule.factor(batch, total)
    assert 0 <= here <= 1
    if round(warmup * total) <= batch < total - 1:
        assert schedule.factor(batch + 1, total) <= here + 1e-12


def test_every_registered_part_is_there() -> None:
    assert registry.names("optimizer") == ["adam", "adamw", "sgd"]
    assert registry.names("schedule") == ["constant", "cosine", "linear-decay", "plateau", "poly", "warm-hold"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    for name in registry.names("optimizer"):
        made = make("optimizer", Component(name=name), [{"params": [parameter]}])
        assert isinstance(made, torch.optim.Optimizer)
    for name in registry.names("schedule"):
        assert make("schedule", Component(name=name)).factor(0, 10) == (0.0 if name == "warm-hold" else 1.0)


@pytest.mark.parametrize(
    ("kind", "component", "words"),
    [
        ("optimizer", {"name": "adamm"}, 'no optimizer "adamm". Did you mean adam, adamw'),
        ("schedule", {"name": "cosin"}, 'no schedule "cosin". Did you mean cosine'),
        (
            "schedule",
            {"name": "cosine", "arguments": {"warmpu": 0.1}},
            'unknown argument "warmpu". Did you mean warmup',
        ),
        ("schedule", {"name": "constant", "arguments": {"warmup": 5}}, "warmup = 5 is no share"),
        ("schedule", {"name": "plateau", "arguments": {"reduce": 2}}, "does not make the rate smaller"),
    ],
)
def test_mistakes(kind: str, component: dict[str, object], words: str) -> None:
    given_ = ([{"params": [torch.nn.Parameter(torch.zeros(1))]}],) if kind == "optimizer" else ()
    with pytest.raises(UserError) as caught:
        make(kind, Component.model_validate(component), *given_)
    assert words in str(caught.value)


def test_linear_decay_is_the_published_staircase() -> None:
    """30 + 10 epochs: 1 up to epoch 30, then 10/11, 9/11, ... 1/11; a step an epoch, however many batches it has."""
    schedule = LinearDecay(constant=30, decay=10)
    for batches in (1, 7):
        found = [schedule.factor(batch, 40 * batches) for batch in range(40 * batches)]
        for epoch in range(1, 41):
            expected = 1 - max(0, epoch - 30) / 11
            assert found[(epoch - 1) * batches : epoch * batches] == pytest.approx([expected] * batches)


def test_warm_hold_goes_up_stays_and_falls() -> None:
    """MIPHEI-ViT: a straight line over some batches, 1 to half of all, a straight line to 0."""
    schedule = WarmHold(4)
    found = [schedule.factor(b, 20) for b in range(20)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, *[1] * 7, *[1 - n / 10 for n in range(1, 10)]])
    with pytest.raises(ValueError, match="warmup_batches = -1"):
        WarmHold(-1)
