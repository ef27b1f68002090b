"""Samples of a dataset as plain files, to look at and to try things on: `zoo data sample`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoo.data.datasets import open_dataset
from zoo.errors import UserError
from zoo.types import Instances, Sample, Semantic


def write_samples(name: str | Path, out: Path, *, split: str = "all", count: int = 3) -> Iterator[Path]:
    """Write the first `count` images of a split and their maps into `out`; yield each path written.

    `ID.png` (8-bit colour) or `ID.tif` (anything else), and `ID.KEY.tif` for each semantic or instance truth, with um
    per pixel where it is known. Raises `UserError` where the folder cannot be written.
    """
    if count < 1:
        raise UserError(f"zoo data sample: --count: {count} will not do. Expected 1 or more")
    dataset = open_dataset(name, split=split, limit=count)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for sample in dataset:
            yield from _write(sample, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Choose another --out") from None


def _write(sample: Sample, out: Path) -> Iterator[Path]:
    import tifffile
    from PIL import Image

    stem = sample.id.replace("/", "_").replace("\\", "_")
    path = out / f"{stem}.png"
    if sample.axes == "CYX" and len(sample.image) == 3 and sample.image.dtype == np.uint8:
        Image.fromarray(np.ascontiguousarray(np.moveaxis(sample.image, 0, -1))).save(path)
    else:
        path = path.with_suffix(".tif")
        single = len(sample.image) == 1
        tifffile.imwrite(path, sample.image[0] if single else sample.image, metadata={"axes": _axes(sample, single)})
    yield path
    for key, truth in sample.truth.items():
        if isinstance(truth, Semantic | Instances):
            path = out / f"{stem}.{key}.tif"
            tifffile.imwrite(path, truth.map.astype(np.uint8 if truth.map.dtype == bool else truth.map.dtype))
            yield path


def _axes(sample: Sample, single: bool) -> str:
    return sample.axes[1:] if single else sample.axes
