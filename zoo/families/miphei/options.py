"""What a recipe may say under `model:` for the family miphei."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from zoo.errors import suggest
from zoo.families.base import Family
from zoo.losses import markers as losses
from zoo.schema import Component, Schema


class HemitOptions(Schema):
    """Sizes of the network of HEMIT."""

    width: PositiveInt = 64
    """Channels of the CNN at full size."""
    blocks: PositiveInt = 6
    """Residual blocks of the CNN."""
    patch: PositiveInt = 32
    """Side of the transformer's patch."""
    window: PositiveInt = 64
    """Side of its window, in patches."""
    dim: PositiveInt = 96
    """Its width."""
    depths: tuple[PositiveInt, ...] = (2, 2, 6, 2)
    """Blocks of its stages."""
    heads: tuple[PositiveInt, ...] = (3, 6, 12, 24)
    """Heads of its stages."""
    k: PositiveInt = 1000
    """Positions of a map that attend to the transformer's."""


class DiscriminatorOptions(Schema):
    """What judges the picture beside its H&E: patches, spectral norm."""

    width: PositiveInt = 64
    """Channels of the first layer."""
    layers: PositiveInt = 3
    """Halvings."""
    norm: Literal["none", "batch", "instance"] = "none"
    """Normalisation."""
    sees: Literal["all", "structural"] = "all"
    """Which markers it sees."""
    noise: NonNegativeFloat = 0.05
    """How much of noise from 0 to 1 is added to its labels (real 0, fake 1), which stay in [0, 1]."""
    weight: PositiveFloat = 1.0
    """Factor on what it adds to the generator's loss."""


class Statistics(Schema):
    """What is measured of each marker on training pictures, on the scale 0 to 255."""

    std: tuple[PositiveFloat, ...]
    """Standard deviation over pixels."""
    foreground: tuple[float, ...]
    """Share of pixels that are foreground."""


class Calling(Schema):
    """What calls a cell positive: a linear layer on the means of its nucleus in the predicted picture."""

    channels: tuple[str, ...]
    """Markers whose means it looks at."""
    markers: tuple[str, ...]
    """Markers that it calls."""
    weight: tuple[tuple[float, ...], ...]
    """A row a marker called."""
    bias: tuple[float, ...]
    """One a marker called."""

    @model_validator(mode="after")
    def _fits(self) -> Calling:
        if len(self.weight) != len(self.markers) or len(self.bias) != len(self.markers):
            raise ValueError(f"{len(self.weight)} rows and {len(self.bias)} biases. Expected {len(self.markers)} each")
        if any(len(row) != len(self.channels) for row in self.weight):
            raise ValueError(f"a row has not {len(self.channels)} numbers. Expected one a channel")
        return self


