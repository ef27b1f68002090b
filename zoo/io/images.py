"""Reading images: every odd format is handled here, once.

`read_image` opens a file without decoding it where the format allows, `ImageFile.read` gives a window, `to_rgb8` turns
whatever an image holds into what a model for brightfield tissue looks at. Stored encodings (palettes, CMYK, EXIF
rotation, planar order) are resolved on reading; depth and channels stay as they are.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.io.resolution import from_dpi, from_tiff

Array = NDArray[Any]

TIFF_SUFFIXES = (".tif", ".tiff", ".svs", ".btf", ".tf8")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".webp", ".gif")
_RAM = 256 * 2**20  # bytes above which a format that decodes whole is kept in a temporary memory map
_PIXELS = 2**33  # more is not an image but an attack on the memory
_BOMB = threading.Lock()


class ImageFile:
    """One image: (H, W) or (H, W, C), decoded when read.

    `shape`: (H, W) or (H, W, C). `dtype`: as stored. `spacing`: um per pixel (y, x) as the file states it, or None.
    `windowed`: whether a window is read without decoding the whole; such a file stays open
    between reads, until `close()`. Picklable.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: Any, spacing: tuple[float, float] | None, windowed: bool
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.spacing = spacing
        self.windowed = windowed
        self._whole: Array | None = None
        self._zarr: tuple[Any, str, Any] | None = None
        self._range: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"ImageFile({str(self.path)!r}, shape={self.shape}, dtype={self.dtype.name}, mpp={self.mpp})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None, "_zarr": None}

    @property
    def mpp(self) -> float | None:
        """Return um per pixel where the file states one that both axes share (to 2 %), else None."""
        if self.spacing is None:
            return None
        y, x = self.spacing
        return (y + x) / 2 if abs(y - x) <= 0.02 * max(y, x) else None

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return self.shape[1]

    def read(self, y0: int = 0, x0: int = 0, h: int | None = None, w: int | None = None) -> Array:
        """Return the window rows y0..y0+h, columns x0..x0+w in the stored dtype; the whole image by default.

        The window must lie inside the image. Raises `DataError` where it does not or the file cannot be decoded.
        """
        h = self.height - y0 if h is None else h
        w = self.width - x0 if w is None else w
        if y0 < 0 or x0 < 0 or h < 1 or w < 1 or y0 + h > self.height or x0 + w > self.width:
            raise DataError(
                f"{self.path}: the window {h} x {w} at row {y0}, column {x0} leaves the image of "
                f"{self.height} x {self.width}. Ask for pixels inside it."
            )
        if self.windowed:
            return self._read_window(y0, x0, h, w)
        return np.array(self._decoded()[y0 : y0 + h, x0 : x0 + w])

    def read_rgb8(self, y0: int = 0, x0: int = 0, h: int | None = None, w: int | None = None) -> Array:
        """Return a window as (h, w, 3) uint8, scaled alike in every window of this image (see `to_rgb8`)."""
        window = self.read(y0, x0, h, w)
        if window.dtype == np.uint8 or window.dtype == bool:
            return _convert(window, None, self.path)[0]
        return _convert(window, self.value_range(), self.path)[0]

    def value_range(self) -> tuple[float, float]:
        """Return the values that become 0 and 255: measured on a sparse grid of windows of the whole image."""
        if self._range is None:
            if self.height * self.width <= 2**24:
                self._range = _value_range(self.read(), self.path)
            else:
                rows = np.linspace(0, self.height - 512, 6).astype(int)
                columns = np.linspace(0, self.width - 512, 6).astype(int)
                parts = [self.read(max(0, y), max(0, x), 512, 512) for y in rows for x in columns]
                self._range = _value_range(np.stack(parts).reshape(-1, 512, *self.shape[2:]), self.path)
        return self._range

    def close(self) -> None:
        """Let go of decoded pixels and of the open file; the next read opens again."""
        self._whole = None
        if self._zarr is not None:
            self._zarr[2].close()
            self._zarr = None

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_zarr", None) is not None:
            self.close()

    def _decoded(self) -> Array:
        if self._whole is None:
            self._whole = _kept(_decode(self.path))
        return self._whole

    def _read_window(self, y0: int, x0: int, h: int, w: int) -> Array:
        import tifffile
        import zarr

        with _explained(self.path):
            if self._zarr is None:
                file = tifffile.TiffFile(self.path)
                series = file.series[0]
                self._zarr = (zarr.open(series.aszarr(level=0), mode="r"), series.axes, file)
            array, axes, _ = self._zarr
            window = {"Y": slice(y0, y0 + h), "X": slice(x0, x0 + w), "S": slice(None), "C": slice(None)}
            picked = np.asarray(array[tuple(window.get(axis, 0) for axis in axes)])
        return _channels_last(picked, "".join(axis for axis in axes if axis in window))


