"""Necks of detectors: sizes, and what is peculiar to each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nn.fusion import NECKS, ChannelGate, HighLevelScreening, build_neck


def maps(height: int = 13, width: int = 9, channels: tuple[int, ...] = (8, 16, 32)) -> list[Tensor]:
    found = []
    for c in channels:
        found.append(torch.randn(2, c, height, width))
        height, width = -(-height // 2), -(-width // 2)
    return found


@pytest.mark.parametrize("name", NECKS)
def test_levels_halve_and_every_weight_learns(name: str) -> None:
    torch.manual_seed(0)
    neck = build_neck(name, (8, 16, 32), 32, 4)
    levels = neck(maps())
    assert [tuple(level.shape) for level in levels] == [
        (2, 32, 13, 9),
        (2, 32, 7, 5),
        (2, 32, 4, 3),
        (2, 32, 2, 2),
    ]
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    assert [n for n, p in neck.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("name", "reaches"), [("plain", False), ("fpn", True), ("pafpn", True), ("bifpn", True)])
def test_whether_the_deepest_map_reaches_the_finest_level(name: str, reaches: bool) -> None:
    neck = build_neck(name, (8, 16, 32), 32, 3).eval()
    given = maps()
    with torch.no_grad():
        before = neck(given)[0]
        after = neck([*given[:2], given[2] + 1 + torch.randn_like(given[2])])[0]
    assert torch.equal(before, after) != reaches


def test_finer_levels_of_the_screening_do_not_meet() -> None:
    neck = HighLevelScreening((8, 16, 32), 32, 4).eval()
    given = maps()
    with torch.no_grad():
        before = neck(given)
        after = neck([given[0] + 1, *given[1:]])
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(one, other) for one, other in zip(before[1:], after[1:], strict=True))


def test_a_gate_is_the_sigmoid_of_average_and_maximum() -> None:
    gate = ChannelGate(4, 4)
    nn.init.ones_(gate.conv1.weight)
    nn.init.constant_(gate.conv2.weight, 0.5)
    x = torch.arange(8.0).view(1, 4, 1, 2)
    average, largest = x.mean((2, 3)).sum(), x.amax((2, 3)).sum()
    expected = torch.sigmoid(0.5 * average + 0.5 * largest).expand(1, 4, 1, 1)
    torch.testing.assert_close(gate(x).detach(), expected)


def test_levels_that_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match="Set levels: 4"):
        build_neck("hs-fpn", (8, 16, 32), 32, 3)
    with pytest.raises(UserError, match="2 levels of 3 maps"):
        build_neck("fpn", (8, 16, 32), 32, 2)
