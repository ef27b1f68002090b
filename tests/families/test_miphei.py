"""The family miphei: every network, losses, targets, calling, the published layouts."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tester import FamilyTester
from torch import Tensor

from zoo import paths
from zoo.cards import dataset_card
from zoo.errors import DataError, Problems, UserError
from zoo.families import build, score
from zoo.families.miphei import Miphei, published
from zoo.families.miphei.heads import Heads
from zoo.families.miphei.options import MipheiOptions
from zoo.families.miphei.targets import MarkerTarget
from zoo.metrics import calls
from zoo.types import Batch, Geometry, Instances, Picture, PicturePrediction, Sample
from zoo.verify.run import verify
from zoo.weights.convert import Files

VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "arguments": {"img_size": 64, "depth": 4, "embed_dim": 24, "num_heads": 3, "tune": "lora"},
}
CNN: dict[str, Any] = {"name": "resnet10t", "arguments": {"out_indices": [0, 1, 2, 3]}}


def tiny(**changes: Any) -> dict[str, Any]:
    """Return the tiny encoder with other arguments."""
    known = {**Miphei.tiny()["encoder"]["arguments"], **changes}
    if known["tune"] != "lora":
        del known["rank"]
    return {"name": "vit_tiny_patch16_224", "arguments": known}


class TestMiphei(FamilyTester):
    family = "miphei"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "unetr": {"network": "unetr", "encoder": VIT, "objective": ["mae", "edge", "total_variation"]},
        "cnn": {"network": "unetr", "encoder": CNN, "picture_stream": True},
        "unet": {
            "network": "unet",
            "encoder": {
                "name": "convnext_atto",
                "arguments": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "layer_decay": 0.65},
            },
            "widths": [16, 8, 8, 8, 8],
            "objective": [{"name": "focal_l1", "weight": 50}, "l1_l2"],
        },
        "hemit": {
            "network": "hemit",
            "hemit": {
                "width": 8,
                "blocks": 1,
                "patch": 8,
                "window": 8,
                "dim": 12,
                "depths": [1, 1, 1, 1],
                "heads": [1, 1, 2, 2],
                "k": 50,
            },
            "objective": ["shrinkage", "weighted_mae"],
            "normalise": "half",
        },
        "adversarial": {
            "discriminator": {"width": 4, "layers": 2, "sees": "structural"},
            "encoder": tiny(tune="frozen"),
        },
        "cells": {
            "objective": ["mse", {"name": "cell_mse", "weight": 50}],
            "cells": "cells",
            "encoder": tiny(tune="full"),
        },
        "foreground": {"foreground_head": True, "objective": ["mse", "foreground_focal"]},
    }


def made(**options: Any) -> Miphei:
    torch.manual_seed(0)
    return cast(Miphei, build.create("miphei", {**Miphei.tiny(), **options}))


# --- published --------------------------------------------------------------------------------------------------------


def test_published_cases() -> None:
    root = paths.parity_root()
    if root is None or not (root / "miphei-vit").is_dir():
        pytest.skip("the published cases are not on this machine (set ZOO_PARITY)")
    reports = [verify(path.stem, path) for path in sorted((root / "miphei-vit").glob("*.json"))]
    assert len(reports) >= 29
    assert not [report.line() for report in reports if not report.ok]


def published_names(family: Miphei) -> dict[str, Tensor]:
    """Return a MIPHEI-ViT's state dict under the names of the published code."""
    found = {}
    for name, value in family.state_dict().items():
        new = name.replace("network.encoder.net.", "encoder.vit.").replace(
            "network.detail.", "decoder.convstream.convs."
        )
        new = new.replace("network.fusion.", "decoder.fusion_blks.")
        new = re.sub(r"network\.heads\.(\d+)\.", r"decoder.segmentation_head_\1.", new)
        new = new.replace(".qkv.parametrizations.weight.original", ".qkv.qkv.weight").replace(
            ".qkv.bias", ".qkv.qkv.bias"
        )
        layer, change, part = new.partition(".parametrizations.weight.0.")
        if change:
            letter = "A" if part == "down" else "B"
            found |= {f"{layer}.lora_{qv}.{letter}": value[i].T.contiguous() for i, qv in enumerate("qv")}
        else:
            found[new] = value
    return found


