"""The Encoder contract, on one encoder of each architecture: the same tests for every one of them.

A new kind of encoder adds its smallest member to `FAMILIES`. `tools/sweep_encoders.py` runs all names.
"""

from __future__ import annotations

import copy
import io
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.encoders import Encoder, build_encoder, listing
from zoo.encoders.base import per_channel
from zoo.errors import UserError

FAMILIES = (
    "resnet18",
    "smp:resnet18",
    "regnetx_002",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "convnext_atto",
    "densenet121",
    "vgg11",
    "swin_tiny_patch4_window7_224",
    "mit_b0",
    "inceptionv4",
    "vit_tiny_patch16_224",
    "test_vit2",
)
SMALL = ("resnet18", "mobilenetv3_small_100", "convnext_atto", "mit_b0", "vit_tiny_patch16_224")


@cache
def built(name: str) -> Encoder:
    """Return one encoder in evaluation mode, built once; tests that change it take a copy."""
    torch.manual_seed(0)
    return build_encoder(name).eval()


def picture(height: int, width: int, batch: int = 1, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def expected(encoder: Encoder, x: Tensor) -> list[tuple[int, ...]]:
    b, _, h, w = x.shape
    return [(b, c, ceil_div(h, s), ceil_div(w, s)) for c, s in zip(encoder.channels, encoder.strides, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_have_the_declared_channels_and_sizes(name: str) -> None:
    encoder = built(name)
    for size in ((64, 64), (37, 51)):
        x = picture(*size)
        with torch.inference_mode():
            found = encoder(x)
        assert [tuple(m.shape) for m in found.maps] == expected(encoder, x)
        assert all(torch.isfinite(m).all() for m in found.maps)
        assert all(m.std() > 0 for m in found.maps)
    assert list(encoder.strides) == sorted(encoder.strides)


def test_a_size_beside_every_divisor() -> None:
    x = picture(250, 250)
    with torch.inference_mode():
        assert [tuple(m.shape) for m in built("mobilenetv3_small_100")(x).maps] == [
            (1, 16, 125, 125),
            (1, 16, 63, 63),
            (1, 24, 32, 32),
            (1, 48, 16, 16),
            (1, 576, 8, 8),
        ]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_odd_picture_is_a_picture_with_zeros_beside_it(name: str) -> None:
    encoder = built(name)
    x = picture(37, 51)
    with torch.inference_mode():
        odd = encoder(x)
        height, width = (max(encoder.minimum, ceil_div(s, encoder.divisor) * encoder.divisor) for s in (37, 51))
        whole = encoder(F.pad(x, (0, width - 51, 0, height - 37)))
    for a, b in zip(odd.maps, whole.maps, strict=True):
        torch.testing.assert_close(a, b[..., : a.shape[-2], : a.shape[-1]])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_list_tells_the_truth(name: str) -> None:
    info, encoder = listing.info(name), built(name)
    assert (info.channels, info.strides) == (encoder.channels, encoder.strides)
    assert info.parameters == sum(p.numel() for p in encoder.parameters())
    assert (info.kind == "vit") == (encoder.patch is not None)
    torch.testing.assert_close(torch.tensor(info.mean), torch.tensor(encoder.mean))
    assert encoder.name == info.name
    assert encoder.weights == "none"


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_the_picture_and_the_weights(name: str) -> None:
    encoder = copy.deepcopy(built(name)).train()
    x = picture(64, 64, batch=2).requires_grad_()
    found = encoder(x)
    total = sum((m.square().mean() for m in found.maps), torch.zeros(()))
    if found.tokens is not None:
        total = total + found.tokens.square().mean()
    total.backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    without = [n for n, p in encoder.named_parameters() if p.grad is None]
    assert not without, without
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_of_a_batch_do_not_see_each_other(name: str) -> None:
    encoder = built(name)
    x = picture(64, 64, batch=2)
    with torch.inference_mode():
        both, alone = encoder(x), encoder(x[:1])
    for a, b in zip(both.maps, alone.maps, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision(name: str) -> None:
    encoder = built(name)
    x = picture(64, 64)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(x)
        full = encoder(x)
    for a, b in zip(half.maps, full.maps, strict=True):
        assert a.shape == b.shape
        assert F.cosine_similarity(a.float().flatten(), b.flatten(), 0) > 0.97


@pytest.mark.parametrize("name", SMALL)
def test_weights_survive_a_file(name: str) -> None:
    encoder = built(name)
    file = io.BytesIO()
    torch.save(encoder.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = build_encoder(name).eval()
    x = picture(37, 51)
    with torch.inference_mode():
        assert not torch.equal(other(x).maps[-1], encoder(x).maps[-1])
        other.load_state_dict(torch.load(file, weights_only=True))
        for a, b in zip(other(x).maps, encoder(x).maps, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("channels", [1, 7])
@pytest.mark.parametrize("name", FAMILIES)
def test_any_number_of_channels(name: str, channels: int) -> None:
    if name in SMALL:
        encoder = build_encoder(name, in_channels=channels).eval()
        with torch.inference_mode():
            x = picture(32, 32, channels=channels)
            low, high = encoder(x).maps[0], encoder(x + F.one_hot(torch.tensor(channels - 1), channels)[:, None, None])
        assert not torch.allclose(low, high.maps[0])  # the last channel is looked at
    else:
        with torch.device("meta"):
            encoder = build_encoder(name, in_channels=channels).eval()
            assert encoder(torch.empty(1, channels, 96, 96)).maps[0].shape[1] == encoder.channels[0]
    assert encoder.channels == built(name).channels
    assert len(encoder.mean) == len(encoder.std) == channels
    with pytest.raises(UserError, match=rf"Expected \(B, {channels}, H, W\)"):
        encoder(torch.empty(1, 3, 32, 32))


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_are_known_without_weights(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name)
    assert all(p.is_meta for p in encoder.parameters())
    assert (encoder.channels, encoder.strides) == (built(name).channels, built(name).strides)


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_hold_every_weight_once_and_learn_slower_near_the_input(name: str) -> None:
    encoder = built(name)
    groups = encoder.groups(0.5)
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    scales = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    in_order = [g["lr_scale"] for g in groups]
    assert in_order == sorted(in_order)
    assert in_order[-1] == 0.5
    layers = list(encoder.layers())
    assert len(layers) >= 8
    assert scales[id(next(layers[0].parameters()))] == 0.5 ** len(layers)
    for group in groups:
        if group.get("weight_decay") != 0.0:
            assert all(p.ndim > 1 for p in group["params"])
    norms = [p for m in encoder.modules() if isinstance(m, _BatchNorm | nn.LayerNorm) for p in m.parameters()]
    free = {id(p) for g in groups if g.get("weight_decay") == 0.0 for p in g["params"]}
    assert all(id(p) in free for p in norms)
    assert {g["lr_scale"] for g in encoder.groups()} == {1.0}


def test_frozen_statistics_stay_frozen_across_train() -> None:
    encoder = copy.deepcopy(built("resnet18"))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.freeze().train()
    encoder(picture(64, 64, batch=2))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.groups(0.9) == []
    encoder.freeze(bn=False).train()
    encoder(picture(64, 64, batch=2))
    assert any(not torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.unfreeze().parameters())


def test_a_transformer_gives_its_tokens() -> None:
    encoder = built("vit_tiny_patch16_224")
    with torch.inference_mode():
        found = encoder(picture(40, 100, batch=2))
    assert found.tokens is not None
    assert tuple(found.tokens.shape) == (2, 3 * 7, 192)
    assert [tuple(p.shape) for p in found.prefix] == [(2, 1, 192)] * 4
    as_map = found.tokens.transpose(1, 2).unflatten(2, (3, 7))
    torch.testing.assert_close(as_map, found.maps[-1])


def test_register_tokens_are_prefix_tokens() -> None:
    with torch.device("meta"):
        encoder = build_encoder("vit_small_patch14_reg4_dinov2", levels=2)
        found = encoder(torch.empty(1, 3, 100, 50))
    assert encoder.patch == 14
    assert [tuple(p.shape) for p in found.prefix] == [(1, 5, 384)] * 2
    assert [tuple(m.shape) for m in found.maps] == [(1, 384, 8, 4)] * 2


def test_dilation_changes_the_declared_strides() -> None:
    for name in ("resnet18", "smp:resnet18"):
        encoder = build_encoder(name, output_stride=8).eval()
        assert encoder.strides == (2, 4, 8, 8, 8)
        with torch.inference_mode():
            found = encoder(picture(64, 64))
        assert [m.shape[-1] for m in found.maps] == [32, 16, 8, 8, 8]


def test_statistics_follow_the_number_of_channels() -> None:
    assert per_channel((1.0, 2.0, 3.0), 1) == (2.0,)
    assert per_channel((1.0, 2.0, 3.0), 3) == (1.0, 2.0, 3.0)
    assert per_channel((1.0, 2.0, 3.0), 5) == (1.0, 2.0, 3.0, 1.0, 2.0)


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="Did you mean resnet50"):
        build_encoder("resnet5O")
    with pytest.raises(UserError, match=r"encoder resnet18: .*no_such_thing"):
        build_encoder("resnet18", no_such_thing=3)
    with pytest.raises(UserError, match="Expected 1 or more"):
        build_encoder("resnet18", in_channels=0)
    with pytest.raises(UserError, match="no attention layers"):
        built("resnet18").adapt(8)
    with pytest.raises(UserError, match="Expected 1 to 12"):
        build_encoder("vit_tiny_patch16_224", levels=13)
