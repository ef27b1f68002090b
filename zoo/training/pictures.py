"""Panels of image, truth and prediction, a row an image, so that a run can be watched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.families.base import Family, Output
from zoo.io.colours import composite, from_hex, marker_colours
from zoo.training import checkpoint
from zoo.training.validate import Validation, decoded
from zoo.types import (
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Label,
    LabelPrediction,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Semantic,
    SemanticPrediction,
    Truth,
)

RGB8 = NDArray[np.uint8]
PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
"""Colours that people with colour-deficient sight tell apart (Okabe and Ito 2008)."""
GAP = 4


def draw_panels(family: Family, validation: Validation, path: Path, most: int = 4, side: int = 320) -> None:
    """Write a PNG: for each of the first `most` validation images a row of image, truth and prediction.

    Pictures longer than `side` are thinned to it. A family with several outputs gets a pair of panels for each.
    """
    was_training = family.training
    family.eval()
    rows: list[RGB8] = []
    for batch in validation.loader.epoch(0):
        with torch.inference_mode():
            own = family.panels(batch.to(family.device))
        if own is not None:
            rows += [_framed(panels, side) for panels in own[: most - len(rows)]]
            if len(rows) == most:
                break
            continue
        found: list[dict[str, Prediction]] | None = None
        if validation.whole:
            generator = torch.Generator().manual_seed(0)
            with torch.inference_mode():
                maps = family.infer(family.prepare(batch.to(family.device).inputs), rng=generator)
                found = decoded(family, maps, batch)
        for i, meta in enumerate(batch.meta[: most - len(rows)]):
            predictions = found[i] if found is not None else validation.tiled(family, meta)
            rows.append(_row(family, validation.sample(meta), predictions, side))
        if len(rows) == most:
            break
    family.train(was_training)
    if rows:
        write(path, stacked(rows))


def _row(family: Family, sample: Sample, predictions: dict[str, Prediction], side: int) -> RGB8:
    """Return the image, and for each output the truth and the prediction, side by side."""
    image = as_rgb(middle(sample.image, 1) if sample.axes == "CZYX" else sample.image)
    panels = [image]
    for name, output in family.spec.outputs.items():
        truth = sample.truth.get(output.truth or "")
        panels.append(blank(image) if truth is None else rendered(image, truth, output))
        panels.append(rendered(image, predictions[name], output) if name in predictions else blank(image))
    return _framed(panels, side)


def _framed(panels: Sequence[RGB8], side: int) -> RGB8:
    return np.concatenate([framed(thinned(p, side)) for p in panels], axis=1)


def middle(volume: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return the middle plane of a volume."""
    plane: NDArray[Any] = np.take(volume, volume.shape[axis] // 2, axis=axis)
    return plane


def as_rgb(image: NDArray[Any]) -> RGB8:
    """Return (C, H, W) of any dtype as (H, W, 3) uint8: the first three channels, or the first one as grey."""
    chosen = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    if chosen.dtype != np.uint8:
        values = chosen.astype(np.float32)
        low, high = np.percentile(values, (0.5, 99.5))
        chosen = (255 * np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(chosen, 0, -1))


def rendered(image: RGB8, shown: Prediction | Truth, output: Output) -> RGB8:
    """Return one panel: class or object colours over the image, boxes, or the picture itself."""
    match shown:
        case Picture() | PicturePrediction():
            if shown.encoding != "rgb8" and shown.data.dtype == np.uint8:
                return composite(shown.data, [from_hex(c) for c in marker_colours(shown.channels)])
            return as_rgb(shown.data)
        case Semantic() | SemanticPrediction():
            plane = np.where(shown.map.any(0), shown.map.argmax(0) + 1, 0) if shown.multilabel else shown.map
            if isinstance(shown, Semantic) and shown.ignore is not None:
                plane = np.where(plane == shown.ignore, 0, plane)
            return overlaid(image, plane, output)
        case Instances() | InstancesPrediction():
            return overlaid(image, shown.map, None)
        case Boxes() | BoxesPrediction():
            return boxed(image, shown.xyxy)
        case Label() | LabelPrediction():
            return labelled(image, output.classes[shown.value] if output.classes else str(shown.value))
    return blank(image)


def overlaid(image: RGB8, labels: NDArray[Any], output: Output | None) -> RGB8:
    """Return the image with each label but 0 tinted; `output` names colours of classes where it has any."""
    plane = middle(labels, 0) if labels.ndim == 3 else labels
    plane = plane[: image.shape[0], : image.shape[1]].astype(np.int64)
    colours = np.array([PALETTE[i % len(PALETTE)] for i in range(int(plane.max(initial=0)) + 1)], np.float32)
    for index, name in enumerate(output.classes if output else ()):
        if output and name in output.colours and index < len(colours):
            colours[index] = [int(output.colours[name][k : k + 2], 16) for k in (1, 3, 5)]
    mixed = 0.5 * image[: plane.shape[0], : plane.shape[1]] + 0.5 * colours[plane]
    return np.where(plane[..., None] > 0, mixed, image[: plane.shape[0], : plane.shape[1]]).astype(np.uint8)


def boxed(image: RGB8, xyxy: NDArray[Any]) -> RGB8:
    """Return the image with boxes drawn."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in xyxy.tolist():
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=PALETTE[5], width=2)
    return np.asarray(picture)


def labelled(image: RGB8, text: str) -> RGB8:
    """Return the image darkened, with a word on it."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image // 3)
    ImageDraw.Draw(picture).text((4, 4), text, fill=(255, 255, 255))
    return np.asarray(picture)


def blank(image: RGB8) -> RGB8:
    """Return an empty panel: nothing is annotated, or nothing predicted."""
    return np.full_like(image, 230)


def thinned(image: RGB8, side: int) -> RGB8:
    """Return the image with its longer side at most `side`, by leaving out rows and columns."""
    step = max(1, -(-max(image.shape[:2]) // side))
    return image[::step, ::step]


def framed(image: RGB8) -> RGB8:
    """Return the image with a white border."""
    return np.pad(image, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def stacked(rows: Sequence[RGB8]) -> RGB8:
    """Return rows of different widths below each other."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def write(path: Path, image: RGB8) -> None:
    """Write a PNG, atomically."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    checkpoint.write_bytes(path, buffer.getvalue())
