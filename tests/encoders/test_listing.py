"""The committed list of encoders: fast, complete, and read without torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo.encoders import listing
from zoo.errors import UserError


def test_it_reads_no_torch() -> None:
    code = (
        "import sys; from zoo.encoders import listing; listing.info(listing.names()[0]);"
        "heavy = {'torch', 'timm', 'numpy', 'segmentation_models_pytorch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_is_whole() -> None:
    began = time.perf_counter()
    every = [listing.info(name) for name in listing.names(forced=True)]
    assert time.perf_counter() - began < 1.0
    for info in every:
        assert len(info.channels) == len(info.strides) >= 1
        assert all(c > 0 for c in info.channels)
        assert info.parameters > 0
        assert len(info.mean) == len(info.std) == 3
        assert info.imagenet is None or info.imagenet in info.weights
        assert all(info.divisor % s == 0 for s in info.strides), info
        for weights in info.weights.values():
            assert weights.download
            assert weights.download.startswith("https://")
        if info.kind == "pyramid":
            assert list(info.strides) == sorted(set(info.strides))


def test_the_naming_rule() -> None:
    plain = listing.names()
    assert len(plain) == len(set(plain)) > 1200
    assert "maxvit_tiny_tf_224" in plain  # whose windows want multiples of 224
    assert not any(":" in name for name in plain)
    assert listing.info("resnet34").source == "timm"
    assert listing.info("timm:resnet34").name == "resnet34"
    assert listing.info("smp:resnet34").source == "smp"
    assert listing.info("smp:resnet34").weights["imagenet"].repo == "smp-hub/resnet34.imagenet"
    assert listing.info("mit_b0").source == "smp"
    assert listing.info("smp:mit_b0").name == "mit_b0"
    assert listing.info("smp:efficientnet-b0").source == "smp"
    assert "efficientnet-b0" not in plain
    with pytest.raises(UserError):
        listing.info("timm:mit_b0")
    for name in ("nest_tiny", "coatnet_0_rw_224", "mixer_b16_224"):
        assert name not in plain  # they take one size only


def test_an_unknown_name_says_the_nearest() -> None:
    sentence = listing.unknown_encoder("resnet5O")
    assert sentence.startswith('no encoder "resnet5O". Did you mean resnet50')
    assert sentence.endswith("See: zoo list encoders")
    assert len(sentence) < 240
    assert "weights: a1_in1k" in listing.unknown_encoder("resnet34.a1_in1k")


def test_imagenet_is_a_tag_and_licences_are_stated() -> None:
    info = listing.info("resnet34")
    assert info.imagenet == "a1_in1k"
    assert info.weights["a1_in1k"].licence == "apache-2.0"
    assert info.weights["a1_in1k"].download == (
        "https://huggingface.co/timm/resnet34.a1_in1k/resolve/main/model.safetensors"
    )


def test_the_tool_writes_what_is_committed(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("encoder_list", root / "tools" / "encoder_list.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    entries, refused = tool.read(listing.FILE)
    failures: dict[str, str] = {}
    for name, entry in tool.timm_entries(["test_resnet", "test_vit", "test_maxvit"], failures).items():
        assert {k: v for k, v in entries[name].items() if k not in ("weights", "imagenet")} == {
            k: v for k, v in entry.items() if k not in ("weights", "imagenet")
        }
    assert list(failures) == ["test_maxvit"]
    assert not set(entries) & set(refused)
