"""One volume in, files out: `STEM.labels.tif` or `STEM.labels.ome.zarr`, `STEM.objects.csv`, `STEM.overlay.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.families.base import Family
from zoo.inference import volumes
from zoo.io import volume_writers as writers
from zoo.io.volumes import read_volume


def check(family: Family, path: Path, mpp: Any) -> None:
    """Raise `UserError` where a volume lacks a voxel size that the model needs, `DataError` where it is none."""
    file = read_volume(path)
    try:
        volumes.scales_of(family.spec, file.spacing, mpp, str(path))
    finally:
        file.close()


@torch.inference_mode()
def write(
    family: Family,
    path: Path,
    folder: Path,
    stem: str,
    *,
    mpp: Any,
    tile: int | None,
    overlap: int | None,
    labels: writers.Format,
    decode: Any,
) -> dict[str, Any]:
    """Write every file of one volume into `folder`; return what its record says."""
    family.eval()
    file = read_volume(path)
    try:
        source = volumes.of_file(file, family.spec)
        margin = None if overlap is None else overlap // 2
        work = volumes.start(family, source, mpp, tile, margin, decode)
        objects = volumes.found(work)
        kinds, scores = family.told(objects)  # type: ignore[operator]
        kept = writers.LabelVolume(source.shape, folder / ".labels", len(objects))
        try:
            for begin, part in volumes.painted(work, objects):
                kept.put(begin, part)
            spacing = _spacing(family, file.spacing, mpp)
            _files(family, source, kept, folder, stem, spacing, labels, kinds, scores)
        finally:
            kept.close()
    finally:
        file.close()
    depth, height, width = source.shape
    return {
        "depth": depth,
        "height": height,
        "width": width,
        "mpp": None if spacing is None else list(spacing),
        "objects": int((kept.voxels > 0).sum()),
    }


def _spacing(family: Family, known: Sequence[float] | None, mpp: Any) -> tuple[float, ...] | None:
    """Return um per voxel of the volume: what the user says goes before what the file says."""
    if isinstance(mpp, int | float):
        return (float(mpp),) * 3
    if isinstance(mpp, tuple | list):
        return tuple(float(v) for v in mpp)
    if mpp == "native" and known is None:
        return family.spec.spacing
    return None if known is None else tuple(known)


def _files(
    family: Family,
    source: volumes.VolumeSource,
    kept: writers.LabelVolume,
    folder: Path,
    stem: str,
    spacing: tuple[float, ...] | None,
    labels: writers.Format,
    kinds: NDArray[Any],
    scores: NDArray[Any],
) -> None:
    output = next(iter(family.spec.outputs.values()))
    if labels == "zarr":
        writers.write_zarr(folder / f"{stem}.labels.ome.zarr", kept, spacing)
    else:
        writers.write_tiff(folder / f"{stem}.labels.tif", kept, spacing)
    writers.write_table(folder / f"{stem}.objects.csv", kept, output.classes, kinds, scores, spacing)

    def image(begin: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        found: NDArray[Any] = np.asarray(source.read(begin, size))[0]
        return found

    drawn = writers.picture(
        writers.views(image, source.shape),
        writers.views(kept.read, source.shape),
        spacing,
        kinds[kept.voxels > 0],
        output.classes,
        output.colours,
    )
    from PIL import Image

    Image.fromarray(drawn).save(folder / f"{stem}.overlay.png", compress_level=4)
