"""Published files of PixCell and of latent diffusion, made small here, become weights of the family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families import build
from zoo.families.diffusion import first_stage, latent_layouts, layouts, networks, published, sampling
from zoo.families.diffusion.assembly import between_cells
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.networks.flow import EmbeddingFlow
from zoo.weights.convert import Converted, Files

CONFIG: dict[str, Any] = {
    "_class_name": "PixCellTransformer2DModel",
    "_diffusers_version": "0.32.2",
    "_name_or_path": "pixart_256/transformer",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 8,
    "attention_type": "default",
    "caption_channels": 12,
    "caption_num_tokens": 4,
    "cross_attention_dim": 16,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 16,
    "interpolation_scale": 1.0,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_vector_embeds": None,
    "out_channels": 32,
    "patch_size": 2,
    "sample_size": 8,
    "use_additional_conditions": False,
}


def filled(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for value in module.parameters():
        value.data.normal_(0.0, 0.05, generator=generator)
    return module.eval()


def transformer(name: str = "pixcell", **more: Any) -> Any:
    return filled(networks.build(name, **layouts.pixcell_arguments(CONFIG), **more))


def loaded(converted: Converted) -> Diffusion:
    family = build.create(converted.family, converted.options)
    family.load_state_dict(dict(converted.tensors), strict=True)
    assert isinstance(family, Diffusion)
    return family


def told() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return torch.randn(1, 16, 8, 8), torch.tensor([321]), {"embedding": torch.randn(1, 4, 12)}


def folder(path: Path, part: str, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = CONFIG) -> Path:
    (path / part).mkdir(parents=True, exist_ok=True)
    save_file(dict(state), str(path / part / "diffusion_pytorch_model.safetensors"))
    if config is not None:
        (path / part / "config.json").write_text(json.dumps(config))
    return path / part / "diffusion_pytorch_model.safetensors"


def original(state: Mapping[str, Tensor], table: Tensor) -> dict[str, Tensor]:
    """Return a state dict in the training format, by the published table of names read backwards."""
    back = {
        "pos_embed.proj.": "x_embedder.proj.",
        "adaln_single.emb.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
        "adaln_single.emb.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
        "adaln_single.linear.": "t_block.1.",
        "caption_projection.linear_1.": "y_embedder.y_proj.fc1.",
        "caption_projection.linear_2.": "y_embedder.y_proj.fc2.",
        "caption_projection.uncond_embedding": "y_embedder.y_embedding",
        "y_pos_embed.y_pos_embed": "y_pos_embed",
        "attn1.to_out.0.": "attn.proj.",
        "attn2.to_q.": "cross_attn.q_linear.",
        "attn2.to_out.0.": "cross_attn.proj.",
        "ff.net.0.proj.": "mlp.fc1.",
        "ff.net.2.": "mlp.fc2.",
        "transformer_blocks.": "blocks.",
        "proj_out.": "final_layer.linear.",
    }
    found: dict[str, Tensor] = {"pos_embed": table}
    joined: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        new = "final_layer.scale_shift_table" if name == "scale_shift_table" else name
        for ours, theirs in back.items():
            new = new.replace(ours, theirs)
        for ours, theirs in (("attn1.to_", "attn.qkv."), ("attn2.to_", "cross_attn.kv_linear.")):
            if ours in new:
                start, rest = new.split(ours)
                joined.setdefault(start + theirs + rest.split(".")[1], []).append(value)
                new = ""
        if new:
            found[new] = value
    return found | {name: torch.cat(parts) for name, parts in joined.items()}


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    network = transformer()
    main = folder(tmp_path, "transformer", network.state_dict())
    (tmp_path / "transformer" / "pixcell_transformer_2d.py").write_text("raise SystemExit('this was run')\n")
    family = loaded(published.pixcell(Files(tmp_path, main)))
    x, t, condition = told()
    assert torch.equal(family.network(x, t, condition), network(x, t, condition))
    assert (family.side, family.factor, family.options.sampling.sampler) == (64, 8, "dpm++")
    assert family.first_stage is None  # its weights have a card of their own


def test_the_training_format(tmp_path: Path) -> None:
    network = transformer()
    state = original(network.state_dict(), network.pos_embed.pos_embed)
    path = tmp_path / "pixcell_256.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 1e-4}}, path)
    family = loaded(published.pixcell_original(Files(tmp_path, path), heads=2))
    x, t, condition = told()
    torch.testing.assert_close(family.network(x, t, condition), network(x, t, condition), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interpolation", [0.5, 1.0, 2.0])
def test_the_interpolation_is_read_off_the_table(interpolation: float) -> None:
    network = networks.build("pixcell", **{**layouts.pixcell_arguments(CONFIG), "interpolation": interpolation})
    state = original(network.state_dict(), network.pos_embed.pos_embed)
    assert layouts.original_arguments_of(state, heads=2)["interpolation"] == interpolation


def test_a_controlnet_beside_its_transformer(tmp_path: Path) -> None:
    network = transformer("pixcell-control")
    main = folder(tmp_path, "controlnet", network.control.state_dict(), None)
    folder(tmp_path, "transformer", network.base.state_dict())
    family = loaded(published.pixcell_control(Files(tmp_path, main)))
    x, t, condition = told()
    condition["mask"] = torch.randn(1, 16, 8, 8)
    assert torch.equal(family.network(x, t, condition), network(x, t, condition))
    assert family.takes == ("mask", "embedding")


def test_adapters_with_the_flow_to_their_stain(tmp_path: Path) -> None:
    network = transformer(adapter_rank=2, adapter_alpha=2.0)
    names = {
        ".parametrizations.weight.original": ".base_layer.weight",
        ".parametrizations.weight.0.down": ".lora_A.default.weight",
        ".parametrizations.weight.0.up": ".lora_B.default.weight",
    }
    state: dict[str, Tensor] = {}
    adapted = {n.split(".parametrizations.")[0] for n in network.state_dict() if ".parametrizations." in n}
    for name, value in network.state_dict().items():
        new = name
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        if name.endswith(".bias") and name.removesuffix(".bias") in adapted:
            new = name.removesuffix(".bias") + ".base_layer.bias"
        state[new] = value[0] if ".lora_" in new else value
    flow = filled(EmbeddingFlow(width=12, inner=8, blocks=1))
    torch.save(state, tmp_path / "her2_lora.pth")
    torch.save(flow.state_dict(), tmp_path / "her2_mlp.pth")
    converted = published.pixcell_stain(
        Files(tmp_path, tmp_path / "her2_lora.pth"), flow="her2_mlp.pth", size=8, heads=2
    )
    arguments = converted.options["network"]["arguments"]
    assert arguments["interpolation"] == 8 / 64
    arguments["interpolation"] = 1.0  # as the small network above, not as the released ones
    family = loaded(converted)
    x, t, condition = told()
    torch.testing.assert_close(family.network(x, t, condition), network(x, t, condition), rtol=1e-5, atol=1e-6)
    assert family.translator is not None
    e = torch.randn(3, 12)
    assert torch.equal(family.translator(e, torch.rand(3) * 0 + 0.5), flow(e, torch.full((3,), 0.5)))


def ldm(tmp_path: Path) -> tuple[Path, nn.Module, first_stage.FirstStage]:
    """Write a small checkpoint of latent diffusion, in its own names, by undoing our renaming."""
    arguments = {
        "size": 16,
        "base": 32,
        "multipliers": (1, 2),
        "blocks": 2,
        "attention": (2,),
        "context": 12,
        "width": 10,
    }
    network = filled(networks.build("latent-unet", **arguments, region_width=6))
    stage = filled(first_stage.build("vq", codes=7, levels=(32, 64), blocks=1))
    state = {f"model.diffusion_model.{k}": v for k, v in _undone(network.unet.state_dict(), _unet_names()).items()}
    state |= {f"cond_stage_model.{k}": v for k, v in network.embedder.state_dict().items()}
    state |= {f"first_stage_model.{k}": v for k, v in _undone(stage.vae.state_dict(), _stage_names()).items()}  # type: ignore[union-attr, operator]
    state["betas"] = torch.zeros(3)
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", network, stage


def _unet_names() -> list[str]:
    """Return the published names of that U-Net."""
    res = [
        f"{p}.{k}"
        for p in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
        for k in ("weight", "bias")
    ]
    skip = ["skip_connection.weight", "skip_connection.bias"]
    inner = [
        f"{a}.{p}"
        for a in ("attn1", "attn2")
        for p in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
    ]
    inner += [f"{p}.{k}" for p in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2") for k in ("weight", "bias")]
    attention = [f"{p}.{k}" for p in ("norm", "proj_in", "proj_out") for k in ("weight", "bias")]
    attention += [f"transformer_blocks.0.{n}" for n in inner]
    ends = [
        "time_embed.0",
        "time_embed.2",
        "input_blocks.0.0",
        "out.0",
        "out.2",
        "input_blocks.3.0.op",
        "output_blocks.2.2.conv",
    ]
    names = [f"{e}.{k}" for e in ends for k in ("weight", "bias")]
    for block in ("input_blocks.1.0", "input_blocks.2.0", "input_blocks.5.0", "middle_block.0", "middle_block.2"):
        names += [f"{block}.{n}" for n in res]
    for block in ("input_blocks.4.0", *(f"output_blocks.{i}.0" for i in range(6))):
        names += [f"{block}.{n}" for n in (*res, *skip)]
    for block in (
        "input_blocks.4.1",
        "input_blocks.5.1",
        "middle_block.1",
        *(f"output_blocks.{i}.1" for i in range(3)),
    ):
        names += [f"{block}.{n}" for n in attention]
    return names


def _stage_names() -> list[str]:
    norm = [f"{p}.{k}" for p in ("norm1", "conv1", "norm2", "conv2") for k in ("weight", "bias")]
    skip = ["nin_shortcut.weight", "nin_shortcut.bias"]
    names = [
        f"{s}.{p}.{k}"
        for s in ("encoder", "decoder")
        for p in ("conv_in", "conv_out", "norm_out")
        for k in ("weight", "bias")
    ]
    for side in ("encoder", "decoder"):
        names += [f"{side}.mid.block_{i}.{n}" for i in (1, 2) for n in norm]
        names += [f"{side}.mid.attn_1.{p}.{k}" for p in ("norm", "q", "k", "v", "proj_out") for k in ("weight", "bias")]
    names += [f"encoder.down.0.block.0.{n}" for n in norm] + [f"encoder.down.1.block.0.{n}" for n in (*norm, *skip)]
    names += [f"decoder.up.1.block.{i}.{n}" for i in (0, 1) for n in norm]
    names += [f"decoder.up.0.block.0.{n}" for n in (*norm, *skip)] + [f"decoder.up.0.block.1.{n}" for n in norm]
    names += [
        f"{p}.{k}"
        for p in ("encoder.down.0.downsample.conv", "decoder.up.1.upsample.conv", "quant_conv", "post_quant_conv")
        for k in ("weight", "bias")
    ]
    return [*names, "quantize.embedding.weight"]


def _undone(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Return a state dict under published names: which of ours each becomes is asked of the converter."""
    unet = any(name.startswith("input_blocks.") for name in names)
    blank = {name: torch.zeros(1) for name in names}
    order = latent_layouts.unet_state(blank, 2) if unet else latent_layouts.first_stage_state(blank)
    assert set(order) == set(state), set(order) ^ set(state)
    found = {}
    for name, ours in zip(names, order, strict=True):
        value = state[ours]
        linear = not unet and ".attn_1." in name and value.ndim == 2
        found[name] = value[:, :, None, None] if linear else value
    return found


