"""Foundation encoders: what is written of each is what is built; their files load, and no other file does."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.encoders import build_encoder, foundation, listing
from zoo.encoders.foundation import TABLE, UNAVAILABLE
from zoo.errors import UserError
from zoo.weights import store

PUBLISHED = {  # millions of parameters, entries, width, prefix tokens, positions: as counted by building timm 1.0.31's
    "uni": (303.35, 342, 1024, 1, (1, 197, 1024)),
    "uni2-h": (681.39, 343, 1536, 9, (1, 256, 1536)),
    "virchow": (631.23, 454, 1280, 1, (1, 257, 1280)),
    "virchow2": (631.24, 455, 1280, 5, (1, 261, 1280)),
    "h-optimus-0": (1134.77, 567, 1536, 5, (1, 256, 1536)),
    "h-optimus-1": (1134.77, 567, 1536, 5, (1, 256, 1536)),
    "h0-mini": (85.74, 175, 768, 5, (1, 256, 768)),
    "gigapath": (1134.95, 566, 1536, 1, (1, 197, 1536)),
    "phikon": (85.80, 150, 768, 1, (1, 197, 768)),
    "phikon-v2": (303.35, 342, 1024, 1, (1, 197, 1024)),
    "hibou-b": (85.73, 175, 768, 5, (1, 256, 768)),
    "hibou-l": (303.23, 343, 1024, 5, (1, 256, 1024)),
    "midnight-12k": (1134.77, 566, 1536, 1, (1, 257, 1536)),
    "openmidnight": (1134.77, 567, 1536, 5, (1, 256, 1536)),
    "gpfm": (303.23, 342, 1024, 1, (1, 257, 1024)),
    "kaiko-vits16": (21.67, 150, 384, 1, (1, 197, 384)),
    "kaiko-vits8": (21.67, 150, 384, 1, (1, 785, 384)),
    "kaiko-vitb16": (85.80, 150, 768, 1, (1, 197, 768)),
    "kaiko-vitb8": (85.81, 150, 768, 1, (1, 785, 768)),
    "kaiko-vitl14": (304.37, 343, 1024, 5, (1, 1369, 1024)),
    "lunit-vits16": (21.67, 150, 384, 1, (1, 197, 384)),
    "lunit-vits8": (21.67, 150, 384, 1, (1, 785, 384)),
    "lunit-resnet50-bt": (23.51, 318, 2048, 0, None),
    "lunit-resnet50-mocov2": (23.51, 318, 2048, 0, None),
    "lunit-resnet50-swav": (23.51, 318, 2048, 0, None),
    "sp85m": (85.80, 150, 768, 1, (1, 197, 768)),
    "ctranspath": (27.52, 183, 768, 0, None),
    "conch-v1-5": (303.95, 342, 1024, 1, (1, 785, 1024)),
    "kimianet": (6.95, 725, 1024, 0, None),
}
TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def tiny(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return build_encoder(name, weights="none", **{**TINY, **more}).eval()


def scrambled(encoder: Any) -> dict[str, Tensor]:
    """Fill every weight anew, so that none is at a value that a fresh module has, and return timm's state dict."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in encoder.net.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator) * 0.1
                value.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return {k: v.clone() for k, v in encoder.net.state_dict().items()}


