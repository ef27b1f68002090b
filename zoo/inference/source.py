"""Where pixels come from: an array or a file, read in bands of whole rows, as the model wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, UserError
from zoo.families.base import IOSpec
from zoo.inference.resample import Resampling
from zoo.io.images import ImageFile, to_rgb8
from zoo.stain.normalise import Normaliser

Array = NDArray[Any]
Mpp = float | Literal["native"] | tuple[float, ...] | None
RGB = ("red", "green", "blue")


class Source:
    """An image in bands of rows: (h, W, C) at level 0.

    `shape`: (H, W). `mpp`: um per pixel where it is known. `rows(begin, end)` gives pixels.
    """

    def __init__(
        self, shape: tuple[int, int], mpp: float | None, rows: Callable[[int, int], Array], name: str = "image"
    ) -> None:
        self.shape = shape
        self.mpp = mpp
        self.rows = rows
        self.name = name


def of_array(image: Array, spec: IOSpec, mpp: float | None = None) -> Source:
    """Return the source of (H, W) or (H, W, C) pixels. Raises `UserError` where the channels do not fit."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UserError(f"image: shape {image.shape} is no picture. Expected (H, W) or (H, W, C) with a pixel or more.")
    try:
        picture = to_rgb8(image)[0] if spec.channels == RGB else _other_channels(image, spec)
    except DataError as error:
        raise UserError(f"image: {error}") from None
    return Source((picture.shape[0], picture.shape[1]), mpp, lambda begin, end: picture[begin:end])


def of_file(file: ImageFile, spec: IOSpec) -> Source:
    """Return the source of an opened image; nothing is decoded yet. `DataError` comes with the first pixels."""

    def rows(begin: int, end: int) -> Array:
        if spec.channels == RGB:
            return file.read_rgb8(begin, 0, end - begin)
        return _other_channels(file.read(begin, 0, end - begin), spec, f"{file.path}: ")

    return Source((file.height, file.width), file.mpp, rows, str(file.path))


def _other_channels(image: Array, spec: IOSpec, where: str = "") -> Array:
    """Return (H, W, C) with the channels of a model that does not want RGB."""
    picture = image[..., None] if image.ndim == 2 else image
    wanted, given = len(spec.channels), picture.shape[2]
    if wanted == 1 and given in (3, 4) and (picture[..., :3] == picture[..., :1]).all():
        return picture[..., :1]  # grey that was stored as colour
    if given != wanted:
        raise DataError(
            f"{where}the image has {given} channels. Expected {wanted}: {', '.join(spec.channels)}. "
            "Choose an image with these channels or another model."
        )
    return picture


def scale_of(spec: IOSpec, known: float | None, given: Mpp, where: str) -> float:
    """Return model pixels per source pixel.

    `given` goes before what the file says (`known`); "native" takes the pixels as they are. 2 % count as equal. Raises
    `UserError` where the model has a resolution and the image's is not known: it is never guessed.
    """
    if isinstance(given, int | float) and not 0 < given < 1e4:
        raise UserError(f"mpp: {given} um per pixel will not do. Expected a positive number.")
    if isinstance(given, tuple):
        raise UserError(f"mpp: {', '.join(map(str, given))}: a picture has one number, as 0.5.")
    if isinstance(given, str) and given != "native":
        raise UserError(f'mpp: "{given}" will not do. Expected um per pixel as a number, or native.')
    if spec.mpp is None or given == "native":
        return 1.0
    mpp = known if given is None else float(given)
    if mpp is None:
        raise UserError(
            f"{where}: mpp: the um per pixel of the image is not known and the model works at {spec.mpp:g}. "
            "Say it with --mpp UM (mpp=UM in Python), or --mpp native where the pixels already are of that size."
        )
    return 1.0 if abs(mpp / spec.mpp - 1) < 0.02 else mpp / spec.mpp


def model_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the shape of the image on the model's grid; at least one pixel a side."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


