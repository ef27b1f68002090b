"""The family translation: every objective and network, the published layouts, statistics of whole pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from tester import FamilyTester
from torch import Tensor

from zoo import cards, paths
from zoo.errors import DataError, ZooError
from zoo.families import build, score
from zoo.families.translation import Translation, published
from zoo.families.translation.model import PictureTarget
from zoo.families.translation.procedure import Adversarial, Pool, discriminator_terms, generator_terms
from zoo.families.translation.terms import TERMS, Pass, smallest
from zoo.nn.discriminators import SPECTRAL, MultiscaleDiscriminator, PatchDiscriminator
from zoo.schema import Component
from zoo.types import Batch, Picture, Sample
from zoo.verify.run import verify

SMALL: dict[str, Any] = {"generator": {"width": 4, "blocks": 1}, "initial": {"name": "torch"}, "truth": "ihc"}


class TestTranslation(FamilyTester):
    family = "translation"
    size = (64, 64)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cyclegan": {
            **SMALL,
            "paired": False,
            "discriminator": {"width": 4, "layers": 2, "norm": "none", "pool": 2},
            "objective": ["gan", {"name": "cycle", "weight": 10}, {"name": "identity", "weight": 5}],
        },
        "cut": {
            **SMALL,
            "discriminator": {"width": 4, "name": "multiscale", "layers": 1, "mode": "hinge", "penalty": "r1"},
            "features": {"layers": [0, 4, 8], "width": 8, "patches": 8},
            "objective": ["gan", "patch_nce", "identity_nce"],
            "flip_equivariance": True,
        },
        "pix2pix": {
            **SMALL,
            "generator": {"name": "unet", "width": 4, "downs": 5, "norm": "batch"},
            "discriminator": {"width": 4, "name": "pixel", "conditional": True, "norm": "batch", "mode": "vanilla"},
            "objective": ["gan", {"name": "l1", "weight": 100}, "perceptual"],
        },
        "encoder": {
            **SMALL,
            "generator": {"name": "encoder", "width": 4, "encoder": "mobilenetv3_small_050", "norm": "batch"},
            "discriminator": {"width": 4, "layers": 1, "mode": "wgangp", "penalty": "wgan-gp", "norm": "none"},
            "features": {"layers": [1, 2], "width": 8, "patches": 8},
            "objective": ["gan", "octaves", {"name": "supervised_nce", "weight": 2}],
        },
    }

    def batch(self, family: Any, B: int = 2) -> Batch:
        found = super().batch(family, B)
        if not family.options.paired:  # the other domain is a stream of its own
            found.others["target"] = Batch({"image": 255 - found.inputs["image"]})
        return found


def made(**options: Any) -> Translation:
    torch.manual_seed(0)
    return cast(Translation, build.create("translation", {**Translation.tiny(), **options}))


# --- published --------------------------------------------------------------------------------------------------------


def test_published_cases() -> None:
    root = paths.parity_root()
    if root is None or not (root / "asp").is_dir():
        pytest.skip("the published cases are not on this machine (set ZOO_PARITY)")
    reports = [verify(path.stem, path) for path in sorted((root / "asp").glob("*.json"))]
    assert len(reports) >= 16
    assert not [report.line() for report in reports if not report.ok]


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a generator's state dict under the names of the published code."""
    words = {new: old for old, new in SPECTRAL.items()}
    found = {}
    for name, value in state.items():
        for new, old in words.items():
            name = name.replace(new, old)
        found[name] = value
    return found


@pytest.mark.parametrize(
    "generator",
    [
        {"width": 4, "blocks": 6, "spectral": True},
        {"width": 4, "blocks": 9, "norm": "batch", "dropout": True, "antialias": False, "antialias_up": False},
        {"width": 4, "blocks": 4, "antialias": False},
        {"name": "unet", "width": 4, "downs": 7, "norm": "batch"},
    ],
    ids=["asp", "pyramidpix2pix", "mixed", "unet"],
)
def test_a_published_file_says_its_options(generator: dict[str, Any], tmp_path: Path) -> None:
    """A generator's file alone gives back what was built, and predicts the same."""
    from zoo.weights.convert import Files

    family = made(generator=generator, discriminator=None, objective=["l1"], features={})
    state = old_names(family.generator.state_dict())
    if family.options.generator.antialias and generator.get("name") != "unet":
        state["model.7.filt"] = torch.zeros(8, 1, 3, 3)
    path = tmp_path / "latest_net_G.pth"
    torch.save(state, path)
    converted = published.convert_file(Files(tmp_path, path))
    again = cast(Translation, build.create(converted.family, converted.options))
    again.load_state_dict(dict(converted.tensors), strict=True)
    image = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(again.paint(image), family.paint(image))


