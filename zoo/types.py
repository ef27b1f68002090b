"""The vocabulary of the zoo, and its one coordinate convention.

**Coordinates.** The pixel of row i, column j covers the square [j, j + 1) x [i, i + 1) of level 0; its centre is
(j + 0.5, i + 0.5). Boxes are `x0, y0, x1, y1`, half-open, so that `x1 - x0` is a width in pixels. Arrays are indexed
(row, column), points are written (x, y). Lengths are in pixels of level 0 unless a name says um.

A `Sample` is what a dataset gives, a `Batch` what a loader gives, a `Prediction` what a model gives. Metrics, writers,
plots and the benchmark are chosen by the kind of truth or prediction, never by the family of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["semantic", "instances", "boxes", "picture", "label", "vector"]

# --- truths: what an annotator (or the phantom) knows -----------------------------------------------------------------


@dataclass(frozen=True)
class Semantic:
    """A class a pixel.

    `map`: (H, W) or (D, H, W) integer class indices in the order of the card's classes; for a multi-label truth
    (K, H, W) bool, one plane a class, with `multilabel` set. `ignore`: the index that means "not annotated here".
    """

    map: NDArray[Any]
    ignore: int | None = None
    multilabel: bool = False
    kind: Kind = field(default="semantic", init=False)


@dataclass(frozen=True)
class Instances:
    """Objects.

    `map`: (H, W) or (D, H, W) int32, 0 background, ids from 1 (gaps allowed). `classes`: class index of each id (from 1
    in the order of the card's classes; a missing id is not annotated), or None where objects have one class.
    `ignore`: (H, W) bool, True where nothing is annotated, or None. `values`: (K,) float32 measurements of an id in the
    order of the card's `values` (expression of K markers); ids that the map does not hold are ignored. `value_names`:
    the names of these K, where the reader says them.
    """

    map: NDArray[Any]
    classes: Mapping[int, int] | None = None
    ignore: NDArray[np.bool_] | None = None
    values: Mapping[int, NDArray[np.float32]] | None = None
    value_names: tuple[str, ...] = ()
    kind: Kind = field(default="instances", init=False)


@dataclass(frozen=True)
class Boxes:
    """Boxes: `xyxy` (N, 4) float32 half-open pixels; `classes` (N,) int64; `attributes` (N, A) int64, -1 missing;
    `crowd` (N,) bool, True where a box covers several objects and is neither hit nor miss."""

    xyxy: NDArray[np.float32]
    classes: NDArray[np.int64]
    attributes: NDArray[np.int64] | None = None
    crowd: NDArray[np.bool_] | None = None
    kind: Kind = field(default="boxes", init=False)


@dataclass(frozen=True)
class Picture:
    """Another picture of the same field: `data` (C, H, W), native dtype; `valid` (H, W) bool or None (everywhere);
    `encoding` says what the numbers are ("rgb8", "linear", "log1p", ...)."""

    data: NDArray[Any]
    channels: tuple[str, ...]
    valid: NDArray[np.bool_] | None = None
    encoding: str = "rgb8"
    kind: Kind = field(default="picture", init=False)


@dataclass(frozen=True)
class Label:
    """One class index for the whole image."""

    value: int
    kind: Kind = field(default="label", init=False)


@dataclass(frozen=True)
class Vector:
    """Numbers for the whole image: `data` (N,) float32 (an embedding, a set of measurements)."""

    data: NDArray[np.float32]
    kind: Kind = field(default="vector", init=False)


Truth = Semantic | Instances | Boxes | Picture | Label | Vector


@dataclass(frozen=True)
class Sample:
    """What a dataset gives.

    `image` has the axes that `axes` names ("CYX" or "CZYX") in its native dtype; `spacing` is um per pixel of each
    spatial axis in the order of `axes`, None where it is not known. `group` is the patient or slide that must not be
    split, `center` the site or scanner. A key that `truth` lacks is not annotated, which never means "empty".
    """

    id: str
    dataset: str
    image: NDArray[Any]
    axes: str = "CYX"
    channels: tuple[str, ...] = ("red", "green", "blue")
    group: str | None = None
    center: str | None = None
    spacing: tuple[float, ...] | None = None
    truth: Mapping[str, Truth] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial shape: (H, W) or (D, H, W)."""
        return tuple(self.image.shape[1:])

    def with_(self, **changes: Any) -> Sample:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)


