"""Tiny families whose answers are known, so that prediction is tested without any real model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo import postprocess
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Output
from zoo.schema import Schema
from zoo.types import BoxesPrediction, Geometry, InstancesPrediction, PicturePrediction, Prediction, SemanticPrediction

CLASSES = ("background", "tissue")


class Local(Family):
    """A convolution over the picture: logits of tissue against background; `kind` chooses what it says."""

    name = "local"

    class Options(Schema):
        kind: str = "semantic"
        radius: int = 3
        mpp: float | None = None
        divisor: int = 4
        tile: int = 32
        channels: tuple[str, ...] = ("red", "green", "blue")
        encoding: str = "rgb8"
        extent: int = 16
        stitch: str = "maps"

    options: Options

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        side = 2 * options.radius + 1
        self.layer = nn.Conv2d(len(options.channels), 2, side, padding=options.radius)
        torch.manual_seed(5)
        nn.init.normal_(self.layer.weight, std=2 / side)
        outputs = {
            "semantic": Output("semantic", CLASSES),
            "instances": Output("instances", CLASSES[1:]),
            "boxes": Output("boxes", CLASSES[1:]),
            "picture": Output("picture", channels=("a", "b")),
        }
        self.spec = IOSpec(
            maps={"logits": MapSpec(2, "none" if options.kind == "picture" else "softmax")},
            outputs={name: outputs[name] for name in options.kind.split("+")},
            channels=options.channels,
            encoding=Encoding(options.encoding),  # type: ignore[arg-type]
            mpp=options.mpp,
            divisor=options.divisor,
            margin=options.radius,
            tile=options.tile,
            local=options.kind in ("semantic", "picture"),
            extent=options.extent,
            stitch=options.stitch,  # type: ignore[arg-type]
        )

    @classmethod
    def targets(cls, options: Any, card: Any) -> Any:
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        return {"logits": self.layer(inputs["image"])}

    def loss(self, maps: Maps, batch: Any, progress: float) -> dict[str, Tensor]:
        return {"loss": maps["logits"].mean()}

    def decode(self, maps: Maps, geometry: Sequence[Geometry], threshold: float = 0.5) -> list[dict[str, Prediction]]:
        return [
            {kind: self._one(kind, values, place, threshold) for kind in self.spec.outputs}
            for values, place in zip(maps["logits"], geometry, strict=True)
        ]

    def _one(self, kind: str, values: Tensor, geometry: Geometry, threshold: float) -> Prediction:
        planes = postprocess.to_source(values, geometry).numpy()
        if kind == "picture":
            return PicturePrediction(planes, ("a", "b"), "linear")
        front = planes[1] >= threshold
        if kind == "semantic":
            return SemanticPrediction(front.astype(np.uint8), CLASSES, planes)
        labels = postprocess.components(front)
        count = int(labels.max(initial=0))
        scores = postprocess.means(labels, planes[1]) if count else np.zeros(0, np.float32)
        if kind == "boxes":
            boxes = [
                (s[1].start, s[0].start, s[1].stop, s[0].stop) for s in __import__("scipy").ndimage.find_objects(labels)
            ]
            return BoxesPrediction(
                np.array(boxes, np.float32).reshape(-1, 4), CLASSES[1:], np.zeros(count, np.int64), scores
            )
        return InstancesPrediction(labels, CLASSES[1:], np.zeros(count, np.int64), scores)


class Threshold(Local):
    """Says "tissue" where the picture is dark, and nothing else: an oracle that looks at one pixel at a time."""

    name = "threshold"

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        image = inputs["image"]
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.spec.encoding.mean, self.spec.encoding.std))
        dark = (0.5 - (image * std + mean).mean(1, keepdim=True)) * 20
        return {"logits": torch.cat([-dark, dark], 1)}


class Sampler(Local):
    """Adds noise in `infer`, as a generator would."""

    name = "sampler"

    def infer(self, inputs: Mapping[str, Tensor], *, rng: torch.Generator | None = None, noise: float = 1.0) -> Maps:
        maps = self.forward(inputs)["logits"]
        return {"logits": maps + noise * torch.randn(maps.shape, generator=rng)}


@pytest.fixture(scope="session")
def make() -> Callable[..., Family]:
    """`make("local" | "threshold" | "sampler", **options)` gives a family in evaluation mode."""
    known = {cls.name: cls for cls in (Local, Threshold, Sampler)}

    def build(name: str = "local", **options: Any) -> Family:
        cls = known[name]
        torch.manual_seed(0)  # two calls give one model
        return cls(cls.Options(**options)).eval()

    return build


@pytest.fixture(scope="session")
def blobs() -> Callable[..., np.ndarray]:
    """`blobs(height, width, seed, radius)` gives (H, W, 3) uint8: dark discs on a light ground."""

    def build(height: int, width: int, seed: int = 0, radius: int = 6) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        dark = np.zeros((height, width), bool)
        for _ in range(max(1, height * width // (16 * radius**2))):
            cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(radius / 2, radius)
            dark |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
        image = np.where(dark, 60, 220)[..., None] + rng.integers(-20, 20, (height, width, 3))
        return image.astype(np.uint8)

    return build
