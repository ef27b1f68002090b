"""What of an encoder learns, and how: frozen, last blocks, low-rank, whole; checkpointing; other patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo.encoders import build_encoder
from zoo.errors import UserError
from zoo.nn.lora import merge_low_rank

TINY: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 3, "weights": "none"}


def tiny(**more: Any) -> Any:
    torch.manual_seed(0)
    return build_encoder("uni2-h", **{**TINY, **more}).train()


def learning(encoder: Any) -> set[str]:
    return {n.removeprefix("net.") for n, p in encoder.named_parameters() if p.requires_grad}


def test_frozen_and_full() -> None:
    assert learning(tiny(tune="frozen")) == set()
    assert len(learning(tiny())) == len(list(tiny().parameters()))


def test_the_last_blocks_and_the_norm_behind_them() -> None:
    found = learning(tiny(tune="last-2"))
    assert {n.split(".")[1] for n in found if n.startswith("blocks")} == {"2", "3"}
    assert {n for n in found if not n.startswith("blocks")} == {"norm.weight", "norm.bias"}
    every = learning(tiny(tune="last-4"))  # patches are no block: they and what is added to them stand still
    assert {n.split(".")[0] for n in every} == {"blocks", "norm"}
    cnn = build_encoder("resnet18", tune="last-1").train()
    still = [m for m in cnn.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.training]
    assert 0 < len(still) < len([m for m in cnn.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert all(not p.requires_grad for m in still for p in m.parameters())


def test_low_rank_changes_of_any_projection_begin_at_nothing_and_merge() -> None:
    plain, encoder = tiny().eval(), tiny(tune="lora", rank=2, projections=["q", "v", "proj", "fc1"]).eval()
    names = {n.partition(".parametrizations")[0] for n in learning(encoder)}
    assert names == {f"blocks.{i}.{part}" for i in range(4) for part in ("attn.qkv", "attn.proj", "mlp.fc1")}
    x = torch.rand(1, 3, 28, 28)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x).maps, plain(x).maps)
        for name, value in encoder.named_parameters():
            if name.endswith(".up"):
                value.normal_(std=0.05)
        before = encoder(x).maps
        assert not torch.allclose(before[-1], plain(x).maps[-1])
    merge_low_rank(encoder)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x).maps, before)
    assert set(encoder.state_dict()) == set(plain.state_dict())


def test_keys_alone() -> None:
    encoder = tiny(tune="lora", rank=2, alpha=4, projections="k")
    part = encoder.net.blocks[0].attn.qkv.parametrizations.weight[0]
    assert (part.adapted, part.scale) == ((1,), 2.0)


def test_checkpointing_changes_no_gradient() -> None:
    x, found = torch.rand(2, 3, 28, 42), []
    for on in (False, True):
        encoder = tiny(checkpointing=on)
        encoder(x).maps[-1].square().sum().backward()
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(UserError, match="cannot compute its blocks twice"):
        build_encoder("densenet121", checkpointing=True, block_config=(1, 1, 1, 1))


def test_learning_rates_fall_towards_the_input() -> None:
    encoder = tiny(layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in encoder.groups() for p in g["params"]}
    at = [scale[id(b.attn.qkv.weight)] for b in encoder.net.blocks]
    assert at == [0.5**5, 0.5**4, 0.5**3, 0.5**2]  # the norm behind the last block is a layer of its own
    assert scale[id(encoder.net.pos_embed)] <= at[0]


def test_patches_of_another_side_see_the_same_picture_enlarged() -> None:
    """FlexiViT's resizing keeps the tokens of bilinearly enlarged patches (Beyer et al. 2023, section 3.4)."""
    encoder = tiny()
    kernel = encoder.net.patch_embed.proj.weight.detach().clone()
    small = torch.rand(6, 3, 14, 14)
    tokens = torch.einsum("bchw,dchw->bd", small, kernel)
    encoder.repatch(28)
    assert (encoder.patch, encoder.divisor, encoder.strides) == (28, 28, (28,) * 4)
    resized = encoder.net.patch_embed.proj.weight
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.einsum("bchw,dchw->bd", large, resized), tokens, rtol=1e-3, atol=1e-3)
    assert encoder(torch.rand(1, 3, 50, 60)).maps[-1].shape == (1, 48, 2, 3)
    assert build_encoder("uni2-h", patch=8, **TINY)(torch.rand(1, 3, 32, 24)).maps[0].shape[2:] == (4, 3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tune": "some"}, 'tune is "some". Expected full, frozen, last-N'),
        ({"tune": "last-5"}, "it has 4 blocks. Expected fewer"),
        ({"rank": 4}, "is for tune: lora"),
        ({"tune": "lora", "rank": 400}, "Expected 1 to"),
        ({"tune": "lora", "projections": ["w9"]}, "no layers w9 to adapt. Expected some of q, k, v and fc1, fc2, proj"),
        ({"layer_decay": 1.5}, "less than or equal to 1"),
        ({"patch": 0}, "greater than 0"),
    ],
)
def test_mistakes_are_sentences(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**more)
    with pytest.raises(UserError, match="it has no patches"):
        build_encoder("resnet18", patch=8)