def moved(family: Miphei) -> Miphei:
    with torch.no_grad():
        for number, parameter in enumerate(family.parameters()):
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return family


def paint(family: Miphei) -> Tensor:
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return family.values(family.forward({"image": image}))


def test_a_pruned_file_goes_on_top_of_the_encoders_own_weights(tmp_path: Path) -> None:
    """The published file has no weights of the encoder; the encoder's own are filled in from theirs."""
    family = moved(made())
    names = published_names(family)
    own = {
        n.removeprefix("encoder.vit."): v
        for n, v in names.items()
        if n.startswith("encoder.vit.") and ".lora_" not in n
    }
    own = {n.replace(".qkv.qkv.", ".qkv."): v for n, v in own.items()}
    save_file(own, tmp_path / "encoder.safetensors")
    pruned = {n: v for n, v in names.items() if not n.startswith("encoder.vit.") or ".lora_" in n}
    assert len(pruned) < len(names)
    save_file(pruned, tmp_path / "model.safetensors")
    said = {k: v for k, v in Miphei.tiny().items() if k not in ("markers", "encoder")}
    files = Files(tmp_path, tmp_path / "model.safetensors")
    converted = published.from_files(
        files,
        markers=family.markers,
        encoder=Miphei.tiny()["encoder"],
        encoder_weights=str(tmp_path / "encoder.safetensors"),
        **said,
    )
    again = cast(Miphei, build.create(converted.family, build.without_downloads(converted.options)))
    again.load_state_dict(dict(converted.tensors), strict=True)
    torch.testing.assert_close(paint(again), paint(family))
    with pytest.raises(UserError, match="no weights of the encoder"):
        published.from_files(files, markers=family.markers, encoder=Miphei.tiny()["encoder"], **said)
    pruned.pop("decoder.fusion_blks.0.conv.conv.weight")
    with pytest.raises(UserError, match=r"lacks network\.fusion\.0\.conv\.conv\.weight"):
        published.on_top(family.state_dict(), published.convert(pruned))


def test_a_checkpoint_brings_what_calls_cells(tmp_path: Path) -> None:
    family = moved(made())
    state = {f"generator.{n}": v for n, v in published_names(family).items()}
    state |= {"logreg_layer.weight": torch.eye(2), "logreg_layer.bias": torch.tensor([-1.0, 2.0])}
    state["discriminator.model.0.bias"] = torch.zeros(4)
    torch.save({"state_dict": state}, tmp_path / "model.weights.ckpt")
    said = {k: v for k, v in Miphei.tiny().items() if k not in ("markers", "encoder")}
    files = Files(tmp_path, tmp_path / "model.weights.ckpt")
    converted = published.from_files(files, markers=family.markers, encoder=Miphei.tiny()["encoder"], **said)
    again = cast(Miphei, build.create(converted.family, converted.options))
    again.load_state_dict(dict(converted.tensors), strict=True)
    torch.testing.assert_close(paint(again), paint(family))
    assert again.options.calling is not None
    assert again.options.calling.markers == ("CD3e", "Pan-CK")  # not the nuclear stain
    assert again.options.calling.bias == (-1.0, 2.0)
    with pytest.raises(UserError, match="all but the nuclear stain"):
        published.calling_of(torch.eye(3), torch.zeros(3), family.markers)


def test_sizes_of_the_published_model() -> None:
    """1141.58 million parameters, of which 6.698 million learn (section 2.6 of the facts; counted there)."""
    encoder = {
        "name": "vit_giant_patch14_reg4_dinov2",
        "arguments": {"img_size": 256, "init_values": 1e-5, "tune": "lora"},
    }
    options = {"encoder": encoder, "markers": [f"marker {i}" for i in range(16)]}
    with torch.device("meta"):
        family = build.create("miphei", options)
    assert sum(p.numel() for p in family.parameters()) == 1141576432
    assert sum(p.numel() for p in family.parameters() if p.requires_grad) == 6697712


