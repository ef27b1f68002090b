"""Classify each pixel from its neighbourhood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cards import DatasetCard
from zoo.data.truths import as_semantic
from zoo.families.base import Family, IOSpec, Maps, MapSpec, Need, Output, TargetMaker
from zoo.schema import Schema
from zoo.types import Batch, Geometry, Prediction, Sample, SemanticPrediction


class Options(Schema):
    truth: str | None = None
    """Key of the truth; none = the first semantic one of the data."""
    classes: tuple[str, ...] = ()
    """Class names; none = those of the data."""
    width: int = 8
    """Channels."""
    norm: bool = True
    """Batch statistics."""
    dropout: float = 0.1
    """Share of values dropped in training."""
    explode: int | None = None
    """Batch index at which the loss is no number."""


@dataclass(frozen=True)
class Targets:
    truth: str
    classes: tuple[str, ...]
    own: tuple[str, ...]

    def __call__(self, sample: Sample) -> dict[str, Any]:
        if self.truth not in sample.truth:
            return {}
        found = as_semantic(sample.truth[self.truth], self.own, self.classes)
        return {"classes": found.map.astype(np.int64)}

    def blank(self, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"classes": np.full(shape, 255, np.int64)}


class Tiny(Family):
    name = "toy-tiny"
    summary = "A pixel classifier with two convolutions."
    Options = Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        width, classes = options.width, options.classes or ("background", "foreground")
        self.spec = IOSpec(
            maps={"classes": MapSpec(len(classes), "softmax")},
            outputs={"classes": Output("semantic", classes, truth=options.truth)},
            divisor=1,
            margin=2,
            tile=64,
            local=True,
        )
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if options.norm else nn.Identity()
        self.drop = nn.Dropout(options.dropout)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, len(classes), 1)

    @classmethod
    def needs(cls, options: Options) -> tuple[Need, ...]:
        return (Need(("semantic", "instances"), options.truth),)

    @classmethod
    def resolve(cls, options: Options, cards: Sequence[DatasetCard]) -> Options:
        for card in cards:
            for key, truth in card.truths.items():
                if truth.kind == "semantic" and options.truth in (None, key):
                    return options.model_copy(update={"truth": key, "classes": options.classes or truth.classes})
        return options

    @classmethod
    def targets(cls, options: Options, card: DatasetCard) -> TargetMaker:
        key = str(options.truth)
        own = card.truths[key].classes if key in card.truths else options.classes
        return Targets(key, options.classes, own)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {"width": 4, "truth": "squares", "classes": ("background", "square")}

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        stem = F.relu(self.norm(self.stem(inputs["image"])))
        body = F.relu(self.body(self.drop(stem)))
        found = {"classes": self.head(body)}
        return found | {tap: {"stem": stem, "body": body}[tap] for tap in taps}

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        target = batch.targets["classes"]
        assert isinstance(target, Tensor)
        known = (target != 255).sum((1, 2)).clamp_min(1)
        each = F.cross_entropy(maps["classes"].float(), target, ignore_index=255, reduction="none").sum((1, 2)) / known
        if "classes" in batch.has:  # a sample without a truth says nothing, but the mean stays one over samples
            each = each * batch.has["classes"]
        if self.options.explode is not None and self.training and progress > 0:
            each = each * torch.nan
        return {"cross_entropy": each.mean()}

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        found: list[dict[str, Prediction]] = []
        for probability, place in zip(maps["classes"].float(), geometry, strict=True):
            height, width = (round(s * k) for s, k in zip(place.shape, place.scale, strict=True))
            here = probability[None, :, :height, :width]
            if here.shape[2:] != tuple(place.shape):
                here = F.interpolate(here, size=tuple(place.shape), mode="bilinear")
            values = here[0].cpu().numpy()
            classes = self.spec.outputs["classes"].classes
            found.append({"classes": SemanticPrediction(values.argmax(0).astype(np.uint8), classes, values)})
        return found
