"""One shared test class for every family.

A family's own test file is a few lines:

    class TestUNet(FamilyTester):
        family = "unet"
        variants = {"fpn": {"decoder": "fpn"}}

`tests/families/test_every.py` runs it over every registered family, those of other packages too.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo import cards, registry
from zoo.families import build
from zoo.families.base import Family, Need
from zoo.types import (
    Batch,
    Boxes,
    BoxesPrediction,
    Geometry,
    Instances,
    InstancesPrediction,
    Label,
    LabelPrediction,
    Meta,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Semantic,
    SemanticPrediction,
    Truth,
    Vector,
)


def truth_of(card: cards.TruthCard, shape: tuple[int, ...], rng: np.random.Generator) -> Truth:
    """Return a small truth of a card's kind, with something of every class in it."""
    count = max(len(card.classes), 1)
    labels = np.zeros(shape, np.int32)
    step = max(min(shape[-2:]) // 4, 4)
    label = 0
    for row in range(1, shape[-2] - step, step + 1):
        for column in range(1, shape[-1] - step, step + (row % 2)):
            label += 1
            labels[..., row : row + step, column : column + step] = label
    if card.kind == "instances":
        return Instances(labels, {k: 1 + k % count for k in range(1, label + 1)})
    if card.kind == "semantic":
        table = np.array([0, *(k % count for k in range(1, label + 1))], np.uint8)
        return Semantic(table[labels], ignore=card.ignore)
    if card.kind == "boxes":
        corners = np.array([[2, 3, 12, 14], [8, 6, 20, 30]], np.float32)
        attributes = np.zeros((2, len(card.attributes)), np.int64) if card.attributes else None
        return Boxes(corners, np.arange(2, dtype=np.int64) % count + 1, attributes)
    if card.kind == "picture":
        data = rng.integers(0, 255, (max(len(card.channels), 1), *shape), dtype=np.uint8)
        return Picture(data, card.channels or ("red",))
    return Label(0) if card.kind == "label" else Vector(rng.random(8).astype(np.float32))


def card_for(family: Family, need: Need) -> cards.DatasetCard:
    """Return the card of an imaginary dataset that has what a family needs, with the classes that it predicts."""
    outputs = list(family.spec.outputs.values())
    answers = [o for o in outputs if o.kind in need.kinds] or outputs
    answers = [o for o in answers if need.key is not None and o.truth == need.key] or answers
    kind = need.kinds[0]
    classes = tuple(c for c in answers[0].classes if c != "background") if answers else ()
    if kind == "semantic" and not all("background" not in o.classes for o in answers):
        classes = ("background", *classes)
    truth = {"kind": kind, "classes": classes, "channels": answers[0].channels if answers else ()}
    return cards.DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": "imaginary",
            "summary": "For tests.",
            "reader": "folder",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "axes": family.spec.axes,
            "channels": family.spec.channels,
            "truths": {need.key or "truth": truth},
        }
    )