class ModelGrid:
    """A source on the model's grid: resampled, and padded by mirroring beyond its lower and right border.

    Bands are asked for from top to bottom; rows that two bands share are read once.
    """

    def __init__(
        self,
        source: Source,
        shape: tuple[int, int],
        padded_width: int,
        padding: Literal["symmetric", "reflect"] = "symmetric",
    ) -> None:
        self.source, self.padding = source, padding
        self.shape = shape
        self._rows = Resampling(source.shape[0], shape[0])
        self._columns = Resampling(source.shape[1], shape[1])
        self._mirror = mirrored(shape[1], padded_width, padding)
        self._kept: Array | None = None
        self._begin = 0

    def band(self, begin: int, end: int) -> Array:
        """Return (end - begin, padded width, C) in the source's dtype."""
        inside = mirrored(self.shape[0], end, self.padding)[begin:end]
        first, last = int(inside.min()), int(inside.max()) + 1
        kept = self._kept
        if kept is None or not self._begin <= first <= self._begin + len(kept):
            rows = self._read(first, last)
        else:
            known = self._begin + len(kept)
            rows = kept[first - self._begin :]
            if last > known:
                rows = np.concatenate([rows, self._read(known, last)])
        self._kept, self._begin = rows, first
        contiguous = len(inside) == len(rows) and end <= self.shape[0]
        return rows if contiguous else rows[inside - first]

    def _read(self, begin: int, end: int) -> Array:
        first, last = self._rows.needs(begin, end)
        found = self.source.rows(first, last)
        if not (self._rows.identity and self._columns.identity):
            dtype = found.dtype
            found = self._rows.apply(found, 0, begin, end, first)
            found = self._columns.apply(found, 1, 0, self.shape[1], 0)
            if np.issubdtype(dtype, np.integer):
                bounds = np.iinfo(dtype)
                found = np.clip(np.rint(found), bounds.min, bounds.max).astype(dtype)
        return found if len(self._mirror) == self.shape[1] else found[:, self._mirror]


def mirrored(length: int, padded: int, padding: Literal["symmetric", "reflect"] = "symmetric") -> NDArray[np.intp]:
    """Return, for each of `padded` pixels, the pixel of `length` that it shows: mirrored beyond the end.

    "symmetric" shows the last pixel twice, "reflect" once.
    """
    if padding == "reflect" and length > 1:
        position = np.arange(padded) % (2 * length - 2)
        return np.where(position < length, position, 2 * length - 2 - position)
    position = np.arange(padded) % (2 * length)
    return np.where(position < length, position, 2 * length - 1 - position)


def value_range(source: Source, low: float, high: float, joint: bool = False) -> NDArray[np.float32]:
    """Return the `low` and `high` percentiles of each channel, (C, 2) float32, over at most 2^22 pixels on a grid.

    `joint`: of all channels together, the same for each.
    """
    sample = spread_pixels(source).astype(np.float32)
    if joint:
        sample = np.broadcast_to(sample.reshape(-1, 1), (sample.size, sample.shape[1]))
    return np.asarray(np.percentile(sample, (low, high), axis=0).T, np.float32)


def spread_pixels(source: Source, most: int = 2**22) -> Array:
    """Return (N, C) pixels on a grid over the whole picture, at most about `most`."""
    height, width = source.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / most))))
    lines = max(1, 512 // step) * step
    channels = _channels(source)
    bands = (source.rows(y, min(y + lines, height))[::step, ::step] for y in range(0, height, lines))
    return np.concatenate([band.reshape(-1, channels) for band in bands])


def restained(source: Source, normaliser: Normaliser) -> Source:
    """Return the source with its stains normalised by the look of the whole picture. Raises `UserError`."""
    if _channels(source) != 3:
        raise UserError(f"{source.name}: stain normalisation works on RGB. Expected 3 channels.")
    look = normaliser.measure(spread_pixels(source))
    return Source(
        source.shape, source.mpp, lambda begin, end: normaliser.apply(source.rows(begin, end), look), source.name
    )


def _channels(source: Source) -> int:
    return int(source.rows(0, 1).shape[2])
