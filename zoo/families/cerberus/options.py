"""What a recipe may say under `model:` of the family cerberus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from zoo.encoders import listing
from zoo.errors import suggest
from zoo.families.base import Family
from zoo.families.cerberus.objects import RULES, Rule
from zoo.schema import Component, Schema

RuleName = Literal["gland", "lumen", "nuclei"]
BACKGROUND = "background"


class Task(Schema):
    """One thing that the network says: objects, the classes of another task's objects, or the class of a patch."""

    kind: Literal["objects", "classes", "patch"]
    """objects: instances | classes: what another task's objects are | patch: the tissue around a point."""
    truth: str | None = None
    """Key of the truth in the datasets; none = the task's name (of a classes task: the truth of its objects)."""
    classes: tuple[str, ...] | None = None
    """Class names; none = the dataset's. Of objects: one name. Of a patch with a background: that first."""
    merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class of the model -> classes of the dataset that become it; `ignore` -> classes that are not learnt from."""
    of: str | None = None
    """The objects task whose objects are named (classes)."""
    inside: str | None = None
    """An objects task; what lies outside its objects is removed (lumina outside glands)."""
    rule: RuleName | None = None
    """Published rule that gives contour width, thresholds and sizes (objects); none = the task's name, or nuclei."""
    contour: PositiveInt | None = None
    """Side of the elliptic element that makes the contour of the targets, in pixels; none = the rule's."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Probability above which a pixel is inside an object; none = the rule's."""
    min_size: NonNegativeInt | None = None
    """Pixels of the smallest object, before it is grown back; none = the rule's."""
    grow: NonNegativeInt | None = None
    """Side of the elliptic element by which objects are grown back over their contours; none = the rule's."""
    border: NonNegativeFloat = 10.0
    """What is added to the weight of a pixel between two objects; 0 = nothing."""
    weight: NonNegativeFloat = 1.0
    """Factor of the task's loss."""
    class_weights: tuple[NonNegativeFloat, ...] | None = None
    """A weight a class in the cross-entropy of a classes task; none = all 1."""
    window: PositiveInt | None = 144
    """Pixels of the patch whose class is said (patch); none = the whole picture."""
    head: Literal["convolutions", "linear"] = "convolutions"
    """What the class of a patch is read from: two convolutions with norms, or a linear layer."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of features dropped in training (patch)."""
    output: Literal["map", "label"] = "map"
    """What a patch task predicts: a map of the class around each point, or one class for the whole picture."""

    def rule_of(self, name: str) -> Rule:
        """Return how the task's objects are made."""
        chosen = RULES[self.rule or (name if name in RULES else "nuclei")]
        changes = {"contour": self.contour, "threshold": self.threshold, "min_size": self.min_size, "grow": self.grow}
        return replace(chosen, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]

    @property
    def foreground(self) -> tuple[str, ...]:
        """Return the classes without the background."""
        return tuple(name for name in self.classes or () if name != BACKGROUND)

    @property
    def planes(self) -> int:
        """Return the channels of the raw map: background, inside, contour; none and the classes; or the classes."""
        if self.kind == "objects":
            return 3
        return len(self.classes or ()) if self.kind == "patch" else 1 + len(self.foreground)


