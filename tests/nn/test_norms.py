"""Instance norm against its definition, forward and backward, in every memory format."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from zoo.nn.norms import InstanceNorm2d, InstanceNorm3d

CASES = list(itertools.product((1, 2), (False, True), (False, True), (2, 3)))


def twin(x: Tensor, eps: float) -> Tensor:
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize(("batch", "last", "gradient_last", "dims"), CASES)
def test_gradients_are_those_of_the_definition(batch: int, last: bool, gradient_last: bool, dims: int) -> None:
    torch.manual_seed(0)
    shape = (batch, 6, 5, 4, 3)[: 2 + dims]
    formats = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = torch.randn(shape, dtype=torch.float64)
    own = x.clone(memory_format=formats if last else torch.contiguous_format).requires_grad_()
    other = x.clone().requires_grad_()
    norm: nn.Module = (InstanceNorm2d if dims == 2 else InstanceNorm3d)(6, affine=True).double()
    weight = torch.randn(shape, dtype=torch.float64)
    found, expected = norm(own), twin(other, 1e-5)
    torch.testing.assert_close(found, expected)
    given = weight.contiguous(memory_format=formats if gradient_last else torch.contiguous_format)
    (ours,) = torch.autograd.grad(found, own, given)
    (theirs,) = torch.autograd.grad(expected, other, weight)
    torch.testing.assert_close(ours, theirs)


def test_a_batch_of_one_learns_as_a_batch_of_two() -> None:
    """Convolutions with channels last above and below: the mean of two samples' gradients is that of both together."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, padding=1), InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)]
    network = nn.Sequential(*parts).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def gradient(rows: slice) -> Tensor:
        return torch.autograd.grad(network(x[rows]).square().mean(), parts[0].weight)[0]

    torch.testing.assert_close((gradient(slice(0, 1)) + gradient(slice(1, 2))) / 2, gradient(slice(0, 2)))
