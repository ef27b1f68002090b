"""From a sample's fluorescence to what is learnt, and what is measured on training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.families.miphei.options import MipheiOptions, Statistics
from zoo.types import Instances, Picture, Sample

MOST = 2**20
"""Pixels of a picture that are measured at most."""


@dataclass(frozen=True)
class MarkerTarget:
    """Under "markers" the planes to learn, (M, H, W); under "known" (M,) which of them the sample carries; under
    "nuclei" (where wanted) the label map. What a sample lacks is left out."""

    truth: str | None
    cells: str | None
    markers: tuple[str, ...]
    dtype: str

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Return the planes. Raises `DataError` for another size, or a picture of which no marker is wanted."""
        nuclei = sample.truth.get(self.cells or "")
        result: dict[str, NDArray[Any]] = {}
        if isinstance(nuclei, Instances):
            result["nuclei"] = np.ascontiguousarray(nuclei.map, np.int32)
        found = sample.truth.get(self.truth or "")
        if not isinstance(found, Picture):
            return result
        check(found, sample, self.truth or "", self.markers)
        planes = np.zeros((len(self.markers), *sample.shape), self.dtype)
        known = np.array([name in found.channels for name in self.markers], bool)
        for place, name in enumerate(self.markers):
            if known[place]:
                planes[place] = found.data[found.channels.index(name)]
        return result | {"markers": planes, "known": known}

    def blank(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """Return empty planes."""
        markers = len(self.markers)
        found: dict[str, NDArray[Any]] = {"markers": np.zeros((markers, *shape), self.dtype)}
        found["known"] = np.zeros(markers, bool)
        return found if self.cells is None else {**found, "nuclei": np.zeros(shape, np.int32)}


def check(found: Picture, sample: Sample, key: str, markers: Sequence[str]) -> None:
    """Raise `DataError` where a picture does not fit its image, its channels' names or the markers."""
    where = f"{sample.dataset}: {sample.id}: {key}"
    if len(found.data) != len(found.channels):
        raise DataError(
            f"{where}: {len(found.data)} planes, but {len(found.channels)} channels have names "
            f"({', '.join(found.channels)}). Expected one name a plane. Mend the channels of the card."
        )
    if found.data.shape[1:] != sample.shape:
        raise DataError(f"{where}: {found.data.shape[1:]} pixels. Expected those of the image, {sample.shape}.")
    if not set(markers) & set(found.channels):
        raise DataError(
            f"{where}: none of the markers {', '.join(markers)} (it has {', '.join(found.channels)}). "
            "Set model.markers, or choose another dataset."
        )


@dataclass(frozen=True)
class Measured:
    """What training samples say; None where none of them has the picture."""

    dtype: str
    encoding: str
    full_scale: tuple[float, ...]
    statistics: Statistics
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def measure(options: MipheiOptions, samples: Sequence[Sample]) -> Measured | None:
    """Return what is measured on training samples. Raises `ValueError` where a marker is on none of them."""
    assert options.markers is not None
    planes: dict[str, list[NDArray[Any]]] = {name: [] for name in options.markers}
    images: list[NDArray[Any]] = []
    dtypes, encodings = [], []
    for sample in samples:
        found = sample.truth.get(options.truth or "")
        if not isinstance(found, Picture):
            continue
        check(found, sample, options.truth or "", options.markers)
        dtypes.append(found.data.dtype)
        encodings.append(found.encoding)
        step = max(1, int(np.sqrt(found.data[0].size / MOST)))
        for name in options.markers:
            if name in found.channels:
                planes[name].append(found.data[found.channels.index(name), ::step, ::step].ravel())
        images.append(sample.image[:, ::step, ::step].reshape(len(sample.image), -1))
    if not dtypes:
        return None
    lacking = [name for name, values in planes.items() if not values]
    if lacking:
        raise ValueError(
            f'markers: no training picture carries "{lacking[0]}". Expected each marker on at least one. Remove it, or '
            "add data that has it"
        )
    kinds = sorted({str(d) for d in dtypes})
    if len(kinds) > 1:
        raise ValueError(f"the training pictures hold {' and '.join(kinds)}. Expected one kind of numbers. Convert one")
    kind = kinds[0] if kinds[0] in ("uint8", "uint16") else "float32"
    joined = [np.concatenate(planes[name]) for name in options.markers]
    scale = options.full_scale or tuple(_full_scale(v, kind) for v in joined)
    units = [v.astype(np.float32) * (255 / s) for v, s in zip(joined, scale, strict=True)]
    statistics = Statistics(
        std=tuple(max(round(float(v.std(dtype=np.float64)), 6), 0.1) for v in units),
        foreground=tuple(round(float((v > options.foreground_above).mean()), 6) for v in units),
    )
    rgb = np.concatenate(images, 1)
    top = float(np.iinfo(rgb.dtype).max) if np.issubdtype(rgb.dtype, np.integer) else 1.0
    mean = [round(float(v), 6) for v in rgb.mean(1, dtype=np.float64) / top]
    std = [max(round(float(v), 6), 1e-3) for v in rgb.std(1, dtype=np.float64) / top]
    return Measured(kind, encodings[0], scale, statistics, tuple(mean), tuple(std))  # type: ignore[arg-type]


def _full_scale(values: NDArray[Any], kind: str) -> float:
    """Return what becomes full scale: 255 of 8 bits, else the 99.9th percentile."""
    if kind == "uint8":
        return 255.0
    return max(round(float(np.percentile(values, 99.9)), 4), 1e-6)