def test_numbered_discriminators_are_renamed() -> None:
    judge = made(discriminator={"width": 4, "layers": 3}).judge
    assert judge is not None
    state = judge.state_dict()
    last = max(int(name.split(".")[1]) for name in state if name.startswith("enc.")) + 3
    numbered = {
        name.replace("enc.", "model.").replace("final_conv", f"model.{last}"): value for name, value in state.items()
    }
    judge.load_state_dict(published.convert(numbered), strict=True)


# --- objective --------------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    progress: float = 0.5
    batch_index: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    losses: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    order: list[tuple[str, bool]] = field(default_factory=list)

    def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
        self.losses[player] = loss
        self.order.append((player, retain))
        if loss.requires_grad:
            loss.backward(retain_graph=True)

    def log(self, terms: Any) -> None:
        self.terms.update(terms)


def pair_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)) for _ in range(2))
    return Batch({"image": a}, {"picture": b}, {"picture": torch.tensor([True, True])})


def test_features_are_computed_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    family = made().train()
    count = {"features": 0, "forward": 0}
    features, forward = family.generator.features, family.generator.forward

    def counted_features(*args: Any) -> Any:
        count["features"] += 1
        return features(*args)

    def counted_forward(*args: Any) -> Any:
        count["forward"] += 1
        return forward(*args)

    monkeypatch.setattr(family.generator, "features", counted_features)
    monkeypatch.setattr(family.generator, "forward", counted_forward)
    Adversarial().step(family, pair_batch(), Recorder())
    assert count == {"features": 3, "forward": 1}  # of input, target and fake; one picture


def test_a_batch_without_targets_moves_nothing() -> None:
    family, batch, ctx = made(), pair_batch(), Recorder()
    batch.has["picture"][:] = False
    Adversarial().step(family, batch, ctx)
    assert set(ctx.losses) == {"generator", "features", "discriminator"}
    assert not any(loss.requires_grad for loss in ctx.losses.values())
    learning = Recorder()
    Adversarial().step(family, pair_batch(), learning)
    assert ctx.order == learning.order  # processes add up their gradients player by player


def test_samples_without_target_are_left_out() -> None:
    one, two = Recorder(), Recorder()
    batch = pair_batch()
    batch.has["picture"] = torch.tensor([True, False])
    Adversarial().step(made().eval(), batch, one)
    batch.targets["picture"][1] = 0  # type: ignore[index]
    Adversarial().step(made().eval(), batch, two)
    assert torch.equal(one.losses["generator"], two.losses["generator"])


