"""What a recipe may say under `model:` for the family unet."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from zoo import losses, registry
from zoo.encoders import listing
from zoo.families.base import Family
from zoo.schema import Component, Schema, wrong_arguments


class Objects(Schema):
    """How objects are made of a semantic map."""

    boundary: Literal["none", "touching", "outline"] = "none"
    """An extra class for the pixels of objects near another object (touching) or near anything else (outline)."""
    width: PositiveInt = 2
    """How near: pixels of the model's grid."""
    min_size: NonNegativeFloat = 16
    """Objects of fewer pixels of the model's grid are removed."""
    fill_holes: bool = True
    """Whether holes of objects are filled."""
    semantic: bool = True
    """Whether the semantic map is predicted too."""


class Border(Schema):
    """The weight map of the loss boundary_cross_entropy."""

    kind: Literal["objects", "distance"] = "distance"
    """objects: more between neighbouring objects (the truth must be instances) | distance: more near borders."""
    w0: NonNegativeFloat = 5.0
    """What is added to the weight 1 at the border."""
    sigma: PositiveFloat = 3.0
    """How far it reaches, in pixels of the model's grid."""


class UNetOptions(Family.Options):
    """A semantic network: an encoder, a decoder, a class or several a pixel."""

    encoder: Component = Component(name="resnet34")
    """Encoder (`zoo list encoders`)."""
    encoder_weights: str = "none"
    """Pretrained weights of the encoder: none | imagenet | a name | a path."""
    decoder: Component = Component(name="unet")
    """Decoder: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3plus, upernet, segformer or dpt."""
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    """What stands in place of batch norm, in encoder and decoder; all but batch work without statistics of a batch."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the decoder's channels that is dropped in training."""
    mode: Literal["binary", "multiclass", "multilabel"] | None = None
    """One class and the background, exclusive classes, or classes that may overlap; none = binary for two classes."""
    classes: tuple[str, ...] | None = None
    """Class names, "background" first (left out in a multilabel model); none = the dataset's."""
    truth: str | None = None
    """Key of the truth to learn from; none = the only one of the dataset that is semantic or instances."""
    merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class of the model -> classes of the dataset that become it; `ignore` -> classes that are not learnt from."""
    channels: tuple[str, ...] | None = None
    """Channel names of the image; none = the dataset's."""
    encoding: Literal["rgb8", "percentile", "raw"] | None = None
    """How pixel values are scaled; none = rgb8 for three channels of colour, else percentile."""
    loss: tuple[Component, ...] = (Component(name="cross_entropy"), Component(name="dice"))
    """Losses that are summed, each with a weight."""
    border: Border = Border()
    """Weight map of boundary_cross_entropy."""
    class_weights: tuple[NonNegativeFloat, ...] | None = None
    """A weight a class, for every loss (a binary model has two, which only cross-entropies and focal use)."""
    ignore: int = Field(default=255, ge=0, le=255)
    """Index that targets hold where nothing is annotated."""
    instances: Objects | None = None
    """Whether and how objects are predicted; none = a semantic map only."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which a pixel belongs to the class (binary and multilabel)."""
    mpp: PositiveFloat | None = None
    """um per pixel that the model works at; none = it does not matter or is not known."""
    tile: PositiveInt = 256
    """Side of the tiles that large images are cut into."""
    margin: int = Field(default=64, ge=0)
    """Pixels at a tile's border that are not trusted."""

    @field_validator("loss", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("loss")
    @classmethod
    def _losses(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        if not value:
            raise ValueError("the list of losses is empty. Name at least one")
        for component in value:
            losses.check(component)
        return value

    _encoder = field_validator("encoder")(listing.known)

    @field_validator("decoder")
    @classmethod
    def _decoder(cls, value: Component) -> Component:
        if value.name not in registry.table("decoder"):
            raise ValueError(registry.unknown("decoder", value.name))
        try:
            if "deepest" in value.arguments:
                raise TypeError('plan() got an unexpected keyword argument "deepest"')
            for name, what in wrong_arguments(registry.get("decoder", value.name), value.arguments).items():
                raise ValueError(f"decoder {value.name}: {name}: {what}")
            registry.get("decoder", value.name)(**value.arguments)
        except TypeError as error:
            raise ValueError(f"decoder {value.name}: {str(error).split('() ')[-1]}. See: zoo show unet") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> UNetOptions:
        losses.check_weights(self.class_weights, "class_weights")
        boundary = self.instances is not None and self.instances.boundary != "none"
        if boundary and self.mode not in (None, "multiclass"):
            raise ValueError(f"a boundary class cannot go with mode {self.mode}. Use mode: multiclass")
        if self.instances is not None and self.mode == "multilabel":
            raise ValueError("objects cannot be made of classes that overlap. Use mode: binary or multiclass")
        if self.classes is not None:
            self._check_classes(self.classes)
        return self

    def _check_classes(self, classes: tuple[str, ...]) -> None:
        if len(set(classes)) != len(classes):
            raise ValueError(f"a class stands twice in {', '.join(classes)}. Name each once")
        if self.mode == "multilabel":
            if not classes or "background" in classes:
                raise ValueError("a multilabel model names its classes without the background. Leave it out")
        elif len(classes) < 2 or classes[0] != "background":
            raise ValueError("the first class must be background, then at least one more. Write it first")
        elif self.mode == "binary" and len(classes) != 2:
            raise ValueError(f"a binary model has two classes, not {len(classes)}. Use mode: multiclass")
        outputs = self.outputs(classes)
        binary = self.resolved_mode(classes) == "binary"
        expected = 2 if binary else outputs
        if self.class_weights is not None and len(self.class_weights) != expected:
            raise ValueError(f"{len(self.class_weights)} class weights for {expected} classes. Write one a class")
        for component in self.loss:
            own = component.arguments.get("weights")
            if own is not None and len(own) != expected:
                what = f"{len(own)} class weights for {expected} classes. Write one a class"
                raise ValueError(f"loss {component.name}: weights: {what}")
        if self.ignore < (2 if self.mode == "multilabel" else expected):
            raise ValueError(f"ignore: {self.ignore} is the index of a class. Use a number that no class has, as 255")

    @property
    def weighs_borders(self) -> bool:
        """Return True where a loss wants the weight map."""
        return any(component.name == "boundary_cross_entropy" for component in self.loss)

    @property
    def boundary(self) -> bool:
        """Return True where an extra class for boundaries is learnt."""
        return self.instances is not None and self.instances.boundary != "none"

    def resolved_mode(self, classes: tuple[str, ...]) -> Literal["binary", "multiclass", "multilabel"]:
        """Return the mode, where none is written: binary for two classes without a boundary class."""
        if self.mode is not None:
            return self.mode
        return "binary" if len(classes) == 2 and not self.boundary else "multiclass"

    def outputs(self, classes: tuple[str, ...]) -> int:
        """Return the number of raw planes."""
        return 1 if self.resolved_mode(classes) == "binary" else len(classes) + self.boundary
