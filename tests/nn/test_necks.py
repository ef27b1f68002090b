"""Necks and blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.nn import vit_necks
from zoo.nn.blocks import ConvNormAct, norm_layer


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_simple_pyramid_has_the_sizes_asked_for(patch: int) -> None:
    torch.manual_seed(0)
    neck = vit_necks.Simple(24, patch, (2, 4, 8, 16, 32), (4, 8, 16, 16, 20))
    height, width = 37, 100
    x = torch.randn(2, 24, -(-height // patch), -(-width // patch))
    found = neck(torch.zeros(2, 3, height, width), [x])
    for stride, channels, level in zip(neck.strides, neck.channels, found, strict=True):
        assert tuple(level.shape) == (2, channels, -(-height // stride), -(-width // stride))


def test_a_level_answers_at_its_own_place() -> None:
    """A change of one patch moves the finest level there, and far away only through the group norm."""
    torch.manual_seed(0)
    neck = vit_necks.Simple(8, 16, (4, 32), 8, norm="none")
    image = torch.zeros(1, 3, 128, 128)
    x = torch.zeros(1, 8, 8, 8)
    changed = x.clone()
    changed[0, :, 2, 5] = 1.0
    fine, coarse = neck(image, [x])
    fine_changed, coarse_changed = neck(image, [changed])
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


# --- necks of vision transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", vit_necks.KINDS)
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_every_neck_has_the_sizes_that_it_says(kind: vit_necks.Kind, patch: int) -> None:
    torch.manual_seed(0)
    strides = (2, 4, 8, 16, 32) if kind in ("simple", "dpt") else (1, 2, 4, 8, 16, 32)
    neck = vit_necks.build(kind, 24, patch, strides, 32, image=3, maps=3, norm="batch").eval()
    height, width = 37, 100
    grid = (-(-height // patch), -(-width // patch))
    maps = [torch.randn(2, 24, *grid) for _ in range(3)]
    image, prefix = torch.randn(2, 3, height, width), [torch.randn(2, 5, 24)] * 3
    for beside in (prefix, ()):
        found = neck(image, maps, beside)
        assert [tuple(m.shape) for m in found] == [
            (2, c, -(-height // s), -(-width // s)) for s, c in zip(strides, neck.channels, strict=True)
        ]
    assert neck.channels == {"simple": (32,) * 5, "dpt": (32,) * 5}.get(kind, (16, 16, 16, 32, 32, 32))


@pytest.mark.parametrize("kind", vit_necks.KINDS)
def test_a_neck_looks_at_the_blocks_and_tokens_that_its_kind_does(kind: vit_necks.Kind) -> None:
    torch.manual_seed(0)
    neck = vit_necks.build(kind, 8, 16, (4, 8, 16), 16, image=3, maps=3, norm="group")
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    maps = [torch.randn(1, 8, 4, 4, requires_grad=True) for _ in range(3)]
    prefix = [torch.randn(1, 2, 8, requires_grad=True) for _ in range(3)]
    sum(m.square().sum() for m in neck(image, maps, prefix)).backward()  # type: ignore[union-attr]
    assert [m.grad is not None for m in maps] == ([True] * 3 if kind in ("dpt", "unetr") else [False, False, True])
    assert (prefix[0].grad is not None) == (kind == "dpt")
    assert (image.grad is not None) == (kind == "detail")
    assert all(p.grad is not None for p in neck.parameters())


def test_reassembly_reads_the_class_token_into_each_patch_token() -> None:
    torch.manual_seed(0)
    neck = vit_necks.build("dpt", 24, 16, (8,), 16, image=3, maps=1, norm="batch")
    tokens, whole = torch.randn(2, 6, 24), torch.randn(2, 1, 24)
    read = neck.read[0](torch.cat([tokens, whole.expand_as(tokens)], 2))  # type: ignore[index]
    torch.testing.assert_close(neck._read(0, tokens, whole), read)  # type: ignore[operator]
