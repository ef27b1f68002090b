"""Features of a frozen encoder that are kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from zoo.encoders import build_encoder
from zoo.errors import UserError

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 2, "weights": "none", "drop_path_rate": 0.5}


def frozen(name: str = "virchow2", **more: Any) -> Any:
    torch.manual_seed(0)
    said: dict[str, Any] = {"tune": "frozen", "keep": 0.1, **TINY, **more}
    return build_encoder(name, **said).train()


def test_pictures_that_come_again_cost_nothing_and_stay_the_same() -> None:
    encoder, calls = frozen(), []
    real = encoder.extract

    def counted(x: torch.Tensor) -> Any:
        calls.append(len(x))
        return real(x)

    encoder.extract = counted
    x = torch.rand(3, 3, 30, 45)
    first = encoder(x)
    assert calls == [1, 1, 1]
    again = encoder(x.flip(0))
    assert calls == [1, 1, 1]
    for a, b in zip((*first.maps, *first.prefix), (*again.maps, *again.prefix), strict=True):
        assert torch.equal(a.flip(0), b)
    assert torch.equal(first.tokens.flip(0), again.tokens)
    plain = frozen(keep=0).eval()
    for a, b in zip(first.maps, plain(x).maps, strict=True):
        torch.testing.assert_close(a, b)
    changed = x.clone()
    changed[1, 0, 0, 0] += 1e-3
    encoder(changed)
    encoder(x, pad=False)
    assert calls == [1, 1, 1, 1, 1, 1, 1]
    assert (encoder.kept.hits, encoder.kept.misses) == (5, 7)


def test_a_decoder_learns_from_kept_features_and_chance_plays_no_part() -> None:
    encoder = frozen()
    with torch.inference_mode():
        encoder(torch.ones(1, 3, 28, 28))
    head = torch.nn.Conv2d(24, 1, 1)
    head(encoder(torch.ones(1, 3, 28, 28)).maps[-1]).sum().backward()
    assert head.weight.grad is not None
    assert not encoder.net.training
    assert copy.deepcopy(encoder).kept.hits == 0


def test_a_full_memory_keeps_no_more() -> None:
    encoder = frozen(keep=1e-6)
    x = torch.rand(2, 3, 28, 28)
    assert torch.equal(encoder(x).maps[0], encoder(x).maps[0])
    assert encoder.kept.used == 0


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_encoder(name: str) -> None:
    encoder = build_encoder(name, tune="frozen", keep=0.1).train()
    x = torch.rand(2, 3, 32, 40)
    one, other = encoder(x), encoder(x)
    assert encoder.kept is not None
    assert encoder.kept.hits == 2
    assert all(torch.equal(a, b) for a, b in zip(one.maps, other.maps, strict=True))
    with pytest.raises(UserError, match="keep is for tune: frozen"):
        build_encoder(name, keep=1)
