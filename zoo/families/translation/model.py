"""Translation of pictures: CUT, adaptive supervised PatchNCE, CycleGAN, pix2pix, PyramidPix2pix, and what lies between.

Sources: Park et al., ECCV 2020 (CUT); Li et al., MICCAI 2023 (ASP); Zhu et al., ICCV 2017 (CycleGAN); Isola et al.,
CVPR 2017 (pix2pix); Liu et al., CVPR Workshops 2022 (PyramidPix2pix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.cards import DatasetCard
from zoo.encoders import build_encoder
from zoo.errors import DataError, counted
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Need, Output, Procedure, TargetMaker
from zoo.families.translation import generators
from zoo.families.translation.norms import surveyed
from zoo.families.translation.options import DiscriminatorOptions, GeneratorOptions, TranslationOptions
from zoo.families.translation.procedure import Adversarial
from zoo.families.translation.terms import TERMS, smallest
from zoo.nn.discriminators import MultiscaleDiscriminator, PatchDiscriminator, PixelDiscriminator
from zoo.schema import Component
from zoo.types import Batch, Geometry, Picture, PicturePrediction, Prediction, Sample

RGB = ("red", "green", "blue")
SURVEY = 16
"""Tiles of a large picture whose statistics stand for the whole."""


@dataclass(frozen=True)
class PictureTarget:
    """The picture to learn, (C, H, W) uint8 under "picture"; a sample without it gives nothing."""

    truth: str | None
    channels: tuple[str, ...]

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return the picture. Raises `DataError` for another size, more than 8 bits or other channels."""
        found = sample.truth.get(self.truth or "")
        if not isinstance(found, Picture):
            return {}
        where = f"{sample.dataset}: {sample.id}: {self.truth}"
        if found.data.dtype != np.uint8:
            raise DataError(
                f"{where}: the picture holds {found.data.dtype}. Expected 8 bits a channel: this family paints "
                "pictures for the screen. Convert it, or choose a family of markers."
            )
        missing = [c for c in self.channels if c not in found.channels]
        if missing:
            have = ", ".join(found.channels)
            raise DataError(f"{where}: no channel {missing[0]} (it has {have}). Set model.target_channels.")
        if found.data.shape[1:] != sample.shape:
            raise DataError(f"{where}: {found.data.shape[1:]} pixels. Expected those of the image, {sample.shape}.")
        return {"picture": np.ascontiguousarray(found.data[[found.channels.index(c) for c in self.channels]])}

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return an empty picture."""
        return {"picture": np.zeros((len(self.channels), *shape), np.uint8)}


class Translation(Family):
    """A generator of pictures, with what judges and compares them in training."""

    name = "translation"
    summary = "A picture into another, stain into stain: CUT, ASP, CycleGAN, pix2pix, PyramidPix2pix."
    Options = TranslationOptions
    options: TranslationOptions

    def __init__(self, options: TranslationOptions) -> None:
        super().__init__(options)
        self.painted = options.target_channels or RGB
        inputs, outputs = len(options.channels), len(self.painted)
        if inputs != outputs:
            _without_own(options.objective, inputs, outputs)
        self.generator = make_generator(options.generator, inputs, outputs)
        self.back = make_generator(options.generator, outputs, inputs) if options.has("cycle") else None
        self.judge = self.judge_back = None
        if options.discriminator is not None:
            self.judge = make_discriminator(options.discriminator, outputs, inputs)
            self.judge_back = make_discriminator(options.discriminator, inputs, outputs) if self.back else None
        self.projector: generators.PatchProjector | None = None
        if any(TERMS[c.name].contrast for c in options.objective):
            features = options.features
            channels = self.generator.feature_channels(features.layers)
            self.projector = generators.PatchProjector(channels, features.width, features.normalise)
        self._begin()
        self._perceptual: dict[str, list[nn.Module]] = {}  # stands still: no part of the weights
        self.spec = self._spec()

    def _begin(self) -> None:
        initial = self.options.initial
        for part in (self.generator, self.back, self.judge, self.judge_back, self.projector):
            if part is not None and initial.name != "torch" and not isinstance(part, generators.EncoderGenerator):
                generators.initialise(part, initial.name, initial.gain)

    def _spec(self) -> IOSpec:
        options = self.options
        encoding = Encoding("rgb8", (0.5,) * len(options.channels), (0.5,) * len(options.channels))
        instance = options.generator.norm == "instance" and options.statistics == "whole"
        return IOSpec(
            maps={"picture": MapSpec(len(self.painted), "sigmoid")},
            outputs={"picture": Output("picture", truth=options.truth, channels=self.painted)},
            channels=options.channels,
            encoding=encoding,
            mpp=options.mpp,
            divisor=self.generator.divisor,
            margin=options.margin or self.generator.margin,
            tile=options.tile,
            local=True,
            survey=SURVEY if instance else 0,
            smallest=max(
                self.generator.smallest,
                cast(int, self.judge.smallest) if self.judge is not None else 1,
                *(smallest(component) for component in options.objective),
            ),
        )

    # what it learns from

    @classmethod
    def needs(cls, options: TranslationOptions) -> tuple[Need, ...]:
        """Return the picture of the same field, where the objective compares pairs."""
        return (Need(("picture",), options.truth),) if options.paired else ()

    @classmethod
    def missing(cls, options: TranslationOptions, cards: Sequence[DatasetCard], streams: Sequence[str]) -> str:
        """Say where the other stain of an unpaired training is neither a truth nor a stream."""
        pictures = [
            key for c in cards for key, t in c.truths.items() if t.kind == "picture" and options.truth in (None, key)
        ]
        if options.paired or pictures or "target" in streams:
            return ""
        named = f' "{options.truth}"' if options.truth else ""
        return (
            f"the other stain is missing: no dataset has a picture{named}, and there is no stream target. Write "
            "data.streams.target.datasets, with the same size and batch"
        )

    @classmethod
    def resolve(cls, options: TranslationOptions, cards: Sequence[DatasetCard]) -> TranslationOptions:
        """Return options with the target's key and channels filled in from the cards. Raises `ValueError`."""
        changes: dict[str, Any] = {}
        truth = options.truth
        for card in cards:
            pictures = {key: t for key, t in card.truths.items() if t.kind == "picture"}
            if truth is None and len(pictures) > 1 and options.paired:
                raise ValueError(f"truth: {card.name} has several pictures ({', '.join(pictures)}). Name one")
            if truth is None and len(pictures) == 1:
                truth = changes["truth"] = next(iter(pictures))
            if truth in pictures and options.target_channels is None and "target_channels" not in changes:
                changes["target_channels"] = pictures[truth].channels or RGB
        return options.model_copy(update=changes)

    @classmethod
    def targets(cls, options: TranslationOptions, card: DatasetCard) -> TargetMaker:
        """Return what takes the picture from a sample."""
        return PictureTarget(options.truth, options.target_channels or RGB)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Return ASP's objective on small networks."""
        return {
            "generator": {"width": 4, "blocks": 2, "spectral": True},
            "discriminator": {"width": 4, "layers": 2},
            "features": {"layers": [0, 4, 8, 12], "width": 8, "patches": 16, "normalise": "asp"},
            "objective": [
                "gan",
                {"name": "patch_nce", "weight": 10},
                {"name": "supervised_nce", "weight": 10, "arguments": {"schedule": "lambda"}},
                {"name": "gaussian_pyramid", "weight": 10},
            ],
            "initial": {"name": "torch"},
            "truth": "ihc",
            "tile": 64,
        }

    def procedure(self) -> Procedure:
        """Return the adversarial procedure."""
        return Adversarial()

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Return inputs and targets in [-1, 1] of the samples that have a target; None where none has.

        The target is that of the stream `target` where there is one (as many samples as both have), else the truth.
        Both are continued to a size that the generator can take, as in prediction.
        """
        a = self.prepare(batch.inputs)["image"]
        other = batch.others.get("target")
        if other is not None:
            b = self.prepare(other.inputs)["image"]
            count = min(len(a), len(b))
            return self._padded(a[:count]), self._padded(b[:count])
        target = batch.targets.get("picture")
        if target is None:
            return None
        b = cast(Tensor, target).to(a.device).float() / 127.5 - 1
        has = batch.has.get("picture")
        if has is not None and not bool(has.all()):
            a, b = a[has], b[has]
        return (self._padded(a), self._padded(b)) if len(a) else None

    # what it computes

    def paint(self, a: Tensor) -> Tensor:
        """Return the picture in [-1, 1] of inputs in [-1, 1]."""
        return torch.tanh(self.generator(a))

    def paint_back(self, b: Tensor) -> Tensor:
        """Return the way back, in [-1, 1]."""
        assert self.back is not None
        return torch.tanh(self.back(b))

    def judged(self, a: Tensor, picture: Tensor) -> list[Tensor]:
        """Return the discriminator's raw scores of a picture, beside its input where it is conditional."""
        assert self.judge is not None
        assert self.options.discriminator is not None
        seen = torch.cat([a, picture], 1) if self.options.discriminator.conditional else picture
        found: list[Tensor] = self.judge(seen)
        return found

    def perceptual(self, name: str, weights: str) -> Any:
        """Return a function from pictures in [0, 1] to an encoder's maps; the encoder stands still."""
        key = f"{name} {weights}"
        if key not in self._perceptual:
            made = build_encoder(name, in_channels=len(self.painted), weights=weights).eval()
            self._perceptual[key] = [made.requires_grad_(False).to(self.device)]
        encoder: Any = self._perceptual[key][0].to(self.device)
        mean = torch.tensor(encoder.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(encoder.std, device=self.device).view(1, -1, 1, 1)
        return lambda x: encoder((x - mean) / std).maps

    def _padded(self, image: Tensor) -> Tensor:
        """Return inputs mirrored at the right and below up to a size that the generator can take."""
        divisor, least = self.generator.divisor, self.generator.smallest
        low = [max(least, side + -side % divisor) - side for side in image.shape[2:]]
        if not any(low):
            return image
        mode = "reflect" if low[0] < image.shape[2] and low[1] < image.shape[3] else "replicate"
        return F.pad(image, (0, low[1], 0, low[0]), mode=mode)

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return {"picture": (B, C, H, W)}: twice what goes into tanh, so that its sigmoid is the picture in [0, 1].

        `taps`: "layerN" gives the generator's features.
        """
        image = inputs["image"]
        height, width = image.shape[2:]
        padded = self._padded(image)
        found = {"picture": 2 * self.generator(padded)[:, :, :height, :width]}
        for tap in taps:
            found[tap] = self.generator.features(padded, [int(tap.removeprefix("layer"))])[0]
        return found

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the mean absolute difference to the target, values from -1 to 1: what a validation watches."""
        target = batch.targets.get("picture")
        picture = maps["picture"].float()
        if target is None:
            return {"l1": 0 * picture.mean()}
        error = (torch.tanh(picture / 2) - (cast(Tensor, target).float() / 127.5 - 1)).abs().mean(1)
        weight = torch.ones_like(error) if batch.valid is None else batch.valid.to(error)
        if "picture" in batch.has:
            weight = weight * batch.has["picture"].to(error)[:, None, None]
        return {"l1": (error * weight).sum() / weight.sum().clamp_min(1)}

    def survey(self, tiles: Tensor) -> AbstractContextManager[None]:
        """Return the context in which instance norms use the statistics of these tiles of one picture together."""
        prepared = self._padded(self.prepare({"image": tiles})["image"])
        return surveyed(self.generator, prepared)

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        """Return one picture an image, uint8, at the size of its source."""
        found: list[dict[str, Prediction]] = []
        for picture, place in zip(maps["picture"].float(), geometry, strict=True):
            height, width = (round(s * k) for s, k in zip(place.shape, place.scale, strict=True))
            here = picture[None, :, :height, :width]
            if here.shape[2:] != tuple(place.shape):
                here = F.interpolate(here, size=tuple(place.shape), mode="bilinear", align_corners=False)
            data = (255 * here[0]).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            found.append({"picture": PicturePrediction(data, self.painted)})
        return found


def make_generator(options: GeneratorOptions, inputs: int, outputs: int) -> generators.Generator:
    """Return an untrained generator."""
    if options.name == "unet":
        downs = options.downs or 8
        if downs < 5:
            raise ValueError(f"generator.downs: {downs} halvings will not do for a U-Net. Expected 5 or more")
        return generators.UnetGenerator(
            inputs, outputs, options.width, downs, norm=options.norm, dropout=options.dropout
        )
    if options.name == "encoder":
        said = options.encoder
        encoder = build_encoder(said.name, in_channels=inputs, weights=options.encoder_weights, **said.arguments)
        return generators.EncoderGenerator(encoder, outputs, options.width, norm=options.norm)
    return generators.ResnetGenerator(
        inputs,
        outputs,
        options.width,
        options.blocks,
        norm=options.norm,
        dropout=options.dropout,
        antialias=options.antialias,
        antialias_up=options.antialias_up,
        spectral=options.spectral,
        downs=options.downs or 2,
    )


def _without_own(objective: Sequence[Component], inputs: int, outputs: int) -> None:
    """Raise `ValueError` for a term that shows the generator a picture of the kind that it paints."""
    for component in objective:
        if TERMS[component.name].contrast or component.name == "identity":
            raise ValueError(
                f"objective: {component.name} shows the generator a target, which has {counted(outputs, 'channel')} "
                f"where the image has {inputs}. Leave it out: gan, l1 and gaussian_pyramid will do"
            )


def make_discriminator(options: DiscriminatorOptions, channels: int, beside: int) -> nn.Module:
    """Return an untrained discriminator of pictures of so many channels."""
    inputs = channels + (beside if options.conditional else 0)
    if options.name == "pixel":
        return PixelDiscriminator(inputs, options.width, norm=options.norm)
    more: dict[str, Any] = {"norm": options.norm, "antialias": options.antialias, "spectral": options.spectral}
    if options.name == "multiscale":
        return MultiscaleDiscriminator(inputs, options.width, options.layers, options.scales, **more)
    return PatchDiscriminator(inputs, options.width, options.layers, **more)
