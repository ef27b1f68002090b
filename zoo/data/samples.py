"""Samples of a dataset as plain files, to look at and to try things on: `zoo data sample`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.cards import DatasetCard, TruthCard
from zoo.data.datasets import Dataset, open_dataset
from zoo.errors import UserError
from zoo.types import Boxes, Instances, Label, Picture, Sample, Semantic, Truth, Vector

BAND = 512
"""Rows of a slide that are in memory at a time."""


def write_samples(
    name: str | Path,
    out: Path,
    *,
    split: str = "all",
    count: int = 3,
    arguments: Mapping[str, Any] | None = None,
    sheet: bool = False,
) -> Iterator[Path]:
    """Write the first `count` images of a split and their truths into `out`; yield each path written.

    `ID.png` (8-bit colour) or `ID.tif` (anything else), with um per pixel where it is known; `ID.KEY.tif` for each
    semantic or instance truth, `ID.KEY.png` or `ID.KEY.ome.tif` for each picture; `ID.KEY.json` for boxes, labels,
    vectors, and what is known of each object. `sheet`: also `NAME.sheet.png`, all of it to look at. A slide of the
    phantom is written as a tiled TIFF in bands, however large it is. Raises `UserError` where the folder cannot be
    written.
    """
    if count < 1:
        raise UserError(f"zoo data sample: --count: {count} will not do. Expected 1 or more")
    dataset = open_dataset(name, split=split, limit=count, arguments=arguments)
    shown: list[Any] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for position in range(len(dataset)):
            if hasattr(dataset.reader, "slide"):
                yield from _write_slide(dataset, position, out, shown)
                continue
            sample = dataset[position]
            yield from _write(dataset.card, sample, out)
            if sheet:
                from zoo.data.sheet import row

                shown.append(row(sample, dataset.card))
        if sheet and shown:
            from zoo.data.sheet import write

            path = out / f"{dataset.name}.sheet.png"
            write(path, shown)
            yield path
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}). Choose another --out") from None


def _stem(sample: str) -> str:
    return sample.replace("/", "_").replace("\\", "_")


def _write(card: DatasetCard, sample: Sample, out: Path) -> Iterator[Path]:
    import tifffile
    from PIL import Image

    stem = _stem(sample.id)
    path = out / f"{stem}.png"
    if sample.axes == "CYX" and len(sample.image) == 3 and sample.image.dtype == np.uint8:
        Image.fromarray(np.ascontiguousarray(np.moveaxis(sample.image, 0, -1))).save(path)
    else:
        path = path.with_name(f"{stem}.tif")
        single = len(sample.image) == 1
        image = sample.image[0] if single else sample.image
        tifffile.imwrite(path, image, metadata={"axes": sample.axes[1:] if single else sample.axes})
    yield path
    for key, truth in sample.truth.items():
        if isinstance(truth, Semantic | Instances):
            path = out / f"{stem}.{key}.tif"
            tifffile.imwrite(path, truth.map.astype(np.uint8 if truth.map.dtype == bool else truth.map.dtype))
            yield path
        elif isinstance(truth, Picture):
            yield _write_picture(truth, out / f"{stem}.{key}", sample.spacing)
        known = described(truth, card.truths[key])
        if known is not None:
            path = out / f"{stem}.{key}.json"
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            yield path


def _write_picture(truth: Picture, base: Path, spacing: tuple[float, ...] | None) -> Path:
    from PIL import Image

    from zoo.io.tiff import TiffRows

    if truth.encoding == "rgb8":
        path = base.with_name(f"{base.name}.png")
        Image.fromarray(np.ascontiguousarray(np.moveaxis(truth.data, 0, -1))).save(path)
        return path
    path = base.with_name(f"{base.name}.ome.tif")
    mpp = spacing[-1] if spacing else None
    file = TiffRows(path, truth.data.shape, truth.data.dtype, channels=truth.channels, mpp=mpp)
    file.put(truth.data)
    file.close()
    return path


def _write_slide(dataset: Dataset, position: int, out: Path, shown: list[Any]) -> Iterator[Path]:
    """Write a slide and its regions band by band."""
    from zoo.io.tiff import TiffRows

    entry = dataset.index[position]
    slide = dataset.reader.slide(entry)  # type: ignore[attr-defined]
    height, width = slide.shape
    paths = [out / f"{_stem(entry.id)}{end}" for end in (".tif", ".regions.tif", ".diagnosis.json")]
    files = [
        TiffRows(paths[0], (height, width, 3), np.uint8, rgb=True, mpp=slide.um, level=6),
        TiffRows(paths[1], (height, width), np.uint8, mpp=slide.um, level=6),
    ]
    step = max(1, -(-max(height, width) // 384))
    small: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for row in range(0, height, BAND):
        picture, regions = slide.read(row, 0, min(BAND, height - row), width)
        files[0].put(np.moveaxis(picture, 0, -1))
        files[1].put(regions)
        first = -row % step
        small.append((picture[:, first::step, ::step], regions[first::step, ::step]))
    for file in files:
        file.close()
    classes = dataset.card.truths["diagnosis"].classes
    paths[2].write_text(json.dumps({"class": classes[slide.diagnosis], "value": slide.diagnosis}) + "\n")
    yield from paths
    from zoo.data.sheet import row as row_of

    image, regions = (np.concatenate([part[i] for part in small], axis=1 - i) for i in (0, 1))
    truths: dict[str, Truth] = {"regions": Semantic(regions), "diagnosis": Label(slide.diagnosis)}
    shown.append(row_of(Sample(entry.id, dataset.name, image, truth=truths), dataset.card))


def described(truth: Truth, card: TruthCard) -> Any:
    """Return what is not a map as plain values: boxes, a label, numbers, classes and measurements of objects; None
    where there is nothing to say."""
    if isinstance(truth, Label):
        return {"class": card.classes[truth.value], "value": truth.value}
    if isinstance(truth, Vector):
        names = card.values or tuple(map(str, range(len(truth.data))))
        return dict(zip(names, (round(float(v), 4) for v in truth.data), strict=True))
    if isinstance(truth, Boxes):
        return [_box(truth, i, card) for i in range(len(truth.classes))]
    if isinstance(truth, Instances) and truth.classes is not None:
        found: dict[str, dict[str, Any]] = {str(i): {"class": card.classes[k - 1]} for i, k in truth.classes.items()}
        for i, values in (truth.values or {}).items():
            if str(i) in found:
                numbers = (round(float(v), 4) for v in values)
                found[str(i)]["values"] = dict(zip(card.values, numbers, strict=True))
        return found
    return None


def _box(truth: Boxes, i: int, card: TruthCard) -> dict[str, Any]:
    box: dict[str, Any] = {
        "xyxy": [float(v) for v in truth.xyxy[i]],
        "class": card.classes[int(truth.classes[i]) - 1],
    }
    if truth.attributes is not None:
        values = zip(card.attributes.items(), truth.attributes[i].tolist(), strict=True)
        box["attributes"] = {name: words[v] for (name, words), v in values if v >= 0}
    if truth.crowd is not None and truth.crowd[i]:
        box["crowd"] = True
    return box
