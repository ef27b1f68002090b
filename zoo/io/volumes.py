"""Reading volumes in boxes: TIFF stacks, OME-TIFF, OME-Zarr, NIfTI, NumPy; axes z, y, x and voxel sizes in um.

`read_volume` opens without decoding; `VolumeFile.read` gives a box. What is no volume is a `DataError` that says so.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.io.images import TIFF_SUFFIXES
from zoo.io.resolution import _UM

Array = NDArray[Any]
VOLUME_SUFFIXES = (*TIFF_SUFFIXES, ".nii", ".nii.gz", ".npy", ".zarr")
_UNITS = {
    **_UM,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nanometer": 1e-3,
    "millimeter": 1e3,
    "meter": 1e6,
    "pixel": None,
}


class VolumeFile:
    """One volume: `shape` (D, H, W), `channels` their number, `dtype` as stored, `spacing` um per voxel (z, y, x) as
    the file states it, or None. `read` gives (C, d, h, w)."""

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        channels: int,
        dtype: Any,
        spacing: tuple[float, float, float] | None,
        box: Callable[[tuple[slice, ...]], Array],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.channels, self.dtype, self.spacing = path, channels, np.dtype(dtype), spacing
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self._box, self.close = box, close

    def __enter__(self) -> VolumeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "close"):
            self.close()

    def read(self, begin: Sequence[int] = (0, 0, 0), size: Sequence[int] | None = None) -> Array:
        """Return the box of `size` voxels from `begin`, (C, d, h, w); the whole by default. Raises `DataError`."""
        size = tuple(n - b for n, b in zip(self.shape, begin, strict=True)) if size is None else size
        window = tuple(slice(int(b), int(b) + int(s)) for b, s in zip(begin, size, strict=True))
        try:
            return np.asarray(self._box(window))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self.path}: the volume cannot be decoded ({error}). Copy or export it again.") from None


def is_volume_folder(path: Path) -> bool:
    """Return whether a folder is an OME-Zarr volume."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def suffix_of(path: Path) -> str:
    """Return the ending that says what a file is: two parts for .nii.gz."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def read_volume(path: Path | str) -> VolumeFile:
    """Open a volume. Raises `DataError` in one sentence where it is missing, broken, or a picture."""
    path = Path(path)
    kind = suffix_of(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file.")
    openers = {".nii": _nifti, ".nii.gz": _nifti, ".npy": _npy, ".zarr": _zarr}
    opener = openers.get(kind, _tiff if kind in TIFF_SUFFIXES else None)
    if is_volume_folder(path):
        opener = _zarr
    if opener is None:
        raise DataError(f'{path}: "{path.suffix}" is no format of volumes. Expected {", ".join(VOLUME_SUFFIXES)}.')
    try:
        return opener(path)
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path}: the volume cannot be read ({reason}). Copy or export it again.") from None


# --- axes -------------------------------------------------------------------------------------------------------------


def _order(path: Path, axes: str, shape: Sequence[int]) -> tuple[dict[str, int], int]:
    """Return where z, y, x (and c) stand among axes that are not alone, and the number of channels.

    A stack without a named z (tifffile writes I, Q or S of the planes) is a volume, a series in time is not.
    """
    sizes = dict(zip(axes, shape, strict=True))
    if sizes.get("T", 1) > 1:
        raise DataError(f"{path}: the file is a series in time (axes {axes}). Expected one volume: z, y, x.")
    places = {axis: i for i, axis in enumerate(axes) if sizes[axis] > 1 or axis in "ZYX"}
    spare = [axis for axis in axes if axis in places and axis not in "ZYXCS"]
    if "Z" not in places and len(spare) == 1:
        places["Z"] = places.pop(spare[0])
        spare = []
    if "C" not in places and "S" in places:
        places["C"] = places.pop("S")
    if "Z" not in places or not {"Y", "X"} <= set(places):
        raise DataError(
            f"{path}: the file holds a picture of shape {tuple(shape)} (axes {axes}). Expected a volume of z, y and x. "
            "Choose a model for pictures, or the stack that this plane is of."
        )
    if spare or "S" in places:
        raise DataError(f"{path}: the file has axes {axes}. Expected z, y, x and at most one of channels.")
    return places, sizes.get("C", sizes.get("S", 1)) if "C" in places else 1


def _picked(array: Any, axes: str, places: dict[str, int], window: tuple[slice, ...]) -> Array:
    """Return (C, d, h, w) of a box of an array with those axes."""
    of = {"Z": window[0], "Y": window[1], "X": window[2], "C": slice(None)}
    names = {i: name for name, i in places.items()}
    found = np.asarray(array[tuple(of[names[i]] if i in names else 0 for i in range(len(axes)))])
    left = [names[i] for i in range(len(axes)) if i in names]
    found = np.transpose(found, [left.index(name) for name in "CZYX" if name in left])
    return found if "C" in left else found[None]


def voxel(values: Sequence[Any]) -> tuple[float, float, float] | None:
    """Return um per voxel (z, y, x) where all three are known and positive."""
    if len(values) != 3 or any(v is None or not np.isfinite(float(v)) or float(v) <= 0 for v in values):
        return None
    z, y, x = (float(v) for v in values)
    return z, y, x


# --- formats ----------------------------------------------------------------------------------------------------------


def _tiff(path: Path) -> VolumeFile:
    import tifffile
    import zarr

    file = tifffile.TiffFile(path)
    series = file.series[0]
    try:
        places, channels = _order(path, series.axes, series.shape)
    except DataError:
        file.close()
        raise
    array: Any = zarr.open(series.aszarr(level=0), mode="r")
    return VolumeFile(
        path,
        [series.shape[places[a]] for a in "ZYX"],
        channels,
        series.dtype,
        _tiff_voxel(file),
        lambda window: _picked(array, series.axes, places, window),
        file.close,
    )


def _tiff_voxel(file: Any) -> tuple[float, float, float] | None:
    if text := file.ome_metadata:
        found = []
        for axis in "ZYX":
            size = re.search(rf'PhysicalSize{axis}="([0-9.eE+-]+)"', text)
            unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', text)
            factor = _UM.get(unit.group(1) if unit else "um")
            found.append(float(size.group(1)) * factor if size and factor else None)
        return voxel(found)
    known = file.imagej_metadata or {}
    page = file.pages[0]
    x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
    factor = _UM.get(str(known.get("unit", "")).replace("\\u00B5", "µ"))
    if "spacing" not in known or factor is None or not x or not y or not (x[0] and y[0]):
        return None
    return voxel([float(known["spacing"]) * factor, y[1] / y[0] * factor, x[1] / x[0] * factor])


def _npy(path: Path) -> VolumeFile:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (3, 4):
        raise DataError(f"{path}: the array has shape {array.shape}. Expected (z, y, x) or (z, y, x, channels).")
    channels = array.shape[3] if array.ndim == 4 else 1
    axes = "ZYXC"[: array.ndim]
    places = {axis: i for i, axis in enumerate(axes)}
    return VolumeFile(
        path, array.shape[:3], channels, array.dtype, None, lambda window: _picked(array, axes, places, window)
    )


def _nifti(path: Path) -> VolumeFile:
    import nibabel

    image: Any = nibabel.load(path)
    shape = tuple(n for i, n in enumerate(image.shape) if i < 3 or n > 1)
    if len(shape) not in (3, 4) or min(shape[:3]) < 2:
        raise DataError(f"{path}: the file holds shape {image.shape}. Expected a volume of x, y and z.")
    unit = image.header.get_xyzt_units()[0]
    factor = {"mm": 1e3, "meter": 1e6, "micron": 1.0, "unknown": 1e3}.get(unit)  # NIfTI is in mm where it is silent
    zooms = image.header.get_zooms()[:3]
    spacing = voxel([float(z) * factor for z in reversed(zooms)]) if factor else None
    data: Any = image.dataobj
    if suffix_of(path) == ".nii.gz":  # no part of a compressed stream can be reached alone: once, to disk
        with tempfile.TemporaryFile() as scratch:
            kept = np.memmap(scratch, dtype=image.get_data_dtype(), mode="w+", shape=image.shape)
        kept[...] = np.asanyarray(data)
        data = kept

    def box(window: tuple[slice, ...]) -> Array:
        z, y, x = window
        tail = (slice(None),) if len(shape) == 4 else ()
        found = np.asanyarray(data[(x, y, z, *tail, *(0,) * (len(image.shape) - 3 - len(tail)))])
        planes: Array = np.moveaxis(found, -1, 0).transpose(0, 3, 2, 1) if tail else found.T[None]
        return planes

    channels = shape[3] if len(shape) == 4 else 1
    return VolumeFile(path, shape[2::-1], channels, image.get_data_dtype(), spacing, box)


def _zarr(path: Path) -> VolumeFile:
    import zarr

    opened: Any = zarr.open(str(path), mode="r")
    if hasattr(opened, "shape"):
        axes, array, spacing = "TCZYX"[-len(opened.shape) :], opened, None
    else:
        attributes = dict(opened.attrs)
        scales = dict(attributes.get("ome", attributes)).get("multiscales")
        if not scales:
            raise DataError(f"{path}: the group has no multiscales. Expected an OME-Zarr image.")
        first = scales[0]
        named = [a if isinstance(a, dict) else {"name": a} for a in first.get("axes", [{"name": n} for n in "tczyx"])]
        level = first["datasets"][0]
        array = opened[level["path"]]
        axes = "".join(str(a["name"]) for a in named).upper()[-len(array.shape) :]
        spacing = _zarr_voxel(first, level, named)
    places, channels = _order(path, axes, array.shape)
    return VolumeFile(
        path,
        [array.shape[places[a]] for a in "ZYX"],
        channels,
        array.dtype,
        spacing,
        lambda window: _picked(array, axes, places, window),
    )


def _zarr_voxel(first: Any, level: Any, named: Any) -> tuple[float, float, float] | None:
    scale = np.ones(len(named))
    for step in [*level.get("coordinateTransformations", []), *first.get("coordinateTransformations", [])]:
        if step.get("type") == "scale":
            scale = scale * np.asarray(step["scale"], float)
    found = []
    for axis in "zyx":
        place = next((i for i, a in enumerate(named) if str(a["name"]).lower() == axis), None)
        factor = None if place is None else _UNITS.get(str(named[place].get("unit", "")).lower())
        found.append(float(scale[place]) * factor if place is not None and factor else None)
    return voxel(found)
