"""The parts of diffusion: what is kept by content, class maps as planes, embeddings of cells, hidden conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.cards import DatasetCard, dataset_card
from zoo.data.datasets import open_dataset
from zoo.encoders import build_encoder
from zoo.errors import DataError, Problems, UserError
from zoo.families import build
from zoo.families.diffusion import conditions
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.kept import Kept, identity
from zoo.families.diffusion.networks.pixel import PixelUNet
from zoo.families.diffusion.options import MaskOptions
from zoo.families.diffusion.procedure import Denoising
from zoo.types import Batch, Geometry, Instances, Meta, Sample, Vector

NETWORK = {"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1, 2]}}
MASK = {"truth": "nuclei", "classes": ["background", "nucleus"]}


def made(**options: Any) -> Diffusion:
    torch.manual_seed(0)
    return cast(Diffusion, build.create("diffusion", {"network": NETWORK, "mask": MASK, **options}))


# --- kept by content --------------------------------------------------------------------------------------------------


def third(x: Tensor) -> Tensor:
    return x.float() / 3


def test_fresh_remembered_and_stored_values_are_the_same_to_the_bit(tmp_path: Path) -> None:
    pictures = torch.randn(3, 2, 4, 4)
    first = Kept("disk", tmp_path)
    fresh = first.of("k", pictures, third)
    remembered = first.of("k", pictures[[2, 0]], third)
    second = Kept("disk", tmp_path)
    stored = second.of("k", pictures, lambda x: pytest.fail("computed again"))
    assert torch.equal(fresh, stored)
    assert torch.equal(fresh[[2, 0]], remembered)
    assert torch.equal(Kept("none").of("k", pictures, third), fresh)
    assert (first.hits, first.misses, second.hits) == (2, 3, 3)
    torch.testing.assert_close(fresh, pictures / 3, rtol=1e-3, atol=1e-3)


def test_other_content_another_network_and_a_damaged_file_are_computed(tmp_path: Path) -> None:
    pictures = torch.zeros(1, 2)
    kept = Kept("disk", tmp_path)
    kept.of("a", pictures, third)
    kept.of("a", pictures.double(), third)
    kept.of("b", pictures, third)
    assert kept.misses == 3
    for path in tmp_path.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-3])
    again = Kept("disk", tmp_path)
    again.of("a", pictures, third)
    assert again.misses == 1
    assert Kept("disk", tmp_path).of("a", pictures, third).tolist() == [[0, 0]]


def test_what_does_not_fit_is_forgotten_and_a_full_disk_costs_the_cache_only(tmp_path: Path) -> None:
    kept = Kept("memory", limit=3 * 2 * 2)
    for value in range(5):
        kept.of("k", torch.full((1, 2), float(value)), third)
    assert (len(kept.memory), kept.used) == (3, 12)
    (tmp_path / "file").write_text("no folder")
    full = Kept("disk", tmp_path / "file")
    assert full.of("k", torch.ones(1, 2), third).shape == (1, 2)
    assert full.folder is None


def test_a_networks_identity_is_its_weights() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert identity(one) == identity(one)
    assert len({identity(one), identity(other), identity(one, "4")}) == 3


# --- class maps -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 4), st.integers(0, 2**31))
def test_planes_against_a_slow_twin(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.choice([*range(count), conditions.HIDDEN], (2, 3, 4))
    edge = rng.integers(0, 2, (2, 3, 4))
    found = conditions.planes(torch.from_numpy(classes), torch.from_numpy(edge), count).numpy()
    for b, y, x in np.ndindex(2, 3, 4):
        told = classes[b, y, x]
        expected = [float(told == k) for k in range(count)] + [float(edge[b, y, x] and told != conditions.HIDDEN)]
        assert found[b, :, y, x].tolist() == expected


def test_targets_of_a_dataset() -> None:
    card = dataset_card("phantom-nuclei")
    options = Diffusion.resolve(Diffusion.Options.model_validate({"network": NETWORK, "mask": {}}), [card])
    assert options.mask is not None
    assert options.mask.classes == ("background", "epithelial", "lymphocyte", "fibroblast")
    maker = conditions.make_targets(options, card)
    sample = open_dataset("phantom-nuclei", split="test", limit=1, arguments={"size": 64})[0]
    told = maker(sample)
    truth = sample.truth["nuclei"]
    assert isinstance(truth, Instances)
    assert np.array_equal(told["mask"] > 0, truth.map > 0)
    for y, x in np.ndindex(64, 64):
        around = truth.map[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert told["edge"][y, x] == (truth.map[y, x] > 0 and bool((around != truth.map[y, x]).any()))
    hidden = maker.blank((4, 4))
    assert (hidden["mask"] == conditions.HIDDEN).all()


def two_truths() -> DatasetCard:
    card = dataset_card("phantom-nuclei")
    both = {"nuclei": card.truths["nuclei"], "glands": card.truths["nuclei"]}
    return card.model_copy(update={"truths": both})


def test_truths_that_do_not_fit_are_said() -> None:
    card = dataset_card("phantom-nuclei")
    with pytest.raises(ValueError, match=r'no instances truth "cells". It has nuclei .instances.'):
        conditions.resolve_mask(MaskOptions(truth="cells"), [card])
    with pytest.raises(ValueError, match=r"several truths: nuclei, glands. Choose one with model.mask.truth"):
        conditions.resolve_mask(MaskOptions(), [two_truths()])
    with pytest.raises(ValueError, match=r"nothing for the class .tumour."):
        conditions.resolve_mask(MaskOptions(truth="nuclei", classes=("background", "tumour", "b")), [card])
    with pytest.raises(ValueError, match="the classes are not known"):
        conditions.resolve_mask(MaskOptions(), [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "pixel-unnet"}, 'no network "pixel-unnet". Did you mean pixel-unet'),
        ({"network": {"name": "pixel-unet", "arguments": {"featurs": 8}}}, 'has no argument "featurs"'),
        ({"network": "pixcell"}, "the network pixcell takes no mask. Remove model.mask"),
        ({"embedding": {}}, "embedding has neither a width nor a condition_encoder"),
        ({"embedding": {"tokens": 3, "width": 4}}, "tokens: 3 make no square grid"),
        ({"setting": "latent"}, "setting latent has no first_stage"),
        ({"mask": {**MASK, "told": "latent"}}, "mask.told: latent needs a first_stage"),
        (
            {"embedding": {"width": 7}, "condition_encoder": "mobilenetv3_small_050"},
            "embedding.width: 7, but mobilenetv3_small_050 gives 288 numbers",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises((UserError, Problems, ValueError), match=words):
        build.create("diffusion", {"network": NETWORK, "mask": MASK, **options})


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 5])
def test_a_grid_of_embeddings_is_that_of_its_cells(side: int) -> None:
    assert 4 < conditions.CELLS < 25  # seen together, and in two groups
    torch.manual_seed(0)
    encoder = build_encoder("mobilenetv3_small_050", weights="none").eval()
    pictures = torch.rand(2, 3, 32 * side, 48 * side)
    grid = conditions.embed(encoder, pictures, side**2)
    corners = [(y * 32, x * 48) for y in range(side) for x in range(side)]
    cells = [pictures[:, :, y : y + 32, x : x + 48] for y, x in corners]
    alone = torch.cat([conditions.embed(encoder, cell) for cell in cells], 1)
    torch.testing.assert_close(grid, alone)


def test_an_untrained_encoder_is_the_same_everywhere() -> None:
    options = made(mask=None, embedding={}, condition_encoder="mobilenetv3_small_050", condition_encoder_weights="none")
    picture = torch.rand(1, 3, 32, 32)
    torch.manual_seed(5)
    one = options.embedding_of(picture)
    torch.manual_seed(6)
    other = made(mask=None, embedding={}, condition_encoder="mobilenetv3_small_050", condition_encoder_weights="none")
    assert torch.equal(one, other.embedding_of(picture))
    assert torch.equal(other.embedding_of(picture, Kept("memory")).half(), one.half())


# --- training ---------------------------------------------------------------------------------------------------------


def batch(count: int, has: bool = True) -> Batch:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (count, 3, 16, 16), dtype=np.uint8))
    mask = torch.from_numpy(rng.integers(0, 2, (count, 16, 16), dtype=np.uint8))
    meta = [Meta(f"{k}", "d", Geometry((16, 16))) for k in range(count)]
    told = torch.full((count,), has)
    return Batch({"image": image}, {"mask": mask, "edge": mask}, {"mask": told, "edge": told}, meta=meta)


def test_conditions_are_hidden_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    family = made(dropout=0.25)
    seen: list[Tensor] = []
    monkeypatch.setattr(
        family.network, "forward", lambda x, t, told: seen.append(told["mask"].flatten(1).sum(1) == 0) or x
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        family.terms(batch(16), generator)
    assert abs(float(torch.cat(seen).float().mean()) - 0.25) < 0.05
    seen.clear()
    family.terms(batch(16), generator, spread=True)
    assert not torch.cat(seen).any()


def test_pictures_without_truth_teach_what_is_drawn_untold() -> None:
    family = made()
    told = family.condition(family.inputs_of(batch(2, has=False)))
    assert float(told["mask"].abs().sum()) == 0
    assert set(family.terms(batch(2, has=False), torch.Generator())) == {"error"}


def test_padding_costs_nothing() -> None:
    family = made()
    whole = batch(2)
    whole.valid = torch.ones(2, 16, 16, dtype=torch.bool)
    whole.valid[:, 8:] = False
    torch.nn.init.normal_(family.network.head[-1].weight, 0, 0.1)  # type: ignore[union-attr,arg-type,index]
    x = torch.zeros(2, 3, 16, 16)
    output = family._where_valid(x + 5, x, x + 1, torch.tensor([3, 900]), whole.valid)
    assert (output[:, :, :8] == 5).all()
    signal = family.schedule.alphas_cumprod[[3, 900]].sqrt().float()
    torch.testing.assert_close(output[:, 0, 8, 0], signal)


def test_a_validation_says_the_same_twice_and_covers_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    family, procedure = made(), Denoising("none")
    first = procedure.validation_loss(family, batch(4), 0.0)["total"]
    torch.rand(7)
    assert torch.equal(first, procedure.validation_loss(family, batch(4), 0.9)["total"])
    times: list[Tensor] = []
    monkeypatch.setattr(family.network, "forward", lambda x, t, told: times.append(t) or x)
    procedure.validation_loss(family, batch(4), 0.0)
    assert times[0].tolist() == [125, 375, 625, 875]


def test_an_unknown_cache_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r'cache: "disc" will not do. Expected none, memory or disk'):
        Denoising("disc")  # type: ignore[arg-type]


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_pixel_network_hears_everything_that_it_is_told() -> None:
    torch.manual_seed(0)
    network = PixelUNet(classes=2, width=5, tokens=1, features=8, multipliers=(1, 2)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    x, t = torch.randn(2, 3, 16, 24), torch.tensor([10, 500])
    told = {"mask": torch.rand(2, 2, 16, 24), "embedding": torch.randn(2, 1, 5)}
    with torch.no_grad():
        said = network(x, t, told)
        assert said.shape == x.shape
        for change in ({"mask": told["mask"].flip(3)}, {"embedding": -told["embedding"]}):
            assert float((network(x, t, told | change) - said).abs().mean()) > 1e-3
        assert float((network(x, t + 200, told) - said).abs().mean()) > 1e-3
        null = network.null(told)
        torch.testing.assert_close(network(x, t, null), network(x, t))
        torch.testing.assert_close(network(x[1:], t[1:], {k: v[1:] for k, v in told.items()}), said[1:])


def test_the_pixel_network_sees_where_each_cell_lies() -> None:
    torch.manual_seed(0)
    network = PixelUNet(width=5, tokens=4, features=8, multipliers=(1,), attention=False).eval()
    nn.init.normal_(network.head[-1].weight, 0, 0.3)  # type: ignore[arg-type]
    x, t, tokens = torch.randn(2, 3, 64, 64), torch.tensor([10, 500]), torch.randn(2, 4, 5)
    with torch.no_grad():
        said = network(x, t, {"embedding": tokens})
        moved = network(x, t, {"embedding": tokens[:, [1, 0, 2, 3]]})  # the mean is the same
        change = (moved - said).abs().mean((0, 1))
        assert float(change[:16].mean()) > 10 * float(change[-16:].mean()) > 0  # norms see the whole picture
        assert torch.equal(network(x, t, network.null({"embedding": tokens})), network(x, t))


def test_a_sample_of_a_wrong_vector_is_said() -> None:
    options = Diffusion.Options.model_validate({"network": NETWORK, "embedding": {"truth": "v", "width": 4}})
    maker = conditions.ConditionTargets(options, "d")
    sample = Sample("s", "d", np.zeros((3, 8, 8), np.uint8), truth={"v": Vector(np.zeros(5, np.float32))})
    with pytest.raises(DataError, match=r"d: s: v: 5 numbers. Expected a vector of 1 x 4 numbers"):
        maker(sample)
