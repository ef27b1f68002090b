"""What a predicted volume leaves behind: a label volume (compressed OME-TIFF or OME-Zarr), an object table, a picture.

Labels come window by window with provisional ids and are kept in a scratch file; when all are there, objects are
counted, ids become 1..N without gaps, and the final files are written slab by slab.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.io import overlay
from zoo.io.colours import colours_of
from zoo.io.overlay import Entry, Outlines

Array = NDArray[Any]
Format = Literal["tif", "zarr"]
CHUNK = (32, 256, 256)
SLAB = 16
"""Planes that are read back at once."""


class LabelVolume:
    """A label volume on its way to a file: `put` windows, `end` with the class and score of each provisional id."""

    def __init__(self, shape: tuple[int, int, int], scratch: Path, count: int) -> None:
        self.shape, self._path = shape, scratch
        self._kept = np.memmap(scratch, np.int32, "w+", shape=shape)
        self.voxels = np.zeros(count, np.int64)
        self._sums = np.zeros((3, count))
        self.boxes = np.zeros((6, count), np.int64)
        self.boxes[:3] = np.iinfo(np.int64).max

    def put(self, begin: Sequence[int], labels: NDArray[np.int32]) -> None:
        """Take a window of provisional ids 1..count."""
        self._kept[tuple(slice(b, b + n) for b, n in zip(begin, labels.shape, strict=True))] = labels
        places = np.nonzero(labels)
        ids = labels[places].astype(np.int64) - 1
        count = len(self.voxels)
        self.voxels += np.bincount(ids, minlength=count)
        for axis, place in enumerate(places):
            at = place + begin[axis]
            self._sums[axis] += np.bincount(ids, at + 0.5, minlength=count)
            np.minimum.at(self.boxes[axis], ids, at)
            np.maximum.at(self.boxes[axis + 3], ids, at + 1)

    @property
    def table(self) -> NDArray[np.uint32]:
        """Return provisional id -> final id; objects without a voxel are left out."""
        present = self.voxels > 0
        found: NDArray[np.uint32] = np.concatenate([[0], np.cumsum(present) * present]).astype(np.uint32)
        return found

    @property
    def centres(self) -> NDArray[np.float64]:
        """Return (3, count): the mean z, y, x of each object's voxels."""
        found: NDArray[np.float64] = self._sums / np.maximum(self.voxels, 1)
        return found

    def slabs(self, planes: int = SLAB) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Yield (first plane, final ids) from top to bottom."""
        table = self.table
        for z in range(0, self.shape[0], planes):
            yield z, table[self._kept[z : z + planes]]

    def read(self, begin: Sequence[int], size: Sequence[int]) -> NDArray[np.uint32]:
        """Return the final ids of a box."""
        window = tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))
        found: NDArray[np.uint32] = self.table[self._kept[window]]
        return found

    def close(self) -> None:
        """Remove the scratch file."""
        del self._kept
        self._path.unlink(missing_ok=True)


def write_tiff(path: Path, volume: LabelVolume, spacing: Sequence[float] | None) -> None:
    """Write a deflate-compressed OME-TIFF of uint32 ids, a page a plane, with the voxel size where it is known."""
    import tifffile

    about: dict[str, Any] = {"axes": "ZYX"}
    if spacing is not None:
        for axis, um in zip("ZYX", spacing, strict=True):
            about |= {f"PhysicalSize{axis}": float(um), f"PhysicalSize{axis}Unit": "µm"}
    large = 4 * math.prod(volume.shape) > 2**31
    with tifffile.TiffWriter(path, bigtiff=large, ome=True) as file:
        file.write(
            (plane for _, slab in volume.slabs() for plane in slab),
            shape=volume.shape,
            dtype=np.uint32,
            compression="zlib",
            photometric="minisblack",
            metadata=about,
        )


def write_zarr(path: Path, volume: LabelVolume, spacing: Sequence[float] | None) -> None:
    """Write an OME-Zarr 0.4 label image (zarr format 2) with its voxel size where it is known."""
    import zarr

    group: Any = zarr.open_group(str(path), mode="w", zarr_format=2)
    chunks = tuple(min(c, n) for c, n in zip(CHUNK, volume.shape, strict=True))
    array = group.create_array("0", shape=volume.shape, chunks=chunks, dtype="uint32")
    for z, slab in volume.slabs(CHUNK[0]):
        array[z : z + len(slab)] = slab
    unit = {} if spacing is None else {"unit": "micrometer"}
    scale = [1.0, 1.0, 1.0] if spacing is None else [float(s) for s in spacing]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "name": path.name.split(".")[0],
            "axes": [{"name": n, "type": "space", **unit} for n in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        }
    ]
    group.attrs["image-label"] = {"version": "0.4"}


def write_table(
    path: Path,
    volume: LabelVolume,
    classes: Sequence[str],
    kinds: Array,
    scores: Array,
    spacing: Sequence[float] | None,
) -> None:
    """Write `objects.csv`: a line an object, coordinates in voxels, half-open boxes, and um where they are known."""
    um = [] if spacing is None else ["volume_um3"]
    size = 1.0 if spacing is None else math.prod(float(s) for s in spacing)
    centres, table = volume.centres, volume.table
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["label", "class", "score", "voxels", *um, *"zyx", "z0", "y0", "x0", "z1", "y1", "x1"])
        for i in np.flatnonzero(volume.voxels):
            count = int(volume.voxels[i])
            measures = [count, *([round(count * size, 4)] if um else [])]
            place = [round(float(v), 2) for v in centres[:, i]]
            name = classes[int(kinds[i])]
            box = [int(v) for v in volume.boxes[:, i]]
            rows.writerow([int(table[i + 1]), name, round(float(scores[i]), 5), *measures, *place, *box])


# --- the picture ------------------------------------------------------------------------------------------------------

Read = Callable[[Sequence[int], Sequence[int]], Array]


def views(array: Read, shape: Sequence[int], slab: int = SLAB) -> dict[str, Array]:
    """Return the middle planes and maximum projections of a volume read slab by slab: "xy", "zy", "zx" and their
    "max" twins, each two-dimensional (z down in "zx", z across in "zy")."""
    depth, height, width = (int(n) for n in shape)
    z, y, x = depth // 2, height // 2, width // 2
    found: dict[str, Any] = {"zx": [], "zy": [], "max zx": [], "max zy": []}
    for begin in range(0, depth, slab):
        part = array((begin, 0, 0), (min(slab, depth - begin), height, width))
        if begin <= z < begin + len(part):
            found["xy"] = part[z - begin].copy()
        found["zx"].append(part[:, y].copy())
        found["zy"].append(part[:, :, x].copy())
        found["max zx"].append(part.max(1))
        found["max zy"].append(part.max(2))
        top = part.max(0)
        found["max xy"] = top if "max xy" not in found else np.maximum(found["max xy"], top)
    return {name: np.concatenate(v) if isinstance(v, list) else v for name, v in found.items()}


def picture(
    images: Mapping[str, Array],
    labels: Mapping[str, Array],
    spacing: Sequence[float] | None,
    kinds: Array,
    classes: Sequence[str],
    colours: Mapping[str, str],
) -> NDArray[np.uint8]:
    """Return (h, w, 3): the middle slices and the maximum projections of a volume, objects outlined, with a legend.

    `images`, `labels`: what `views` gives; `kinds` (N,): the class of each final label 1..N. Slices along z are
    stretched so that lengths compare. Projections of labels show the object with the largest id of each line.
    """
    chosen = colours_of(classes, colours)
    table = np.array([(0, 0, 0), *(chosen[int(k)] for k in kinds)], np.uint8)
    low, high = np.percentile(images["max xy"], (1, 99.8))
    shown, marked = montage({k: _grey(v, low, high) for k, v in images.items()}, labels, spacing)
    step = max(1, -(-max(shown.shape[:2]) // overlay.LARGEST))
    counts = np.bincount(np.asarray(kinds, np.int64), minlength=len(classes))
    legend = [Entry(None, "left: middle slices; right: maximum projections")]
    legend += [Entry(chosen[i], f"{name} {counts[i]}") for i, name in enumerate(classes)]
    return overlay.draw(shown[::step, ::step], [Outlines(marked[::step, ::step], table)], legend)


def montage(
    images: Mapping[str, Array], labels: Mapping[str, Array], spacing: Sequence[float] | None
) -> tuple[Array, Array]:
    """Return a canvas (h, w, 3) of uint8 `views` and the labels on it, (h, w): slices left, projections right."""
    rows = []
    for prefix in ("", "max "):
        grey = [images[prefix + name] for name in ("xy", "zy", "zx")]
        marks = [labels[prefix + name] for name in ("xy", "zy", "zx")]
        rows.append(_cross(grey, marks, spacing))
    height = max(r.shape[0] for r, _ in rows)
    shown = np.concatenate([_bottom(r, height, 255) for r, _ in rows], axis=1)
    return shown, np.concatenate([_bottom(m, height, 0) for _, m in rows], axis=1)


def _grey(plane: Array, low: float, high: float) -> NDArray[np.uint8]:
    unit = (plane.astype(np.float32) - low) / max(high - low, 1e-9)
    found: NDArray[np.uint8] = (np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return found


def _cross(grey: Sequence[Array], marks: Sequence[Array], spacing: Sequence[float] | None) -> tuple[Array, Array]:
    """Return the plane xy with zy to its right and zx below, and their labels on the same canvas."""
    stretch = 1.0 if spacing is None else float(spacing[0]) / float(spacing[2])
    depth = max(1, round(grey[2].shape[0] * stretch))
    rows = np.minimum((np.arange(depth) + 0.5) / stretch, grey[2].shape[0] - 1).astype(int)
    gap = 6
    height, width = grey[0].shape
    shown = np.full((height + gap + depth, width + gap + depth), 255, np.uint8)
    found = np.zeros(shown.shape, np.int64)
    for canvas, (xy, zy, zx) in ((shown, grey), (found, marks)):
        canvas[:height, :width] = xy
        canvas[:height, width + gap :] = zy[rows].T
        canvas[height + gap :, :width] = zx[rows]
    return np.repeat(shown[..., None], 3, axis=2), found


def _bottom(array: Array, height: int, value: int) -> Array:
    widths = [(0, height - array.shape[0]), (0, 12), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, widths, constant_values=value)
