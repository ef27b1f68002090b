"""What Cerberus learns from whom: masks, mixed steps, more tasks, and mistakes in the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from zoo.cards import DatasetCard
from zoo.errors import DataError, Problems, UserError
from zoo.families import build
from zoo.families.cerberus.model import Cerberus, annotated
from zoo.recipe import Recipe
from zoo.stain.normalise import normaliser
from zoo.training.check import prepare
from zoo.training.run import train
from zoo.types import Batch, Boxes, Geometry, Instances, InstancesPrediction, Label, Sample, Semantic

OBJECTS = {"kind": "objects"}
TASKS: dict[str, Any] = {
    "gland": {**OBJECTS, "truth": "glands"},
    "nuclei": OBJECTS,
    "tissue": {"kind": "patch", "classes": ["background", "stroma", "epithelium", "lumen"], "window": 32},
}
NARROW = {"encoder": {"name": "test_resnet", "arguments": {"stem_stride": 1}}, "widths": [8] * 4, "head_width": 8}


def make(tasks: dict[str, Any] | None = None, **options: Any) -> Cerberus:
    torch.manual_seed(0)
    made = zoo.create("cerberus", **NARROW | {"tile": 64, "margin": 16} | options, tasks=tasks or TASKS)
    assert isinstance(made, Cerberus)
    return made


def card(**truths: Any) -> DatasetCard:
    return DatasetCard.model_validate(
        {
            "zoo": 1,
            "name": "imaginary",
            "summary": "For tests.",
            "reader": "folder",
            "licence": {"name": "CC0-1.0", "allows": ["research"]},
            "truths": truths,
        }
    )


def targets(model: Cerberus, truths: dict[str, Any], size: int = 64, **told: Any) -> dict[str, Any]:
    picture = np.zeros((3, size, size), np.uint8)
    return type(model).targets(model.options, card(**told))(Sample("s", "imaginary", picture, truth=truths))


class Step:
    """A step of training, without a trainer."""

    progress = 0.0
    batch_index = 0
    generator = torch.Generator()

    def __init__(self) -> None:
        self.terms: dict[str, float] = {}

    def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
        loss.backward()

    def log(self, terms: Any) -> None:
        self.terms = {name: float(value) for name, value in terms.items()}


def field(model: Cerberus, size: int, known: dict[str, list[bool]], seed: int = 0) -> Batch:
    """Return a batch of a size of which some samples are annotated for some tasks."""
    rng = np.random.default_rng(seed)
    B = len(next(iter(known.values())))
    made: dict[str, Any] = {}
    for name in known:
        if model.tasks[name].kind == "patch":
            made[name] = torch.from_numpy(rng.integers(0, 3, B))
            continue
        made[name] = torch.from_numpy(rng.integers(0, 3, (B, size, size)).astype(np.uint8))
        made[f"{name}.weight"] = torch.ones(B, size, size)
    has = {name: torch.tensor(values) for name, values in known.items()}
    return Batch({"image": torch.from_numpy(rng.integers(0, 255, (B, 3, size, size), dtype=np.uint8))}, made, has)


# --- masks and mixed steps --------------------------------------------------------------------------------------------


def test_a_task_learns_from_what_is_annotated_for_it_alone() -> None:
    """Neither weights nor statistics of a decoder move by images without its truth."""
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = field(model, 64, {"gland": [True, True, False]})
    batch.targets |= {"nuclei": torch.zeros(3, 64, 64, dtype=torch.uint8), "nuclei.weight": torch.ones(3, 64, 64)}
    batch.has["nuclei"] = torch.tensor([False] * 3)
    step = Step()
    model.procedure().step(model, batch, step)
    assert set(step.terms) == {"gland"}
    touched = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert any(name.startswith("decoders.gland.") for name in touched)
    assert any(name.startswith("pyramid.encoder.") for name in touched)
    assert not any(name.startswith(("decoders.nuclei.", "heads.nuclei.", "heads.tissue.")) for name in touched)
    for name, value in model.state_dict().items():
        if name.startswith(("decoders.nuclei.", "heads.nuclei.", "heads.tissue.")):
            assert torch.equal(value, before[name]), name


def test_a_sample_that_is_not_annotated_changes_nothing() -> None:
    grads = []
    for seed in (0, 1):
        model = make({"gland": TASKS["gland"]}).train()
        batch = field(model, 64, {"gland": [True, True, False]})
        other = field(model, 64, {"gland": [True, True, False]}, seed)
        batch.targets["gland"][2] = other.targets["gland"][2]  # type: ignore[index]
        model.procedure().step(model, batch, Step())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_step_in_which_nothing_is_annotated() -> None:
    """It happens where only some images of a dataset have a truth. No decoder moves, statistics included."""
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone, batch = (field(model, 64, {"gland": [False, False]}) for _ in range(2))
    batch.others["patches"] = field(model, 32, {"tissue": [False, False]})
    for one in (alone, batch):
        step = Step()
        model.procedure().step(model, one, step)
        assert step.terms == {"none": 0.0}
    for name, value in model.state_dict().items():
        if name.startswith(("decoders.", "heads.")):
            assert torch.equal(value, before[name]), name


def test_patches_and_fields_in_one_step() -> None:
    """Fields of 448 pixels and patches of 144, each for its own tasks, in one step of one network."""
    tasks = {**TASKS, "tissue": {**TASKS["tissue"], "window": 144}}
    model = make(tasks, tile=448, margin=152).train()
    batch = field(model, 448, {"gland": [True, False], "nuclei": [False, True]})
    batch.others["patches"] = field(model, 144, {"tissue": [True, True, True]})
    step = Step()
    model.procedure().step(model, batch, step)
    assert set(step.terms) == {"gland", "nuclei", "patches/tissue"}
    assert all(p.grad is not None for p in model.parameters())


def test_the_patch_head_looks_at_the_middle() -> None:
    model = make()
    image = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        maps = model.forward(model.prepare({"image": image}), ["middle/tissue"])
    torch.testing.assert_close(model.middle("tissue", maps["tissue"]), maps["middle/tissue"].flatten(1))


def test_one_patch_has_no_statistics_of_its_own() -> None:
    model = make({"tissue": TASKS["tissue"]}).train()
    with pytest.raises(UserError, match="2 or more"):
        model.procedure().step(model, field(model, 64, {"tissue": [True]}), Step())


def test_a_linear_head_learns_from_one_picture() -> None:
    """It has no norms that would want two."""
    model = make({"tissue": {**TASKS["tissue"], "window": None, "head": "linear"}}, widths=None).train()
    model.pyramid.encoder.freeze()  # type: ignore[union-attr,operator]
    step = Step()
    model.procedure().step(model, field(model, 64, {"tissue": [True]}), step)
    assert step.terms["tissue"] > 0


@pytest.mark.parametrize("tasks", [{}, {"nuclei": OBJECTS}], ids=["alone", "beside nuclei"])
def test_a_whole_picture_is_pooled_without_padding(tasks: dict[str, Any]) -> None:
    """As KimiaNet is: what is said of 100 x 70 pixels is the mean of the very map that its layers give of them."""
    diagnosis = {"kind": "patch", "classes": ["a", "b"], "window": None, "head": "linear", "output": "label"}
    small = {"block_config": (1, 1, 1, 1), "final_relu": False}
    model = make(
        {**tasks, "diagnosis": diagnosis},
        encoder={"name": "densenet121", "arguments": small},
        widths=[8] * 4 if tasks else None,
        finest=2,
    )
    image = torch.rand(1, 3, 100, 70)
    encoder: Any = model.pyramid.encoder
    with torch.no_grad():
        maps = model.forward({"image": image}, ["middle/diagnosis"])
        mean = encoder.net(image)[-1].mean((2, 3), keepdim=True)
        expected = model.heads["diagnosis"].layers(mean)  # type: ignore[union-attr,operator]
    assert maps["diagnosis"].shape == (1, 2, 100, 70)
    assert torch.equal(maps["diagnosis"], expected.expand(-1, -1, 100, 70))
    assert torch.equal(maps["middle/diagnosis"], expected)
    assert torch.equal(encoder.embedding(encoder.pooled(image)), mean.flatten(1))


# --- more tasks -------------------------------------------------------------------------------------------------------


def test_a_task_more_leaves_the_others_as_they_were() -> None:
    model = make()
    more = model.with_task("nuclei_class", {"kind": "classes", "of": "nuclei", "classes": ["a", "b"]})
    image = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    with torch.no_grad():
        old, new = model.forward(model.prepare({"image": image})), more.forward(more.prepare({"image": image}))
    assert set(new) == {*old, "nuclei_class"}
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert more.spec.outputs["nuclei"].classes == ("a", "b")
    with pytest.raises(UserError, match='a task "gland" already'):
        model.with_task("gland", OBJECTS)


def test_a_task_more_is_of_the_same_stain_and_told_of_mistakes() -> None:
    model = make()
    model.stain = normaliser("reinhard")
    assert model.with_task("vessels", OBJECTS).stain is model.stain
    with pytest.raises(Problems, match="whose objects have these classes"):
        model.with_task("kinds", {"kind": "classes"})
    with pytest.raises(UserError, match="its classes are not known"):
        model.with_task("kinds", {"kind": "classes", "of": "nuclei"})


def test_objects_have_the_same_classes_where_there_are_none() -> None:
    tasks = {"nuclei": OBJECTS, "kind": {"kind": "classes", "of": "nuclei", "classes": ["a", "b"]}}
    empty = {"nuclei": torch.zeros(1, 3, 64, 64), "kind": torch.zeros(1, 3, 64, 64)}
    found = make(tasks).decode(empty, [Geometry((64, 64), (1.0, 1.0), (0.0, 0.0))])[0]["nuclei"]
    assert isinstance(found, InstancesPrediction)
    assert (len(found.class_index), found.classes) == (0, ("a", "b"))


PHANTOM = {"arguments": {"size": 64, "train": 6, "um": 1.0}}


def recipe(folder: Path, tasks: dict[str, Any], **changes: Any) -> Recipe:
    loading = {"size": [64, 64], "batch": 2, "workers": 0, "samples": 4}
    values = {
        "zoo": 1,
        "name": "small",
        "summary": "For tests.",
        "family": "cerberus",
        "model": {**NARROW, "tasks": tasks, "tile": 64, "margin": 16, "mpp": 1.0},
        "output": str(folder),
        "data": {"train": {"datasets": [{"name": "phantom-multitask", **PHANTOM}], **loading}},
    }
    return Recipe.model_validate(values | changes)


def test_transfer_by_recipe(tmp_path: Path) -> None:
    """Train some tasks; add one in a second run that freezes all else: the old outputs stay, bit for bit."""
    first = train(recipe(tmp_path / "one", {"nuclei": OBJECTS}, train={"epochs": 1}), progress=False)
    added = {"nuclei": OBJECTS, "nuclei_class": {"kind": "classes", "of": "nuclei"}}
    frozen = ["pyramid", "laterals", "neck", "decoders.nuclei.", "heads.nuclei."]
    stage = {"name": "classes", "freeze": frozen, "train": {"epochs": 2, "weights": str(first), "ema": 0.9}}
    second = train(recipe(tmp_path / "two", added, stages=[stage]), progress=False)
    old, new = zoo.load(first), zoo.load(second)
    assert new.options.tasks["nuclei_class"].classes == ("epithelial", "lymphocyte", "fibroblast")
    image = {"image": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)}
    with torch.no_grad():
        a, b = old.forward(old.prepare(image)), new.forward(new.prepare(image))
    assert torch.equal(a["nuclei"], b["nuclei"])
    fresh = build.create("cerberus", new.options.model_dump())
    moved = [n for n, p in new.named_parameters() if not torch.equal(p, dict(fresh.named_parameters())[n])]
    assert any(name.startswith("decoders.nuclei_class.") for name in moved)


# --- mistakes ---------------------------------------------------------------------------------------------------------

NUCLEI = {"kind": "instances", "classes": ["epithelial", "lymphocyte"]}


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint32, np.int64, np.float32, np.float64])
def test_labels_of_any_type_with_gaps(dtype: Any) -> None:
    labels = np.zeros((64, 64), dtype)
    labels[4:20, 4:20], labels[30:50, 30:50] = 3, 700
    made = targets(make(), {"nuclei": Instances(labels)}, nuclei=NUCLEI)
    plain = (labels > 0).astype(np.int32) + (labels > 3)
    assert np.array_equal(made["nuclei"], targets(make(), {"nuclei": Instances(plain)}, nuclei=NUCLEI)["nuclei"])
    assert set(np.unique(made["nuclei"])) == {0, 1, 2}


def test_a_mask_is_a_label_map() -> None:
    mask = np.zeros((64, 64), bool)
    mask[4:20, 4:20], mask[30:50, 30:50] = True, True
    made = targets(make(), {"nuclei": Instances(mask)}, nuclei=NUCLEI)
    assert np.array_equal(made["nuclei"], targets(make(), {"nuclei": Instances(mask * 1)}, nuclei=NUCLEI)["nuclei"])


def test_boxes_become_ellipses() -> None:
    """A cell of which only the box is known is the ellipse in it; where boxes stand for crowds nothing is known."""
    boxes = Boxes(
        np.array([[4, 4, 24, 20], [30, 30, 60, 60]], np.float32), np.ones(2, np.int64), None, np.array([0, 1]) > 0
    )
    made = targets(make(), {"nuclei": boxes}, nuclei={"kind": "boxes", "classes": ["cell"]})["nuclei"]
    assert (made[12, 14], made[12, 4], made[5, 5], made[45, 45]) == (1, 2, 0, 255)
    assert abs(int((made == 1).sum()) - np.pi * 9 * 7) < 20
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert not targets(make(), {"nuclei": none}, nuclei={"kind": "boxes", "classes": ["cell"]})["nuclei"].any()


def test_no_objects() -> None:
    made = targets(make(), {"nuclei": Instances(np.zeros((64, 64), np.int32))}, nuclei=NUCLEI)
    assert not made["nuclei"].any()
    assert (made["nuclei.weight"] == 1).all()
    model = make()
    found = model.predict(np.full((64, 64, 3), 255, np.uint8), mpp="native")  # type: ignore[arg-type]
    assert set(found) == {"gland", "nuclei", "tissue"}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.full((64, 64), 0.5), "numbers that are not whole"),
        (np.full((64, 64), np.nan), "numbers that are not whole"),
        (np.full((64, 64), -3, np.int32), "holds -3. Expected 0 for the background"),
    ],
)
def test_what_is_no_label_map(labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        targets(make(), {"nuclei": Instances(labels)}, nuclei=NUCLEI)


def test_a_class_that_is_not_on_the_card() -> None:
    tasks = {"nuclei": OBJECTS, "kind": {"kind": "classes", "of": "nuclei", "classes": ["epithelial", "lymphocyte"]}}
    labels = np.zeros((64, 64), np.int32)
    labels[4:20, 4:20] = 5
    with pytest.raises(DataError, match="object 5 has class 9, which is not on the card"):
        targets(make(tasks), {"nuclei": Instances(labels, {5: 9})}, nuclei=NUCLEI)
    tissue = {"kind": "semantic", "classes": ["background", "stroma"]}
    with pytest.raises(DataError, match="the class 7, which is not on the card"):
        targets(make(), {"tissue": Semantic(np.full((64, 64), 7, np.uint8))}, tissue=tissue)
    label = {"kind": "label", "classes": ["stroma"]}
    with pytest.raises(DataError, match="the class 4 is not on the card"):
        targets(make(), {"tissue": Label(4)}, tissue=label)


def test_patches_that_are_too_small() -> None:
    tissue = {"kind": "semantic", "classes": ["background", "stroma"]}
    with pytest.raises(DataError, match="a patch of 24 pixels is too small for a head that looks at 32"):
        targets(make(), {"tissue": Semantic(np.zeros((24, 24), np.uint8))}, 24, tissue=tissue)


def test_sides_that_do_not_divide() -> None:
    """Any size goes: the network pads and cuts, and what lies far from the border is as before."""
    model = make()
    image = torch.randint(0, 256, (1, 3, 83, 101), dtype=torch.uint8)
    with torch.no_grad():
        maps = model.forward(model.prepare({"image": image}))
    assert {tuple(value.shape[-2:]) for value in maps.values()} == {(83, 101)}


def said(tmp_path: Path, tasks: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(Problems) as caught:
        prepare(recipe(tmp_path, tasks, train={}, **changes), data=False)
    return str(caught.value)


def test_a_task_without_a_dataset(tmp_path: Path) -> None:
    found = said(tmp_path, {"nuclei": OBJECTS, "vessels": OBJECTS})
    assert (
        'family cerberus also learns from a truth "vessels" of kind instances or boxes, which no dataset has' in found
    )


@pytest.mark.parametrize(
    ("tasks", "wrong"),
    [
        ({}, "a network without a task says nothing"),
        ({"a b": OBJECTS}, 'a task cannot be named "a b"'),
        ({"k": {"kind": "classes"}}, "whose objects have these classes"),
        (
            {"nuclei": OBJECTS, "k": {"kind": "classes", "of": "nucleus"}},
            'no other objects task "nucleus". Did you mean',
        ),
        ({"nuclei": {"kind": "objects", "inside": "gland"}}, 'inside: no other objects task "gland"'),
        ({"nuclei": {"kind": "objects", "classes": ["a", "b"]}}, "Add a task of kind: classes, of: nuclei"),
        ({"nuclei": {"kind": "object"}}, "objects"),
        ({"tissue": {"kind": "patch", "classes": ["a", "a"]}}, "a class stands twice"),
        (
            {"nuclei": OBJECTS, "k": {"kind": "classes", "of": "nuclei", "classes": ["a"], "class_weights": [1, 2]}},
            "2 class weights for 1 classes",
        ),
    ],
)
def test_tasks_that_do_not_fit(tasks: dict[str, Any], wrong: str) -> None:
    with pytest.raises((Problems, UserError), match=wrong):
        build.create("cerberus", {**NARROW, "tasks": tasks})


def test_widths_and_levels_must_fit() -> None:
    with pytest.raises(UserError, match="3 widths for 4 levels"):
        build.create("cerberus", {**NARROW, "widths": [8, 8, 8], "tasks": {"nuclei": OBJECTS}})
    with pytest.raises(UserError, match="stem_stride is 1"):
        build.create(
            "cerberus", {"encoder": {"name": "convnext_atto", "arguments": {"stem_stride": 1}}, "tasks": TASKS}
        )


def test_what_is_annotated() -> None:
    batch = Batch({"image": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.tensor([False])})
    assert annotated(batch) == {"b"}
