"""The family detr: what every family promises, and what is peculiar to a detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tester import FamilyTester

import zoo
from zoo.cards import DatasetCard
from zoo.errors import UserError
from zoo.families import build
from zoo.families.detr import learn, operating, published, targets
from zoo.families.detr.attributes import attribute_loss, whole_cells
from zoo.families.detr.model import Detr
from zoo.families.detr.options import DetrOptions
from zoo.families.detr.queries import noisy_matches, noisy_queries
from zoo.families.detr.teacher import MeanTeacher, stronger
from zoo.losses.detection import Objects
from zoo.metrics import boxes as metrics
from zoo.types import Batch, Boxes, BoxesPrediction, Geometry, Instances, Meta, Sample

SHAPES = {"size": ["small", "large"], "shape": ["round", "lobed", "other"]}
MIXED = {"selection": "mixed", "neck": "plain", "dense": 3, "denoising": 2, "one_to_many": 8, "repeats": 2}


class TestDetr(FamilyTester):
    family = "detr"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "one-stage": {"refine": False, "neck": "fpn", "positions": "learned", "freeze": "norms"},
        "mixed": MIXED,
        "attributes": {"neck": "plain", "encoder_layers": 0, "attributes": {"values": SHAPES}},
    }


def small(**changes: Any) -> Detr:
    torch.manual_seed(0)
    made = zoo.create("detr", **(Detr.tiny() | {"neck": "plain", "encoder_layers": 0} | changes))
    assert isinstance(made, Detr)
    return made


def batch_of(boxes: list[list[list[float]]], size: int = 64, **more: Any) -> Batch:
    """Return a batch of black images with boxes, all of class 0 unless `classes` says otherwise."""
    count = len(boxes)
    classes = more.pop("classes", [[0] * len(own) for own in boxes])
    return Batch(
        {"image": torch.zeros(count, 3, size, size, dtype=torch.uint8)},
        {
            "boxes": [torch.tensor(own, dtype=torch.float32).reshape(-1, 4) for own in boxes],
            "classes": [torch.tensor(own, dtype=torch.int64) for own in classes],
            **more,
        },
        {"boxes": torch.ones(count, dtype=torch.bool)},
        torch.ones(count, size, size, dtype=torch.bool),
        [Meta("s", "d", Geometry((size, size)))] * count,
    )


def card(**truth: Any) -> DatasetCard:
    told = {"kind": "boxes", "classes": ["RBC", "WBC"], **truth}
    return DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": "imaginary",
            "summary": "For tests.",
            "reader": "folder",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "truths": {"cells": told},
        }
    )


def test_two_stage_regions_and_every_neck_learn() -> None:
    """Every part gets a gradient in configurations that the shared tester does not run."""
    regions = {"attributes": {"values": {"size": ["small", "large"]}, "head": "regions", "loss": "asymmetric"}}
    for changes in ({"selection": "two-stage", "neck": "pafpn", "levels": 4}, {"neck": "bifpn", **regions}):
        family = small(**changes).train()
        batch = batch_of([[[4, 4, 30, 30]], []])
        if "attributes" in changes:
            batch.targets["attributes"] = [torch.tensor([[1]]), torch.zeros(0, 1, dtype=torch.int64)]
        maps = family(family.prepare(family.inputs_of(batch)))
        torch.stack(list(family.loss(maps, batch, 0.0).values())).sum().backward()
        assert [n for n, p in family.named_parameters() if p.grad is None] == []


def test_exported_it_finds_the_same_boxes() -> None:
    """The whole network in one graph, queries chosen from tokens and boxes refined from layer to layer."""
    family = small(selection="mixed").eval()
    inputs = family.prepare({"image": torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)})
    with torch.no_grad():
        exported = torch.export.export(family, (inputs,)).module()
        for name, value in family(inputs).items():
            torch.testing.assert_close(exported(inputs)[name], value)


def test_padding_changes_nothing() -> None:
    """An image beside a larger one, padded, says what it says alone (where convolutions see the same zeros)."""
    family = small(pad=False, neck="plain", encoder_layers=1)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    padded = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    padded[..., :64, :64] = image
    valid = torch.zeros(1, 128, 128, dtype=torch.bool)
    valid[:, :64, :64] = True
    with torch.inference_mode():
        alone = family(family.prepare({"image": image}))
        beside = family(family.prepare({"image": padded, "valid": valid}))
    assert beside["size"].tolist() == [[64, 64]]
    assert float((alone["boxes"] - beside["boxes"]).abs().mean()) < 0.02


def test_scaling_inside_the_network_keeps_pixels_of_the_source() -> None:
    family = small(short_side=32, long_side=48)
    image = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    prepared = family.prepare({"image": image})
    assert tuple(prepared["image"].shape[-2:]) == (24, 48)
    maps = family.activate(family(prepared))
    found = family.decode(maps, [Geometry((32, 64), (2.0, 2.0))], threshold=0.0)[0]["boxes"]
    assert found.xyxy[:, 2].max() <= 64
    assert found.xyxy[:, 3].max() <= 32


def test_images_of_different_sizes_are_scaled_each_for_itself() -> None:
    family = small(short_side=32)
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[1, 32:] = False
    prepared = family.prepare({"image": torch.full((2, 3, 64, 64), 200, dtype=torch.uint8), "valid": valid})
    assert tuple(prepared["image"].shape) == (2, 3, 32, 64)
    assert prepared["mask"][0, :, 32:].all()
    assert not prepared["mask"][1].any()
    assert (prepared["image"][0, :, :, 32:] == 0).all()


def test_the_loss_falls_when_boxes_are_right() -> None:
    family, batch = small(), batch_of([[[8, 8, 40, 40], [44, 20, 60, 50]]], classes=[[1, 0]])
    maps = family(family.prepare(batch.inputs))
    truth = learn.truths(batch).objects[0]
    right = {name: value.detach().clone() for name, value in maps.items()}
    right["logits"][:] = -8.0
    for query, (label, box) in enumerate(zip(truth.labels, truth.boxes, strict=True)):
        right["logits"][0, query, label], right["boxes"][0, query] = 8.0, box
    terms = family.loss(right, batch, 0.0)
    assert sum(float(v) for v in terms.values()) < 0.01
    assert sum(float(v.detach()) for v in family.loss(maps, batch, 0.0).values()) > 1


def test_two_hundred_boxes_or_none_are_learnt() -> None:
    family = small().train()
    many = [[float(i % 8), float(i // 8), float(i % 8 + 20), float(i // 8 + 20)] for i in range(200)]
    for boxes in ([many, []], [[], []]):
        batch = batch_of(boxes)
        terms = family.loss(family(family.prepare(family.inputs_of(batch))), batch, 0.0)
        assert all(torch.isfinite(v) for v in terms.values())


def test_boxes_outside_or_without_area_are_no_truths() -> None:
    batch = batch_of([[[70, 70, 90, 90], [5, 5, 5, 20], [50, 50, 80, 80]]])
    objects = learn.truths(batch).objects[0]
    assert objects.boxes.tolist() == [[(50 + 64) / 2 / 64, (50 + 64) / 2 / 64, 14 / 64, 14 / 64]]


def test_targets_map_classes_and_attributes_by_name() -> None:
    truth = card(classes=["RBC", "neutrophil", "blast"], attributes={"shape": ["lobed", "round"]})
    options = DetrOptions(
        classes=("white",),
        merge={"white": ("blast", "neutrophil")},
        attributes={"values": {"size": ("small", "large"), "shape": ("round", "lobed")}},  # type: ignore[arg-type]
    )
    maker = targets.make(options, truth)
    boxes = Boxes(
        np.array([[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 2, 9], [3, 3, 8, 8]], np.float32),
        np.array([1, 2, 3, 3]),
        np.array([[0], [0], [1], [-1]]),
    )
    made = maker(Sample("s", "d", np.zeros((3, 10, 10), np.uint8), truth={"cells": boxes}))
    assert made["boxes"].tolist() == [[1, 1, 9, 9], [3, 3, 8, 8]]
    assert made["classes"].tolist() == [0, 0]
    assert made["attributes"].tolist() == [[1, -1], [-1, -1]]  # shape, size


def test_objects_become_the_boxes_around_them() -> None:
    labels = np.zeros((8, 10), np.int32)
    labels[2:4, 3:7], labels[5, 9] = 1, 4
    maker = targets.make(DetrOptions(classes=("cell",)), card(kind="instances", classes=["cell"]))
    made = maker(Sample("s", "d", np.zeros((3, 8, 10), np.uint8), truth={"cells": Instances(labels)}))
    assert made["boxes"].tolist() == [[3, 2, 7, 4], [9, 5, 10, 6]]


def test_mistakes_are_named() -> None:
    cases: list[tuple[Mapping[str, Any], str]] = [
        ({"selection": "mixed", "refine": False}, "needs boxes that are refined"),
        ({"denoising": 2}, "needs queries that begin as boxes"),
        ({"neck": "hs-fpn", "levels": 5}, "gives 4 levels"),
        ({"width": 30}, "multiple of 4"),
        ({"threshold": {"WBS": 0.5}}, "no class WBS"),
        ({"encoder": "resnet5O"}, "resnet50"),
        ({"classes": ["WBC", "WBC"]}, "each once"),
    ]
    for changes, words in cases:
        with pytest.raises((UserError, Exception), match=words):
            small(**changes)
    with pytest.raises(UserError, match='no feature "levl0"'):
        small()({"image": torch.zeros(1, 3, 64, 64)}, ["levl0"])
    with pytest.raises(ValueError, match="no boxes and no objects"):
        targets.resolve(DetrOptions(), [card(kind="label")])


def test_noisy_queries_begin_near_their_truth() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.6, 0.1, 0.4]]])
    labels, places = noisy_queries(torch.tensor([[0, 1]]), boxes, groups=50, noise=0.4, classes=2, first=0)
    assert places.shape == (1, 100, 4)
    apart = (places.view(50, 2, 4) - boxes).abs()
    assert (apart <= 0.4 * boxes[..., 2:].repeat(1, 1, 2) + 1e-6).all()
    assert 0.02 < float((labels.view(50, 2) != torch.tensor([0, 1])).float().mean()) < 0.25
    matches, real = noisy_matches([Objects(torch.tensor([1]), boxes[0, :1])], 3, 2)
    assert matches[0][0].tolist() == [0, 2, 4]
    assert matches[0][1].tolist() == [0, 0, 0]
    assert real.tolist() == [[True, False] * 3]


def test_attributes_are_the_same_after_loading(tmp_path: Path) -> None:
    """Files of weights sort their keys: the columns of the head must not change their meaning with them."""
    truth = card(attributes={"size": ["small", "large"], "colour": ["red", "blue", "grey"]})
    options = targets.resolve(DetrOptions.model_validate(Detr.tiny() | {"attributes": {}}), [truth])
    family = build.create("detr", options.model_dump())
    boxes = Boxes(np.array([[0, 0, 5, 5]], np.float32), np.array([1]), np.array([[1, 2]]))
    sample = Sample("s", "d", np.zeros((3, 10, 10), np.uint8), truth={"cells": boxes})
    learnt = targets.make(options, truth)(sample)["attributes"]
    build.save(family, tmp_path / "one.safetensors")
    loaded = build.load(tmp_path / "one.safetensors")
    assert np.array_equal(targets.make(loaded.options, truth)(sample)["attributes"], learnt)
    names = list(loaded.options.attributes.values)
    assert dict(zip(names, learnt[0].tolist(), strict=True)) == {"size": 1, "colour": 2}


def test_an_attribute_that_no_card_has_is_named() -> None:
    values = {"attributes": {"values": {"colour": ["red", "blue"]}}}
    options = DetrOptions.model_validate(Detr.tiny() | values)
    with pytest.raises(ValueError, match=r'no attribute "colour" on the card of .*Known: size'):
        targets.resolve(options, [card(attributes={"size": ["small", "large"]})])
    with pytest.raises(ValueError, match=r"There are none: leave model\.attributes out"):
        targets.resolve(options, [card()])
    both = [card(attributes={"size": ["small", "large"]}), card(attributes={"colour": ["red", "blue"]})]
    assert targets.resolve(options, both).attributes == options.attributes


def test_attributes_that_are_missing_cost_nothing() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([[0, 2], [-1, -1], [1, -1], [-1, 1]])
    loss = attribute_loss(logits, labels, [2, 3], "cross_entropy")
    own = [(0, 0), (2, 1)]
    by_hand = -sum(logits[r, :2].log_softmax(0)[c] for r, c in own)
    by_hand = by_hand - logits[0, 2:].log_softmax(0)[2] - logits[3, 2:].log_softmax(0)[1]
    torch.testing.assert_close(loss, by_hand / 4)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[1] == 0).all()
    nothing = attribute_loss(logits, torch.full((4, 2), -1), [2, 3], "cross_entropy")
    assert float(nothing.detach()) == 0


def test_regions_have_a_cell_at_least() -> None:
    corners = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.99, 0.0, 1.0, 1.0], [0.0, 0.26, 0.49, 0.51]])
    assert whole_cells(corners, (4, 8)).tolist() == [[4, 2, 5, 3], [7, 0, 8, 4], [0, 1, 3, 2]]


def test_overlapping_boxes_of_a_class_are_dropped_where_asked() -> None:
    maps = {
        "logits": torch.tensor([[[0.9, 0.1], [0.8, 0.1], [0.1, 0.7]]]),
        "boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]]]),
        "size": torch.tensor([[100.0, 100.0]]),
    }
    geometry = [Geometry((100, 100))]
    assert len(small().decode(maps, geometry)[0]["boxes"].scores) == 3
    found = small(overlap=0.6).decode(maps, geometry)[0]["boxes"]
    assert found.class_index.tolist() == [0, 1]
    found = small(threshold={"WBC": 0.75}).decode(maps, geometry)[0]["boxes"]
    assert found.class_index.tolist() == [0, 0]


def test_a_threshold_at_hand_is_one_or_one_a_class() -> None:
    maps = {
        "logits": torch.tensor([[[0.9, 0.1], [0.1, 0.7]]]),
        "boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.4, 0.4]]]),
        "size": torch.tensor([[100.0, 100.0]]),
    }
    model, geometry = small(), [Geometry((100, 100))]

    def found(threshold: Any) -> list[int]:
        boxes = model.decode(maps, geometry, threshold=threshold)[0]["boxes"]
        assert isinstance(boxes, BoxesPrediction)
        return boxes.class_index.tolist()

    assert found(0.8) == [0]
    assert found({"WBC": 0.75}) == [0]
    assert found({"RBC": 0.95}) == [1]
    with pytest.raises(UserError, match=r'threshold: no class "WBV"\. Did you mean WBC'):
        found({"WBV": 0.5})
    for wrong in (1.5, "high", {"WBC": -1}):
        with pytest.raises(UserError, match=r"Expected a number from 0 to 1, or one a class\."):
            found(wrong)


def test_published_entries_that_are_not_needed_are_told() -> None:
    options = DetrOptions(classes=("a",), neck="hs-fpn")
    one, other = torch.zeros(1, 4), torch.ones(1, 4)
    state = {
        "class_embed.0.weight": one,
        "class_embed.1.weight": other,
        "input_proj.0.0.weight": one,
        "fpn_proj_list.0.0.weight": one,
        "transformer.level_embed": one,
    }
    found, notes = published.convert(state, options)
    assert torch.equal(found["class_embed.0.weight"], other)
    assert set(found) == {"class_embed.0.weight", "level_embed"}
    assert any("never uses" in note for note in notes)
    assert any("differ" in note for note in notes)


def test_large_pictures_are_found_in_tiles() -> None:
    family = small(tile=64, margin=16, threshold=0.0)
    image = np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8)
    found = family.predict(image)
    assert found.kind == "boxes"
    assert (found.xyxy >= 0).all()
    assert (found.xyxy[:, 2] <= 150).all()
    whole = family.predict(image[:50, :60])
    assert (np.diff(whole.scores) <= 0).all()


def test_the_operating_point_is_that_of_the_best_f1() -> None:
    """Against every threshold tried one by one, with boxes below it left out before matching."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(6):
        true = rng.uniform(0, 80, (5, 2))
        truth = metrics.Boxes(np.concatenate([true, true + 12], 1), rng.integers(1, 3, 5))
        near = np.concatenate([true + rng.normal(0, 2, true.shape), rng.uniform(0, 80, (6, 2))])
        scores = np.concatenate([rng.uniform(0.3, 1, 5), rng.uniform(0, 0.7, 6)])
        kinds = np.concatenate([truth.classes, rng.integers(1, 3, 6)])
        pairs.append((metrics.Boxes(np.concatenate([near, near + 12], 1), kinds, scores), truth))
    chosen = operating.best_thresholds(pairs, 3, [0.3, 0.3, 0.25])
    assert chosen[2] == 0.25

    def f1(kind: int, least: float) -> float:
        hits = said = there = 0
        for ours, theirs in pairs:
            assert ours.scores is not None
            keep, own = (ours.classes == kind) & (ours.scores >= least), theirs.classes == kind
            left = metrics.Boxes(ours.xyxy[keep], ours.classes[keep], ours.scores[keep])
            counts = metrics.matching(left, metrics.Boxes(theirs.xyxy[own], theirs.classes[own]))
            hits, said, there = hits + counts.hits, said + int(keep.sum()), there + int(own.sum())
        return 2 * hits / (said + there)

    for kind in (1, 2):
        assert f1(kind, chosen[kind - 1]) == pytest.approx(max(f1(kind, least) for least in operating.GRID))


