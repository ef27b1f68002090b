"""What a recipe may say under `model:` for the family stardist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from zoo.families.stardist import rays as ray_kinds
from zoo.families.stardist.rays import Rays
from zoo.schema import Component, Schema

Activation = Literal["relu", "elu", "selu", "gelu", "tanh", "sigmoid", "softplus", "linear"]
Distance = Literal["mae", "mse", "iou"]
Sizes = tuple[PositiveInt, ...]


class UNetBackbone(Schema):
    """The published U-Net. A list of sizes has one number an axis."""

    depth: NonNegativeInt | None = None
    """Levels; none = 3 in 2-D, 2 in 3-D."""
    filters: PositiveInt = 32
    """Filters of the first level."""
    expansion: PositiveFloat = 2
    """Factor of filters from level to level."""
    convs: PositiveInt = 2
    """Convolutions a level."""
    kernel: Sizes | None = None
    """Kernel size; none = 3 an axis."""
    pool: Sizes | None = None
    """Pooling from level to level; none = 2 an axis."""
    activation: Activation = "relu"
    """Activation."""
    last_activation: Activation = "relu"
    """Activation of the last convolution."""
    batch_norm: bool = False
    """Batch norm after each convolution but those of the stem."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """Share of a batch in the running statistics of batch norm; the published 0.01 wants long trainings."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of values dropped after each convolution in training."""
    prefix: str = ""
    """What layer names of a published file begin with."""
    features: NonNegativeInt = 128
    """Filters of the convolution before the heads; 0 = none."""


class ResNetBackbone(Schema):
    """The published 3-D ResNet. A list of sizes has one number an axis."""

    blocks: PositiveInt = 4
    """Residual blocks."""
    filters: PositiveInt = 32
    """Filters before the first stride; they double with each."""
    convs: PositiveInt = 3
    """Convolutions a block."""
    kernel: Sizes | None = None
    """Kernel size; none = 3 an axis."""
    activation: Activation = "relu"
    """Activation."""
    batch_norm: bool = False
    """Batch norm after each convolution of a block."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """Share of a batch in the running statistics of batch norm."""
    features: NonNegativeInt = 128
    """Filters of the convolution before the heads; 0 = none."""


class Upward(Schema):
    """The decoder over an encoder of the zoo: from its coarsest level up to the grid, with skips."""

    widths: Sizes = (128, 64, 32, 32, 32)
    """Filters of the blocks, coarsest first; as many as are needed are used."""
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    """Norm of the blocks."""
    features: NonNegativeInt = 128
    """Filters of the convolution before the heads; 0 = none."""


class Completion(Schema):
    """Shape completion: objects that a patch cuts teach no distances, and the patch's rim is not looked at."""

    crop: PositiveInt = 32
    """Pixels at each side of a patch that image and targets lose."""


class Thresholds(Schema):
    """Which candidates become objects."""

    prob: float = Field(default=0.5, gt=0, lt=1)
    """Smallest probability of a candidate."""
    nms: float = Field(default=0.4, gt=0, lt=1)
    """Overlap (intersection over the smaller one) from which the weaker of two candidates is dropped."""
    found: bool = False
    """Whether they were optimised on validation images."""


class Normalise(Schema):
    """Percentiles of each image that become 0 and 1."""

    low: float = Field(default=1.0, ge=0, le=100)
    """Percentile that becomes 0."""
    high: float = Field(default=99.8, ge=0, le=100)
    """Percentile that becomes 1."""
    joint: bool = False
    """One range for all channels together, as published for H&E."""

    @model_validator(mode="after")
    def _ordered(self) -> Normalise:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}. Swap them")
        return self