class FamilyTester:
    """What every family promises, at its tiny configuration."""

    family: ClassVar[str]
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    size: ClassVar[tuple[int, ...]] = (64, 64)
    odd: ClassVar[tuple[int, ...]] = (50, 71)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:
            cls = registry.get("family", self.family)
            tiny = cls.tiny()
            cases = {"tiny": tiny, **{name: tiny | dict(change) for name, change in self.variants.items()}}
            metafunc.parametrize("options", list(cases.values()), ids=list(cases))

    # what the tests build on

    def make(self, options: Mapping[str, Any], seed: int = 0) -> Family:
        """Return the family with weights that depend on `seed` alone."""
        torch.manual_seed(seed)
        return build.create(self.family, options)

    def image(self, family: Family, size: tuple[int, ...] | None = None, B: int = 2, seed: int = 0) -> Tensor:
        """Return a uint8 picture with something in it, (B, C, H, W)."""
        rng = np.random.default_rng(seed)
        shape = size or self.size
        if family.spec.axes == "CZYX" and len(shape) == 2:
            shape = (16, *shape)
        made = rng.integers(0, 256, (B, len(family.spec.channels), *shape), dtype=np.uint8)
        return torch.from_numpy(made)

    def batch(self, family: Family, B: int = 2) -> Batch:
        """Return a batch with the truths that the family needs; a family with other inputs overrides this."""
        image = self.image(family, B=B)
        shape = tuple(image.shape[2:])
        rng = np.random.default_rng(0)
        targets: dict[str, Any] = {}
        for need in type(family).needs(family.options):
            card = card_for(family, need)
            maker = type(family).targets(family.options, card)
            for b in range(B):
                truths = {key: truth_of(t, shape, rng) for key, t in card.truths.items()}
                sample = Sample("s", "imaginary", image[b].numpy(), axes=family.spec.axes, truth=truths)
                for name, array in maker(sample).items():
                    targets.setdefault(name, []).append(torch.from_numpy(np.ascontiguousarray(array)))
        stacked = {
            name: torch.stack(arrays) if len({a.shape for a in arrays}) == 1 else arrays
            for name, arrays in targets.items()
        }
        has = {name: torch.ones(B, dtype=torch.bool) for name in stacked}
        meta = [Meta("s", "imaginary", Geometry(shape, (1.0,) * len(shape), (0.0,) * len(shape))) for _ in range(B)]
        return Batch({"image": image}, stacked, has, torch.ones(B, *shape, dtype=torch.bool), meta)

    def infer(self, family: Family, image: Tensor, seed: int = 0) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            return family.infer(family.prepare({"image": image}), rng=rng)

    # what every family promises

    def test_forward(self, options: Mapping[str, Any]) -> None:
        family = self.make(options)
        assert not family.training
        image = self.image(family)
        maps = self.infer(family, image)
        assert set(maps) == set(family.spec.maps)
        for name, spec in family.spec.maps.items():
            size = family.spec.out(image.shape[2:])
            if family.spec.stitch == "maps":
                assert tuple(maps[name].shape) == (2, spec.channels, *size)
            assert maps[name].is_floating_point()
            assert torch.isfinite(maps[name]).all()
        activated = family.activate(maps)
        for name, spec in family.spec.maps.items():
            if spec.activation != "none":
                assert 0 <= float(activated[name].min()) <= float(activated[name].max()) <= 1
            if spec.activation == "softmax":
                torch.testing.assert_close(activated[name].sum(1), torch.ones_like(activated[name][:, 0]))

    def test_backward_reaches_every_parameter(self, options: Mapping[str, Any]) -> None:
        """One step of the family's own procedure: every parameter that may move gets a gradient from one player."""
        family = self.make(options).train()
        procedure = family.procedure()
        players = procedure.players(family)
        owned = [id(p) for player in players.values() for p in player.parameters]
        assert len(owned) == len(set(owned)), "a parameter is in two players"
        assert set(owned) == {id(p) for p in family.parameters() if p.requires_grad}
        ctx = _Gradients(players)
        procedure.step(family, self.batch(family), ctx)
        assert set(ctx.updated) == set(players)
        lost = [n for n, p in family.named_parameters() if p.requires_grad and id(p) not in ctx.reached]
        assert not lost, f"no gradient reaches {lost[:5]} ({len(lost)} parameters)"
        validation = procedure.validation_loss(family.eval(), self.batch(family), 0.5)
        assert torch.isfinite(validation["total"].detach())

    def test_save_and_load(self, options: Mapping[str, Any], tmp_path: Path) -> None:
        family, image = self.make(options), None
        image = self.image(family)
        before = self.infer(family, image)
        build.save(family, tmp_path / "one.safetensors", seed=3)
        build.save(self.make(options), tmp_path / "two.safetensors", seed=3)
        assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
        loaded = build.load(tmp_path / "one.safetensors")
        assert not loaded.training
        assert loaded.spec == family.spec
        for name, value in self.infer(loaded, image).items():
            assert torch.equal(value, before[name]), f"{name} differs after loading"

    def test_options_round_trip(self, options: Mapping[str, Any]) -> None:
        family = self.make(options)
        text = json.dumps(family.options.model_dump(mode="json", by_alias=True))
        assert type(family).Options.model_validate(json.loads(text)) == family.options

    def test_an_unknown_option_is_a_mistake(self) -> None:
        with pytest.raises(Exception, match="unknown key"):
            build.create(self.family, registry.get("family", self.family).tiny() | {"no_such_option": 1})

    def test_half_precision(self, options: Mapping[str, Any]) -> None:
        """Forward and loss under bfloat16 autocast are finite and near those in full precision."""
        family = self.make(options)
        image = self.image(family)
        full = family.activate(self.infer(family, image))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = family.activate(self.infer(family, image))
            losses = family.procedure().validation_loss(family, self.batch(family), 0.0)
        for name, value in full.items():
            assert torch.isfinite(half[name]).all()
            spread = float(value.std()) + 1e-3
            assert float((half[name].float() - value).abs().mean()) < 0.25 * max(spread, 0.1)
        assert torch.isfinite(losses["total"].detach().float())

    def test_samples_of_a_batch_do_not_meet_in_evaluation(self, options: Mapping[str, Any]) -> None:
        family = self.make(options)
        image = self.image(family, B=3)
        together = self.infer(family, image)
        alone = self.infer(family, image[1:2])
        other = self.infer(family, torch.cat([image[:2], 255 - image[2:]]))
        for name, value in together.items():
            if "rng" not in self.random_maps():
                torch.testing.assert_close(value[1:2], alone[name], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(value[:2], other[name][:2], rtol=1e-4, atol=1e-4)

    def random_maps(self) -> tuple[str, ...]:
        """Return ("rng",) for a family whose inference draws random numbers for the batch as a whole."""
        return ()

    def test_odd_sizes(self, options: Mapping[str, Any]) -> None:
        family = self.make(options)
        image = self.image(family, self.odd)
        maps = self.infer(family, image)
        if family.spec.stitch == "maps":
            size = family.spec.out(image.shape[2:])
            assert all(tuple(value.shape[2:]) == size for value in maps.values())
        assert all(torch.isfinite(value).all() for value in maps.values())

    def test_memory_format_changes_nothing(self, options: Mapping[str, Any]) -> None:
        family = self.make(options)
        image = self.image(family)
        before = self.infer(family, image)
        if family.spec.axes == "CYX":
            after = self.infer(family.to(memory_format=torch.channels_last), image)  # type: ignore[call-overload]
            for name, value in before.items():
                torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-3)

    def test_targets(self, options: Mapping[str, Any]) -> None:
        """Target makers are picklable, hold no weights, and their blanks look like their targets."""
        family = self.make(options)
        rng = np.random.default_rng(0)
        shape = tuple(self.image(family, self.odd).shape[2:])
        for need in type(family).needs(family.options):
            card = card_for(family, need)
            maker = type(family).targets(family.options, card)
            packed = pickle.dumps(maker)
            assert len(packed) < 100_000
            maker = pickle.loads(packed)
            data = rng.integers(0, 256, (len(family.spec.channels), *shape), dtype=np.uint8)
            truths = {key: truth_of(t, shape, rng) for key, t in card.truths.items()}
            made = maker(Sample("s", "imaginary", data, axes=family.spec.axes, truth=truths))
            assert made
            blank = maker.blank(shape)
            assert set(made) <= set(blank)
            for name, array in made.items():
                assert array.dtype == blank[name].dtype, name
                if array.ndim >= len(shape) and blank[name].size:  # an empty blank: one row an object
                    assert array.shape == blank[name].shape, name
            assert maker(Sample("s", "imaginary", data, axes=family.spec.axes)) == {}

    def test_a_sample_without_truth_costs_nothing(self, options: Mapping[str, Any]) -> None:
        """Batches in which some samples lack a truth have a finite loss, and it does not see those samples."""
        family = self.make(options)
        procedure, batch = family.procedure(), self.batch(family)
        for name in batch.has:
            batch.has[name] = torch.tensor([True, False])
        first = procedure.validation_loss(family, batch, 0.0)["total"].detach()
        for name, value in batch.targets.items():
            if isinstance(value, Tensor) and name in batch.has:
                value[1] = 0
        second = procedure.validation_loss(family, batch, 0.0)["total"].detach()
        assert torch.isfinite(first)
        torch.testing.assert_close(first, second)

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_decode_geometry(self, options: Mapping[str, Any], scale: float) -> None:
        """Predictions are in pixels of the source, whatever the model's grid is."""
        family = self.make(options)
        image = self.image(family)
        maps = family.activate(self.infer(family, image))
        grid = tuple(image.shape[2:])
        source = tuple(round(s / scale) - (1 if scale != 1 else 0) for s in grid)
        geometry = Geometry(source, (scale,) * len(source), (0.0,) * len(source))
        decoded = family.decode(maps, [geometry] * 2)
        assert len(decoded) == 2
        for predictions in decoded:
            assert set(predictions) == set(family.spec.outputs)
            for name, prediction in predictions.items():
                assert prediction.kind == family.spec.outputs[name].kind
                check_prediction(prediction, source, family.spec.outputs[name].classes)

    def test_initialisation_is_a_function_of_the_seed(self, options: Mapping[str, Any]) -> None:
        one, two, other = self.make(options), self.make(options), self.make(options, seed=1)
        state, same, differs = one.state_dict(), two.state_dict(), other.state_dict()
        assert all(torch.equal(state[k], same[k]) for k in state)
        assert any(not torch.equal(state[k], differs[k]) for k in state)

    def test_importing_it_has_no_side_effects(self) -> None:
        """Importing the family brings in no trainer and reaches for nothing."""
        target = registry.table("family")[self.family].partition(":")[0]
        code = f"import sys, {target}; print([m for m in ('lightning', 'albumentations') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"


