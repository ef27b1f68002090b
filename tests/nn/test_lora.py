"""Low-rank adaptation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.encoders import build_encoder
from zoo.errors import UserError
from zoo.nn.lora import add_low_rank, merge_low_rank, merged


def test_an_adapted_layer_begins_as_it_was_and_changes_where_it_may() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 12), torch.randn(5, 6)
    before, weight = layer(x).detach(), layer.weight.detach().clone()
    add_low_rank(layer, 2, alpha=4.0, blocks=3, adapted=(0, 2))
    assert torch.equal(layer(x), before)
    change = layer.parametrizations.weight[0]  # type: ignore[union-attr, index]
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == [
        "parametrizations.weight.0.down",
        "parametrizations.weight.0.up",
    ]
    with torch.no_grad():
        change.up.normal_()
    slow = weight.clone()
    for index, block in enumerate((0, 2)):
        for i in range(4):
            for j in range(6):
                slow[block * 4 + i, j] += 2.0 * sum(change.up[index, i, r] * change.down[index, r, j] for r in range(2))
    torch.testing.assert_close(layer.weight, slow)
    assert torch.equal(layer.weight[4:8], weight[4:8])
    after = layer(x).detach()
    merge_low_rank(layer)
    assert torch.equal(layer(x), after)
    assert list(dict(layer.named_parameters())) == ["bias", "weight"]


def test_impossible_ranks_are_sentences() -> None:
    with pytest.raises(UserError, match="Expected 1 to 4"):
        add_low_rank(nn.Linear(4, 8), 5)
    with pytest.raises(UserError, match="equal blocks"):
        add_low_rank(nn.Linear(4, 8), 2, blocks=3)


def test_a_transformer_adapts_queries_and_values() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("test_vit")
    x = torch.randn(1, 3, 32, 32)
    before = encoder.eval()(x).maps[-1].detach()
    blocks = len(encoder.net.blocks)  # type: ignore[union-attr, arg-type]
    encoder.adapt(4).train()
    learning = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * blocks
    assert all(".qkv.parametrizations.weight.0." in n for n in learning)
    assert torch.equal(encoder.eval()(x).maps[-1], before)
    encoder(x).maps[-1].square().mean().backward()
    assert all(p.grad is not None for p in learning.values())
    assert {id(p) for g in encoder.groups(0.9) for p in g["params"]} == {id(p) for p in learning.values()}


def test_a_merged_copy_leaves_the_module_as_it_is() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("test_vit").eval()
    assert merged(encoder) is encoder
    plain = set(encoder.state_dict())
    encoder.adapt(2)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name.endswith(".up"):
                value.normal_(std=0.1)
    x = torch.rand(1, 3, 32, 32)
    found = merged(encoder)
    assert set(found.state_dict()) == plain
    assert set(encoder.state_dict()) != plain
    with torch.inference_mode():
        torch.testing.assert_close(found(x).maps, encoder(x).maps)
