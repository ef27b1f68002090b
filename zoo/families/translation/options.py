"""What a recipe may say under `model:` for the family translation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from zoo.families.base import Family
from zoo.families.translation.terms import TERMS, check_arguments
from zoo.schema import Component, Schema

PlainNorm = Literal["instance", "batch", "none"]


class GeneratorOptions(Schema):
    """What paints the picture."""

    name: Literal["resnet", "unet", "encoder"] = "resnet"
    """resnet: residual blocks at a quarter of the size | unet: of pix2pix | encoder: any, with a light decoder."""
    width: PositiveInt = 64
    """Channels at full size."""
    blocks: PositiveInt = 9
    """Residual blocks (resnet)."""
    downs: PositiveInt | None = None
    """Halvings; none = 2 (resnet), 8 (unet: unet_256; 7 is unet_128)."""
    norm: PlainNorm = "instance"
    """Normalisation."""
    dropout: bool = False
    """Dropout of 0.5 in residual blocks, or in the U-Net's inner levels."""
    antialias: bool = True
    """Halve by a blur after a convolution, in place of a stride (resnet)."""
    antialias_up: bool = True
    """Double by interpolation before a convolution, in place of a transposed one (resnet)."""
    spectral: bool = False
    """Spectral norm on every convolution (resnet)."""
    encoder: Component = Component(name="resnet18")
    """Encoder (`zoo list encoders`)."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none | imagenet | a name | a path."""

    @model_validator(mode="after")
    def _has_it(self) -> GeneratorOptions:
        if self.spectral and self.name != "resnet":
            raise ValueError(f"spectral norm is for the generator resnet, {self.name} has none. Set spectral: false")
        return self


class DiscriminatorOptions(Schema):
    """What judges the picture."""

    name: Literal["patch", "pixel", "multiscale"] = "patch"
    """patch: a score a patch | pixel | multiscale: patches of the picture and of its halvings."""
    width: PositiveInt = 64
    """Channels of the first layer."""
    layers: PositiveInt = 3
    """Halvings (patch, multiscale)."""
    scales: PositiveInt = 2
    """Sizes (multiscale)."""
    norm: PlainNorm = "instance"
    """Normalisation."""
    antialias: bool = True
    """Halve by a blur in place of a stride."""
    spectral: bool = False
    """Spectral norm on every convolution."""
    conditional: bool = False
    """Whether it sees the input beside the picture."""
    mode: Literal["lsgan", "vanilla", "hinge", "wgangp", "nonsaturating"] = "lsgan"
    """What scores are compared by."""
    pool: NonNegativeInt = 0
    """Earlier pictures that it is shown in place of half of the newest ones (CycleGAN: 50); 0 = only the newest."""
    share: PositiveFloat = 0.5
    """Factor on its own loss."""
    penalty: Literal["none", "r1", "wgan-gp"] = "none"
    """Penalty on its gradient: at real pictures (r1), between real and fake ones (wgan-gp)."""
    penalty_weight: NonNegativeFloat = 10.0
    """Factor on the penalty."""

    @model_validator(mode="after")
    def _has_it(self) -> DiscriminatorOptions:
        if self.spectral and self.name == "pixel":
            raise ValueError("spectral norm is for patch and multiscale, pixel has none. Set spectral: false")
        return self


class FeatureOptions(Schema):
    """Patch features of the generator, which contrast terms compare."""

    layers: tuple[int, ...] = (0, 4, 8, 12, 16)
    """Layers of the generator: elements of its sequence (resnet), halvings (unet), levels of the pyramid (encoder)."""
    width: PositiveInt = 256
    """Width of the network on the features."""
    patches: PositiveInt = 256
    """Patches a layer and image."""
    temperature: PositiveFloat = 0.07
    """Temperature of the contrast."""
    normalise: Literal["cut", "asp"] = "cut"
    """How features get length 1; "asp" is that of the published ASP weights."""
    all_negatives: bool = False
    """Whether patches of other images of the batch are negatives too."""

    @field_validator("layers")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or sorted(set(value)) != list(value) or value[0] < 0:
            raise ValueError(f"layers {list(value)} will not do. Expected whole numbers from 0, rising")
        return value


class Initial(Schema):
    """How weights begin."""

    name: Literal["xavier", "normal", "torch"] = "xavier"
    """xavier or normal with a gain, or as torch does it."""
    gain: PositiveFloat = 0.02
    """Gain, or standard deviation."""


class TranslationOptions(Family.Options):
    """A picture into another: stain into stain."""

    generator: GeneratorOptions = GeneratorOptions()
    """What paints the picture."""
    discriminator: DiscriminatorOptions | None = DiscriminatorOptions()
    """What judges it; none = no adversary."""
    objective: tuple[Component, ...] = (Component(name="gan"), Component(name="l1", weight=100.0))
    """Terms that the generator minimises, each with a weight: gan, l1, patch_nce, identity_nce, supervised_nce,
    gaussian_pyramid, octaves, identity, cycle, perceptual."""
    features: FeatureOptions = FeatureOptions()
    """Patch features of the contrast terms."""
    initial: Initial = Initial()
    """How weights begin."""
    flip_equivariance: bool = False
    """Mirror half of the inputs and mirror their features back before they are compared."""
    paired: bool = True
    """Whether the target is a picture of the same field; otherwise it comes from the stream `target`, or is a truth
    that no term compares pixel by pixel."""
    truth: str | None = None
    """Key of the picture to learn; none = the dataset's only one."""
    channels: tuple[str, ...] = ("red", "green", "blue")
    """Channels of the input."""
    target_channels: tuple[str, ...] | None = None
    """Channels of the picture; none = the dataset's."""
    statistics: Literal["whole", "tile"] = "whole"
    """Of large pictures, instance norm takes the statistics of the whole (no seams) or of each tile (as published)."""
    mpp: PositiveFloat | None = None
    """um per pixel that the model works at; none = it does not matter or is not known."""
    tile: PositiveInt = 512
    """Side of a tile of a large picture, in model pixels."""
    margin: PositiveInt | None = None
    """Pixels that depend on what lies outside a tile; none = as the generator is deep."""

    @field_validator("objective")
    @classmethod
    def _known(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        if not value:
            raise ValueError("no term. Expected at least one")
        for component in value:
            check_arguments(component)
        names = [c.name for c in value]
        double = sorted({n for n in names if names.count(n) > 1})
        if double:
            raise ValueError(f'the term "{double[0]}" stands there twice. Expected each once')
        return value

    @model_validator(mode="after")
    def _together(self) -> TranslationOptions:
        names = {c.name for c in self.objective}
        if "gan" in names and self.discriminator is None:
            raise ValueError("the term gan needs a discriminator. Describe one, or remove the term")
        if self.discriminator is not None and "gan" not in names:
            raise ValueError("the discriminator has no term. Add the term gan, or write discriminator: null")
        aligned = sorted(n for n in names if TERMS[n].aligned)
        if not self.paired and aligned:
            raise ValueError(f"the term {aligned[0]} compares a pair, and paired is false. Remove it")
        if "cycle" in names and self.discriminator is not None and self.discriminator.conditional:
            raise ValueError(
                "a conditional discriminator needs pairs, and the term cycle has none. Set conditional: false"
            )
        return self

    def has(self, *terms: str) -> bool:
        """Return whether any of these terms is in the objective."""
        return any(c.name in terms for c in self.objective)

    def values(self) -> dict[str, Any]:
        """Return plain values."""
        return self.model_dump(mode="json", by_alias=True)
