"""Necks and blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.nn.blocks import ConvNormAct, norm_layer
from zoo.nn.necks import SimplePyramid


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_simple_pyramid_has_the_sizes_asked_for(patch: int) -> None:
    torch.manual_seed(0)
    neck = SimplePyramid(24, patch, (2, 4, 8, 16, 32), (4, 8, 16, 16, 20))
    height, width = 37, 100
    found = neck(torch.randn(2, 24, -(-height // patch), -(-width // patch)), (height, width))
    for stride, channels, level in zip(neck.strides, neck.channels, found, strict=True):
        assert tuple(level.shape) == (2, channels, -(-height // stride), -(-width // stride))


def test_a_level_answers_at_its_own_place() -> None:
    """A change of one patch moves the finest level there, and far away only through the group norm."""
    torch.manual_seed(0)
    neck = SimplePyramid(8, 16, (4, 32), 8, norm="none")
    x = torch.zeros(1, 8, 8, 8)
    changed = x.clone()
    changed[0, :, 2, 5] = 1.0
    fine, coarse = neck(x, (128, 128))
    fine_changed, coarse_changed = neck(changed, (128, 128))
    moved = (fine_changed - fine).abs().sum(1)[0] > 0
    rows, columns = moved.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        7,
        12,
        19,
        24,
    )  # the patch, and one pixel of 3 x 3
    assert (coarse_changed - coarse).abs().sum() > 0


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
def test_blocks(norm: str) -> None:
    block = ConvNormAct(3, 20, stride=2, norm=norm)  # type: ignore[arg-type]
    assert tuple(block(torch.randn(2, 3, 7, 9)).shape) == (2, 20, 4, 5)
    made = norm_layer("group", 20)
    assert isinstance(made, nn.GroupNorm)
    assert made.num_groups == 2