def read_image(path: Path | str) -> ImageFile:
    """Open an image: TIFF (tiled ones windowed), PNG, JPEG, BMP, WebP, GIF, NPY.

    Raises `DataError` in one sentence where the file is missing, empty, no image, or not one plane.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f'{path}: "{path.suffix}" is no image format that is read here. Expected {_formats()}.')
    with _explained(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty. Copy it again.")
        opened = (_open_tiff if suffix in TIFF_SUFFIXES else _open_npy if suffix == ".npy" else _open_pillow)(path)
    if opened.dtype.kind not in "buif":
        raise DataError(f"{path}: pixels of type {opened.dtype} are no picture. Expected integers or floats.")
    if 0 in opened.shape:
        raise DataError(f"{path}: the picture of shape {opened.shape} has no pixel. Export it again.")
    return opened


def read_array(path: Path | str) -> Array:
    """Return the whole content of an image file; stacks and volumes keep all their axes (unlike `read_image`)."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f'{path}: "{path.suffix}" is no image format that is read here. Expected {_formats()}.')
    if path.suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        with _explained(path):
            return np.asarray(tifffile.imread(path))
    with _explained(path):
        return _decode(path)


def read_indices(path: Path | str) -> Array:
    """Return a label image as it is stored, (H, W): palette indices stay indices, and grey values stay values.

    An RGB(A) file whose channels are equal counts as grey; any other has no indices and raises `DataError`.
    """
    path = Path(path)
    if path.suffix.lower() in (*TIFF_SUFFIXES, ".npy"):
        array = np.squeeze(read_array(path))
    else:
        with _explained(path):
            array = _decode(path, indices=True)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array = array[..., :-1]
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2:
        colours = " Masks of colours have none: save the number of each colour's class." if array.ndim == 3 else ""
        raise DataError(
            f"{path}: the label image has shape {array.shape}. Expected one number a pixel, (H, W).{colours}"
        )
    return array


def to_rgb8(array: Array) -> tuple[Array, str | None]:
    """Return (H, W, 3) uint8 and, where something had to be decided, one sentence that says what.

    uint8 RGB stays as it is. Grey is repeated three times. Alpha is laid over white. 16-bit colour is scaled by the
    smallest of 8, 10, 12, 14, 16 bits that holds its largest value; 16-bit grey, 32-bit integers and floats beyond
    0..255 are stretched from the 0.1 to the 99.9 percentile; floats within 0..1 are multiplied by 255. Raises
    `DataError` for not-a-number, infinity, complex numbers, and shapes that are no picture.
    """
    return _convert(np.asarray(array), None, None)


def _convert(array: Array, limits: tuple[float, float] | None, path: Path | None) -> tuple[Array, str | None]:
    where = f"{path}: " if path else ""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise DataError(f"{where}shape {array.shape} is no picture. Expected (H, W) or (H, W, C) with 1 to 4 channels.")
    if 0 in array.shape:
        raise DataError(f"{where}the picture of shape {array.shape} has no pixel.")
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}pixels of type {array.dtype} are no picture. Expected integers or floats.")
    picture = array[..., None] if array.ndim == 2 else array
    channels = picture.shape[2]
    alpha = picture[..., -1:] if channels in (2, 4) else None
    colour = picture[..., :-1] if alpha is not None else picture
    notes: list[str] = []
    if colour.dtype == bool:
        colour = colour.astype(np.uint8) * np.uint8(255)
        notes.append("1-bit values became 0 and 255")
    elif colour.dtype != np.uint8:
        low, high = limits or _value_range(array, path)
        scaled = (colour.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-12))
        colour = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        notes.append(f"{array.dtype} values from {low:g} to {high:g} were scaled to 0..255")
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
        notes.append("grey was repeated three times")
    if alpha is not None:
        share = _alpha_share(alpha)
        if (share < 1).any():
            colour = np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)
            notes.append("transparent pixels were laid over white")
    return np.ascontiguousarray(colour), "; ".join(notes) or None


