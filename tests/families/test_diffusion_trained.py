"""What is refused before a training of diffusion starts, what its weights start from, and what teaches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from zoo.cards import dataset_card
from zoo.errors import Problems, UserError
from zoo.families import build
from zoo.families.diffusion import trained
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.options import DiffusionOptions
from zoo.families.diffusion.procedure import Denoising, Translating
from zoo.training import setup
from zoo.types import Batch

SMALL = {"layers": 2, "heads": 2, "head_width": 8}
ENCODER = {"condition_encoder": "mobilenetv3_small_050", "condition_encoder_weights": "none"}
MASK = {"truth": "nuclei", "classes": ["background", "nucleus"]}


def pixcell(name: str = "pixcell", **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": {"size": 16, "learned_variance": False, **SMALL, **arguments}}


def unet(**arguments: Any) -> dict[str, Any]:
    return {"name": "pixel-unet", "arguments": arguments}


def flow(**arguments: Any) -> dict[str, Any]:
    return {"name": "embedding-flow", "arguments": arguments}


def made(**options: Any) -> Diffusion:
    """Return a model whose weights are noise."""
    torch.manual_seed(0)
    family = build.create("diffusion", options)
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return cast(Diffusion, family)


# --- what cannot be trained -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedding": {"width": 8}}, r"nothing makes it in training. Name a condition_encoder, or embedding.truth"),
        ({"noise": {"steps": 10}}, r"sampling.steps: 25, but noise.steps is 10. Write no more than that"),
        (
            {"noise": {"prediction": "sample"}, "sampling": {"sampler": "plms"}},
            r"plms cannot draw where noise.prediction is sample. Write dpm\+\+",
        ),
        (
            {"mask": {**MASK, "classes": ["nucleus", "background"]}},
            r"mask.classes: nucleus stands first. Expected back",
        ),
        (
            {"setting": "latent", "first_stage": "kl", "first_stage_weights": "vae-sd3-5.stabilityai"},
            r"zoo weights pull vae-sd3-5\.stabilityai",
        ),
        ({"mask": MASK, "dropout": 0, "sampling": {"guidance": 2.0}}, r"sampling.guidance: 2, but nothing is hidden"),
    ],
)
def test_options_that_weights_may_have_and_a_recipe_may_not(options: dict[str, Any], words: str) -> None:
    made(**options)
    with pytest.raises((ValueError, UserError), match=words):
        Diffusion.resolve(DiffusionOptions.model_validate(options), [dataset_card("phantom-nuclei")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": pixcell(), "size": 8}, "size: 8, but the network is made for 16 pixels and draws nothing smaller"),
        (
            {"network": {"name": "pixel-unet", "arguments": {"features": 8}}, "embedding": {}, "size": 36, **ENCODER},
            "size: 36, but large pictures are drawn in multiples of 8. Write another size",
        ),
        ({"network": pixcell(), "embedding": {"tokens": 9}, **ENCODER}, "in multiples of 2 that 3 cells divide"),
        ({"network": pixcell(sizes=True, head_width=24)}, "nothing tells a picture's size in training"),
        ({"network": pixcell(learned_variance=True), "noise": {"prediction": "flow"}}, "a flow has no variance"),
    ],
)
def test_networks_that_would_teach_or_draw_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Denoising().players(made(**options))


def test_a_correction_of_a_network_with_a_variance_may_learn_a_flow() -> None:
    network = pixcell("pixcell-control", learned_variance=True)
    trained.check(made(network=network, mask=MASK, noise={"prediction": "flow"}))


def test_embeddings_are_carried_to_something() -> None:
    options = {"network": pixcell(), "embedding": {}, **ENCODER}
    with pytest.raises(ValueError, match=r"trains model.translator, which is not there"):
        Translating().players(made(**options))
    small = flow(inner=8, blocks=1)
    with pytest.raises(ValueError, match=r"learns from pictures and their targets, and no model.target is said"):
        Translating().players(made(**options, translator=small))
    assert list(Translating().players(made(**options, translator=small, target="ihc"))) == ["translator"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": pixcell(tokens=4), "embedding": {"width": 8}}, "takes 4 embeddings of 8 numbers, .* makes 1 of 8"),
        ({"network": pixcell(width=7), "embedding": {"width": 8}}, "takes 1 embeddings of 7 numbers, .* makes 1 of 8"),
        (
            {"network": pixcell(), "embedding": {}, **ENCODER, "translator": flow(iner=8)},
            'translator has no argument "iner". Did you mean inner',
        ),
        (
            {"network": pixcell(), "embedding": {}, **ENCODER, "translator": flow(outputs=9)},
            r"translator.arguments.outputs: 9, and embeddings have 288 numbers. Remove it",
        ),
        ({"noise": {"schedule": "linear", "end": 2.0}}, "2.0 will not do"),
        ({"network": unet(features=7)}, "features: 7 will not do. Expected an even number"),
        ({"network": unet(multipliers=[])}, r"multipliers: \[\] will not do"),
        ({"network": unet(patch=0)}, "patch 0, blocks 1. Expected 1 or more"),
        ({"network": pixcell("pixcell-control", layers=1), "mask": MASK}, "control_blocks: 0 of 1 layers"),
        ({"network": pixcell("pixcell-control", null_residuals="some"), "mask": MASK}, '"some" will not do'),
    ],
)
def test_parts_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, Problems, ValueError), match=words):
        made(**options)


# --- what teaches nothing ---------------------------------------------------------------------------------------------


def test_an_embedding_that_is_not_there_is_the_networks_own_of_none() -> None:
    family = made(network=pixcell(), embedding={"truth": "e", "width": 8})
    pictures = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    told = {"embedding": torch.ones(2, 1, 8)}
    batch = Batch({"image": pictures}, told, {"embedding": torch.tensor([True, False])})
    found = family.inputs_of(batch)["embedding"]
    null = family.network.caption_projection.uncond_embedding  # type: ignore[union-attr]
    assert torch.equal(found[0], told["embedding"][0])
    assert torch.equal(found[1], null)
    assert float(cast(torch.Tensor, null).abs().sum()) > 0


def test_padding_costs_nothing_where_the_variance_is_learned() -> None:
    family = made(network=pixcell(learned_variance=True), noise={"schedule": "linear", "prediction": "epsilon"})
    image = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    valid = torch.zeros(2, 16, 16, dtype=torch.bool)
    terms = family.terms(Batch({"image": image}, valid=valid), torch.Generator().manual_seed(0), spread=True)
    found = {name: float(value.detach().abs().sum()) for name, value in terms.items()}
    assert found == pytest.approx({"error": 0, "bound": 0}, abs=1e-6)


# --- where weights start ----------------------------------------------------------------------------------------------


def test_adapters_start_on_the_weights_that_they_adapt(tmp_path: Path) -> None:
    """A transformer's weights go under the adapters; the adapters of a file without a place for them are merged."""
    plain = made(network=pixcell(), embedding={"width": 8})
    build.save(plain, tmp_path / "plain.safetensors")
    adapted = made(network=pixcell(adapter_rank=2), embedding={"width": 8})
    setup.start_from(adapted, str(tmp_path / "plain.safetensors"))
    layer = "network.transformer_blocks.0.attn2.to_q"
    under = adapted.state_dict()[f"{layer}.parametrizations.weight.original"]
    assert torch.equal(under, plain.state_dict()[f"{layer}.weight"])
    build.save(adapted, tmp_path / "adapted.safetensors")
    again = made(network=pixcell(), embedding={"width": 8})
    setup.start_from(again, str(tmp_path / "adapted.safetensors"))
    weight = again.state_dict()[f"{layer}.weight"]
    assert not torch.equal(weight, under)
    torch.testing.assert_close(weight, adapted.network.transformer_blocks[0].attn2.to_q.weight)  # type: ignore


def test_a_controlnet_starts_as_a_copy_of_the_transformer(tmp_path: Path) -> None:
    plain = made(network=pixcell(), embedding={"width": 8})
    build.save(plain, tmp_path / "plain.safetensors")
    torch.manual_seed(1)
    options = {"network": pixcell("pixcell-control"), "mask": MASK, "embedding": {"width": 8}}
    control = cast(Diffusion, build.create("diffusion", options))
    said = setup.start_from(control, str(tmp_path / "plain.safetensors"))
    assert "new: network.control.cond_pos_embed.proj.weight" in said
    x, t, told = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), {"embedding": torch.randn(2, 1, 8)}
    with torch.inference_mode():
        same = plain.network(x, t, told), control.network(x, t, {**told, "mask": torch.ones(2, 3, 16, 16)})
    torch.testing.assert_close(*same)
    own, base = control.state_dict(), plain.state_dict()
    name = "transformer_blocks.0.ff.net.2.weight"
    assert torch.equal(own[f"network.control.{name}"], base[f"network.{name}"])