class CerberusOptions(Family.Options):
    """One encoder, a decoder a task."""

    encoder: Component = Component(name="resnet34", arguments={"stem_stride": 1})
    """Encoder (`zoo list encoders`); the published one is a ResNet-34 whose first convolution has stride 1."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none | imagenet | a name | a path."""
    encoding: Literal["unit", "encoder"] = "unit"
    """How pixel values are scaled: to [0, 1], as published, or by the encoder's mean and standard deviation too."""
    tasks: dict[str, Task] = Field(default_factory=dict)
    """Tasks by name, at least one; their order is that of the outputs."""
    finest: Literal[1, 2, 4] = 1
    """Stride of the finest level that decoders work at; their logits are interpolated from there."""
    widths: tuple[PositiveInt, ...] | None = None
    """Channels of the decoders at each level but the deepest, finest first; none = the encoder's own, as published."""
    head_width: PositiveInt = 96
    """Channels between a decoder and its logits."""
    mpp: PositiveFloat | None = 0.5
    """um per pixel that the model works at; none = it does not matter or is not known."""
    tile: PositiveInt = 448
    """Side of the tiles that large images are cut into."""
    margin: NonNegativeInt = 152
    """Pixels at a tile's border that are not trusted; the published network sees 152 px around a pixel."""

    _encoder = field_validator("encoder")(listing.known)

    @model_validator(mode="after")
    def _consistent(self) -> CerberusOptions:
        if not self.tasks:
            raise ValueError("a network without a task says nothing. Write tasks: {NAME: {kind: ...}}")
        for name, task in self.tasks.items():
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f'a task cannot be named "{name}". Use letters, digits, - and _')
            _check_task(name, task, self.tasks)
        if not 2 * self.margin < self.tile:
            raise ValueError(
                f"a margin of {self.margin} leaves nothing of tiles of {self.tile}. Write a smaller margin"
            )
        return self

    def truth_of(self, name: str) -> str:
        """Return the key of a task's truth."""
        task = self.tasks[name]
        if task.truth is None and task.kind == "classes" and task.of is not None:
            return self.truth_of(task.of)
        return task.truth or name

    def classes_of(self, name: str) -> tuple[str, Task] | None:
        """Return the classes task that names an objects task's objects, where there is one."""
        return next(((n, t) for n, t in self.tasks.items() if t.kind == "classes" and t.of == name), None)


def _check_task(name: str, task: Task, tasks: dict[str, Task]) -> None:
    """Raise `ValueError` with one sentence where a task does not fit itself or the others."""
    objects = [n for n, t in tasks.items() if t.kind == "objects"]
    for key, value in (("of", task.of), ("inside", task.inside)):
        if value is not None and (value not in objects or value == name):
            near = suggest(value, [n for n in objects if n != name]) or "There is none"
            raise ValueError(f'task {name}: {key}: no other objects task "{value}". {near}')
    if task.kind == "classes" and task.of is None:
        raise ValueError(f"task {name}: whose objects have these classes? Write of: NAME, one of {', '.join(objects)}")
    if task.kind != "classes" and task.of is not None:
        raise ValueError(f"task {name}: `of` is for kind: classes. Leave it out")
    if task.kind == "classes" and sum(t.kind == "classes" and t.of == task.of for t in tasks.values()) > 1:
        raise ValueError(f"task {name}: the objects of {task.of} are named twice. Keep one of the two")
    if task.kind == "objects" and task.classes is not None and len(task.foreground) != 1:
        raise ValueError(f"task {name}: objects have one class here. Add a task of kind: classes, of: {name}")
    classes = task.classes or ()
    if len(set(classes)) != len(classes):
        raise ValueError(f"task {name}: a class stands twice in {', '.join(classes)}. Name each once")
    if BACKGROUND in classes[1:]:
        raise ValueError(f"task {name}: background is not the first of {', '.join(classes)}. Write it first")
    count = len(task.foreground)
    if task.class_weights is not None and task.kind != "classes":
        raise ValueError(f"task {name}: class_weights are for kind: classes. Leave them out")
    if task.class_weights is not None and task.classes is not None and len(task.class_weights) != count:
        raise ValueError(f"task {name}: {len(task.class_weights)} class weights for {count} classes. Write one a class")


def published_tasks() -> dict[str, Any]:
    """Return the released network's tasks, in the order of its state dict (the package's names for them)."""
    glands: Sequence[str] = ("gland", "surface epithelium")
    nuclei = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
    tissue = (
        *("background", "abnormal epithelium", "normal epithelium", "inflammatory", "muscle", "stroma", "debris"),
        *("mucous", "adipose"),
    )
    return {
        "gland": {"kind": "objects", "truth": "glands", "classes": ["gland"], "rule": "gland", "weight": 1.4},
        "gland_class": {"kind": "classes", "of": "gland", "classes": list(glands)},
        "lumen": {
            "kind": "objects",
            "truth": "lumina",
            "classes": ["lumen"],
            "rule": "lumen",
            "inside": "gland",
            "weight": 1.5,
        },
        "nuclei": {"kind": "objects", "truth": "nuclei", "classes": ["nucleus"], "rule": "nuclei"},
        "nuclei_class": {
            "kind": "classes",
            "of": "nuclei",
            "classes": list(nuclei),
            "class_weights": [12, 1, 2, 6, 12, 2],
            "weight": 0.0,
        },
        "tissue": {"kind": "patch", "classes": list(tissue), "weight": 0.4},
    }