def _alpha_share(alpha: Array) -> NDArray[np.float32]:
    if alpha.dtype.kind in "ui":
        return alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max)
    return np.clip(alpha.astype(np.float32), 0, 1)


def _value_range(array: Array, path: Path | None) -> tuple[float, float]:
    """Return which values become 0 and 255 (see `to_rgb8`)."""
    where = f"{path}: " if path else ""
    colour = array[..., :-1] if array.ndim == 3 and array.shape[2] in (2, 4) else array
    if colour.dtype.kind == "f":
        if not np.isfinite(colour).all():
            raise DataError(f"{where}the picture holds values that are not numbers (nan or infinity).")
        low, high = float(colour.min()), float(colour.max())
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        if low >= 0 and high <= 255:
            return 0.0, 255.0
    elif colour.dtype == np.uint8 or colour.dtype == bool:
        return 0.0, 255.0
    elif colour.ndim == 3 and colour.shape[2] == 3 and colour.min() >= 0:
        top = int(colour.max())
        return 0.0, float(next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top))
    low, high = (float(v) for v in np.percentile(colour, (0.1, 99.9)))
    if high <= low:
        low, high = float(colour.min()), float(colour.max())
    return (low, high) if high > low else (low, low + 1.0)


# --- formats ----------------------------------------------------------------------------------------------------------


def _formats() -> str:
    return ", ".join(IMAGE_SUFFIXES)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except MemoryError:
        raise DataError(f"{path}: the image does not fit into memory. Use a tiled TIFF.") from None
    except PermissionError:
        raise DataError(f"{path}: the file may not be read (permission denied).") from None
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise DataError(
            f"{path}: the image cannot be decoded ({reason}). It may be truncated or of another format than its name "
            "says. Copy or export it again."
        ) from None


def _channels_last(array: Array, axes: str) -> Array:
    """Return (H, W) or (H, W, C) from an array whose axes are Y, X and at most one each of S and C."""
    for axis in ("S", "C"):
        if axis in axes and array.shape[axes.index(axis)] == 1 and len(axes) > 2:
            array = np.squeeze(array, axes.index(axis))
            axes = axes.replace(axis, "")
    extra = [i for i, axis in enumerate(axes) if axis not in "YX"]
    order = [axes.index("Y"), axes.index("X"), *extra]
    return np.ascontiguousarray(np.transpose(array, order))


def _open_tiff(path: Path) -> ImageFile:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        shape, axes = dict(zip(series.axes, series.shape, strict=True)), series.axes
        planes = {axis: n for axis, n in shape.items() if axis not in "YXSC" and n > 1}
        if planes or "Y" not in shape or "X" not in shape or (shape.get("S", 1) > 1 and shape.get("C", 1) > 1):
            raise DataError(
                f"{path}: the file holds a stack of shape {series.shape} (axes {axes}). Expected one picture, "
                "(H, W) or (H, W, C). Save the pages as files of their own."
            )
        if shape["Y"] * shape["X"] > _PIXELS:
            raise DataError(f"{path}: {shape['Y']} x {shape['X']} pixels are more than can be read.")
        channels = max(shape.get("S", 1), shape.get("C", 1))
        plain = page.photometric.name in ("MINISBLACK", "RGB") or (
            page.photometric.name == "YCBCR" and page.compression.name == "JPEG"
        )
        turned = page.tags.valueof("Orientation", default=1) not in (0, 1)
        segmented = page.is_tiled or page.rowsperstrip * 8 <= page.imagelength
        windowed = plain and not turned and segmented and page.bitspersample >= 8
        height, width = shape["Y"], shape["X"]
        dtype = series.dtype
        spacing = from_tiff(file)
        if not windowed:
            whole = _decode_tiff(path)
            return _of_array(path, whole, spacing)
        return ImageFile(path, (height, width, channels) if channels > 1 else (height, width), dtype, spacing, True)


