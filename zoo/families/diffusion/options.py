"""What a recipe may say under `model:` for the family diffusion."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from zoo.families.base import Family
from zoo.families.diffusion.sampling import Sampler
from zoo.families.diffusion.schedule import Betas, Prediction, Weighting
from zoo.schema import Component, Schema


class NoiseOptions(Schema):
    """How pictures are drowned in noise, and what the network is asked about them."""

    schedule: Betas = "cosine"
    """linear (DDPM) | scaled-linear (latent diffusion) | cosine. Means nothing where flow is predicted."""
    steps: PositiveInt = 1000
    """Steps of the schedule."""
    start: float = Field(default=1e-4, gt=0, lt=1)
    """First variance (linear, scaled-linear)."""
    end: float = Field(default=0.02, gt=0, lt=1)
    """Last variance (linear, scaled-linear)."""
    prediction: Prediction = "v"
    """epsilon: the noise | v: velocity (Salimans, Ho 2022) | sample: the clean picture | flow (Lipman et al. 2023)."""
    weighting: Weighting = "min-snr"
    """plain | min-snr: no time's weight on the clean picture is above `gamma` (Hang et al. 2023)."""
    gamma: PositiveFloat = 5.0
    """Of min-snr."""


class MaskOptions(Schema):
    """The class map that a picture is drawn from."""

    truth: str | None = None
    """Key of the truth; none = the dataset's only one that has a class map."""
    classes: tuple[str, ...] | None = None
    """Classes, `background` first; none = the dataset's."""
    merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class (or ignore) -> classes of a dataset that become it, as {nucleus: [epithelial, lymphocyte]}."""
    boundary: NonNegativeInt = 1
    """Pixels of an object's outline, told as a plane of its own so that objects that touch stay two; 0 = none."""
    told: Literal["planes", "latent"] = "planes"
    """planes: a plane a class | latent: the first stage's latent of the map as a white-on-black picture (PixCell)."""


class EmbeddingOptions(Schema):
    """The vector, or the grid of vectors, that a picture is like."""

    truth: str | None = None
    """Key of a truth that is a vector; none = features of the picture itself, by `condition_encoder`."""
    width: PositiveInt | None = None
    """Numbers of a vector; none = as the encoder gives."""
    tokens: PositiveInt = 1
    """Vectors a picture: a square number, one a cell of a square grid, row by row."""
    seen: PositiveInt | None = None
    """Side in pixels at which the encoder sees a cell; none = as large as the cell is."""

    @model_validator(mode="after")
    def _square(self) -> EmbeddingOptions:
        if round(self.tokens**0.5) ** 2 != self.tokens:
            raise ValueError(f"tokens: {self.tokens} make no square grid. Expected 1, 4, 9, 16 ...")
        return self


class SamplingOptions(Schema):
    """How pictures are drawn where nobody says otherwise."""

    sampler: Sampler = "dpm++"
    """dpm++ | ddim | ddpm | plms | unipc | euler (flow: always Euler's steps)."""
    steps: PositiveInt = 25
    """Steps."""
    translator_steps: PositiveInt = 100
    """Steps of the translator."""
    guidance: PositiveFloat = 1.0
    """Classifier-free guidance: 1 = none, more = closer to what is asked, with less variety."""


class DiffusionOptions(Family.Options):
    """Pictures drawn from noise, from a class map, from an embedding, or from neither."""

    setting: Literal["pixel", "latent"] = "pixel"
    """pixel: noise on the picture itself | latent: on what a first stage makes of it."""
    network: Component = Component(name="pixel-unet")
    """What takes the noise away: pixel-unet, or a published one (latent-unet, pixcell, pixcell-control)."""
    first_stage: Component | None = None
    """Of the setting latent: kl | vq, with its arguments."""
    first_stage_weights: str = "none"
    """Weights of the first stage: none | a name | a path. It stands still."""
    noise: NoiseOptions = NoiseOptions()
    """Noise, and what is predicted."""
    mask: MaskOptions | None = None
    """Draw from a class map; none = not."""
    embedding: EmbeddingOptions | None = None
    """Draw like an embedding; none = not."""
    target: str | None = None
    """Key of a truth that is a picture, to be drawn for the picture that is given (virtual staining); none = pictures
    themselves are learned."""
    translator: Component | None = None
    """embedding-flow: carries the embedding of the picture that is given to that of its target, which is then drawn."""
    condition_encoder: Component | None = None
    """Encoder (`zoo list encoders`) whose features are the embedding. It stands still and is no part of the weights."""
    condition_encoder_weights: str = "imagenet"
    """Its weights: none (untrained, the same in every run) | imagenet | a name | a path."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training pictures whose conditions are hidden. Without it there is no guidance."""
    sampling: SamplingOptions = SamplingOptions()
    """How pictures are drawn."""
    size: PositiveInt | None = None
    """Side of the pictures that it is trained on, in pixels: what is drawn where nothing says a size, and the window of
    larger pictures."""
    mpp: PositiveFloat | None = None
    """um per pixel of the pictures; none = not known."""

    @model_validator(mode="after")
    def _together(self) -> DiffusionOptions:
        if self.setting == "latent" and self.first_stage is None:
            raise ValueError("setting latent has no first_stage. Name one, or write setting: pixel")
        if self.setting == "pixel" and self.first_stage is not None:
            raise ValueError("first_stage means nothing to the setting pixel. Remove it, or write setting: latent")
        if self.mask is not None and self.mask.told == "latent" and self.first_stage is None:
            raise ValueError("mask.told: latent needs a first_stage. Write told: planes")
        embedding = self.embedding
        if embedding is not None and embedding.width is None and self.condition_encoder is None:
            raise ValueError("embedding has neither a width nor a condition_encoder. Write one of them down")
        if self.translator is not None:
            if self.translator.name != "embedding-flow":
                raise ValueError(f'no translator "{self.translator.name}". Expected embedding-flow')
            if embedding is None or embedding.truth is not None:
                raise ValueError("translator: it carries embeddings of pictures. Write embedding: {}, without a truth")
        return self

    def values(self) -> dict[str, Any]:
        """Return plain values."""
        return self.model_dump(mode="json", by_alias=True)