def test_a_pool_shows_each_picture_as_its_slow_twin_would() -> None:
    """Fifty pictures through a pool of three: new ones until it is full, then by the coin, old ones in their turn."""
    pool, rng, twin = Pool(3), torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    held: list[float] = []
    shown, expected = [], []
    for number in range(50):
        shown.append(float(pool(torch.full((1, 1, 2, 2), float(number)), rng)[0, 0, 0, 0]))
        if len(held) < 3:
            held.append(float(number))
            expected.append(float(number))
            continue
        coin, place = float(torch.rand((), generator=twin)), int(torch.randint(3, (), generator=twin))
        expected.append(float(number) if coin < 0.5 else held[place])
        if coin >= 0.5:
            held[place] = float(number)
    assert shown == expected
    assert 15 < sum(s != n for n, s in enumerate(shown)) < 35
    assert pool(torch.zeros(2, 1, 4, 4), rng).shape == (2, 1, 4, 4)  # of another size: begun anew
    assert torch.equal(Pool(0)(torch.ones(1, 1, 2, 2), None), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("conditional", [False, True])
def test_a_pool_is_part_of_the_state(conditional: bool) -> None:
    judge = {"width": 4, "layers": 2, "pool": 3, "conditional": conditional}
    family, one = made(discriminator=judge).eval(), Adversarial()
    for seed in range(4):
        one.step(family, pair_batch(seed), Recorder())
    other = Adversarial()
    other.load(one.state())
    assert len(one.pools[""].pictures) == 3

    def told(procedure: Adversarial) -> list[float]:
        found = []
        for seed in range(9, 13):
            ctx = Recorder(generator=torch.Generator().manual_seed(seed))
            procedure.step(family, pair_batch(seed), ctx)
            found.append(float(ctx.losses["discriminator"].detach()))
        return found

    expected = told(one)
    assert told(other) == expected
    assert told(Adversarial()) != expected


def test_a_white_tile_is_painted_and_learnt_from() -> None:
    """Empty glass has no variation to normalise by and nothing to contrast: everything stays finite."""
    family, batch, ctx = made().train(), pair_batch(), Recorder()
    batch.inputs["image"][:] = 255
    batch.targets["picture"][:] = 255  # type: ignore[index]
    Adversarial().step(family, batch, ctx)
    assert all(torch.isfinite(loss) for loss in ctx.losses.values())
    assert all(torch.isfinite(p.grad).all() for p in family.parameters() if p.grad is not None)
    assert family.eval().predict(np.full((70, 90, 3), 255, np.uint8)).data.shape == (3, 70, 90)


def test_mirrored_inputs_are_compared_where_they_came_from() -> None:
    family = made(flip_equivariance=True).eval()
    a = torch.rand(1, 3, 64, 64) * 2 - 1
    step = Pass(family, a, a, flip=True)
    torch.testing.assert_close(step.fake, family.paint(a.flip(3)).flip(3))
    torch.testing.assert_close(step.features("fake")[0].flip(3), family.generator.features(step.raw_fake, [0])[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": ["gann"]}, 'no term "gann". Did you mean gan'),
        ({"objective": ["gan", {"name": "l1", "arguments": {"p": 2}}]}, "It takes none"),
        ({"objective": ["gan", {"name": "supervised_nce", "arguments": {"schedule": "cosine"}}]}, "schedule"),
        ({"objective": ["gan"], "discriminator": None}, "needs a discriminator"),
        ({"objective": ["l1"]}, "has no term"),
        ({"paired": False}, "compares a pair"),
        ({"features": {"layers": [4, 0]}}, "rising"),
        ({"features": {"layers": [0, 99]}}, "layers"),
        ({"generator": {"name": "unet", "downs": 3}}, "halvings will not do"),
        ({"generator": {"name": "unet", "spectral": True}}, "unet has none"),
        ({"discriminator": {"name": "pixel", "spectral": True}}, "pixel has none"),
        ({"objective": ["gan", {"name": "l1", "weight": -1}]}, "weight -1 will not do"),
        ({"objective": ["gan", {"name": "octaves", "arguments": {"weights": []}}]}, "one or more"),
        ({"objective": ["gan", {"name": "gaussian_pyramid", "arguments": {"weights": "many"}}]}, "list of numbers"),
        ({"objective": ["gan", {"name": "supervised_nce", "arguments": {"constant": 1.5}}]}, "a whole number from 0"),
        ({"objective": ["gan", {"name": "supervised_nce", "arguments": {"constant": 0, "decay": 0}}]}, "both 0"),
        ({"objective": ["gan", {"name": "perceptual", "arguments": {"encoder": "resnet19"}}]}, "mean resnet18"),
        ({"objective": ["gan", {"name": "perceptual", "arguments": {"levels": [0.5]}}]}, "list of whole numbers"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        made(**options)


def train_one(family: Translation, side: tuple[int, int], **options: Any) -> None:
    batch = pair_batch()
    batch = Batch(
        {"image": batch.inputs["image"][:, :, : side[0], : side[1]].contiguous()},
        {"picture": cast(Tensor, batch.targets["picture"])[:, :, : side[0], : side[1]].contiguous()},
        batch.has,
    )
    chosen = family.pictures(batch)
    assert chosen is not None
    step = Pass(family.train(), *chosen, rng=torch.Generator().manual_seed(0))
    for terms in (discriminator_terms(step), generator_terms(step)):
        assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("generator", [{"blocks": 1}, {"name": "unet", "downs": 5, "norm": "batch"}])
def test_sides_that_do_not_fit_are_learnt_from(generator: dict[str, Any]) -> None:
    family = made(generator={"width": 4, **generator}, features={"layers": [0, 1], "width": 8, "patches": 8})
    train_one(family, (46, 51))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_smallest_patch_is_just_large_enough(antialias: bool, layers: int) -> None:
    judge = PatchDiscriminator(3, 2, layers, antialias=antialias)
    assert judge(torch.rand(2, 3, judge.smallest, judge.smallest))[0].numel()
    with pytest.raises((ValueError, RuntimeError)):
        judge(torch.rand(2, 3, judge.smallest - 1, judge.smallest - 1))
    several = MultiscaleDiscriminator(3, 2, layers, 3, antialias=antialias)
    assert len(several(torch.rand(2, 3, several.smallest, several.smallest))) == 3
    with pytest.raises((ValueError, RuntimeError)):
        several(torch.rand(2, 3, several.smallest - 1, several.smallest - 1))


def test_a_pyramid_of_the_smallest_patch_can_be_blurred() -> None:
    for name, count in (("gaussian_pyramid", 4), ("gaussian_pyramid", 6), ("octaves", 4), ("octaves", 2)):
        term = Component(name=name, arguments={"weights": [1.0] * count})
        family = made(objective=["gan", term], discriminator={"name": "pixel", "width": 2})
        for side in (smallest(term), smallest(term) - 1):
            a = torch.rand(1, 3, side, side)
            step = Pass(family, a, a)
            step._kept["painted"] = (a, None)
            if side == smallest(term):
                assert torch.isfinite(TERMS[name].function(step, **term.arguments))
            else:
                with pytest.raises(RuntimeError):
                    TERMS[name].function(step, **term.arguments)


def test_a_picture_of_one_pixel_is_painted() -> None:
    assert made().eval().predict(np.full((1, 1, 3), 90, np.uint8)).data.shape == (3, 1, 1)


def test_the_other_stain_must_be_somewhere() -> None:
    pairs, plain = cards.dataset_card("phantom-stains"), cards.dataset_card("phantom-nuclei")
    options = made(paired=False, objective=["gan"], truth=None).options
    assert "the other stain is missing" in Translation.missing(options, [plain], [])
    assert "the other stain is missing" in Translation.missing(options, [plain], ["targets"])
    assert not Translation.missing(options, [pairs], [])
    assert not Translation.missing(options, [plain, plain], ["target"])


def test_targets_that_cannot_be_painted() -> None:
    maker = PictureTarget("ihc", ("red", "green", "blue"))
    rgb = ("red", "green", "blue")
    image = np.zeros((3, 8, 8), np.uint8)

    def sample(picture: Picture) -> Sample:
        return Sample("one", "set", image, truth={"ihc": picture})

    with pytest.raises(DataError, match="holds uint16"):
        maker(sample(Picture(np.zeros((3, 8, 8), np.uint16), rgb)))
    with pytest.raises(DataError, match="no channel red"):
        maker(sample(Picture(np.zeros((2, 8, 8), np.uint8), ("DAPI", "CD3"))))
    with pytest.raises(DataError, match="Expected those of the image"):
        maker(sample(Picture(np.zeros((3, 9, 8), np.uint8), rgb)))
    assert maker(Sample("one", "set", image)) == {}


# --- in the benchmark and on several processes -----------------------------------------------------------------------


def test_cells_are_counted_where_the_card_says_that_the_picture_is_an_immunostain() -> None:
    for name, counted in (("phantom-stains", True), ("phantom-twin", False)):
        card = cards.dataset_card(name)
        key = next(k for k, t in card.truths.items() if t.kind == "picture")
        (task,) = score.tasks(made(truth=key), card)
        assert ("positive_cell_f1" in task.metrics) == counted, name
        assert "ssim" in task.metrics


# --- large pictures ---------------------------------------------------------------------------------------------------


def gradient(side: int = 256) -> np.ndarray:
    """A picture that gets darker to the right, so that its tiles' statistics differ."""
    rng = np.random.default_rng(0)
    base = np.linspace(230, 60, side)[None, :, None] + rng.normal(0, 12, (side, side, 3))
    return base.clip(0, 255).astype(np.uint8)


def test_large_pictures_have_no_seams() -> None:
    """With the whole's statistics, tiles agree with each other; with their own they do not."""
    options = {"discriminator": None, "objective": ["l1"], "features": {}, "tile": 64, "margin": 32}
    picture, found = gradient(), {}
    for kind in ("whole", "tile"):
        family = made(**options, statistics=kind)
        one, other = (family.predict(picture, tile=side, overlap=32).data.astype(float) for side in (64, 112))
        found[kind] = float(np.abs(one - other).mean())
    assert found["whole"] < 0.1 * found["tile"]


def test_one_tile_is_as_published() -> None:
    """A picture of one tile is normalised by itself, whatever the option says."""
    whole, tile = made(statistics="whole"), made(statistics="tile")
    picture = gradient(64)
    assert np.array_equal(whole.predict(picture).data, tile.predict(picture).data)


def test_statistics_do_not_outlive_a_prediction() -> None:
    family = made(tile=64, margin=16)
    before = family.predict(gradient(64)).data
    family.predict(gradient(), tile=64, overlap=16)
    assert np.array_equal(family.predict(gradient(64)).data, before)


@pytest.mark.parametrize("name", ["patch_nce", "supervised_nce", "identity_nce", "identity"])
def test_a_term_that_shows_the_generator_a_target_of_other_channels_is_named(name: str) -> None:
    options = {"target_channels": ["CD8"], "objective": ["gan", name]}
    with pytest.raises((ValueError, ZooError), match=f"{name} shows the generator a target, which has 1 channel where"):
        build.create("translation", Translation.tiny() | options)
    build.create("translation", Translation.tiny() | options | {"objective": ["gan", "l1"]})