# --- values, targets, statistics --------------------------------------------------------------------------------------


def test_values_go_there_and_back() -> None:
    """0 is -0.9, full scale is 0.9; what the network paints comes back in the units of the picture, truncated."""
    family = made(full_scale=[255, 255, 1000.0], dtype="uint16")
    planes = torch.tensor([0.0, 255.0, 500.0]).view(1, 3, 1, 1)
    encoded = family.encoded(planes)
    torch.testing.assert_close(encoded.flatten(), torch.tensor([-0.9, 0.9, 0.0]))
    raw = {"picture": 2 * torch.atanh(torch.tensor([-0.95, 0.95, 0.0])).view(1, 3, 1, 1).expand(1, 3, 2, 2)}
    torch.testing.assert_close(family.values(raw)[0, :, 0, 0], torch.tensor([-0.95, 0.95, 0.0]))
    picture = cast(PicturePrediction, family.decode(family.activate(raw), [Geometry((2, 2))])[0]["markers"])
    assert picture.data.dtype == np.uint16
    assert picture.data[:, 0, 0].tolist() == [0, 255, 500]
    assert picture.channels == family.markers


def sample(channels: tuple[str, ...] = ("Hoechst", "CD3e", "Pan-CK"), dtype: Any = np.uint8, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 200, (len(channels), 32, 32)).astype(dtype)
    image = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    return Sample("s", "d", image, truth={"mif": Picture(data, channels, encoding="linear")})


def options(**changes: Any) -> MipheiOptions:
    return MipheiOptions.model_validate({**Miphei.tiny(), **changes})


def test_targets_know_which_markers_a_sample_carries() -> None:
    maker = MarkerTarget("mif", None, ("CD3e", "SMA"), "uint8")
    one = sample()
    found = maker(one)
    assert found["known"].tolist() == [True, False]
    truth = cast(Picture, one.truth["mif"])
    assert np.array_equal(found["markers"][0], truth.data[1])
    assert not found["markers"][1].any()
    assert maker(one.with_(truth={})) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": ("Hoechst", "CD3e")}, "3 planes, but 2 channels have names"),
        ({"data": np.zeros((3, 8, 8), np.uint8)}, r"\(8, 8\) pixels. Expected those of the image"),
        ({"channels": ("a", "b", "c")}, r"none of the markers Hoechst, CD3e, Pan-CK \(it has a, b, c\)"),
    ],
)
def test_pictures_that_do_not_fit_are_told_in_one_sentence(change: dict[str, Any], words: str) -> None:
    one = sample()
    truth = replace(cast(Picture, one.truth["mif"]), **change)
    with pytest.raises(DataError, match=words):
        MarkerTarget("mif", None, ("Hoechst", "CD3e", "Pan-CK"), "uint8")(one.with_(truth={"mif": truth}))


def test_statistics_are_measured_on_training_pictures() -> None:
    samples = [sample(seed=1), sample(("CD3e", "Pan-CK", "Hoechst"), seed=2)]
    found = Miphei.derive(options(normalise="dataset"), samples)
    assert found.statistics is not None
    planes = np.stack([cast(Picture, samples[0].truth["mif"]).data[1], cast(Picture, samples[1].truth["mif"]).data[0]])
    assert found.statistics.std[1] == pytest.approx(planes.std(), abs=1e-5)
    assert found.statistics.foreground[1] == pytest.approx((planes > 0).mean(), abs=1e-5)
    assert found.full_scale == (255.0, 255.0, 255.0)
    assert found.dtype == "uint8"
    images = np.concatenate([s.image.reshape(3, -1) for s in samples], 1) / 255
    assert found.mean == pytest.approx(tuple(images.mean(1)), abs=1e-5)
    assert found.std == pytest.approx(tuple(images.std(1)), abs=1e-5)
    assert made(**found.model_dump(include={"mean", "std", "normalise"})).spec.encoding.mean == found.mean
    assert Miphei.derive(found, []) == found  # nothing is measured twice


