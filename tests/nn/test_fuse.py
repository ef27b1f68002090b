"""Fused networks compute what they computed before, and what cannot be fused is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.nn import fuse


def settled(module: nn.Module, channels: int = 3) -> nn.Module:
    """Return the module in evaluation mode, its norms with statistics and weights that are not 0 and 1."""
    torch.manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)
    return module.eval()


def run_of(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: module(x)


def same(module: nn.Module, x: Tensor, found: tuple[fuse.Pair, ...]) -> nn.Module:
    with torch.inference_mode():
        clone = fuse.fused(module, found)
        torch.testing.assert_close(clone(x), module(x), rtol=1e-5, atol=1e-5)
    return clone


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_norm_is_folded(bias: bool, groups: int) -> None:
    body = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=bias, groups=groups), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(2, 4, 9, 11)
    found = fuse.pairs(settled(body), run_of(body, x))
    assert found == (fuse.Pair("0", "1"),)
    clone = same(body, x, found)
    assert isinstance(clone.get_submodule("1"), nn.Identity)
    assert isinstance(body[1], nn.BatchNorm2d)  # the original is as it was


def test_a_norm_of_timm_keeps_its_activation() -> None:
    from timm.layers import BatchNormAct2d, create_conv2d

    body = nn.Sequential(create_conv2d(3, 8, 3, stride=2, padding="same"), BatchNormAct2d(8, act_layer=nn.SiLU))
    x = torch.randn(2, 3, 9, 11)
    found = fuse.pairs(settled(body), run_of(body, x))
    assert len(found) == 1
    same(body, x, found)


class Twice(nn.Module):
    """A convolution whose output the norm does not see alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = self.convolution(x)
        if self.how == "skip":
            return self.norm(first) + first
        if self.how == "both":
            return self.norm(self.convolution(first))
        if self.how == "norm again":
            return self.norm(self.norm(first))
        if self.how == "between":
            return self.norm(first.relu())
        return first, self.norm(first)


@pytest.mark.parametrize("how", ["skip", "both", "norm again", "between", "returned"])
def test_what_something_else_sees_is_left_alone(how: str) -> None:
    body = settled(Twice(how))
    assert fuse.pairs(body, run_of(body, torch.randn(1, 3, 4, 4))) == ()


def test_hooks_shared_modules_and_computed_weights_are_left_alone() -> None:
    x = torch.randn(1, 3, 4, 4)
    hooked = settled(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    hooked[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    assert fuse.pairs(hooked, run_of(hooked, x)) == ()
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))
    assert fuse.pairs(settled(computed), run_of(computed, x)) == ()
    untracked = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert fuse.pairs(untracked, run_of(untracked, x)) == ()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_the_doubling_kernel(batch: int, inputs: int, outputs: int, height: int, width: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, height, width, generator=rng, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, generator=rng, dtype=torch.float64)
    slow = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    quick = F.conv_transpose2d(x, fuse.doubling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(quick, slow)


@pytest.mark.parametrize("skip", [0, 5])
def test_a_block_of_the_unet_is_replaced(skip: int) -> None:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock

    body = settled(nn.ModuleDict({"block": UnetDecoderBlock(6, skip, 4)}))
    x = torch.randn(2, 6, 3, 5)
    with torch.inference_mode():
        clone = fuse.fused(body, ())
        assert isinstance(clone["block"], fuse.Doubled)
        for height, width in ((6, 10), (5, 9)):  # the second is not twice as large
            beside = torch.randn(2, skip, height, width) if skip else None
            theirs = body["block"](x, height, width, skip_connection=beside)
            ours = clone["block"](x, height, width, skip_connection=beside)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"attention_type": "scse"}, {"interpolation_mode": "bilinear"}])
def test_another_block_is_left_alone(change: dict[str, str]) -> None:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock

    body = nn.ModuleDict({"block": UnetDecoderBlock(16, 16, 16, **change)}).eval()
    assert not isinstance(fuse.fused(body, ())["block"], fuse.Doubled)
