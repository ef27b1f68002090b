"""Every family on a vision transformer: the shared tester, at a tiny configuration of a foundation encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from tester import FamilyTester
from torch import nn

import zoo
from zoo import registry
from zoo.nn.lora import merge_low_rank


def vit(neck: str, name: str = "uni2-h", **more: Any) -> dict[str, Any]:
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    return {"name": name, "arguments": {"neck": neck, **small, **more}}


OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {
        "encoder": vit("unetr"),
        "encoder_weights": "none",
        "decoder": {"name": "unet", "arguments": {"channels": [16, 8, 8, 8, 4]}},
    },
    "cerberus": {"encoder": vit("detail", "kaiko-vits16"), "encoder_weights": "none", "widths": [8, 8, 8, 8]},
    "stardist": {
        "backbone": "encoder",
        "encoder": vit("dpt", "virchow2"),
        "encoder_weights": "none",
        "decoder": {"widths": [8, 8, 8, 8], "features": 8},
    },
    "detr": {"encoder": vit("simple", "h0-mini"), "encoder_weights": "none"},
    "translation": {
        "generator": {"name": "encoder", "width": 4, "encoder": vit("detail", "phikon"), "encoder_weights": "none"},
        "features": {"layers": [1, 2], "width": 8, "patches": 8},
    },
}


def options_of(family: str, **changes: Any) -> dict[str, Any]:
    """Return a family's tiny options on a transformer; `changes` are arguments of the encoder."""
    found: dict[str, Any] = registry.get("family", family).tiny() | OPTIONS[family]
    if changes:
        where = found["generator"] if family == "translation" else found
        chosen = where["encoder"]
        changed = {"encoder": {**chosen, "arguments": {**chosen["arguments"], **changes}}}
        found = found | ({"generator": where | changed} if family == "translation" else changed)
    return found


class OnTransformer(FamilyTester):
    """The tester at one configuration instead of those of the family."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", [options_of(self.family)], ids=["vit"])

    def test_importing_it_has_no_side_effects(self) -> None:
        """Tested with the family itself."""


class TestUNet(OnTransformer):
    family: ClassVar[str] = "unet"


class TestCerberus(OnTransformer):
    family: ClassVar[str] = "cerberus"


class TestStarDist(OnTransformer):
    family: ClassVar[str] = "stardist"


class TestDetr(OnTransformer):
    family: ClassVar[str] = "detr"


class TestTranslation(OnTransformer):
    family: ClassVar[str] = "translation"


def encoder_of(family: nn.Module) -> Any:
    from zoo.encoders.base import Encoder

    return next(m for m in family.modules() if isinstance(m, Encoder))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_tuning_reaches_the_encoder_of_every_family(name: str) -> None:
    frozen = zoo.create(name, **options_of(name, tune="frozen"))
    assert not any(p.requires_grad for p in encoder_of(frozen).parameters())
    adapted = zoo.create(name, **options_of(name, tune="lora", rank=2))
    learning = [n for n, p in encoder_of(adapted).named_parameters() if p.requires_grad]
    assert learning
    assert all("parametrizations" in n for n in learning)
    decayed = zoo.create(name, **options_of(name, layer_decay=0.5))
    players = decayed.procedure().players(decayed)
    scales = {g["lr_scale"] for p in players.values() for g in p.groups or []}
    slowest, fastest = min(scales), max(scales)
    assert fastest / slowest >= 4  # two blocks and what stands before them
    grouped = [id(q) for p in players.values() for g in p.groups or [] for q in g["params"]]
    assert len(grouped) == len(set(grouped))


def test_an_adapted_model_survives_a_file_and_merges(tmp_path: Any) -> None:
    from zoo.families import build

    torch.manual_seed(0)
    model = zoo.create("unet", **options_of("unet", tune="lora", rank=2))
    for part_name, value in model.named_parameters():
        if part_name.endswith(".up"):
            nn.init.normal_(value, std=0.1)
    x = {"image": torch.rand(1, 3, 64, 64)}
    with torch.no_grad():
        before = model(x)["logits"]
        build.save(model, tmp_path / "m.safetensors")
        torch.testing.assert_close(zoo.load(tmp_path / "m.safetensors")(x)["logits"], before)
        merge_low_rank(model)
        torch.testing.assert_close(model(x)["logits"], before)
        build.save(model, str(tmp_path / "merged.safetensors"))
        plain = zoo.load(tmp_path / "merged.safetensors")
        torch.testing.assert_close(plain(x)["logits"], before)
    assert not any("parametrizations" in name for name in plain.state_dict())
    assert model.options.encoder.arguments["tune"] == "lora"  # type: ignore[attr-defined]