def test_calibration_stores_a_threshold_a_class() -> None:
    family = small(classes=["RBC", "WBC", "Platelets"])
    image = np.zeros((3, 64, 64), np.uint8)
    truth = {"cells": Boxes(np.array([[1, 1, 40, 40]], np.float32), np.array([2]))}
    samples = [Sample("s", "bccd", image, truth=truth)]
    options = family.calibrate(samples, lambda sample: ({}, Geometry((64, 64))))
    assert options is not None
    assert isinstance(options.threshold, dict)
    assert set(options.threshold) == {"RBC", "WBC", "Platelets"}
    assert options.threshold["RBC"] == 0.3
    assert family.calibrate([Sample("s", "bccd", image)], lambda sample: ({}, Geometry((64, 64)))) is None


class Moves:
    """A context that takes gradient steps."""

    progress = 0.5
    batch_index = 0

    def __init__(self, family: Detr) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.SGD(family.parameters(), 0.01)
        self.terms: dict[str, Any] = {}

    def update(self, player: str, loss: torch.Tensor, *, retain: bool = False) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def log(self, terms: Mapping[str, Any]) -> None:
        self.terms = dict(terms)


def adapting(**options: Any) -> tuple[Detr, MeanTeacher, Batch]:
    family = small(classes=["RBC", "WBC"]).train()
    batch = batch_of([[[4, 4, 30, 30]], [[8, 8, 50, 50]]])
    generator = torch.Generator().manual_seed(1)
    batch.inputs["image"] = torch.randint(0, 255, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    strange = batch_of([[[0, 0, 64, 64]], []])  # labels that must never matter
    strange.inputs["image"] = torch.randint(0, 255, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    batch.others["target"] = strange
    return family, MeanTeacher(**options), batch


def test_the_teacher_follows_and_teaches_without_looking_at_labels() -> None:
    weights = []
    for labels in ([[[0, 0, 64, 64]], []], [[], []]):
        family, procedure, batch = adapting(threshold=0.005, decay=0.9)
        batch.others["target"].targets["boxes"] = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in labels]
        before = {n: p.detach().clone() for n, p in family.named_parameters()}
        ctx = Moves(family)
        procedure.step(family, batch, ctx)
        assert ctx.terms["taught"] > 0
        assert ctx.terms["taught_boxes"] > 0
        assert procedure.teacher is not None
        for name, value in procedure.teacher.named_parameters():
            now = dict(family.named_parameters())[name].detach()
            torch.testing.assert_close(value, before[name].lerp(now, 0.1))
        weights.append(torch.cat([p.detach().flatten() for p in family.parameters()]))
    assert torch.equal(*weights)


def test_a_threshold_by_counts_is_that_of_as_many_boxes() -> None:
    family, procedure, batch = adapting()
    scores = torch.tensor([[0.9, 0.8, 0.2], [0.7, 0.6, 0.5]])
    least = procedure._least(batch, scores, torch.zeros(2, 3, dtype=torch.int64), 2)
    assert least.tolist() == pytest.approx([0.8, 0.9])  # one RBC an image: two of six; no WBC: the highest there is
    procedure.step(family, batch, Moves(family))
    again = MeanTeacher()
    again.load(procedure.state())
    assert again._taught(small(classes=["RBC", "WBC"])).state_dict().keys() == family.state_dict().keys()
    assert again.least is procedure.least


def test_mistakes_of_the_teacher_are_named() -> None:
    family, procedure, batch = adapting()
    batch.others = {}
    with pytest.raises(UserError, match=r"data\.streams\.target"):
        procedure.step(family, batch, Moves(family))
    with pytest.raises(UserError, match="Expected a number, or counts"):
        MeanTeacher(threshold="auto")
    with pytest.raises(UserError, match="decay: 2"):
        MeanTeacher(decay=2)


def test_stronger_pictures_move_nothing() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 10:20, 10:30] = 0.9
    found = stronger(image, torch.Generator().manual_seed(0))
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(found[..., 10:20, 10:30].mean()) > float(found[..., 25:, :].mean()) + 0.3
    assert torch.equal(found, stronger(image, torch.Generator().manual_seed(0)))
