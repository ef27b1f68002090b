"""The levels that a decoder wants."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.encoders import Pyramid, build_encoder
from zoo.errors import UserError


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("test_resnet", ("identity", "level", "level", "level", "level", "level")),
        ("test_convnext", ("identity", "stem", "level", "level", "level", "level")),
        ("vgg11", ("level",) * 6),
        ("test_vit", ("identity", "neck", "neck", "neck", "neck", "neck")),
    ],
)
def test_levels_for_a_unet(name: str, sources: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(build_encoder(name, in_channels=4)).eval()
    assert pyramid.sources == sources
    x = torch.randn(2, 4, 37, 51)
    with torch.inference_mode():
        found = pyramid(x)
        alone = pyramid(x[1:])
    for stride, channels, level in zip(pyramid.strides, pyramid.channels, found, strict=True):
        assert tuple(level.shape) == (2, channels, -(-37 // stride), -(-51 // stride))
    if sources[0] == "identity":
        assert found[0] is x or torch.equal(found[0], x)
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-3, atol=1e-4)


def test_what_the_backbone_has_is_passed_on_and_the_rest_is_made_from_it() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("test_convnext")
    assert encoder.strides == (4, 8, 16, 32)
    pyramid = Pyramid(encoder, (2, 4, 12, 32, 64), stem=0).eval()
    assert pyramid.sources == ("between", "level", "between", "level", "deeper")
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        features = encoder.eval()(x)
        found = pyramid.levels(x, features)
    assert found[1] is features.maps[0]
    assert torch.equal(found[0], F.interpolate(features.maps[0], size=(48, 32), mode="bilinear"))
    assert torch.equal(found[2], F.interpolate(features.maps[2], size=(8, 6), mode="bilinear"))
    assert tuple(found[4].shape) == (1, encoder.channels[-1], 2, 1)
    with pytest.raises(UserError, match="by halving"):
        Pyramid(encoder, (4, 96))
    with pytest.raises(UserError, match="rising"):
        Pyramid(encoder, (8, 4))


def test_every_added_weight_learns() -> None:
    torch.manual_seed(0)
    for name in ("test_convnext", "test_vit"):
        pyramid = Pyramid(build_encoder(name)).train()
        sum(level.square().mean() for level in pyramid(torch.randn(2, 3, 64, 64))).backward()
        assert not [n for n, p in pyramid.named_parameters() if p.grad is None]
        groups = pyramid.groups(0.7)
        held = [id(p) for g in groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in pyramid.parameters())
        assert groups[-1]["lr_scale"] == 1.0