class _Gradients:
    """What a procedure may ask of the trainer, here: which parameters a gradient reaches."""

    progress = 0.0
    batch_index = 0

    def __init__(self, players: Mapping[str, Any]) -> None:
        self.players = players
        self.generator = torch.Generator().manual_seed(0)
        self.reached: set[int] = set()
        self.updated: list[str] = []

    def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
        assert torch.isfinite(loss.detach()), f"the loss of {player} is {loss}"
        parameters = self.players[player].parameters
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                assert torch.isfinite(gradient).all()
                self.reached.add(id(parameter))
        self.updated.append(player)

    def log(self, terms: Mapping[str, Any]) -> None:
        for name, value in terms.items():
            assert np.isfinite(float(value)), name


def check_prediction(prediction: Prediction, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Raise where a prediction is not what `zoo.types` says."""
    if isinstance(prediction, SemanticPrediction):
        assert prediction.map.shape[-len(shape) :] == shape
        assert prediction.classes == classes
        if not prediction.multilabel:
            assert prediction.map.dtype == np.uint8
            assert prediction.map.max() < len(classes)
        if prediction.probability is not None:
            assert prediction.probability.shape == (len(classes), *shape)
            assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1 + 1e-5
    elif isinstance(prediction, InstancesPrediction):
        assert prediction.map.shape == shape
        assert prediction.map.dtype == np.int32
        count = int(prediction.map.max())
        assert np.array_equal(np.unique(prediction.map[prediction.map > 0]), np.arange(1, count + 1))
        assert prediction.class_index.shape == (count,)
        assert prediction.class_index.dtype == np.int64
        assert ((prediction.class_index >= 0) & (prediction.class_index < max(len(classes), 1))).all()
        assert prediction.scores is None or ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
    elif isinstance(prediction, BoxesPrediction):
        assert prediction.xyxy.shape == (len(prediction.class_index), 4)
        assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
        assert (prediction.xyxy[:, 2:] >= prediction.xyxy[:, :2]).all()
    elif isinstance(prediction, PicturePrediction):
        assert prediction.data.shape[1:] == shape
        assert len(prediction.channels) == len(prediction.data)
    else:
        assert isinstance(prediction, LabelPrediction)
        assert 0 <= prediction.value < len(prediction.classes)