class StarDistOptions(Family.Options):
    """Objects as star-convex polygons or polyhedra: a probability and distances along rays a grid point."""

    dims: Literal[2, 3] = 2
    """Pictures or volumes."""
    backbone: Literal["unet", "resnet", "encoder"] = "unet"
    """unet or resnet (3-D) as published, or encoder: any of the zoo's with a decoder up to the grid."""
    unet: UNetBackbone = UNetBackbone()
    """The published U-Net."""
    resnet: ResNetBackbone = ResNetBackbone()
    """The published ResNet."""
    encoder: Component | None = None
    """Encoder: in 2-D one of `zoo list encoders`, in 3-D one of MONAI's: resnet10, resnet18, resnet34, resnet50."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none | imagenet | a name | a path."""
    decoder: Upward = Upward()
    """What stands on the encoder."""
    rays: PositiveInt | Component | None = None
    """Number of rays, or in 3-D a kind with arguments; none = 32 in 2-D, 96 of a golden spiral in 3-D."""
    grid: Sizes | None = None
    """Pixels an axis between grid points, powers of two; none = from the size of the training objects."""
    anisotropy: tuple[PositiveFloat, ...] | None = None
    """3-D: size of a voxel along each axis relative to the smallest; none = from the training objects."""
    classes: tuple[str, ...] | None = None
    """Class names of objects; none = the dataset's. With more than one, classes are learnt."""
    truth: str | None = None
    """Key of the truth to learn from; none = the dataset's only one with instances."""
    channels: tuple[str, ...] | None = None
    """Channel names of the image; none = the dataset's."""
    normalise: Normalise | None = Normalise()
    """Percentiles that become 0 and 1; none = values as they are."""
    spacing: tuple[PositiveFloat, ...] | None = None
    """um per pixel of each axis that the model works at (one number for all, in 2-D); none = not known."""
    loss: Distance | dict[Distance, PositiveFloat] = "mae"
    """Loss of distances: mae or mse in pixels, iou of what the rays enclose; or several with their weights. By mae
    alone rays come out at the median of what they could be, and objects too small."""
    loss_weights: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (1.0, 0.2, 1.0)
    """Weights of probability, distances and classes."""
    class_weights: tuple[NonNegativeFloat, ...] | None = None
    """A weight a class, the background first."""
    distance_rate: PositiveFloat = 1.0
    """Learning rate of the layer that says distances, times that of the rest: in pixels, they lie far from 0, where it
    begins, and an optimiser that takes steps of one size takes long to get there."""
    background: NonNegativeFloat = 1e-4
    """How much distances outside objects are kept small."""
    completion: Completion | None = None
    """2-D: shape completion; none = objects end at the patch's border."""
    thresholds: Thresholds = Thresholds()
    """Operating point; optimised after training where there is validation."""
    border: NonNegativeInt = 2
    """Grid points along the image's border that give no candidates."""
    max_candidates: PositiveInt = 1_000_000
    """Candidates of one image or block from which prediction stops with an error; of a volume in blocks, these or a
    quarter of its grid points."""
    tile: PositiveInt | Sizes | None = None
    """Side of the tiles or blocks that large images are cut into; none = 512 in 2-D, 128 in 3-D."""
    margin: NonNegativeInt | None = None
    """Pixels at a tile's border that are not trusted; none = 64 in 2-D, 24 in 3-D."""
    extent: PositiveInt = 96
    """Side of the largest object in pixels, for images that are taken in blocks."""

    @field_validator("spacing", "anisotropy", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> StarDistOptions:
        self._check_backbone()
        self._check_sizes()
        self._check_rays()
        if self.completion is not None and self.dims == 3:
            raise ValueError("completion is for pictures, and dims is 3. Leave it out")
        if not self.loss:
            raise ValueError("loss names no loss of distances. Write mae, mse or iou")
        if self.class_weights is not None and self.classes and len(self.class_weights) != len(self.classes) + 1:
            raise ValueError(f"{len(self.class_weights)} class weights for background and {len(self.classes)} classes")
        if self.classes is not None and (not self.classes or "background" in self.classes):
            raise ValueError("classes are those of objects, at least one, without background. Leave it out")
        return self

    def _check_backbone(self) -> None:
        if self.backbone == "resnet" and self.dims == 2:
            raise ValueError("backbone resnet is for volumes, and dims is 2. Use unet or encoder")
        if (self.backbone == "encoder") != (self.encoder is not None):
            raise ValueError("an encoder goes with backbone: encoder, and the other way round. Write both or neither")
        if self.encoder is not None and self.dims == 2:
            listing.known(self.encoder)
        for part, name in ((self.unet, "kernel"), (self.unet, "pool"), (self.resnet, "kernel")):
            sizes = getattr(part, name)
            if sizes is not None and len(sizes) != self.dims:
                raise ValueError(f"{name} has {len(sizes)} numbers and dims is {self.dims}. Write one an axis")

    def _check_sizes(self) -> None:
        for name, sizes in (("grid", self.grid), ("anisotropy", self.anisotropy)):
            if sizes is not None and len(sizes) != self.dims:
                raise ValueError(f"{name} has {len(sizes)} numbers and dims is {self.dims}. Write one an axis")
        if isinstance(self.tile, tuple) and len(self.tile) != self.dims:
            raise ValueError(f"tile has {len(self.tile)} numbers and dims is {self.dims}. Write one, or one an axis")
        if self.spacing is not None and len(self.spacing) not in (1, self.dims):
            raise ValueError(f"spacing has {len(self.spacing)} numbers and dims is {self.dims}. Write one an axis")
        if self.grid is not None and any(g & (g - 1) for g in self.grid):
            raise ValueError(f"grid {list(self.grid)}: each number must be a power of two: 1, 2, 4 ...")

    def _check_rays(self) -> None:
        if isinstance(self.rays, Component):
            if self.dims == 2:
                raise ValueError("rays of a picture are a number; kinds are for volumes")
            ray_kinds.make(self.rays.name, self.rays.arguments)
        elif self.rays is not None and self.rays < (3 if self.dims == 2 else 4):
            raise ValueError(f"{self.rays} rays span nothing. Use at least {3 if self.dims == 2 else 4}")

    @property
    def ray_count(self) -> int:
        """Return the number of rays."""
        if self.dims == 2:
            assert not isinstance(self.rays, Component)
            return self.rays or 32
        return len(self.directions)

    @property
    def directions(self) -> Rays:
        """Return the rays of a 3-D model."""
        if isinstance(self.rays, Component):
            return ray_kinds.make(self.rays.name, self.rays.arguments)
        return ray_kinds.golden_spiral(self.rays or 96, self.anisotropy)

    @property
    def class_count(self) -> int | None:
        """Return how many classes are learnt, None where objects have one."""
        return len(self.classes) if self.classes is not None and len(self.classes) > 1 else None

    @property
    def loss_shares(self) -> Mapping[Distance, float]:
        """Return each loss of distances with its weight."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    def voxel(self) -> tuple[float, ...] | None:
        """Return um per pixel of each axis, None where it is not known."""
        if self.spacing is None:
            return None
        return self.spacing if len(self.spacing) == self.dims else self.spacing * self.dims


def grid_for(anisotropy: Sequence[float], extents: Sequence[float]) -> tuple[int, ...]:
    """Return the grid that is recommended: 2 along axes of fine pixels, 1 along coarse ones and for small objects."""
    return tuple(1 if a > 1.5 or extent < 12 else 2 for a, extent in zip(anisotropy, extents, strict=True))
