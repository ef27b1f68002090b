"""The family diffusion: what it learns from, one step of training, and drawing.

Sources: Ho et al., NeurIPS 2020; Ho and Salimans 2021 (hiding conditions, section 3); Yellapragada et al. 2025
(PixCell); Graikos et al., CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zoo.cards import DatasetCard
from zoo.encoders import Encoder, listing
from zoo.errors import UserError
from zoo.families.base import (
    Encoding,
    Family,
    IOSpec,
    Maps,
    MapSpec,
    Need,
    Origin,
    Output,
    Procedure,
    TargetMaker,
)
from zoo.families.diffusion import conditions, latent, networks, sampling, schedule, trained, translation, wide
from zoo.families.diffusion.first_stage import FirstStage
from zoo.families.diffusion.kept import Kept, identity
from zoo.families.diffusion.networks import Condition, Network
from zoo.families.diffusion.options import DiffusionOptions
from zoo.families.diffusion.procedure import Denoising
from zoo.types import Batch, Geometry, PicturePrediction, Prediction

RGB = ("red", "green", "blue")
SIDE = 64
"""Side of a picture where nothing says another."""


class Diffusion(Family):
    """A network that takes noise away, in pixels or in latents, told by a class map, an embedding, both or neither."""

    name = "diffusion"
    summary = "Tissue drawn from noise: from a class map, like an embedding, or like neither."
    Options = DiffusionOptions
    options: DiffusionOptions

    def __init__(self, options: DiffusionOptions) -> None:
        super().__init__(options)
        noise = options.noise
        self.schedule = schedule.Schedule(noise.schedule, noise.steps, noise.start, noise.end)
        self.channels, self.factor = latent.outline(options)
        self.network = self._network()
        self.first_stage = latent.own_stage(options)
        self.translator = translation.make(options)
        self._borrowed = latent.Borrowed(options)
        self._encoder: list[Encoder] = []  # stands still: no part of the weights
        self._names: dict[str, str] = {}
        side = self.side
        self.spec = IOSpec(
            maps={"picture": MapSpec(3)},
            outputs={"picture": Output("picture", truth=options.target, channels=RGB)},
            encoding=Encoding("rgb8", (0.5,) * 3, (0.5,) * 3),
            mpp=options.mpp,
            divisor=self.network.divisor * self.factor,
            margin=side // 4,
            tile=side,
            stitch="latents",
        )

    def _network(self) -> Network:
        options = self.options
        said = dict(options.network.arguments)
        asked: dict[str, Any] = {"channels": self.channels}
        if options.mask is not None:
            asked["classes"] = latent.told_planes(options, self.channels)
        if options.embedding is not None:
            asked |= {"width": options.embedding.width, "tokens": options.embedding.tokens}
        taken = networks.find(options.network.name).accepts()
        network = networks.build(options.network.name, **{k: v for k, v in asked.items() if k in taken} | said)
        for name, asked_for in (("mask", options.mask), ("embedding", options.embedding)):
            if asked_for is not None and name not in network.takes:
                raise ValueError(f"the network {options.network.name} takes no {name}. Remove model.{name}")
        if options.mask is not None and network.classes != asked["classes"]:
            raise ValueError(
                f"the network {options.network.name} takes masks of {network.classes} planes, and classes and outline "
                f"make {asked['classes']}. Change model.mask"
            )
        told = options.embedding
        if told is not None and (network.tokens, network.width) != (told.tokens, told.width):
            raise ValueError(
                f"the network {options.network.name} takes {network.tokens} embeddings of {network.width} numbers, and "
                f"model.embedding makes {told.tokens} of {told.width}. Change one of them"
            )
        if network.channels != self.channels:
            raise ValueError(
                f"network.arguments.channels: {network.channels}, where what is denoised has {self.channels}. Remove it"
            )
        return network

    # what it learns from

    @classmethod
    def needs(cls, options: DiffusionOptions) -> tuple[Need, ...]:
        """Return the truths that conditions are made of."""
        found = []
        if options.mask is not None:
            found.append(Need(conditions.kinds(options.mask), options.mask.truth))
        if options.embedding is not None and options.embedding.truth is not None:
            found.append(Need(("vector",), options.embedding.truth))
        if options.target is not None:
            found.append(Need(("picture",), options.target))
        return tuple(found)

    @classmethod
    def resolve(cls, options: DiffusionOptions, cards: Sequence[DatasetCard]) -> DiffusionOptions:
        """Return options with classes and the width of an embedding filled in. Raises `ValueError`."""
        changes: dict[str, Any] = {}
        if cards:
            trained.check_options(options)
        if options.mask is not None and (cards or options.mask.classes is None):
            changes["mask"] = conditions.resolve_mask(options.mask, cards)
        embedding = options.embedding
        if embedding is not None and options.condition_encoder is not None and embedding.truth is None:
            width = listing.info(options.condition_encoder.name).channels[-1]
            if embedding.width not in (None, width):
                raise ValueError(
                    f"embedding.width: {embedding.width}, but {options.condition_encoder.name} gives {width} numbers. "
                    "Leave it out"
                )
            changes["embedding"] = embedding.model_copy(update={"width": width})
        return options.model_copy(update=changes)

    @classmethod
    def targets(cls, options: DiffusionOptions, card: DatasetCard) -> TargetMaker:
        """Return what takes class maps and embeddings from a sample."""
        return conditions.make_targets(options, card)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Return a small network that is told a class map and an embedding."""
        return {
            "network": {"name": "pixel-unet", "arguments": {"features": 8, "multipliers": [1, 2]}},
            "mask": {"truth": "nuclei", "classes": ["background", "nucleus"]},
            "embedding": {"truth": "embedding", "width": 8},
            "sampling": {"sampler": "ddim", "steps": 2},
            "size": 32,
        }

    def procedure(self) -> Procedure:
        """Return the denoising procedure."""
        return Denoising()

    def adopted(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return entries of other weights under this model's names: of a transformer, those of its ControlNet too."""
        own = "network."
        inside = {name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)}
        rest = {name: value for name, value in tensors.items() if not name.startswith(own)}
        return {**rest, **{own + name: value for name, value in self.network.adopted(inside).items()}}

    # conditions

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the conditions that it can be told."""
        told = {"mask": self.options.mask, "embedding": self.options.embedding}
        return tuple(name for name, options in told.items() if options is not None)

    @property
    def origin(self) -> Origin:
        """What it draws from: a mask, an embedding, noise alone, or a picture, whose features are the embedding."""
        if self.options.mask is not None:
            return "mask"
        if self.options.embedding is None:
            return "noise"
        own = self.options.condition_encoder is not None and self.options.embedding.truth is None
        return "image" if own else "embedding"

    @property
    def guidable(self) -> bool:
        """Whether its conditions were hidden in training, so that guidance has something to lead away from."""
        return bool(self.takes) and self.options.dropout > 0

    @property
    def side(self) -> int:
        """Side of the pictures that it was made for, in pixels."""
        return self.options.size or (self.network.size or 0) * self.factor or SIDE

    @property
    def most(self) -> int:
        """Side of the largest picture that is drawn in one piece, in pixels; beyond it, windows agree in every step.

        A network made for one size would stretch its positions over more.
        """
        return self.side if self.network.size is not None else 2 * self.side

    def check_here(self) -> None:
        """Raise `UserError` where a first stage with weights of its own is not on this machine."""
        if self.options.first_stage is not None and self.first_stage is None:
            self._borrowed.get(self.device)

    def inputs_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return pictures and what is told of each; where a truth is absent, that nothing is told."""
        found = dict(batch.inputs)
        for name in ("mask", "edge", "embedding"):
            value = batch.targets.get(name)
            if not isinstance(value, Tensor):
                continue
            told = batch.has.get(name)
            if told is not None:
                value = torch.where(
                    told.to(value.device).view(-1, *[1] * (value.ndim - 1)), value, self._nothing(name, value)
                )
            found[name] = value.to(batch.inputs["image"].device)
        if self.options.target is not None and isinstance(batch.targets.get("picture"), Tensor):
            found["picture"] = cast(Tensor, batch.targets["picture"]).to(batch.inputs["image"].device)
        return found

    def _nothing(self, name: str, value: Tensor) -> Tensor:
        """Return what in the place of `value` says that nothing is told; a network may have an embedding for that."""
        if name == "embedding" and (null := self.network.null({name: value})) is not None:
            return cast(Tensor, null[name]).to(value)
        return value.new_tensor(conditions.HIDDEN if name == "mask" else 0)

    def drawn(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what is to be drawn, (B, 3, H, W) in [-1, 1], of prepared inputs: the target, or the picture."""
        picture = inputs.get("picture")
        return inputs["image"].float() if picture is None else self.prepare({"image": picture})["image"]

    def condition(self, inputs: Mapping[str, Tensor], kept: Kept | None = None) -> Condition:
        """Return the network's condition from `inputs_of`: the embedding is the picture's own where none is given."""
        found: dict[str, Any] = {}
        options = self.options
        if options.mask is not None and "mask" in inputs:
            edge = inputs.get("edge") if options.mask.boundary else None
            if options.mask.boundary and edge is None:
                edge = torch.zeros_like(inputs["mask"])
            found["mask"] = conditions.planes(inputs["mask"], edge, len(options.mask.classes or ()))
        if options.embedding is not None:
            if "embedding" in inputs:
                found["embedding"] = inputs["embedding"].float()
            elif options.condition_encoder is not None and "image" in inputs:
                found["embedding"] = self.embedding_of(inputs["image"], kept)
        return found

    def embedding_of(self, pictures: Tensor, kept: Kept | None = None) -> Tensor:
        """Return (B, T, D) features of pictures in [-1, 1], by `condition_encoder`. Raises `UserError` without one."""
        options = self.options
        if options.condition_encoder is None or options.embedding is None:
            raise UserError(
                f"{self.weights_name or self.name}: no encoder makes its embeddings, they come with the data. "
                "Give a file of numbers: --embedding"
            )
        if not self._encoder:
            self._encoder = [conditions.embedder(options.condition_encoder, options.condition_encoder_weights)]
        encoder = self._encoder[0] = self._encoder[0].to(pictures.device)
        tokens, seen = options.embedding.tokens, options.embedding.seen

        def compute(one: Tensor) -> Tensor:
            return conditions.embed(encoder, (one + 1) / 2, tokens, seen)

        kept = kept or Kept("none")
        if kept.where == "none":
            return compute(pictures)
        if "embedding" not in self._names:
            self._names["embedding"] = identity(encoder, options.condition_encoder.name, f"{tokens} {seen}")
        return kept.of(self._names["embedding"], pictures, compute)

    # training

    def clean(self, pictures: Tensor, generator: torch.Generator, kept: Kept | None = None) -> Tensor:
        """Return what noise is put on: pictures (B, 3, H, W) in [-1, 1], or their latents, continued to the divisor."""
        whole = self._padded(pictures)
        stage = self.stage
        if stage is None:
            return whole
        return latent.encode(stage, whole, generator, kept or Kept("none"), self._borrowed.identity(stage))

    @property
    def stage(self) -> FirstStage | None:
        """The autoencoder of the setting latent, on the model's device. Raises `UserError` where it is not here."""
        if self.options.first_stage is None:
            return None
        return self.first_stage if self.first_stage is not None else self._borrowed.get(self.device)

    def _padded(self, x: Tensor, value: float | None = None) -> Tensor:
        return latent.padded(x, self.network.divisor * self.factor, value)

    def terms(
        self, batch: Batch, generator: torch.Generator, *, spread: bool = False, kept: Kept | None = None
    ) -> dict[str, Tensor]:
        """Return named losses of each picture (B,).

        `spread`: times evenly over the schedule and nothing hidden, for validation; else all is drawn.
        """
        noise_options = self.options.noise
        inputs = self.prepare(self.inputs_of(batch))
        drawn = self.drawn(inputs)
        clean = self.clean(drawn, generator, kept)
        of = {**inputs, "image": drawn} if self.translator is not None else inputs
        told = self.at_size(self.condition(of, kept))
        count, device = len(clean), clean.device
        if spread:
            t = (torch.arange(count) + 0.5) / count * self.schedule.steps
            t = t if noise_options.prediction == "flow" else t.long()
        else:
            t = schedule.draw_times(self.schedule, count, noise_options.prediction, generator)
            if self.options.dropout and told:
                hidden = torch.rand(count, generator=generator) < self.options.dropout
                told = dict(self.network.drop(told, hidden.to(device)))
        t = t.to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        x = schedule.add_noise(self.schedule, clean, noise, t, noise_options.prediction)
        output = self.network(x, t, told or None).float()
        output = self._where_valid(output, clean, noise, t, batch.valid)
        terms = schedule.denoising_loss(
            self.schedule,
            output,
            clean,
            noise,
            t,
            prediction=noise_options.prediction,
            weighting=noise_options.weighting,
            gamma=noise_options.gamma,
            bound=self.network.bound,
        )
        here = batch.has.get("picture") if self.options.target is not None else None
        return terms if here is None else {k: v * here.to(v.device) for k, v in terms.items()}

    def at_size(self, told: Condition) -> dict[str, Any]:
        """Return a condition whose class map has the size of what is denoised, as the network is told it."""
        found = dict(told)
        if "mask" in found:
            drawn = self.options.mask is not None and self.options.mask.told == "latent"
            planes = self._padded(found["mask"], 0.0)
            found["mask"] = latent.mask_of(self.options, self.stage if drawn else None, planes, self.factor)
        return found

    def _where_valid(self, output: Tensor, clean: Tensor, noise: Tensor, t: Tensor, valid: Tensor | None) -> Tensor:
        """Return the output with the right answer outside the pictures, so that padding costs nothing."""
        if valid is None or bool(valid.all()):
            return output
        answer = schedule.target_of(self.schedule, clean, noise, t, self.options.noise.prediction)
        if output.shape[1] != clean.shape[1]:  # -1: the posterior's variance, from which nothing diverges
            answer = torch.cat([answer, torch.full_like(answer, -1)], 1)
        whole = self._padded(valid.to(output.device)[:, None].float(), 0.0)
        inside = F.avg_pool2d(whole, self.factor) > 0
        return torch.where(inside, output, answer)

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return {"picture": what the network says of `noisy` (B, C, h, w) at `time` (B,)}; other inputs tell it."""
        told = self.at_size(self.condition({k: v for k, v in inputs.items() if k != "image"}))
        return {"picture": self.network(inputs["noisy"], inputs["time"], told or None)}

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the denoising loss of a batch, as a validation measures it; `maps` are not looked at."""
        terms = self.terms(batch, torch.Generator().manual_seed(0), spread=True)
        return {name: value.mean() for name, value in terms.items()}

    # drawing

    def sample(
        self,
        told: Condition,
        shape: tuple[int, int],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """Return (B, 3, *shape) float32 in [0, 1], a picture a seed, of conditions (B, ...).

        A picture depends on its seed and its own condition alone, up to rounding. Raises `UserError` for guidance
        without a null condition, and for an unknown sampler.
        """
        guidance = self.strength(guidance) if told else 1.0
        size = latent.sizes(shape, self.network.divisor, self.factor)
        told = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in self.at_size(told).items()}
        predict = sampling.guided(self.network, told or None, guidance)
        return self.denoised(predict, size, seeds, steps=steps, sampler=sampler)[:, :, : shape[0], : shape[1]]

    def strength(self, guidance: float | None) -> float:
        """Return the guidance asked for, None = the model's. Raises `UserError` where there is none to be had."""
        found = self.options.sampling.guidance if guidance is None else guidance
        if found != 1 and not self.guidable:
            raise UserError(
                f"guidance {found:g}: the model was trained without hiding its conditions (dropout: 0), so there is "
                "no null condition to lead away from. Use guidance 1."
            )
        return found

    def denoised(
        self,
        predict: sampling.Predict,
        size: tuple[int, int],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """Return pictures in [0, 1], a picture a seed, of noise of `size` from which `predict` takes the noise away."""
        options = self.options.sampling
        noise, generators = sampling.noise_like((self.network.channels, *size), seeds)
        scheduler = sampling.make_scheduler(
            cast(Any, sampler or options.sampler), self.schedule, self.options.noise.prediction
        )
        found = sampling.sample(predict, noise.to(self.device), scheduler, steps or options.steps, generators)
        return ((self.pictures(found.float()) + 1) / 2).clamp(0, 1)

    def pictures(self, denoised: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W), about in [-1, 1], of what was denoised: decoded, in the setting latent."""
        stage = self.stage
        return denoised if stage is None else latent.decode(stage, denoised)

    def infer(  # type: ignore[override]  # the options that it takes, by name
        self,
        inputs: Mapping[str, Tensor],
        *,
        rng: torch.Generator | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
    ) -> Maps:
        """Return {"picture": (B, 3, H, W) in [0, 1]}, drawn at the size of `image`.

        Told by `mask`, `edge` and `embedding` where they are there; without an embedding, like `image`, or with a
        translator like the target of `image`. What is larger than the model's pictures and drawn like an image is drawn
        in windows (`wide`).
        """
        image = inputs["image"]
        seeds = torch.randint(2**62, (len(image),), generator=rng).tolist()
        size = (image.shape[2], image.shape[3])
        how: dict[str, Any] = {"steps": steps, "guidance": guidance, "sampler": sampler}
        if self.origin == "image" and "embedding" not in inputs and max(size) > self.side:
            parts = [wide.drawn_like(self, image[i : i + 1], seed, **how) for i, seed in enumerate(seeds)]
            return {"picture": torch.cat(parts)}
        told = self.translated(self.condition(inputs), inputs)
        return {"picture": self.sample(told, size, seeds, **how)}

    def translated(self, told: Condition, inputs: Mapping[str, Tensor]) -> Condition:
        """Return a condition whose embedding, where it was the picture's own, is that of the picture's target."""
        if self.translator is None or "embedding" in inputs or "embedding" not in told:
            return told
        carried = translation.translate(self.translator, told["embedding"], self.options.sampling.translator_steps)
        return {**told, "embedding": carried}

    def panels(self, batch: Batch) -> list[list[NDArray[np.uint8]]]:
        """Return what was told, what was drawn with and without guidance, and the real picture.

        With a target, the picture that is given stands first.
        """
        batch = Batch({k: v[:4] for k, v in batch.inputs.items()}, _first(batch.targets), _first(batch.has))
        inputs = self.prepare(self.inputs_of(batch))
        told = self.translated(self.condition(inputs), inputs)
        size, seeds = (inputs["image"].shape[2], inputs["image"].shape[3]), range(len(inputs["image"]))
        shown = [conditions.shown(inputs["mask"], inputs.get("edge"))] if "mask" in told else []
        strengths = (1.0, 3.0) if self.guidable else (1.0,)
        for strength in strengths:
            drawn = self.sample(told, size, seeds, guidance=strength)
            shown.append([np.moveaxis(to_uint8(p), 0, -1) for p in drawn])
        if self.options.target is not None:
            shown.insert(0, [np.moveaxis(to_uint8((p + 1) / 2), 0, -1) for p in inputs["image"]])
        shown.append([np.moveaxis(to_uint8((p + 1) / 2), 0, -1) for p in self.drawn(inputs)])
        return [list(row) for row in zip(*shown, strict=True)]

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        """Return one picture an image, uint8, at the size of its source."""
        found: list[dict[str, Prediction]] = []
        for picture, place in zip(maps["picture"].float(), geometry, strict=True):
            height, width = (round(s * k) for s, k in zip(place.shape, place.scale, strict=True))
            here = picture[None, :, :height, :width]
            if here.shape[2:] != tuple(place.shape):
                here = F.interpolate(here, size=tuple(place.shape), mode="bilinear", align_corners=False)
            found.append({"picture": PicturePrediction(to_uint8(here[0]), RGB)})
        return found


def _first(values: Mapping[str, Any], count: int = 4) -> dict[str, Any]:
    return {name: value[:count] for name, value in values.items()}


def to_uint8(picture: Tensor) -> NDArray[np.uint8]:
    """Return a picture in [0, 1] as 8 bits."""
    return np.asarray((255 * picture).round().clamp(0, 255).to(torch.uint8).cpu().numpy())