def test_pictures_of_16_bits_get_a_full_scale_each() -> None:
    one = sample(dtype=np.uint16)
    data = cast(Picture, one.truth["mif"]).data
    data[1] *= 100
    found = Miphei.derive(options(), [one])
    assert found.dtype == "uint16"
    assert found.full_scale == pytest.approx([np.percentile(p, 99.9) for p in data], rel=1e-3)
    with pytest.raises(ValueError, match="hold uint16 and uint8"):
        Miphei.derive(options(), [one, sample()])
    with pytest.raises(ValueError, match='no training picture carries "SMA"'):
        Miphei.derive(options(markers=["Hoechst", "SMA"]), [sample()])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"markers": []}, "no marker. Expected at least one"),
        ({"markers": ["SMA", "SMA"]}, 'the marker "SMA" stands there twice'),
        ({"full_scale": [255.0]}, "full_scale has 1 numbers and there are 3 markers"),
        ({"objective": ["weighted_mea"]}, 'no term "weighted_mea". Did you mean weighted_mse, weighted_mae'),
        ({"objective": [{"name": "mse", "arguments": {"threshold": 1}}]}, 'mse: unknown argument "threshold"'),
        ({"markers": ["CD3e"], "discriminator": {"sees": "structural"}}, "none of `structural` is among the markers"),
        ({"network": "unet"}, "has patches and no pyramid"),
        ({"network": "unetr"}, "2 blocks. Expected 4 or more"),
        ({"network": "hemit", "tile": 100}, "100 px will not do. Expected a multiple of 256"),
        ({"markers": None}, "no marker to paint"),
        ({"objective": ["foreground_focal"]}, "a head that is not there. Expected foreground_head: true"),
        ({"network": "hemit", "foreground_head": True}, "the network hemit has no heads"),
        ({"objective": ["cell_cluster"], "clusters": "AAA="}, "clusters: 1 numbers. Expected 4"),
    ],
)
def test_mistakes_are_told_in_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, Problems), match=words) as caught:
        made(**change)
    assert len(str(caught.value).strip().splitlines()) == 1


def test_a_marker_that_no_card_has() -> None:
    card = dataset_card("phantom-mif")
    with pytest.raises(ValueError, match=r'no marker "CD3" on the card of phantom-mif. Did you mean CD3e'):
        Miphei.resolve(options(markers=["Hoechst", "CD3"]), [card])
    with pytest.raises(ValueError, match=r'no marker "DAPI" on the card of phantom-mif. Known: Hoechst, CD31, .*SMA$'):
        Miphei.resolve(options(markers=["DAPI"]), [card, card])
    found = Miphei.resolve(MipheiOptions(), [card])
    assert found.markers == card.truths["mif"].channels
    assert (found.truth, found.cells, found.positive_from) == ("mif", "cells", 0.15)


# --- training ---------------------------------------------------------------------------------------------------------


def test_rates_fall_towards_the_input_as_published() -> None:
    """0.65 ** (L + 1 - id): id 0 for patches and positions, i + 1 for block i, L + 1 for all else."""
    family = made(encoder=tiny(tune="full", layer_decay=0.65))
    scales = {id(p): g["lr_scale"] for g in cast(list[dict[str, Any]], family.groups()) for p in g["params"]}
    net = cast(Any, family.network).encoder.net
    expected = {net.patch_embed.proj.weight: 3, net.pos_embed: 3, net.blocks[0].attn.qkv.weight: 2}
    expected |= {net.blocks[1].mlp.fc1.weight: 1, net.norm.weight: 0}
    for parameter, power in expected.items():
        assert scales[id(parameter)] == pytest.approx(0.65**power)


