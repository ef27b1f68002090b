"""Networks of the family diffusion: what all promise, and what each computes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusion_tester import NetworkTester
from torch import nn

from zoo.errors import UserError
from zoo.families.diffusion import first_stage, networks
from zoo.families.diffusion.networks.control import ControlledPixCell
from zoo.families.diffusion.networks.flow import EmbeddingFlow, carry, flow_loss
from zoo.families.diffusion.networks.pixcell import PixCell, condition_positions
from zoo.nn.lora import LowRank, without_low_rank

SMALL = {"size": 16, "channels": 4, "layers": 3, "heads": 2, "head_width": 16, "width": 24}


class TestPixCell(NetworkTester):
    name = "pixcell"
    arguments: ClassVar[dict[str, Any]] = SMALL
    # one token needs no query and no key: attention to it is always whole
    still = tuple(f"transformer_blocks.{i}.attn2.to_{part}" for i in range(3) for part in "qk")


class TestPixCellOfSeveralTokens(NetworkTester):
    name = "pixcell"
    arguments: ClassVar[dict[str, Any]] = {**SMALL, "tokens": 4}
    still = tuple(f"transformer_blocks.{i}.attn2.to_k.bias" for i in range(3))  # the softmax does not see it


class TestPixCellWithAdapters(NetworkTester):
    name = "pixcell"
    arguments: ClassVar[dict[str, Any]] = {**SMALL, "tokens": 4, "adapter_rank": 2}


class TestControlledPixCell(NetworkTester):
    name = "pixcell-control"
    arguments: ClassVar[dict[str, Any]] = {**SMALL, "tokens": 4}
    still = (
        "control.scale_shift_table",
        "control.proj_out",
        *(f"control.{n}" for n in TestPixCellOfSeveralTokens.still),
    )


class TestLatentUNet(NetworkTester):
    name = "latent-unet"
    arguments: ClassVar[dict[str, Any]] = {
        "size": 16,
        "base": 32,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (2,),
        "context": 12,
        "width": 10,
    }
    still = tuple(
        f"unet.{part}.transformer_blocks.0.{rest}"
        for part in (
            "down_blocks.1.attentions.0",
            "mid_block.attentions.0",
            *(f"up_blocks.0.attentions.{i}" for i in (0, 1)),
        )
        for rest in ("attn2.to_q", "attn2.to_k", "norm2")
    )


class TestLatentUNetWithARegion(NetworkTester):
    name = "latent-unet"
    arguments: ClassVar[dict[str, Any]] = {**TestLatentUNet.arguments, "region_width": 6}
    still = ("unet.", "embedder.region_fc.weight")  # the region is not given here: its weight sees zeros

    def test_the_region_matters(self) -> None:
        network = self.make()
        x, t = self.picture(network)
        condition = self.condition(network)
        zeros = network(x, t, {**condition, "region": torch.zeros(2, 6)})
        assert torch.equal(network(x, t, condition), zeros)
        assert not torch.allclose(network(x, t, {**condition, "region": torch.randn(2, 6)}), zeros, atol=1e-5)


# --- PixCell ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24)])
def test_pixcell_is_pixart_with_positions_on_the_condition(tokens: int, shape: tuple[int, int]) -> None:
    ours = TestPixCell().make()
    arguments: ClassVar[dict[str, Any]] = {**SMALL, "tokens": tokens}
    torch.manual_seed(3)
    ours = networks.build("pixcell", **arguments, interpolation=0.5).eval()
    for value in ours.parameters():
        nn.init.normal_(value, 0.0, 0.05)
    twin = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=32,
        sample_size=16,
        caption_channels=24,
        interpolation_scale=0.5,
        use_additional_conditions=False,
    ).eval()
    state = ours.state_dict()
    state.pop("caption_projection.uncond_embedding")
    positions = state.pop("y_pos_embed.y_pos_embed", torch.zeros(1))
    twin.load_state_dict(state, strict=True)
    x, t, embedding = torch.randn(2, 4, *shape), torch.tensor([5, 900]), torch.randn(2, tokens, 24)
    with torch.inference_mode():
        expected = twin(x, embedding + positions, t, return_dict=False)[0]
        torch.testing.assert_close(ours(x, t, {"embedding": embedding}), expected, rtol=1e-5, atol=1e-6)


def test_condition_positions_are_centres_of_cells() -> None:
    # sin and cos of the lowest frequency, which is 1: the places themselves
    for tokens, base, interpolation, places in ((16, 64, 2, [4, 12, 20, 28]), (4, 32, 1, [8, 24])):
        table = condition_positions(64, tokens, base, interpolation)[0]
        side = len(places)
        columns, rows = table[:side, 0], table[::side, 32]
        torch.testing.assert_close(columns, torch.tensor(places).float().sin(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rows, torch.tensor(places).float().sin(), rtol=1e-5, atol=1e-6)


def test_every_size_spans_the_same_range() -> None:
    tables = [networks.build("pixcell", **{**SMALL, "size": size}).pos_embed.pos_embed[0] for size in (16, 32)]
    torch.testing.assert_close(tables[0].view(8, 8, -1), tables[1].view(16, 16, -1)[::2, ::2])


def test_an_untrained_pixcell_predicts_nothing() -> None:
    network = networks.build("pixcell", **SMALL)
    out = network(torch.randn(1, 4, 16, 16), torch.tensor([3]), {"embedding": torch.randn(1, 1, 24)})
    assert float(out.detach().abs().max()) == 0


def test_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        network = TestPixCellOfSeveralTokens().make()
        network.checkpointing = checkpointing  # type: ignore[attr-defined]
        x, t = TestPixCellOfSeveralTokens().picture(network)
        network(x, t, TestPixCellOfSeveralTokens().condition(network)).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(2, 1, 23), (2, 4, 24), (2, 24)])
def test_an_embedding_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    network = TestPixCell().make()
    with pytest.raises(ValueError, match=r"Expected \(B, 1, 24\)"):
        network(torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), {"embedding": torch.randn(shape)})


def test_tokens_make_a_square() -> None:
    with pytest.raises(ValueError, match="Expected a square"):
        networks.build("pixcell", **{**SMALL, "tokens": 3})


def test_adapters_can_be_left_aside_and_only_they_learn() -> None:
    network = TestPixCellWithAdapters().make()
    x, t = TestPixCellWithAdapters().picture(network)
    condition = TestPixCellWithAdapters().condition(network)
    learn = {name for name, value in network.named_parameters() if value.requires_grad}
    assert len(learn) == 3 * 4 * 2
    assert all(name.endswith((".down", ".up")) for name in learn)
    on = network(x, t, condition)
    with without_low_rank(network):
        off = network(x, t, condition)
    assert not torch.allclose(on, off, atol=1e-5)
    for change in (m for m in network.modules() if isinstance(m, LowRank)):
        nn.init.zeros_(change.up)
    torch.testing.assert_close(network(x, t, condition), off)


# --- control ----------------------------------------------------------------------------------------------------------


def test_an_untrained_controlnet_changes_nothing() -> None:
    torch.manual_seed(0)
    network = networks.build("pixcell-control", **SMALL).eval()
    assert isinstance(network, ControlledPixCell)
    for value in network.base.parameters():
        nn.init.normal_(value, 0.0, 0.05)
    network.start_control()
    same = network.control.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in network.base.state_dict().items() if name in same)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([1, 2])
    condition = {"embedding": torch.randn(2, 1, 24), "mask": torch.randn(2, 4, 16, 16)}
    assert torch.equal(network(x, t, condition), network.base(x, t, {"embedding": condition["embedding"]}))


def test_training_a_controlnet_leaves_the_base_bit_equal() -> None:
    network = TestControlledPixCell().make().train()
    assert isinstance(network, ControlledPixCell)
    before = {name: value.clone() for name, value in network.base.state_dict().items()}
    learn = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learn, 1e-2)
    x, t = TestControlledPixCell().picture(network)
    network(x, t, TestControlledPixCell().condition(network)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.base.state_dict().items())
    assert len(learn) == len(list(network.control.parameters()))


def test_the_null_half_sees_the_mask_only_where_it_is_told_to() -> None:
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([700, 20])
    for rule in ("none", "same"):
        torch.manual_seed(0)
        network = networks.build("pixcell-control", **SMALL, null_residuals=rule).eval()
        assert isinstance(network, ControlledPixCell)
        for value in network.parameters():
            nn.init.normal_(value, 0.0, 0.05)
        condition = {"embedding": torch.randn(2, 1, 24), "mask": torch.randn(2, 4, 16, 16)}
        null = network.null(condition)
        assert null is not None
        bare = network.base(x, t, {"embedding": null["embedding"]})
        assert torch.allclose(network(x, t, null), bare, atol=1e-6) == (rule == "none")


# --- the flow of embeddings -------------------------------------------------------------------------------------------


def test_a_constant_velocity_is_followed_exactly() -> None:
    start = torch.randn(3, 5)
    for grid in ("left", "inner"):
        end = carry(lambda x, t: torch.ones_like(x) * 2, start, 10, grid)  # type: ignore[arg-type]
        torch.testing.assert_close(end, start + 2)


def test_flow_loss_is_that_of_its_definition() -> None:
    network = EmbeddingFlow(width=6, inner=8, blocks=1)
    for value in network.parameters():
        nn.init.normal_(value, 0.0, 0.3)
    start, end, t = torch.randn(4, 6), torch.randn(4, 6), torch.rand(4)
    total = 0.0
    with torch.inference_mode():
        for a, b, share in zip(start, end, t, strict=True):
            x = (1 - share) * a + share * b
            total += float((network(x[None], share[None])[0] - (b - a)).square().sum())
        assert float(flow_loss(network, start, end, t)) == pytest.approx(total / 24, rel=1e-5)


def test_a_flow_learns_a_shift() -> None:
    torch.manual_seed(0)
    network = EmbeddingFlow(width=4, inner=32, blocks=2)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    shift = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for _ in range(150):
        start = torch.randn(64, 4)
        loss = flow_loss(network, start, start + shift, torch.rand(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    start = torch.randn(64, 4)
    with torch.inference_mode():
        error = (carry(network, start, 20) - start - shift).abs().mean()
    assert float(error) < 0.15


# --- first stages -----------------------------------------------------------------------------------------------------


def test_kl_scales_and_shifts_its_latents() -> None:
    torch.manual_seed(0)
    stage = first_stage.build("kl", channels=4, levels=(8, 16), groups=4, blocks=1, scale=2.0, shift=0.5)
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.inference_mode():
        posterior = stage.vae.encode(pictures).latent_dist
        latent = stage.encode(pictures)
        torch.testing.assert_close(latent, (posterior.mean - 0.5) * 2)
        noise = torch.randn_like(latent)
        torch.testing.assert_close(stage.encode(pictures, noise), latent + 2 * posterior.std * noise)
        assert latent.shape == (2, 4, 8, 12)
        torch.testing.assert_close(stage.decode(latent), stage.vae.decode(posterior.mean).sample.clamp(-1, 1))
        mask = torch.rand(2, 16, 24) > 0.5
        drawn = mask[:, None].float().repeat(1, 3, 1, 1) * 2 - 1
        assert torch.equal(stage.encode_mask(mask), stage.encode(drawn))
    assert not any(p.requires_grad for p in stage.parameters())


def test_vq_decodes_the_nearest_codes() -> None:
    torch.manual_seed(0)
    stage = first_stage.build("vq", codes=7, levels=(8, 16), groups=4, blocks=1)
    assert isinstance(stage, first_stage.VQ)
    book = torch.randn(7, 3)
    stage.vae.quantize.embedding.weight.data.copy_(book)
    z = torch.randn(1, 3, 4, 4)
    flat = z[0].flatten(1).T
    nearest = (flat[:, None] - book[None]).square().sum(-1).argmin(1)
    assert torch.equal(stage.codes(z), nearest)
    exact = book[nearest].T.reshape(1, 3, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(stage.raw(z), stage.unquantised(exact))
        assert stage.encode(torch.rand(1, 3, 8, 8)).shape == (1, 3, 4, 4)


def test_an_unknown_part_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="pixcell"):
        networks.build("pixcel")
    with pytest.raises(UserError, match="no first stage"):
        first_stage.build("vae")
    with pytest.raises(UserError, match="channels"):
        first_stage.build("kl", chanels=3)


def test_pictures_to_8_bits() -> None:
    assert first_stage.to_uint8(torch.tensor([-1.0, 0.0, 1.0, 2.0, -3.0])).tolist() == [0, 128, 255, 255, 0]


def test_pixcell_is_named() -> None:
    assert isinstance(networks.build("pixcell", **SMALL), PixCell)