# --- geometry and batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """How a model's grid lies on its source image.

    `shape`: spatial shape of the source at level 0. `scale`: model pixels per source pixel of each spatial axis (1.0
    where nothing was resampled). `offset`: model-grid coordinates of the array's first pixel (row, column), in model
    pixels. A point p of the array is at (p + offset) / scale in the source.
    """

    shape: tuple[int, ...]
    scale: tuple[float, ...] = (1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0)


@dataclass(frozen=True)
class Meta:
    """Where an item of a batch came from."""

    id: str
    dataset: str
    geometry: Geometry
    group: str | None = None
    center: str | None = None
    spacing: tuple[float, ...] | None = None


@dataclass
class Batch:
    """What a loader gives.

    `inputs`: name -> (B, ...) tensor; the picture to look at is `image`, uint8 or float32, not yet normalised.
    `targets`: name -> (B, ...) tensor, or a list of B tensors where sizes differ. `has`: target name -> (B,) bool, True
    where the sample carries the truth behind it (absent key: all do). `valid`: (B, H, W) bool, False in padding.
    `others`: further streams of the same step, for data that cannot share a tensor (patches of another size, an
    unpaired domain); a procedure that does not know a stream ignores it.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor | list[Tensor]] = field(default_factory=dict)
    has: dict[str, Tensor] = field(default_factory=dict)
    valid: Tensor | None = None
    meta: list[Meta] = field(default_factory=list)
    others: dict[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def _apply(self, change: Any) -> Batch:
        def each(value: Any) -> Any:
            return [change(v) for v in value] if isinstance(value, list) else change(value)

        return Batch(
            inputs={k: change(v) for k, v in self.inputs.items()},
            targets={k: each(v) for k, v in self.targets.items()},
            has={k: change(v) for k, v in self.has.items()},
            valid=None if self.valid is None else change(self.valid),
            meta=self.meta,
            others={k: b._apply(change) for k, b in self.others.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return this batch with every tensor on `device`."""
        return self._apply(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return this batch in page-locked memory (called by torch's loader)."""
        return self._apply(lambda t: t.pin_memory())

    def streams(self) -> Iterator[tuple[str, Batch]]:
        """Yield ("main", this batch), then the other streams by name."""
        yield "main", self
        yield from sorted(self.others.items())


# --- predictions: what a model says, in level-0 pixels of its source --------------------------------------------------


@dataclass(frozen=True)
class SemanticPrediction:
    """`map` (H, W) uint8 class indices, or (K, H, W) bool where `multilabel`; `probability` (K, H, W) float in [0, 1]
    or None; `classes` K names."""

    map: NDArray[Any]
    classes: tuple[str, ...]
    probability: NDArray[Any] | None = None
    multilabel: bool = False
    kind: Kind = field(default="semantic", init=False)


@dataclass(frozen=True)
class InstancesPrediction:
    """`map` (H, W) or (D, H, W) int32, ids 1..N without gaps; `class_index` (N,) int64 index into `classes`;
    `scores` (N,) float32 in [0, 1] or None; `contours` N closed rings (M, 2) of (x, y), or None."""

    map: NDArray[np.int32]
    classes: tuple[str, ...]
    class_index: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None
    contours: tuple[NDArray[Any], ...] | None = None
    kind: Kind = field(default="instances", init=False)


@dataclass(frozen=True)
class BoxesPrediction:
    """`xyxy` (N, 4) float32, `class_index` (N,) into `classes`, `scores` (N,) in [0, 1], `attributes` (N, A) or None;
    `attribute_values`: attribute -> names of its values, in the order of the columns. `weaker`: boxes below the score
    from which one counts, for metrics that look at every score."""

    xyxy: NDArray[np.float32]
    classes: tuple[str, ...]
    class_index: NDArray[np.int64]
    scores: NDArray[np.float32]
    attributes: NDArray[np.int64] | None = None
    attribute_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weaker: BoxesPrediction | None = None
    kind: Kind = field(default="boxes", init=False)


@dataclass(frozen=True)
class PicturePrediction:
    """`data` (C, H, W); "rgb8" is uint8 RGB, other encodings name what the numbers are. `calling`: what calls a cell
    positive from the means of its nucleus in this picture (`zoo.metrics.calls.called`), or None."""

    data: NDArray[Any]
    channels: tuple[str, ...]
    encoding: str = "rgb8"
    calling: Mapping[str, Any] | None = None
    kind: Kind = field(default="picture", init=False)


@dataclass(frozen=True)
class LabelPrediction:
    """`value` index into `classes`, `probability` (K,) float32."""

    value: int
    classes: tuple[str, ...]
    probability: NDArray[np.float32] | None = None
    kind: Kind = field(default="label", init=False)


Prediction = SemanticPrediction | InstancesPrediction | BoxesPrediction | PicturePrediction | LabelPrediction