def test_only_adapters_and_decoder_learn() -> None:
    family = made()
    learns = {n for n, p in family.named_parameters() if p.requires_grad and n.startswith("network.encoder.")}
    assert learns
    assert all(".parametrizations.weight.0." in n for n in learns)
    frozen = made(encoder=tiny(tune="frozen"))
    assert not [n for n, p in frozen.named_parameters() if p.requires_grad and n.startswith("network.encoder.")]


def test_a_structural_discriminator_sees_structural_markers_only() -> None:
    family = made(discriminator={"width": 4, "layers": 2, "sees": "structural"})
    assert [family.markers[i] for i in family.seen_markers] == ["Hoechst", "Pan-CK"]
    assert cast(Any, family.judge).enc[0].weight.shape[1] == 5


def test_odd_sides_and_patches_of_14() -> None:
    encoder = {
        "name": "vit_small_patch14_dinov2",
        "arguments": {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 98},
    }
    family = made(encoder=encoder)
    for size in ((50, 71), (97, 130), (16, 16)):
        with torch.inference_mode():
            maps = family.forward({"image": torch.randn(1, 3, *size)}, ["encoder.features"])
        assert tuple(maps["picture"].shape[2:]) == size
        assert tuple(maps["encoder.features"].shape[2:]) == tuple(-(-n // 16) for n in size)


def test_calling_is_fitted_on_validation_cells() -> None:
    """Cells whose predicted means tell what they carry are called right by what calibration stores."""
    family = made(cells="cells", positive_from=0.5, full_scale=[255.0] * 3, dtype="uint8")
    labels = np.zeros((64, 64), np.int32)
    for number in range(36):
        row, column = divmod(number, 6)
        labels[10 * row : 10 * row + 6, 10 * column : 10 * column + 6] = number + 1
    carries = {n: np.array([1, n % 2, (n // 2) % 2], np.float32) for n in range(1, 37)}
    cells = Instances(labels, values=carries, value_names=("Hoechst", "CD3e", "Pan-CK"))
    unit = np.stack([sum(0.6 * carries[n][k] * (labels == n) for n in carries) for k in range(3)]) + 0.2
    one = Sample("s", "d", np.zeros((3, 64, 64), np.uint8), truth={"cells": cells})
    place = Geometry((64, 64))
    found = family.calibrate([one], lambda _: ({"picture": torch.tensor(unit, dtype=torch.float32)[None]}, place))
    assert found is not None
    assert found.calling is not None
    assert found.calling.markers == ("CD3e", "Pan-CK")
    means = np.array([[255 * (0.1 + 0.8 * (a * 0.75 + 0.1)), 255 * 0.2] for a in (0.0, 1.0)])
    p = calls.called(means, found.calling.channels, found.calling.model_dump())
    assert p[0, 0] < 0.5 < p[1, 0]
    assert family.calibrate([one.with_(truth={})], lambda _: ({}, place)) is None


def marked(count: int = 36, seed: int = 0) -> Sample:
    """A field of nuclei whose brightness in each marker tells, with some noise, what they carry."""
    rng = np.random.default_rng(seed)
    nuclei = np.zeros((64, 64), np.int32)
    for number in range(count):
        row, column = divmod(number, 6)
        nuclei[10 * row : 10 * row + 6, 10 * column : 10 * column + 6] = number + 1
    carries = {n: rng.integers(0, 2, 3).astype(np.float32) for n in range(1, count + 1)}
    planes = np.zeros((3, 64, 64), np.uint8)
    for n, values in carries.items():
        planes[:, nuclei == n] = (40 + 120 * values + rng.uniform(-10, 10, 3))[:, None].astype(np.uint8)
    names = ("Hoechst", "CD3e", "Pan-CK")
    truth = {"mif": Picture(planes, names), "cells": Instances(nuclei, values=carries, value_names=names)}
    return Sample(str(seed), "d", np.zeros((3, 64, 64), np.uint8), truth=truth)


def test_the_network_of_clusters_is_fitted_on_training_cells_and_stands_in_the_options() -> None:
    said = options(objective=["mse", "cell_cluster"], cells="cells", positive_from=0.5)
    found = Miphei.derive(said, [marked(seed=s) for s in range(3)])
    assert found.clusters is not None
    assert Miphei.derive(said, [marked(seed=s) for s in range(3)]).clusters == found.clusters
    family = Miphei(MipheiOptions.model_validate(found.model_dump()))
    assert family.clusters is not None
    assert not any(p.requires_grad for p in family.clusters.parameters())
    field = marked(seed=9)
    cells, picture = field.truth["cells"], field.truth["mif"]
    assert isinstance(cells, Instances)
    assert isinstance(picture, Picture)
    assert cells.values is not None
    ids, means = calls.means(picture.data, cells.map)
    with torch.no_grad():
        positive = family.clusters(torch.tensor(means, dtype=torch.float32)) > 0
    carried = np.array([cells.values[int(i)] for i in ids])[:, 1:] > 0.5  # the nuclear stain is not asked
    assert (positive.numpy() == carried).mean() > 0.97
    with pytest.raises(ValueError, match="0 training nuclei carry a value for each marker"):
        Miphei.derive(said, [marked().with_(truth={"mif": picture})])
    with pytest.raises(UserError, match="its network is not fitted"):
        made(objective=["cell_cluster"])._given(Batch({}, {}), {}, torch.zeros(1, 3, 8, 8))


def test_the_clusters_of_painted_nuclei_are_pulled_to_those_of_true_ones() -> None:
    said = options(objective=["cell_cluster"], cells="cells", positive_from=0.5)
    family = Miphei(Miphei.derive(said, [marked(seed=s) for s in range(3)]))
    field = marked(seed=9)
    maker = Miphei.targets(family.options, dataset_card("phantom-mif"))
    targets = {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in maker(field).items()}
    batch = Batch({"image": torch.zeros(1, 3, 64, 64)}, cast(Any, targets))
    target = family.encoded(targets["markers"])
    picture = (2 * torch.atanh(target.clamp(-0.89, 0.89).flip(1))).requires_grad_()  # as the wrong markers
    before = family.loss({"picture": picture}, batch, 0.0)["cell_cluster"]
    assert float(before.detach()) > float(family.loss({"picture": 2 * torch.atanh(target)}, batch, 0.0)["cell_cluster"])
    (slope,) = torch.autograd.grad(before, picture)
    after = family.loss({"picture": (picture - 5 * slope / slope.abs().max()).detach()}, batch, 0.0)["cell_cluster"]
    assert float(after) < float(before.detach())


def test_a_foreground_is_learnt_and_changes_no_prediction() -> None:
    family = made(foreground_head=True, objective=["mse", "foreground_focal"]).train()
    field = marked()
    maker = Miphei.targets(family.options, dataset_card("phantom-mif"))
    targets = {k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in maker(field).items()}
    batch = Batch({"image": torch.rand(1, 3, 64, 64)}, cast(Any, targets))
    maps = family(batch.inputs)
    terms = family.loss(maps, batch, 0.0)
    head = cast(Any, family.network).heads
    (slope,) = torch.autograd.grad(terms["foreground_focal"], head.foreground.weight)
    assert bool((slope != 0).any())
    with torch.no_grad():
        found = family.eval().decode(family.activate(family(batch.inputs)), [Geometry((64, 64))])[0]
    assert set(found) == {"markers"}
    assert isinstance(found["markers"], PicturePrediction)
    assert found["markers"].data.shape == (3, 64, 64)


@pytest.mark.parametrize("gated", [True, False])
def test_heads_side_by_side_are_heads_one_by_one(gated: bool) -> None:
    torch.manual_seed(0)
    together = Heads(6, 3, gated).double().train()
    apart = copy.deepcopy(together)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    ours, theirs = together(x), torch.cat([head(x) for head in apart], 1)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, one), other in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for one, other in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    together.eval()
    torch.testing.assert_close(together(x), torch.cat([head(x) for head in apart.eval()], 1))


def test_what_a_dataset_without_the_markers_is_told() -> None:
    """No common channel is said once, before any image; cells are judged by the markers that both sides have."""
    family = made(markers=["Hoechst", "CD3e", "Pan-CK"])
    card = dataset_card("phantom-mif")
    picture, cells = score.tasks(family, card)
    assert (picture.kind, picture.truth) == ("picture", "mif")
    assert (cells.kind, cells.truth, cells.positive) == ("cells", "cells", 0.15)
    assert [m for m in cells.metrics if "@" in m] == ["cell_f1@CD3e", "cell_f1@Pan-CK"]
    assert "pearson@CD3e" in picture.metrics
    assert [t.kind for t in score.tasks(family, card, ["cell_f1"])] == ["cells"]
    other = made(markers=["CD99"])
    with pytest.raises(UserError, match=r"none of the channels CD99 \(it has Hoechst, CD31"):
        score.tasks(other, card)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Train, predict, bench: statistics are written down, cells are called, markers come out with their names."""
    import json

    import tifffile
    from PIL import Image

    from zoo.cli.main import main
    from zoo.data import open_dataset

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    arguments = {"size": 64, "um": 0.5, "channels": ["Hoechst", "CD45", "Pan-CK"], "difficulty": "easy"}
    model = {**Miphei.tiny(), "markers": ["Hoechst", "CD45", "Pan-CK"], "truth": None}
    loading = {"batch": 2, "workers": 0}
    data = {
        "train": {
            "datasets": [{"name": "phantom-mif", "arguments": {**arguments, "train": 4}}],
            "size": [64, 64],
            **loading,
        },
        "validate": {
            "datasets": [{"name": "phantom-mif", "split": "val", "arguments": {**arguments, "val": 8}}],
            **loading,
        },
    }
    train = {"epochs": 1, "monitor": "cell_auc", "pictures_every": 0, "threads": 1}
    recipe = {"zoo": 1, "name": "mif-tiny", "summary": "For a test.", "family": "miphei"}
    path = tmp_path / "mif-tiny.yaml"
    path.write_text(json.dumps({**recipe, "model": model, "data": data, "train": train}))
    run = tmp_path / "run"
    assert main(["train", str(path), f"output={run}"]) == 0
    resolved = (run / "recipe.yaml").read_text()
    assert "statistics" in resolved
    assert "positive_from: 0.15" in resolved
    family = cast(Miphei, build.load(run / "last.safetensors"))
    assert family.options.calling is not None
    assert family.options.calling.markers == ("CD45", "Pan-CK")
    sample = open_dataset("phantom-mif", split="test", arguments={**arguments, "test": 2})[0]
    Image.fromarray(np.moveaxis(sample.image, 0, -1)).save(tmp_path / "he.png")
    assert main(["predict", str(run), str(tmp_path / "he.png"), "--out", str(tmp_path / "p"), "--mpp", "0.5"]) == 0
    with tifffile.TiffFile(tmp_path / "p" / "he.picture.ome.tif") as file:
        assert file.series[0].shape == (3, 64, 64)
        assert 'Name="Pan-CK"' in str(file.ome_metadata)
    assert (tmp_path / "p" / "he.composite.png").is_file()
    words = ["--weights", str(run), "--datasets", "phantom-mif:test+test=2+size=64+difficulty=easy"]
    assert main(["bench", *words, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "b" / "results.json").read_text())["rows"]
    named = {(r["weights"], r["truth"]): r for r in rows}
    cells = next(
        r
        for (w, truth), r in named.items()
        if truth == "cells" and r["output"] == "markers" and w not in ("darkness", "random calls")
    )
    assert {"cell_f1", "cell_f1@CD45", "cell_auc", "cell_pearson"} <= set(cells["metrics"])
    assert ("random calls", "cells") in named
    assert ("darkness", "mif") in named
