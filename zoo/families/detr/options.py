"""What a recipe may say of a detector."""

from __future__ import annotations

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
from zoo.families.base import Family
from zoo.schema import Component, Schema


class Attributes(Schema):
    """What is said of each box beside its class."""

    values: dict[str, tuple[str, ...]] | None = None
    """Attribute -> names of its values, in the order of the names; none = all of the training data's card."""
    head: Literal["queries", "regions"] = "queries"
    """A linear layer on each query, or AttriDet's network on the box cut out of two early maps."""
    loss: Literal["cross_entropy", "asymmetric"] = "cross_entropy"
    """What a head learns by; asymmetric is AttriDet's."""
    weight: NonNegativeFloat = 1.0
    """Weight of that loss."""
    channels: tuple[PositiveInt, PositiveInt] | None = None
    """Regions: channels to which the maps of stride 4 and 8 are brought first; none = as they are."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Regions: share of numbers dropped before each linear layer."""

    @field_validator("values")
    @classmethod
    def _in_one_order(cls, value: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        """Sort attributes by name: the head's columns stand in this order, and files of weights sort their keys."""
        return None if value is None else dict(sorted(value.items()))


class Weighting(Schema):
    """Weights of class, L1 and GIoU, in the matching and in the loss."""

    classes: NonNegativeFloat = 2.0
    """Class: focal."""
    l1: NonNegativeFloat = 5.0
    """Distance of centre, width and height, in shares of the image."""
    giou: NonNegativeFloat = 2.0
    """Generalised IoU."""


class DetrOptions(Family.Options):
    """Options of the family detr."""

    encoder: Component = Component(name="resnet50")
    """Encoder (`zoo list encoders`)."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none, imagenet, a tag, or a file."""
    pad: bool = True
    """Pad pictures to what every encoder can take; false = only where the encoder is a transformer (as published)."""
    freeze: Literal["none", "norms", "all"] = "none"
    """What of the encoder stands still: nothing, its norms with their statistics, or everything."""
    neck: Literal["plain", "hs-fpn", "fpn", "pafpn", "bifpn"] = "hs-fpn"
    """What turns the encoder's maps into the levels: hs-fpn is MFDS-DETR's."""
    strides: tuple[PositiveInt, ...] = (8, 16, 32)
    """Strides of the encoder's maps that the neck gets."""
    levels: PositiveInt = 4
    """Levels of the pyramid; those beyond the encoder's maps are added by the neck."""
    width: PositiveInt = 256
    """Features of a token."""
    heads: PositiveInt = 8
    """Heads of every attention."""
    encoder_layers: NonNegativeInt = 6
    """Layers over the tokens."""
    decoder_layers: PositiveInt = 6
    """Layers over the queries."""
    encoder_points: PositiveInt = 4
    """Points of a head and level, in the encoder."""
    decoder_points: PositiveInt = 4
    """Points of a head and level, in the decoder."""
    feedforward: PositiveInt = 1024
    """Width of the feed-forward networks."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of both."""
    positions: Literal["sine", "learned"] = "sine"
    """Encoding of positions."""
    queries: PositiveInt = 100
    """Most boxes of an image, but for a query's further classes."""
    refine: bool = False
    """Whether each layer corrects the boxes of the one before."""
    selection: Literal["none", "two-stage", "mixed"] = "none"
    """Where queries begin: learned places; the best tokens (two-stage, as published); or the best tokens with learned
    contents and positions that follow the boxes (mixed, as DINO)."""
    dense: NonNegativeInt = 0
    """Selection: tokens that learn each truth instead of one, from those inside its box (0 = one, matched)."""
    one_to_many: NonNegativeInt = 0
    """Further queries of training, which learn every truth `repeats` times (Jia et al. 2023, H-DETR)."""
    repeats: PositiveInt = 4
    """How often the further queries learn a truth."""
    denoising: NonNegativeInt = 0
    """Groups of queries in training that begin near the truth (Li et al. 2022, DN-DETR)."""
    noise: PositiveFloat = 0.4
    """Denoising: how far a corner begins from the truth, in half sizes; and the share of wrong classes, halved."""
    auxiliary: bool = True
    """Whether every decoder layer learns, not only the last."""
    weights: Weighting = Weighting()
    """Weights of the terms."""
    alpha: float = Field(default=0.25, gt=0, lt=1)
    """Focal loss: weight of what is there."""
    gamma: NonNegativeFloat = 2.0
    """Focal loss: how much less what is nearly right counts."""
    classes: tuple[str, ...] | None = None
    """Class names; none = those of the training data."""
    unused: NonNegativeInt = 0
    """Logits before the first class that no class uses (published weights of MFDS-DETR: 1)."""
    merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class of the model -> classes of the data that become it; `ignore` takes those that are left out."""
    truth: str | None = None
    """Key of the boxes in the data; none = the only ones. Objects (instances) become the boxes around them."""
    attributes: Attributes | None = None
    """What else is said of a box; none = nothing."""
    short_side: PositiveInt | None = None
    """Pixels to which the network scales a picture's shorter side; none = not scaled."""
    long_side: PositiveInt | None = None
    """Most pixels of the longer side then; none = any."""
    threshold: float | dict[str, float] = 0.3
    """Score from which a box counts, one number or one a class; training chooses it on validation images."""
    top: PositiveInt = 100
    """Most boxes of a prediction."""
    overlap: float | None = Field(default=None, gt=0, le=1)
    """IoU with a stronger box of the class from which a box is dropped; none = never (as published)."""
    encoder_rate: PositiveFloat = 1.0
    """Factor of the encoder's learning rate (published: 0.1)."""
    offset_rate: PositiveFloat = 1.0
    """Factor of the learning rate of offsets and references (published: 0.1)."""
    neck_rate: PositiveFloat = 1.0
    """Factor of the neck's learning rate (published: 1.5)."""
    tile: PositiveInt = 1024
    """Side of the tiles that large images are cut into."""
    margin: NonNegativeInt = 128
    """Pixels at a tile's border that are not trusted: half the largest object or more."""

    _encoder = field_validator("encoder")(listing.known)

    @model_validator(mode="after")
    def _consistent(self) -> DetrOptions:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"a width of {self.width} does not fit {self.heads} heads. Choose a multiple of 4 and of the heads"
            )
        if self.levels < len(self.strides):
            raise ValueError(f"{self.levels} levels are fewer than {len(self.strides)} strides. Raise levels")
        if self.neck == "hs-fpn" and self.levels != len(self.strides) + 1:
            raise ValueError(f"hs-fpn gives {len(self.strides) + 1} levels, not {self.levels}. Set levels, or the neck")
        if self.selection != "none" and not self.refine:
            raise ValueError(f"selection {self.selection} needs boxes that are refined. Set refine: true")
        for name in ("dense", "denoising"):
            if getattr(self, name) and self.selection == "none":
                raise ValueError(f"{name} needs queries that begin as boxes. Set selection: mixed")
        self._check_classes()
        return self

    def _check_classes(self) -> None:
        classes = self.classes
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError(f"classes: {list(classes)}: expected names, each once")
        if classes is not None and isinstance(self.threshold, dict):
            strange = [name for name in self.threshold if name not in classes]
            if strange:
                raise ValueError(f"threshold: no class {strange[0]}. Expected some of {', '.join(classes)}")
        values = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]
        if any(not 0 <= value <= 1 for value in values):
            raise ValueError(f"threshold: {self.threshold}: expected numbers from 0 to 1")
        if self.attributes and self.attributes.loss == "asymmetric" and self.attributes.values:
            odd = [name for name, values in self.attributes.values.items() if len(values) != 2]
            if odd:
                raise ValueError(f"attributes: {odd[0]} has not two values, which asymmetric needs. Use cross_entropy")

    @property
    def logits(self) -> int:
        """Return the number of class logits."""
        return self.unused + len(self.classes or ())

    def thresholds(self) -> list[float]:
        """Return the threshold of each class; a class that the recipe leaves out has 0.3."""
        if isinstance(self.threshold, dict):
            return [self.threshold.get(name, 0.3) for name in self.classes or ()]
        return [self.threshold] * len(self.classes or ())

    def changed(self, **changes: Any) -> DetrOptions:
        """Return checked options with some changed."""
        return DetrOptions.model_validate(self.model_dump() | changes)
