"""Translate a picture into another: a generator, a network on its features, and a discriminator, trained together.

The generator's features are computed once a step: the contrast loss on them moves the feature network and the
generator, and the picture moves the generator and the discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.cards import DatasetCard
from zoo.families.base import Context, Family, IOSpec, Maps, MapSpec, Need, Output, Player, Procedure, TargetMaker
from zoo.schema import Component, Schema
from zoo.types import Batch, Geometry, PicturePrediction, Prediction, Sample


class Options(Schema):
    truth: str | None = None
    """Key of the picture to learn; none = a blurred version of the image itself."""
    width: int = 8
    """Channels."""
    dropout: float = 0.2
    """Share of features dropped in training."""
    adversarial: float = 0.1
    """Weight of the adversarial term."""


@dataclass(frozen=True)
class Targets:
    truth: str | None

    def __call__(self, sample: Sample) -> dict[str, Any]:
        if self.truth is None:
            return {"picture": blurred(sample.image)}
        if self.truth not in sample.truth:
            return {}
        return {"picture": sample.truth[self.truth].data.astype(np.uint8)}  # type: ignore[union-attr]

    def blank(self, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"picture": np.zeros((3, *shape), np.uint8)}


def blurred(image: Any) -> Any:
    """Return the mean of the 3 x 3 neighbours of each pixel."""
    padded = np.pad(image.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = image.shape[1:]
    total = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    return (total / 9).astype(np.uint8)


class Adversarial(Procedure):
    """Discriminator first; then the shared contrast loss moves features and, with the rest, the generator."""

    def players(self, family: Family) -> dict[str, Player]:
        assert isinstance(family, Translator)
        rate = Component(name="adam", arguments={"lr": 2e-3, "betas": [0.5, 0.999]})
        return {
            "generator": Player([*family.encode.parameters(), *family.paint.parameters()]),
            "features": Player([*family.project.parameters()], optimizer=rate),
            "discriminator": Player([*family.judge.parameters()], optimizer=rate, clip=5.0),
        }

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        assert isinstance(family, Translator)
        real = unit(batch.targets["picture"])
        maps = family.forward(family.prepare(batch.inputs), taps=("features",))
        fake = maps["picture"].sigmoid()
        verdict = F.softplus(-family.judge(real)).mean() + F.softplus(family.judge(fake.detach())).mean()
        ctx.update("discriminator", verdict)
        terms = family.loss(maps, batch, ctx.progress)
        fooled = family.options.adversarial * F.softplus(-family.judge(fake)).mean()
        contrast = family.contrast(maps["features"], family.encode(2 * real - 1), ctx.generator)
        ctx.update("features", contrast, retain=True)
        ctx.update("generator", terms["l1"] + fooled + contrast)
        told = {**terms, "adversarial": fooled, "contrast": contrast, "discriminator": verdict}
        ctx.log({name: value.detach() for name, value in told.items()})


def unit(picture: Any) -> Tensor:
    """Return a uint8 picture in [0, 1]."""
    found: Tensor = picture.float() / 255
    return found


class Translator(Family):
    name = "toy-adversarial"
    summary = "An image-to-image generator with three optimisers."
    Options = Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.spec = IOSpec(
            maps={"picture": MapSpec(3, "sigmoid")},
            outputs={"picture": Output("picture", truth=options.truth, channels=("red", "green", "blue"))},
            divisor=1,
            margin=4,
            tile=64,
            local=True,
        )
        width = options.width
        self.encode = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())
        self.paint = nn.Sequential(nn.Dropout(options.dropout), nn.Conv2d(width, 3, 3, padding=1))
        self.project = nn.Conv2d(width, 4, 1)
        self.judge = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    @classmethod
    def needs(cls, options: Options) -> tuple[Need, ...]:
        return () if options.truth is None else (Need(("picture",), options.truth),)

    @classmethod
    def targets(cls, options: Options, card: DatasetCard) -> TargetMaker:
        return Targets(options.truth)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {"width": 4, "truth": "clean"}

    def procedure(self) -> Procedure:
        return Adversarial()

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        features = self.encode(inputs["image"])
        return {"picture": self.paint(features)} | ({"features": features} if "features" in taps else {})

    def contrast(self, one: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
        """Return a contrast loss of eight places of each image: features of the same place are to agree."""
        places = torch.randint(one.shape[2] * one.shape[3], (8,), generator=generator)
        a, b = (F.normalize(self.project(f).flatten(2)[:, :, places], dim=1) for f in (one, other))
        scores = torch.einsum("bci,bcj->bij", a, b) / 0.2
        return F.cross_entropy(scores.flatten(0, 1), torch.arange(8).repeat(len(scores)).to(scores.device))

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        error = (maps["picture"].float().sigmoid() - unit(batch.targets["picture"])).abs().mean((1, 2, 3))
        has = batch.has.get("picture")
        if has is None:
            return {"l1": error.mean()}
        return {"l1": (error * has).sum() / has.sum().clamp_min(1)}

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        found: list[dict[str, Prediction]] = []
        for picture, place in zip(maps["picture"].float(), geometry, strict=True):
            height, width = (round(s * k) for s, k in zip(place.shape, place.scale, strict=True))
            here = picture[None, :, :height, :width]
            if here.shape[2:] != tuple(place.shape):
                here = F.interpolate(here, size=tuple(place.shape), mode="bilinear")
            data = (255 * here[0]).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            found.append({"picture": PicturePrediction(data, ("red", "green", "blue"))})
        return found