def test_a_checkpoint_of_latent_diffusion(tmp_path: Path) -> None:
    path, network, stage = ldm(tmp_path)
    converted = published.large_image(Files(tmp_path, path))
    family = loaded(converted)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([321])
    condition = {"embedding": torch.randn(1, 1, 10), "region": torch.randn(1, 6)}
    torch.testing.assert_close(family.network(x, t, condition), network(x, t, condition))
    assert family.first_stage is not None
    z = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(family.first_stage.raw(z), stage.raw(z))
    assert converted.options["noise"]["schedule"] == "scaled-linear"


# --- what is not right ------------------------------------------------------------------------------------------------


def broken(tmp_path: Path, **change: Any) -> Files:
    main = folder(tmp_path, "transformer", transformer().state_dict(), {**CONFIG, **change})
    return Files(tmp_path, main)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_type": "ada_norm"}, "norm_type is ada_norm. Expected ada_norm_single"),
        ({"cross_attention_dim": 99}, "cross_attention_dim is 99. Expected 16"),
        ({"out_channels": 7}, "out_channels is 7. Expected null or 16 or 32"),
        ({"attention_type": "gated"}, "attention_type is gated"),
        ({"rope": True}, '"rope" is not known'),
    ],
)
def test_a_configuration_that_is_not_pixcells(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        published.pixcell(broken(tmp_path, **change))


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    files = broken(tmp_path)
    (tmp_path / "transformer" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        published.pixcell(files)


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.b": torch.zeros(2)}}, tmp_path / "x.ckpt")
    files = Files(tmp_path, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="training format"):
        published.pixcell_original(files)
    with pytest.raises(UserError, match="latent diffusion"):
        published.large_image(files)
    with pytest.raises(UserError, match="adapters"):
        published.pixcell_stain(files, flow="x.ckpt")
    main = folder(tmp_path, "controlnet", {"a": torch.zeros(1)})
    folder(tmp_path, "transformer", transformer().state_dict())
    with pytest.raises(UserError, match="controlnet_blocks"):
        published.pixcell_control(Files(tmp_path, main))
    with pytest.raises(UserError, match="not a flow of embeddings"):
        layouts.flow_arguments_of({})


def test_adapters_on_other_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"attn1\.to_q"):
        layouts.adapter_arguments({"r": 4, "target_modules": [*layouts.ADAPTED, "attn1.to_q"]})


def test_a_published_autoencoder_gives_its_scale() -> None:
    config = {"_class_name": "AutoencoderKL", "latent_channels": 16, "scaling_factor": 1.5, "shift_factor": 0.1}
    found = latent_layouts.vae_arguments({**config, "block_out_channels": [8, 16]})["arguments"]
    assert (found["scale"], found["shift"], found["levels"], found["quant_conv"]) == (1.5, 0.1, [8, 16], True)
    with pytest.raises(UserError, match="AutoencoderTiny"):
        latent_layouts.vae_arguments({"_class_name": "AutoencoderTiny"})


# --- the setting latent -----------------------------------------------------------------------------------------------

SMALL = {
    "setting": "latent",
    "first_stage": {"name": "kl", "arguments": {"channels": 4, "levels": [8, 16], "groups": 4, "blocks": 1}},
    "network": {"name": "pixcell", "arguments": {"size": 8, "layers": 1, "heads": 2, "head_width": 8}},
    "embedding": {"truth": "embedding", "width": 6},
    "noise": published.PIXCELL_NOISE,
    "sampling": {"sampler": "ddim", "steps": 2},
}


def small(**change: Any) -> Diffusion:
    torch.manual_seed(0)
    family = build.create("diffusion", {**SMALL, **change})
    assert isinstance(family, Diffusion)
    return filled(family)  # type: ignore[no-any-return]


def test_latents_are_drawn_decoded_and_the_stage_stands_still() -> None:
    family = small()
    assert (family.factor, family.side, family.spec.divisor) == (2, 16, 4)
    drawn = family.sample({"embedding": torch.randn(2, 1, 6)}, (18, 22), [1, 2])
    assert drawn.shape == (2, 3, 18, 22)
    assert 0 <= float(drawn.min()) < float(drawn.max()) <= 1
    assert all(not p.requires_grad for p in family.first_stage.parameters())  # type: ignore[union-attr]
    alone = family.sample({"embedding": torch.randn(1, 1, 6)}, (16, 16), [1])
    assert alone.shape == (1, 3, 16, 16)


def test_a_stage_with_weights_of_its_own_is_no_part_of_the_weights(tmp_path: Path) -> None:
    own = small()
    assert own.first_stage is not None
    path = tmp_path / "vae.safetensors"
    save_file(own.first_stage.vae.state_dict(), str(path))  # type: ignore[union-attr, operator]
    family = small(first_stage_weights=str(path))
    assert not [name for name in family.state_dict() if name.startswith("first_stage")]
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    same = [f.clean(pictures, torch.Generator().manual_seed(0)) for f in (own, family)]
    assert torch.equal(*same)
    missing = small(first_stage_weights="vae-sd3-5.stabilityai")
    with pytest.raises(UserError, match=r"zoo weights pull vae-sd3-5\.stabilityai"):
        missing.clean(pictures, torch.Generator())


def test_what_of_a_stage_is_kept_gives_a_new_draw_each_time() -> None:
    from zoo.families.diffusion.kept import Kept

    family, pictures = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    kept = Kept("memory")
    first, again = (family.clean(pictures, torch.Generator().manual_seed(0), kept) for _ in range(2))
    assert torch.equal(first, again)
    assert (kept.hits, kept.misses) == (2, 2)
    assert not torch.equal(first, family.clean(pictures, torch.Generator().manual_seed(1), kept))


def test_a_mask_is_told_as_the_latent_of_its_picture() -> None:
    network = {"name": "pixcell-control", "arguments": {"size": 8, "layers": 2, "heads": 2, "head_width": 8}}
    mask = {"classes": ["background", "cell"], "boundary": 0, "told": "latent"}
    family = small(network=network, mask=mask)
    classes = torch.zeros(1, 16, 16, dtype=torch.uint8)
    classes[:, 4:9, 3:12] = 1
    found = family.at_size(family.condition({"mask": classes}))["mask"]
    assert family.first_stage is not None
    torch.testing.assert_close(found, family.first_stage.encode_mask(classes))
    for value in family.network.parameters():
        value.data.normal_(0.0, 0.3)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    said, other = (family.network(x, t, family.at_size(family.condition({"mask": m}))) for m in (classes, 1 - classes))
    assert float((said - other).detach().abs().max()) > 1e-3
    assert family.sample(family.condition({"mask": classes}), (16, 16), [0], guidance=2.0).shape == (1, 3, 16, 16)


def test_masks_are_drawn_in_the_style_of_an_embedding(tmp_path: Path) -> None:
    from zoo.inference.wishes import Asked, wishes

    network = {"name": "pixcell-control", "arguments": {"size": 8, "layers": 2, "heads": 2, "head_width": 8}}
    family = small(network=network, mask={"classes": ["background", "cell"], "boundary": 0, "told": "latent"})
    np.save(tmp_path / "e.npy", np.ones((1, 6), np.float32))
    np.save(tmp_path / "two.npy", np.ones((2, 6), np.float32))
    from PIL import Image

    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "m.png")
    mask = [str(tmp_path / "m.png")]
    (wish,) = wishes(family, Asked(mask, [str(tmp_path / "e.npy")]), tmp_path / "out", [])
    assert set(wish.told) == {"mask", "embedding"}
    assert (wish.stem, wish.origin["kind"], wish.origin["style"]["kind"]) == ("m", "mask", "embedding")
    with pytest.raises(UserError, match="2 things to be like"):
        wishes(family, Asked(mask, [str(tmp_path / "two.npy")]), tmp_path / "out", [])