def _of_array(path: Path, whole: Array, spacing: tuple[float, float] | None) -> ImageFile:
    image = ImageFile(path, whole.shape, whole.dtype, spacing, False)
    image._whole = _kept(whole)
    return image


def _kept(whole: Array) -> Array:
    """Return the array itself, or a temporary memory map of it where it is large."""
    if whole.nbytes <= _RAM:
        return whole
    with tempfile.TemporaryFile() as file:  # the map outlives it, and the disk space goes with the map
        mapped = np.memmap(file, dtype=whole.dtype, mode="w+", shape=whole.shape)
    mapped[...] = whole
    mapped.flush()
    return mapped


def _decode_tiff(path: Path) -> Array:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        kind = page.photometric.name
        if kind in ("PALETTE", "SEPARATED", "CIELAB") or (kind == "YCBCR" and page.compression.name != "JPEG"):
            return _decode_pillow(path)
        keep = [i for i, (axis, n) in enumerate(zip(series.axes, series.shape, strict=True)) if axis in "YXSC" or n > 1]
        array = series.asarray(level=0).reshape([series.shape[i] for i in keep])
        array = _channels_last(array, "".join(series.axes[i] for i in keep))
        if kind == "MINISWHITE":
            array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
        if page.bitspersample == 1:
            array = array.astype(bool)
        return _turn(array, page.tags.valueof("Orientation", default=1))


def _turn(array: Array, orientation: int) -> Array:
    """Return the picture as it is meant to be seen (EXIF and TIFF orientation 1 to 8)."""
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (3, 4):
        array = array[::-1]
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
        if orientation in (6, 7):
            array = array[:, ::-1]
        if orientation in (7, 8):
            array = array[::-1]
    return np.ascontiguousarray(array)


def _open_npy(path: Path) -> ImageFile:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.ndim not in (2, 3) or (mapped.ndim == 3 and mapped.shape[2] > 64):
        raise DataError(f"{path}: the array has shape {mapped.shape}. Expected (H, W) or (H, W, C).")
    image = ImageFile(path, mapped.shape, mapped.dtype, None, False)
    image._whole = mapped
    return image


@contextlib.contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    """Open with Pillow, without its warning about large images: slides are large."""
    from PIL import Image

    with _BOMB:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with opened:
        if opened.width * opened.height > _PIXELS:
            raise DataError(f"{path}: {opened.height} x {opened.width} pixels are more than can be read.")
        yield opened


def _open_pillow(path: Path) -> ImageFile:
    with _pillow(path) as opened:
        spacing = from_dpi(opened.info.get("dpi"))
        height, width = opened.height, opened.width
        if opened.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            height, width = width, height
        mode = opened.mode
        deep = _png_depth(path) == 16
        channels = {"LA": 2, "La": 2, "RGBA": 4, "RGBa": 4, "PA": 4}.get(mode, 1 if mode in _GREY else 3)
        if mode == "P" and "transparency" in opened.info:
            channels = 4
        dtype = np.uint16 if deep else _GREY.get(mode, np.uint8)
    return ImageFile(path, (height, width, channels) if channels > 1 else (height, width), dtype, spacing, False)


_GREY: dict[str, Any] = {
    "1": np.bool_,
    "L": np.uint8,
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I": np.int32,
    "F": np.float32,
}


def _png_depth(path: Path) -> int:
    """Return the bits a channel of a PNG, 8 for any other file."""
    with path.open("rb") as file:
        head = file.read(26)
    return int(struct.unpack(">B", head[24:25])[0]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else 8


def _decode(path: Path, indices: bool = False) -> Array:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array: Array = np.load(path, allow_pickle=False)
        return array
    with _explained(path):
        return _decode_tiff(path) if suffix in TIFF_SUFFIXES else _decode_pillow(path, indices)


def _decode_pillow(path: Path, indices: bool = False) -> Array:
    from PIL import ImageOps

    if _png_depth(path) == 16:  # Pillow would keep eight bits of each channel of a colour image
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    with _pillow(path) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("P", "PA") and not indices:
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        elif image.mode not in ("P", "LA", "RGB", "RGBA", *_GREY):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
        return np.array(image)