class MipheiOptions(Family.Options):
    """H&E to multiplex immunofluorescence."""

    network: Literal["matte", "unetr", "unet", "hemit"] = "matte"
    """matte: MIPHEI-ViT's, a transformer's map fused with detail | unetr: CellViT-like decoder over a transformer's
    blocks, or over a CNN | unet: plain U-Net, for ConvNeXt | hemit: of the HEMIT paper, which has no encoder."""
    encoder: Component = Component(name="vit_small_patch16_224", arguments={"tune": "lora"})
    """Encoder (`zoo list encoders`); of its arguments `tune` says what of it learns (published: lora, of rank 8)."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none | imagenet | a name | a path."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the decoder (unetr, unet)."""
    decoder_width: PositiveInt = 32
    """Channels before the heads (unetr)."""
    picture_stream: bool = False
    """unetr over a CNN: two convolutions on the picture as the finest skip, in place of the picture itself."""
    gated: bool = True
    """Whether each head gates its map."""
    foreground_head: bool = False
    """Whether a further head, one convolution, says where each marker is above nothing; for `foreground_focal`. No
    prediction shows it. Published as an option of the ConvNeXt network, off everywhere; here of all but hemit."""
    detail: tuple[PositiveInt, ...] = Field(default=(48, 96, 192), min_length=3, max_length=3)
    """matte: widths of the stream of detail at 1/2, 1/4 and 1/8."""
    fusion: tuple[PositiveInt, ...] = Field(default=(256, 128, 64, 32), min_length=4, max_length=4)
    """matte: widths of the fusions, up to full size."""
    widths: tuple[PositiveInt, ...] = Field(default=(256, 128, 64, 32, 16), min_length=1)
    """unet: widths of the decoder, down to full size."""
    hemit: HemitOptions = HemitOptions()
    """Sizes of the network of HEMIT."""
    truth: str | None = None
    """Key of the picture to learn; none = the dataset's only one with named channels."""
    cells: str | None = None
    """Key of the nuclei, for losses of cells and for calling them; none = the dataset's only ones with values."""
    positive_from: float | None = None
    """Value of a nucleus from which it counts as positive; none = as the card says."""
    markers: tuple[str, ...] | None = None
    """Channels to predict, by their names on the cards; none = all that the cards have."""
    structural: tuple[str, ...] = ("Hoechst", "DAPI", "E-cadherin", "Pan-CK", "SMA")
    """Markers that a discriminator with `sees: structural` looks at."""
    limit: float = Field(default=0.9, gt=0, lt=1)
    """Values are painted from -limit (nothing) to limit (full scale)."""
    full_scale: tuple[PositiveFloat, ...] | None = None
    """What becomes `limit`, one number a marker; none = 255 of 8 bits, else measured (99.9th percentile)."""
    dtype: Literal["uint8", "uint16", "float32"] | None = None
    """Numbers of the predicted picture; none = those of the training pictures."""
    encoding: str = "linear"
    """What the numbers of the picture are (linear, log1p); taken from the training pictures where nothing is said."""
    statistics: Statistics | None = None
    """Spread and foreground of each marker, which weigh it in losses; none = measured."""
    foreground_above: NonNegativeFloat = 0.0
    """Value from 0 to 255 above which a pixel is foreground."""
    normalise: Literal["encoder", "imagenet", "half", "dataset"] = "encoder"
    """Mean and deviation of the input: the encoder's | ImageNet's | 0.5 and 0.5 | those of the training images."""
    mean: tuple[float, float, float] | None = None
    """Mean of the input from 0 to 1; none = as `normalise` says."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Deviation of the input from 0 to 1; none = as `normalise` says."""
    objective: tuple[Component, ...] = (Component(name="weighted_mse", weight=50.0),)
    """Terms that are minimised, each with a weight: mae, mse, l1_l2, weighted_mse, focal_l1, shrinkage, weighted_mae,
    edge, total_variation, cell_mse, cell_cluster, foreground_focal."""
    clusters: str | None = None
    """cell_cluster: the network from a nucleus's means to what it carries, as `zoo.families.miphei.clusters` writes it;
    none = fitted on training cells."""
    discriminator: DiscriminatorOptions | None = None
    """What judges the picture; none = no adversary (published)."""
    calling: Calling | None = None
    """What calls cells positive; none = fitted on validation cells after training."""
    mpp: PositiveFloat | None = 0.5
    """um per pixel that the model works at; none = it does not matter or is not known."""
    tile: PositiveInt = 256
    """Side of a tile of a large picture, in model pixels; of the hemit network, what it sees at once."""
    margin: NonNegativeInt = 32
    """Pixels at a tile's border that are blended with its neighbours'."""

    @field_validator("markers")
    @classmethod
    def _apart(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("no marker. Expected at least one")
        double = [m for i, m in enumerate(value or ()) if m in (value or ())[:i]]
        if double:
            raise ValueError(f'the marker "{double[0]}" stands there twice. Expected each once')
        return value

    @field_validator("objective")
    @classmethod
    def _known(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        if not value:
            raise ValueError("no term. Expected at least one")
        names = [c.name for c in value]
        for component in value:
            if component.name not in losses.LOSSES:
                raise ValueError(f'no term "{component.name}". {suggest(component.name, losses.LOSSES)}')
            takes = ("threshold",) if component.name == "weighted_mae" else ()
            for name in component.arguments:
                if name not in takes:
                    said = f"It takes {', '.join(takes)}" if takes else "It takes none"
                    raise ValueError(f'{component.name}: unknown argument "{name}". {said}')
            if names.count(component.name) > 1:
                raise ValueError(f'the term "{component.name}" stands there twice. Expected each once')
        return value

    @model_validator(mode="after")
    def _together(self) -> MipheiOptions:
        self._heads()
        if self.markers is None:
            return self
        count = len(self.markers)
        for name, length in (
            ("full_scale", None if self.full_scale is None else len(self.full_scale)),
            ("statistics.std", None if self.statistics is None else len(self.statistics.std)),
            ("statistics.foreground", None if self.statistics is None else len(self.statistics.foreground)),
        ):
            if length is not None and length != count:
                raise ValueError(f"{name} has {length} numbers and there are {count} markers. Expected one each")
        if self.discriminator is not None and self.discriminator.sees == "structural" and not self.structural_of():
            raise ValueError("the discriminator sees structural markers, and none of `structural` is among the markers")
        return self

    def _heads(self) -> None:
        if self.needs("foreground_logits") and not self.foreground_head:
            raise ValueError("foreground_focal judges a head that is not there. Expected foreground_head: true")
        if self.foreground_head and self.network == "hemit":
            raise ValueError("foreground_head: the network hemit has no heads. Expected matte, unetr or unet")

    def structural_of(self) -> list[int]:
        """Return the numbers of the structural markers."""
        known = {name.lower() for name in self.structural}
        return [i for i, name in enumerate(self.markers or ()) if name.lower() in known]

    def needs(self, what: str) -> bool:
        """Return whether some term needs "weights", "foreground", "nuclei", "network" or "foreground_logits"."""
        return any(what in losses.NEEDS[c.name] for c in self.objective)
