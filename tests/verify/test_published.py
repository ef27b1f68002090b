"""The published cases hold, and a fault in the product turns one red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo as package
from zoo import paths
from zoo.families.base import Family
from zoo.verify.read import find
from zoo.verify.run import Report, verify

SYSTEMS = ("cerberus", "kimianet")


def cases() -> list[Any]:
    """Return the cases of the systems tested here; one that skips where there are none."""
    root = paths.parity_root()
    found = [m for system in SYSTEMS if root and (root / system).is_dir() for _, m in find([str(root / system)])]
    if not found:
        reason = "the published cases are not on this machine (set ZOO_PARITY)"
        return [pytest.param(Path(), marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in found]


@pytest.mark.parametrize("manifest", cases())
def test_a_published_case(manifest: Path) -> None:
    report = verify(str(manifest), manifest)
    assert report.ok, f"{report.line()}\n{dict(report.errors)}"


@pytest.fixture
def run() -> Callable[[str], Report]:
    """Verify a case by name."""
    if paths.parity_root() is None:
        pytest.skip("the published cases are not on this machine (set ZOO_PARITY)")
    return lambda name: verify(*find([name])[0])


def test_a_flipped_padding_is_found(run: Callable[[str], Report], monkeypatch: pytest.MonkeyPatch) -> None:
    create = package.create

    def faulty(family: str, **options: Any) -> Family:
        made = create(family, **options)
        convolution = next(m for m in made.decoders.modules() if isinstance(m, torch.nn.Conv2d))  # type: ignore[union-attr]
        convolution.padding_mode, convolution._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]
        return made

    sound = run("cerberus/resnet34_dense")
    monkeypatch.setattr(package, "create", faulty)
    report = run("cerberus/resnet34_dense")
    assert not report.ok
    assert report.errors["out.Gland-INST"] > 1e-4
    assert report.errors["out.feature.stage4"] == sound.errors["out.feature.stage4"]  # it lies before the fault


def test_swapped_channels_are_found(run: Callable[[str], Report], monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Family.prepare
    monkeypatch.setattr(Family, "prepare", lambda self, inputs: prepare(self, {"image": inputs["image"].flip(1)}))
    assert not run("cerberus/resnet34_dense").ok


@pytest.mark.parametrize(
    ("case", "target", "fault"),
    [
        (
            "cerberus/postproc_nuclei",
            "zoo.families.cerberus.objects.CROSS",
            torch.ones(3, 3, dtype=torch.uint8).numpy(),
        ),
        ("cerberus/postproc_gland", "zoo.families.cerberus.objects.smallest", lambda rule, factor: rule.min_size + 1),
        ("cerberus/targets", "zoo.families.cerberus.targets.REACH", 9),
        ("cerberus/loss_segmentation", "zoo.families.cerberus.losses.SMOOTH", 1.0),
    ],
)
def test_small_faults_are_found(
    run: Callable[[str], Report], monkeypatch: pytest.MonkeyPatch, case: str, target: str, fault: Any
) -> None:
    assert run(case).ok
    monkeypatch.setattr(target, fault)
    assert not run(case).ok


def test_a_manifest_without_tensors(run: Callable[[str], Report], tmp_path: Path) -> None:
    """The released layout, 558 entries, by names and shapes: one more, one less or one of another shape fails."""
    import json

    root = paths.parity_root()
    assert root is not None
    values = json.loads((root / "cerberus" / "resnet34_dense.json").read_text(encoding="utf-8"))
    assert len(values["state_dict"]) == 558

    def report(**changes: Any) -> Report:
        state = {k: v for k, v in (values["state_dict"] | changes).items() if v}
        (tmp_path / "layout.json").write_text(json.dumps(values | {"state_dict": state}), encoding="utf-8")
        return verify("layout", tmp_path / "layout.json")

    assert report().ok
    key = "decoder_head.Nuclei#TYPE.0.block.0.conv.weight"
    assert not report(**{key: None}).ok
    assert not report(**{key: {"shape": [256, 256, 5, 5], "dtype": "float32"}}).ok
    assert not report(**{"backbone.layer1.3.conv1.weight": {"shape": [64, 64, 3, 3], "dtype": "float32"}}).ok
    assert not report(**{"backbone.fc.weight": {"shape": [10, 512], "dtype": "float32"}}).ok
