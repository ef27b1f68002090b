"""What a family is: the interface that training, prediction and the benchmark are written against.

A family is a torch module that knows its inputs, its outputs, what it learns from and how its raw maps become
predictions. It knows no trainer. Adding one is a folder beside this file (or a package elsewhere, entry-point group
`zoo.families`), its recipes and its weights' cards.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo import registry
from zoo.cards import DatasetCard
from zoo.encoders.base import decayed
from zoo.schema import Component, Schema
from zoo.stain.normalise import Normaliser
from zoo.types import Batch, Geometry, Kind, Prediction, Sample

Maps = dict[str, Tensor]
Window = tuple[slice, slice]
Origin = Literal["image", "mask", "embedding", "noise"]


@dataclass(frozen=True)
class Encoding:
    """How the numbers of an image become the numbers that the network sees.

    "rgb8": uint8, or float in [0, 1], minus mean, over std (each a channel). "percentile": each image's `low` and
    `high` percentiles become 0 and 1, of each channel or (`joint`) of all together. "raw": as they are.
    """

    kind: Literal["rgb8", "percentile", "raw"] = "rgb8"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    low: float = 1.0
    high: float = 99.8
    joint: bool = False


@dataclass(frozen=True)
class MapSpec:
    """One raw map of a family: its channels, and what turns it into something that may be averaged over tiles."""

    channels: int
    activation: Literal["none", "softmax", "sigmoid"] = "none"


@dataclass(frozen=True)
class Output:
    """One prediction of a family: its kind, its classes, and the key of the truth that it answers to."""

    kind: Kind
    classes: tuple[str, ...] = ()
    truth: str | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class IOSpec:
    """What goes in and what comes out.

    `mpp`: um per pixel that the model was trained at, None where it does not matter or is not known. `divisor`: the
    spatial size must be a multiple of it (forward pads and crops by itself; tiles are chosen so that it need not).
    `margin`: pixels at a tile's border whose values depend on what lies outside. `scale`: output pixels per input
    pixel, one number or one an axis. `stitch`: what is merged over tiles. `local`: whether decoding is pixelwise, so
    that a large image can be decoded band by band. `survey`: tiles spread over a large picture that the family sees
    before it is predicted (`Family.survey`). `smallest`: the side of the smallest patch that can be learnt from.
    `extent`: the largest object in model pixels, for block-wise decoding.
    `padding`: how an image is continued beyond its end ("reflect" does not repeat the last pixel).

    Of volumes: `spacing`, um per voxel of each axis that the model was trained at; `divisors` and `tiles`, one number
    an axis where axes differ.
    """

    maps: Mapping[str, MapSpec]
    outputs: Mapping[str, Output]
    axes: str = "CYX"
    channels: tuple[str, ...] = ("red", "green", "blue")
    encoding: Encoding = Encoding()
    mpp: float | None = None
    divisor: int = 32
    margin: int = 64
    tile: int = 256
    scale: float | tuple[float, ...] = 1.0
    stitch: Literal["maps", "objects", "latents"] = "maps"
    local: bool = False
    survey: int = 0
    smallest: int = 1
    extent: int = 128
    padding: Literal["symmetric", "reflect"] = "symmetric"
    spacing: tuple[float, ...] | None = None
    divisors: tuple[int, ...] | None = None
    tiles: tuple[int, ...] | None = None

    @property
    def scales(self) -> tuple[float, ...]:
        """Return output pixels per input pixel along each axis."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * (len(self.axes) - 1)

    def out(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the maps of an input of `shape`: a pixel that is begun counts."""
        return tuple(math.ceil(n * s - 1e-9) for n, s in zip(shape, self.scales, strict=True))


@dataclass(frozen=True)
class Need:
    """A truth that a family learns from: `key` in the dataset (None = any key), and the kinds that will do."""

    kinds: tuple[Kind, ...]
    key: str | None = None


@runtime_checkable
class TargetMaker(Protocol):
    """Turns a sample's truths into arrays to learn from. Picklable, holds no weights, runs in the loader's workers."""

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return name -> array for the truths that the sample carries; an absent name = not annotated."""

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return name -> array of the right shape and dtype for a sample of that spatial shape that has no truth."""


class StoredLabels(Protocol):
    """A label map on disk, (1, H, W) int32, 0 at first."""

    def read(self, window: Window, /) -> NDArray[Any]:
        """Return a copy of a window, (1, h, w)."""

    def write(self, window: Window, values: NDArray[Any], /) -> None:
        """Replace a window."""


class StoredMaps(Protocol):
    """The activated maps of a large picture, on disk. `shape`: (H, W) of the maps."""

    shape: tuple[int, int]

    def read(self, name: str, window: Window, /) -> NDArray[np.float32]:
        """Return the planes of a map that the family keeps, in a window, (C, h, w)."""

    def labels(self) -> StoredLabels:
        """Return room for a label map."""


# --- procedures -------------------------------------------------------------------------------------------------------


@dataclass
class Player:
    """A set of parameters with an optimiser of its own."""

    parameters: list[nn.Parameter]
    optimizer: Component | None = None
    schedule: Component | None = None
    clip: float | None = None
    groups: list[dict[str, Any]] | None = None


class Context(Protocol):
    """What a procedure may ask of the trainer during a step."""

    progress: float
    """Share of all batches that is behind us, in [0, 1)."""
    batch_index: int
    """Batches seen since the beginning."""
    generator: torch.Generator
    """Random numbers of this step, on the CPU; a function of (seed, batch index, rank)."""

    def update(self, player: str, loss: Tensor, *, retain: bool = False) -> None:
        """Backward into that player's parameters only; synchronise, clip, step, average when it is time.

        Once a step for each player. `retain`: the graph is needed again by another player, so this one moves when that
        is done (at the next update without `retain`, or at the end of the step).
        """

    def log(self, terms: Mapping[str, Tensor | float]) -> None:
        """Record named numbers of this step."""


class Procedure:
    """How one step of training goes."""

    copies_weights: ClassVar[bool] = False
    """Whether a step copies or averages the family's weights itself: then they cannot be spread over devices."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def players(self, family: Family) -> dict[str, Player]:
        """Return the players by name: every parameter that is to move, each in one player."""
        raise NotImplementedError

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        """Do one step: compute, and call `ctx.update` once for each player that moves."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that a step depends on beside the family's own, for a checkpoint."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""

    def validation_loss(self, family: Family, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return named losses of a validation batch; `total` is what `monitor: loss` watches."""
        terms = family.loss(family.forward(family.prepare(family.inputs_of(batch))), batch, progress)
        return {**terms, "total": torch.stack(list(terms.values())).sum()}


class Supervised(Procedure):
    """One optimiser; the loss is the sum of the family's named terms, over every stream of the step."""

    def players(self, family: Family) -> dict[str, Player]:
        trainable = [p for p in family.parameters() if p.requires_grad]
        return {"model": Player(trainable, groups=family.groups())}

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        terms: dict[str, Tensor] = {}
        for stream, part in batch.streams():
            maps = family.forward(family.prepare(family.inputs_of(part)))
            prefix = "" if stream == "main" else f"{stream}/"
            terms |= {prefix + name: value for name, value in family.loss(maps, part, ctx.progress).items()}
        ctx.update("model", torch.stack(list(terms.values())).sum())
        ctx.log({name: value.detach() for name, value in terms.items()})


# --- the family -------------------------------------------------------------------------------------------------------


class Family(nn.Module):
    """Base of every family.

    A subclass sets `name`, `Options` and, in its constructor, `spec`; the constructor takes checked options only, so
    that options and state dict are all that is needed to rebuild the module.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    measured: ClassVar[tuple[str, ...]] = ()
    """Options that `calibrate` measures: they differ between trainings of one recipe."""
    spec: IOSpec

    class Options(Schema):
        """What a recipe may say under `model:`."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.stain: Normaliser | None = None
        """Stain normalisation that every image gets before the family sees it, None = as they are."""
        self.weights_name: str = ""
        self.weights_metadata: dict[str, str] = {}
        self.weights_notes: tuple[str, ...] = ()

    # what it learns from

    @classmethod
    def needs(cls, options: Any) -> tuple[Need, ...]:
        """Return the truths without which the options cannot be trained; `zoo check` compares them with the cards."""
        return ()

    @classmethod
    def missing(cls, options: Any, cards: Sequence[DatasetCard], streams: Sequence[str]) -> str:
        """Return what the training data lack beside `needs`, a sentence without its full stop; "" where nothing.

        `streams`: names of the further streams of a step.
        """
        return ""

    @classmethod
    def resolve(cls, options: Any, cards: Sequence[DatasetCard]) -> Any:
        """Return options with everything filled in that the training datasets' cards decide (classes, channels).

        Raises `ValueError` with one sentence where they do not fit.
        """
        return options

    @classmethod
    def derive(cls, options: Any, samples: Sequence[Sample]) -> Any:
        """Return options with everything filled in that is measured on training samples (normalisation, anisotropy)."""
        return options

    @classmethod
    @abstractmethod
    def targets(cls, options: Any, card: DatasetCard) -> TargetMaker:
        """Return what turns this dataset's samples into targets."""

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Return the smallest options that exercise everything, for tests."""
        return {}

    # what it computes

    def inputs_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return what `prepare` gets of a batch; a family that looks at padding, or at truths to learn, adds them."""
        return batch.inputs

    def prepare(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs with `image` encoded as `spec.encoding` says: (B, C, ...) uint8 or float in, float out.

        `range` among the inputs, (B, C, 2), holds percentiles already measured on the whole image of which these are
        tiles.
        """
        return {**inputs, "image": encode(inputs["image"], self.spec.encoding, inputs.get("range"))}

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return raw maps by name, always unactivated; `taps` names intermediate features to return beside them."""

    @abstractmethod
    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return named scalar terms whose sum is minimised."""

    def infer(self, inputs: Mapping[str, Tensor], *, rng: torch.Generator | None = None, **options: Any) -> Maps:
        """Return the raw maps of a prediction; a generator samples here and takes its randomness from `rng`."""
        return self.forward(inputs)

    def survey(self, tiles: Tensor) -> AbstractContextManager[None]:
        """Return the context in which a large picture is predicted, of which these are `spec.survey` tiles or so.

        `tiles`: (B, C, h, w), not yet prepared. A family whose output depends on statistics of the whole takes them
        here, so that neighbouring tiles agree.
        """
        return nullcontext()

    def activate(self, maps: Maps) -> Maps:
        """Return maps that may be averaged over overlapping tiles: softmax, sigmoid or as they are, as `spec` says."""
        return {name: _activate(value, self.spec.maps[name].activation) for name, value in maps.items()}

    @property
    def origin(self) -> Origin:
        """What a prediction is made from. Where that is no image, plain images are refused and `zoo generate` draws."""
        return "image"

    def turn_back(self, maps: Maps, turns: int, flip: bool) -> Maps:
        """Return activated maps of an image that was mirrored (`flip`) and turned by `turns` quarters, turned back.

        The default turns every map as a picture, which is right for probabilities; a family whose maps hold directions
        (rays, offsets) says here what else changes. Test-time augmentation is refused to maps without an activation
        unless a family has its own.
        """

        def back(x: Tensor) -> Tensor:
            unturned = torch.rot90(x, -turns, (-2, -1))
            return unturned.flip(-1) if flip else unturned

        return {name: back(value) for name, value in maps.items()}

    def operating(self) -> dict[str, tuple[float, ...]]:
        """Return the thresholds that may be chosen on validation data: option -> candidates.

        They are fields of `Options`; weights carry what was chosen as the option's value.
        """
        return {}

    @abstractmethod
    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        """Return, for each image of the batch, output name -> prediction at the scale of its source.

        `maps` are activated and stitched: (B, C, H, W) at model resolution.
        """

    def check_decoding(self, **options: Any) -> None:
        """Raise `UserError` for options of `decode` that cannot be: called once, before anything is read or written."""

    def panels(self, batch: Batch) -> list[list[NDArray[np.uint8]]] | None:
        """Return panels (H, W, 3) to watch a run by, a row an image of the batch, or None.

        None: image, truth and prediction side by side. A generator shows what it was told, what it drew and what is
        real.
        """
        return None

    def keeps(self) -> Mapping[str, Sequence[int]] | None:
        """Return which planes of each map `decode_stored` reads, or None: then a large picture is decoded in blocks.

        For families whose objects may be larger than any block should be, or depend on all of a connected piece.
        """
        return None

    def decode_stored(
        self, maps: StoredMaps, geometry: Geometry, **options: Any
    ) -> Iterator[tuple[int, dict[str, Prediction]]]:
        """Yield (first row, output name -> prediction of the rows from there on) of a large picture, each output from
        top to bottom, at the scale of its source: what `decode` says of the whole.

        Label maps hold the ids of the whole picture; `class_index` and `scores` are those of all its objects.
        """
        raise NotImplementedError

    def procedure(self) -> Procedure:
        """Return how this family is trained where the recipe says nothing."""
        return Supervised()

    def adopted(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return entries of other weights under this model's names, for a training that starts from them."""
        return tensors

    def calibrate(self, samples: Sequence[Sample], maps_of: Callable[[Sample], tuple[Maps, Geometry]]) -> Any | None:
        """Return options with what is measured on validation samples with the trained weights (thresholds), or None.

        `maps_of` gives a sample's activated maps, (1, C, ...) by name, and their geometry. Called after the last stage;
        what comes back is stored with the weights.
        """
        return None

    def groups(self) -> list[dict[str, Any]] | None:
        """Return optimiser groups (`params`, `lr_scale`, `weight_decay`) or None for one group.

        Here: those of encoders whose `layer_decay` is below 1; parameters that no group names form one more.
        """
        return decayed(self)

    # what a user calls

    @torch.inference_mode()
    def predict(self, image: NDArray[Any], mpp: float | None = None, **options: Any) -> Any:
        """Return the prediction for one image, whatever its size (a dict by output name where there are several).

        `image`: (H, W, 3) or (H, W) uint8, or what `spec` says; `mpp`: its um per pixel, None where it is not known.
        Options are those of `zoo.inference.predict.predict_array` (tile, overlap, batch, threshold, seed).
        """
        found = registry.get("engine", "predict")(self, np.asarray(image), mpp=mpp, **options)
        return next(iter(found.values())) if len(found) == 1 else found

    @property
    def device(self) -> torch.device:
        """Return where the parameters are."""
        return next(self.parameters()).device


def encode(image: Tensor, encoding: Encoding, limits: Tensor | None = None) -> Tensor:
    """Return (B, C, ...) float32 as `encoding` says; uint8 counts as [0, 255], float as [0, 1] for "rgb8".

    `limits`: (B, C, 2), what becomes 0 and 1 for "percentile"; None measures each image.
    """
    if encoding.kind == "raw":
        return image.float()
    shape = (1, -1) + (1,) * (image.ndim - 2)
    if encoding.kind == "rgb8":
        mean = torch.tensor(encoding.mean, device=image.device).view(shape)
        std = torch.tensor(encoding.std, device=image.device).view(shape)
        # In place where the tensor is our own: fresh memory of a batch costs more than the arithmetic on it.
        shifted = image.float().div_(255).sub_(mean) if image.dtype == torch.uint8 else image.float() - mean
        return shifted.div_(std)
    if limits is not None:
        low, high = limits.to(image.device, torch.float32).unbind(2)
    else:
        low, high = percentiles(image, encoding).unbind(2)
    spread = (high - low).clamp_min(1e-6)
    ones = shape[2:]
    scaled: Tensor = (image.float() - low.view(*low.shape, *ones)) / spread.view(*spread.shape, *ones)
    return scaled


def percentiles(image: Tensor, encoding: Encoding) -> Tensor:
    """Return what becomes 0 and 1, (B, C, 2), measured on (B, C, ...); on every n-th pixel where there are many."""
    flat = image.float().flatten(2)
    if encoding.joint:
        flat = flat.flatten(1)[:, None]
    if flat.shape[2] >= 2**24:
        flat = flat[:, :, :: flat.shape[2] // 2**23]
    quantiles = torch.tensor([encoding.low / 100, encoding.high / 100], device=image.device)
    return torch.quantile(flat, quantiles, dim=2).movedim(0, 2).expand(-1, image.shape[1], -1)


def _activate(value: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return value.float().softmax(1)
    return value.float().sigmoid() if activation == "sigmoid" else value