def test_every_encoder_of_the_sheet_is_here() -> None:
    assert set(PUBLISHED) == set(TABLE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_built_is_what_is_written(name: str) -> None:
    millions, entries, width, prefix, positions = PUBLISHED[name]
    build_encoder("vit_tiny_patch16_224", weights="none", depth=1)  # the library is imported once
    info, known = listing.info(name), TABLE[name]
    gc.collect()  # else a sweep over all that this process holds falls into what is timed
    began = time.thread_time()
    with torch.device("meta"):
        encoder = build_encoder(name, weights="none")
    assert time.thread_time() - began < 1.0
    assert all(p.is_meta for p in encoder.parameters())
    count = sum(p.numel() for p in encoder.parameters())
    assert (round(count / 1e6, 2), len(encoder.state_dict())) == (millions, entries)
    assert (known.parameters, known.entries, info.parameters) == (count, entries, count)
    assert (encoder.channels, encoder.strides, encoder.patch) == (info.channels, info.strides, known.patch)
    assert (encoder.mean, encoder.std, encoder.mpp) == (*known.stats, known.mpp)
    assert encoder.channels[-1] == known.width == width
    assert known.prefix == prefix
    table = getattr(encoder.net, "pos_embed", None)
    assert (None if table is None else tuple(table.shape)) == positions == known.positions
    if known.kind == "vit":
        net: Any = encoder.net
        assert (len(net.blocks), net.blocks[0].attn.num_heads) == (known.depth, known.heads)
        assert net.num_prefix_tokens == prefix
        assert isinstance(net.blocks[0].ls1, nn.Identity) == ("blocks.0.ls1.gamma" not in net.state_dict())


def test_every_encoder_has_a_card_and_every_card_an_encoder_or_a_reason() -> None:
    cards = {name: store.card(name) for name in store.card_index()}
    for name, known in TABLE.items():
        assert cards[known.card].encoder == name
        assert cards[known.card].source.kind != "unavailable"
    carded = {str(card.encoder) for card in cards.values() if card.encoder}
    assert carded == set(TABLE) | set(UNAVAILABLE)


def test_nothing_random_is_built_unasked() -> None:
    with pytest.raises(UserError, match=r"no weights are said.*zoo weights pull uni\.mahmoodlab"):
        build_encoder("uni")
    with pytest.raises(UserError, match=r"not on this machine.*Accept the terms at .*UNI.*HF_TOKEN.*weights: none"):
        build_encoder("uni", weights="published")
    with pytest.raises(UserError, match=r"--from FILE.*weights: none"):
        build_encoder("kimianet", weights="published")
    with pytest.raises(UserError, match="no ImageNet weights"):
        build_encoder("uni", weights="imagenet")
    with pytest.raises(UserError, match="published is for foundation encoders"):
        build_encoder("resnet18", weights="published")
    with pytest.raises(UserError, match='"musk" is not available: a network of its own'):
        build_encoder("musk")
    with pytest.raises(UserError, match="TensorFlow"):
        foundation.known("path-foundation")


@pytest.mark.parametrize("name", ["h-optimus-0", "uni2-h", "virchow2", "phikon"])
def test_a_tiny_one_of_the_same_architecture_takes_any_size(name: str) -> None:
    encoder = tiny(name)
    patch, prefix = TABLE[name].patch or 0, TABLE[name].prefix
    x = torch.rand(2, 3, 40, 100)
    with torch.inference_mode():
        found, whole = encoder(x), encoder(x, pad=False)
    assert [tuple(m.shape) for m in found.maps] == [(2, 48, -(-40 // patch), -(-100 // patch))] * 2
    assert [tuple(p.shape) for p in found.prefix] == [(2, prefix, 48)] * 2
    assert whole.tokens is not None
    assert tuple(whole.maps[-1].shape) == (2, 48, 40 // patch, 100 // patch)
    torch.testing.assert_close(whole.maps[-1].flatten(2).transpose(1, 2), whole.tokens)
    with pytest.raises(UserError, match="less than one patch"):
        encoder(x[..., : patch - 1, :], pad=False)


def test_whole_patches_are_what_the_convolution_sees() -> None:
    """timm's own forward at its native size leaves the same pixels out."""
    encoder = tiny("h-optimus-0", img_size=128)
    net: Any = encoder.net
    net.patch_embed.strict_img_size, net.patch_embed.dynamic_img_pad = False, False
    x = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        own = net.forward_features(x[..., :126, :126])
        conv = net.patch_embed.proj(x)
        torch.testing.assert_close(conv, net.patch_embed.proj(x[..., :126, :126]))
        found = encoder(x, pad=False)
    torch.testing.assert_close(torch.cat([found.prefix[-1], found.tokens], 1), own)


# --- files in published layouts ---------------------------------------------------------------------------------------


def hugging(state: dict[str, Tensor], swapped: bool) -> dict[str, Tensor]:
    """Return a timm state dict as transformers 4 writes it, written out by hand and not by inverting the converter."""
    out: dict[str, Tensor] = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "reg_token" in state:
        out["embeddings.register_tokens"] = state["reg_token"]
    norms = ("layernorm_before", "layernorm_after") if swapped else ("norm1", "norm2")
    mlp = ("intermediate.dense", "output.dense") if swapped else ("mlp.fc1", "mlp.fc2")
    for i in range(2):
        there, here = f"encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            three = state[f"{here}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), three, strict=True):
                out[f"{there}.attention.attention.{name}.{kind}"] = part
            out[f"{there}.attention.output.dense.{kind}"] = state[f"{here}.attn.proj.{kind}"]
            for a, b in zip(norms, ("norm1", "norm2"), strict=True):
                out[f"{there}.{a}.{kind}"] = state[f"{here}.{b}.{kind}"]
            for a, b in zip(mlp, ("mlp.fc1", "mlp.fc2"), strict=True):
                out[f"{there}.{a}.{kind}"] = state[f"{here}.{b}.{kind}"]
        if not swapped:
            for k in (1, 2):
                out[f"{there}.layer_scale{k}.lambda1"] = state[f"{here}.ls{k}.gamma"]
    return out


def written(path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, path)
    return path


def same_features(name: str, path: Path, encoder: Any, **more: Any) -> None:
    loaded = build_encoder(name, weights=path, **{**TINY, **more}).eval()
    assert not any(p.is_meta for p in loaded.parameters())
    x = torch.rand(1, 3, 60, 44)
    with torch.inference_mode():
        for a, b in zip(loaded(x).maps, encoder(x).maps, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "teacher.backbone."])
def test_timm_names_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    encoder = tiny("uni")
    state = {f"{prefix}{k}": v for k, v in scrambled(encoder).items()} | {f"{prefix}head.weight": torch.ones(3, 48)}
    state |= {"teacher.dino_head.mlp.0.weight": torch.ones(2, 2)} if "teacher" in prefix else {}
    same_features("uni", written(tmp_path / "f.pth", state), encoder)


def test_transformers_dinov2(tmp_path: Path) -> None:
    encoder = tiny("phikon-v2")
    state = hugging(scrambled(encoder), False) | {"embeddings.mask_token": torch.zeros(1, 48)}
    path = written(tmp_path / "f.pth", state)
    same_features("phikon-v2", path, encoder)


def test_transformers_vit_has_its_own_epsilon(tmp_path: Path) -> None:
    encoder = tiny("phikon")
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    state = hugging(scrambled(encoder), True) | {"pooler.dense.weight": torch.zeros(4, 4)}
    same_features("phikon", written(tmp_path / "f.pth", state), encoder)


def test_transformers_swiglu(tmp_path: Path) -> None:
    encoder = tiny("midnight-12k")
    state = hugging(scrambled(encoder), False)
    names = {".mlp.fc1.": ".mlp.weights_in.", ".mlp.fc2.": ".mlp.weights_out."}
    for old, new in names.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    same_features("midnight-12k", written(tmp_path / "f.pth", state), encoder)


def test_raw_dinov2_with_registers_chunks_and_a_class_position(tmp_path: Path) -> None:
    encoder = tiny("openmidnight")
    state = scrambled(encoder)
    out: dict[str, Tensor] = {"mask_token": torch.zeros(1, 48)}
    position = torch.full((1, 1, 48), 0.25)
    for key, value in state.items():
        name = key.replace("reg_token", "register_tokens").replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        out[name.replace("blocks.1.", "blocks.0.1.").replace("blocks.0.norm", "blocks.0.0.norm")] = value
    out = {
        k.replace("blocks.0.attn", "blocks.0.0.attn").replace("blocks.0.mlp", "blocks.0.0.mlp"): v
        for k, v in out.items()
    }
    out = {k.replace("blocks.0.ls", "blocks.0.0.ls"): v for k, v in out.items()}
    out["cls_token"] = state["cls_token"] - position
    out["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    same_features("openmidnight", written(tmp_path / "f.pth", out), encoder)


def test_kimianet_with_old_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("kimianet", weights="none", block_config=(1, 1, 1, 1)).eval()
    out = {}
    for key, value in scrambled(encoder).items():
        name = key.replace("features_", "module.model.0.", 1)
        out[name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name] = value
    out |= {"module.fc_4.weight": torch.ones(30, 1024), "module.fc_4.bias": torch.ones(30)}
    path = written(tmp_path / "f.pth", out)
    loaded = build_encoder("kimianet", weights=path, block_config=(1, 1, 1, 1)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x).maps[-1], encoder(x).maps[-1])
        assert loaded(x).maps[-1].min() < 0  # no ReLU behind the last norm


def test_ctranspath_with_downsampling_in_the_stage_before(tmp_path: Path) -> None:
    small: dict[str, Any] = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    torch.manual_seed(0)
    encoder = build_encoder("ctranspath", weights="none", **small).eval()
    out = {"layers.0.blocks.0.attn_mask": torch.zeros(1), "head.weight": torch.zeros(3, 3)}
    for key, value in scrambled(encoder).items():
        name = key
        for k in (1, 2, 3):
            name = name.replace(f"layers.{k}.downsample", f"layers.{k - 1}.DOWN")
        out[name.replace("DOWN", "downsample")] = value
    loaded = build_encoder("ctranspath", weights=written(tmp_path / "f.pth", {"model": out}), **small).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        found = loaded(x)
        torch.testing.assert_close(found.maps, encoder(x).maps)
        net: Any = loaded.net
        torch.testing.assert_close(found.maps[-1], net.forward_features(x).permute(0, 3, 1, 2))


# --- files that are not what they should be ---------------------------------------------------------------------------


def test_weights_of_another_patch_size_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "other.pth", scrambled(tiny("kaiko-vits8")))
    with pytest.raises(UserError, match=r"other\.pth: its patches are 8 x 8 pixels, those of encoder lunit-vits16 16"):
        build_encoder("lunit-vits16", weights=path, **TINY)


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    state = scrambled(tiny("kaiko-vits16"))
    with pytest.raises(UserError, match=r"another shape"):
        build_encoder("lunit-vits16", weights=written(tmp_path / "f.pth", state), **{**TINY, "embed_dim": 96})
    short = {k: v for k, v in state.items() if not k.startswith("blocks.1.")}
    with pytest.raises(UserError, match=r"12 entries are missing, 0 unknown.*blocks\.1\.attn"):
        build_encoder("lunit-vits16", weights=written(tmp_path / "g.pth", short), **TINY)
    with pytest.raises(UserError, match="no layout of an encoder"):
        build_encoder("uni", weights=written(tmp_path / "h.pth", {"a.weight": torch.ones(2, 2)}))


def test_a_table_of_another_grid_is_kept_and_resampled_once(tmp_path: Path) -> None:
    other = tiny("uni", img_size=320)
    path = written(tmp_path / "f.pth", scrambled(other))
    loaded = build_encoder("uni", weights=path, **TINY).eval()
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x).maps, other(x).maps)
    asked = build_encoder("uni", weights=path, img_size=96, **TINY).eval()  # told so, the table is resampled on loading
    assert asked.net.pos_embed.shape == (1, 37, 48)  # type: ignore[union-attr]
    with torch.inference_mode():
        torch.testing.assert_close(asked(x).maps, other(x).maps, rtol=1e-4, atol=1e-5)


def test_other_channels(tmp_path: Path) -> None:
    path = written(tmp_path / "f.pth", scrambled(tiny("uni")))
    encoder = build_encoder("uni", weights=path, in_channels=5, **TINY)
    assert encoder(torch.rand(1, 5, 32, 32)).maps[0].shape == (1, 48, 2, 2)
    assert len(encoder.mean) == 5