def test_another_number_of_channels_is_told() -> None:
    network = {"name": "pixcell", "arguments": {"size": 8, "layers": 1, "channels": 16}}
    with pytest.raises(UserError, match="what is denoised has 4"):
        small(network=network)


def test_large_latent_pictures_are_the_same_whatever_the_batch(tmp_path: Path) -> None:
    from PIL import Image

    from zoo.inference.generate import Drawing, generate
    from zoo.inference.wishes import Asked

    family = small()
    np.save(tmp_path / "e.npy", np.ones((1, 6), np.float32))
    found = []
    for batch in (1, 3):
        asked = Asked(embeddings=[str(tmp_path / "e.npy")], size=(48, 40))
        drawing = Drawing(steps=2, tile=16, batch=batch)
        generate(family, asked, tmp_path / str(batch), drawing=drawing, progress=False)
        found.append(np.asarray(Image.open(tmp_path / str(batch) / "e-0000.png")).astype(int))
    assert found[0].shape == (48, 40, 3)
    assert int(np.abs(found[0] - found[1]).max()) <= 1


# --- virtual staining -------------------------------------------------------------------------------------------------


def test_a_target_is_drawn_for_the_picture_that_is_given() -> None:
    from zoo.families.diffusion.procedure import Translating
    from zoo.types import Batch, Geometry, Meta

    torch.manual_seed(0)
    family = build.create(
        "diffusion",
        {
            "network": {"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1, 2]}},
            "embedding": {},
            "condition_encoder": {"name": "test_resnet"},
            "condition_encoder_weights": "none",
            "target": "ihc",
            "translator": {"name": "embedding-flow", "arguments": {"inner": 16, "blocks": 1}},
            "sampling": {"sampler": "ddim", "steps": 2, "translator_steps": 5},
            "size": 32,
        },
    )
    assert isinstance(family, Diffusion)
    image, picture = (torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    meta = [Meta("s", "imaginary", Geometry((32, 32), (1.0, 1.0), (0.0, 0.0))) for _ in range(2)]
    here = {"picture": torch.ones(2, dtype=torch.bool)}
    batch = Batch({"image": image}, {"picture": picture}, here, torch.ones(2, 32, 32, dtype=torch.bool), meta)

    seen: dict[str, Any] = {}

    class Ctx:
        progress, batch_index, generator = 0.0, 0, torch.Generator().manual_seed(0)

        def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
            seen[player] = loss

        def log(self, terms: Mapping[str, Any]) -> None:
            seen.update(terms)

    procedure = Translating()
    players = procedure.players(family)
    procedure.step(family, batch, Ctx())  # type: ignore[arg-type]
    seen["translator"].backward()
    assert {id(p) for p in players["translator"].parameters} == {id(p) for p in family.translator.parameters()}  # type: ignore[union-attr]
    assert all(p.grad is None for p in family.network.parameters())
    # the network learns the target from the target's own embedding
    of_target = family.terms(batch, torch.Generator().manual_seed(0), spread=True)["error"]
    other = Batch({"image": image.flip(0)}, batch.targets, here, batch.valid, meta)
    assert torch.equal(family.terms(other, torch.Generator().manual_seed(0), spread=True)["error"], of_target)
    # at last it is the translated embedding of the picture that is given
    inputs = family.prepare({"image": image})
    told = family.condition(inputs)
    carried = family.translated(told, inputs)["embedding"]
    expected = published_carry(family, told["embedding"])
    torch.testing.assert_close(carried, expected)
    assert family.infer(inputs, rng=torch.Generator().manual_seed(0))["picture"].shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"model\.translator"):
        procedure.players(small())


def test_the_encoder_sees_cells_at_its_own_size() -> None:
    from torchvision.transforms.functional import resize

    from zoo.families.diffusion.conditions import embed, embedder
    from zoo.schema import Component

    encoder = embedder(Component(name="test_resnet"), "none")
    pictures = torch.rand(1, 3, 64, 64)
    found = embed(encoder, pictures, 4, 24)
    for token, (i, j) in enumerate(((0, 0), (0, 32), (32, 0), (32, 32))):
        cell = resize(pictures[:, :, i : i + 32, j : j + 32], [24, 24], antialias=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
        expected = encoder.embedding(encoder((cell - mean) / std))
        torch.testing.assert_close(found[:, token], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_large_picture_is_stained_in_windows(tokens: int) -> None:
    """The definition, slowly: cells carried one window after another, and in each DDIM step the mean of the windows."""
    torch.manual_seed(0)
    network = {"name": "pixcell", "arguments": {"size": 32, "patch": 4, "layers": 1, "heads": 2, "head_width": 8}}
    family = build.create(
        "diffusion",
        {
            "network": network,
            "embedding": {"tokens": tokens},
            "condition_encoder": {"name": "test_resnet"},
            "condition_encoder_weights": "none",
            "target": "ihc",
            "translator": {"name": "embedding-flow", "arguments": {"inner": 16, "blocks": 1}},
            "sampling": {"sampler": "ddim", "steps": 2, "translator_steps": 5, "guidance": 1.5},
            "size": 32,
        },
    )
    assert isinstance(family, Diffusion)
    for parameter in family.parameters():
        torch.nn.init.normal_(parameter, 0, 0.05)
    family.eval()
    image = torch.rand(1, 3, 60, 40) * 2 - 1
    with torch.inference_mode():
        found = family.infer({"image": image}, rng=torch.Generator().manual_seed(3))["picture"]
        expected = slowly_stained(family, image, tokens, int(torch.randint(2**62, (1,), generator=seeded(3))))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        image[:, :, 32:, 32:] *= -1  # another cell: what no window shares with it stays as it was after one step
        one = family.infer({"image": image}, rng=seeded(3), steps=1)["picture"]
        image[:, :, 32:, 32:] *= -1
        other = family.infer({"image": image}, rng=seeded(3), steps=1)["picture"]
    assert torch.equal(one[:, :, :16, :16], other[:, :, :16, :16])
    assert not torch.equal(one[:, :, 40:, 32:], other[:, :, 40:, 32:])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slowly_stained(family: Diffusion, image: Tensor, tokens: int, seed: int) -> Tensor:
    count, side = round(tokens**0.5), 32
    whole = torch.nn.functional.pad(image, (0, 24, 0, 4), mode="replicate")
    grid = torch.zeros(2 * count, 2 * count, family.options.embedding.width or 0)  # type: ignore[union-attr]
    for row in range(2):
        for column in range(2):
            part = whole[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            carried = published_carry(family, family.embedding_of(part)).view(count, count, -1)
            grid[row * count : (row + 1) * count, column * count : (column + 1) * count] = carried
    cell = side // count
    starts = [0, 24, 32] if tokens == 1 else [0, 16, 32]
    x = torch.randn(1, 3, 64, 64, generator=seeded(seed))
    scheduler = sampling.make_scheduler("ddim", family.schedule, family.options.noise.prediction)
    scheduler.set_timesteps(2)
    for time in scheduler.timesteps:
        total, counts = torch.zeros_like(x), torch.zeros(64, 64)
        for i in starts:
            for j in starts:
                if tokens == 1:
                    told = between_cells(grid, [(i, j)], cell)[:, None]
                else:
                    told = grid[i // cell : i // cell + count, j // cell : j // cell + count].reshape(1, tokens, -1)
                predict = sampling.guided(family.network, {"embedding": told}, 1.5)
                total[:, :, i : i + side, j : j + side] += predict(x[:, :, i : i + side, j : j + side], time[None])
                counts[i : i + side, j : j + side] += 1
        x = scheduler.step(total / counts, time, x, return_dict=False)[0]
    return ((x + 1) / 2).clamp(0, 1)[:, :, :60, :40]


def published_carry(family: Diffusion, embedding: Tensor) -> Tensor:
    """Return Euler's steps of the flow, one embedding after another."""
    found = []
    for e in embedding.flatten(0, 1):
        x = e[None]
        for k in range(5):
            x = x + family.translator(x, torch.tensor([k / 5])) / 5  # type: ignore[misc]
        found.append(x[0])
    return torch.stack(found).view_as(embedding)
