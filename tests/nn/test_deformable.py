"""Deformable attention against a plain twin made of grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import UserError
from zoo.nn.deformable import DeformableAttention, Sizes, deformable_sample


def twin(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return what `deformable_sample` returns, level by level with grid_sample."""
    B, _, M, d = value.shape
    Q, K = locations.shape[1], locations.shape[4]
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in sizes], 1)):
        maps = part.permute(0, 2, 3, 1).reshape(B * M, d, *sizes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, align_corners=False, padding_mode="zeros"))
    mixed = torch.stack(sampled, -2).flatten(-2) * weights.transpose(1, 2).reshape(B * M, 1, Q, len(sizes) * K)
    return mixed.sum(-1).view(B, M * d, Q).transpose(1, 2)


def case(sizes: Sizes, seed: int, Q: int = 5, M: int = 2, d: int = 3, K: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, sum(h * w for h, w in sizes), M, d, generator=generator)
    locations = torch.rand(2, Q, M, len(sizes), K, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, Q, M, len(sizes), K, generator=generator)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4), st.integers(0, 99))
def test_values_and_gradients_are_those_of_grid_sample(sizes: list[tuple[int, int]], seed: int) -> None:
    inputs = case(sizes, seed)
    ours, theirs = deformable_sample(inputs[0], sizes, *inputs[1:]), twin(inputs[0], sizes, *inputs[1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    out = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for own, other in zip(
        torch.autograd.grad(ours, inputs, out), torch.autograd.grad(theirs, inputs, out), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_images_do_not_meet_and_padding_is_nothing() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, 2, 3)
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    torch.nn.init.normal_(attention.attention_weights.weight)
    query, tokens = torch.randn(2, 4, 8), torch.randn(2, 20, 8)
    reference = torch.rand(2, 4, 2, 2)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[:, 3] = True
    sizes = [(4, 4), (2, 2)]
    found = attention(query, reference, tokens, sizes, padding)
    other = tokens.clone()
    other[0, 3], other[1] = 100.0, 0.0
    torch.testing.assert_close(attention(query, reference, other, sizes, padding)[0], found[0])
    boxes = torch.cat([reference, torch.full_like(reference, 0.2)], -1)
    assert attention(query, boxes, tokens, sizes).shape == (2, 4, 8)


def test_a_box_reaches_as_far_as_half_its_size() -> None:
    """A 4-d reference lays point K of the ring at the edge of its box."""
    attention = DeformableAttention(4, 1, 4, 2)
    torch.nn.init.eye_(attention.value_proj.weight)
    torch.nn.init.eye_(attention.output_proj.weight)
    tokens = torch.zeros(1, 64, 4)
    tokens[:, :, 0] = torch.arange(64.0) % 8  # head 0 looks to the right and reads columns
    box = torch.tensor([0.5, 0.5, 0.5, 0.5]).view(1, 1, 1, 4)
    found = attention(torch.zeros(1, 1, 4), box, tokens, [(8, 8)])
    x = [0.5 + 0.25 * step / 2 for step in (1, 2)]
    assert float(found[0, 0, 0].detach()) == pytest.approx(sum(8 * v - 0.5 for v in x) / 2, abs=1e-4)


def small_attention() -> tuple[DeformableAttention, tuple[Tensor, Tensor, Tensor], Sizes]:
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, 2, 2)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.1)
    inputs = (torch.randn(1, 4, 8, requires_grad=True), torch.rand(1, 4, 2, 2), torch.randn(1, 20, 8).requires_grad_())
    return attention, inputs, [(4, 4), (2, 2)]


def gradients(out: Tensor, attention: DeformableAttention, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted = [inputs[0], inputs[2], *attention.parameters()]
    return list(torch.autograd.grad((out.float() * weight).sum(), wanted))


def test_half_precision_forward_and_backward() -> None:
    """Under bfloat16 autocast the sampling stays in full precision: only what is linear around it is rounded."""
    attention, inputs, sizes = small_attention()
    whole = attention(*inputs, sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = attention(*inputs, sizes)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0.1, atol=0.05)
    for own, other in zip(gradients(half, attention, inputs), gradients(whole, attention, inputs), strict=True):
        assert own.dtype == other.dtype
        assert float((own - other).detach().norm()) < 0.05 * float(other.detach().norm()) + 1e-3


def test_exported_it_says_the_same() -> None:
    attention, inputs, sizes = small_attention()
    exported = torch.export.export(attention.eval(), (*inputs, sizes))
    torch.testing.assert_close(exported.module()(*inputs, sizes), attention(*inputs, sizes))


def test_compiled_it_says_and_learns_the_same() -> None:
    """In one graph without a break; the backend that runs it as it is, because a compiler takes minutes."""
    attention, inputs, sizes = small_attention()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    whole, same = attention(*inputs, sizes), compiled(*inputs, sizes)
    torch.testing.assert_close(same, whole)
    for own, other in zip(gradients(same, attention, inputs), gradients(whole, attention, inputs), strict=True):
        torch.testing.assert_close(own, other)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no 3 equal heads"):
        DeformableAttention(8, 1, 3, 1)
    value, locations, weights = case([(2, 2)], 0)
    with pytest.raises(UserError, match="4 tokens do not fit"):
        deformable_sample(value, [(3, 2)], locations, weights)
