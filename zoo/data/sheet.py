"""A sheet of samples to look at: a row a sample, its picture first, then each of its truths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.cards import DatasetCard, TruthCard
from zoo.io.colours import Rgb, colours_of
from zoo.types import Boxes, Instances, Label, Picture, Sample, Semantic, Truth, Vector

CELL = 224
"""Width of a cell in pixels."""
_GAP, _HEAD = 6, 22
# hues of fluorescence channels, DNA in blue: they add up to white
_LIGHTS = np.array(
    [(0.25, 0.4, 1), (1, 0.25, 0.2), (0.2, 0.9, 0.3), (1, 0.8, 0.1), (1, 0.2, 0.9), (0.1, 0.9, 0.9)], np.float32
)
Cells = list[tuple[str, NDArray[np.uint8]]]


def row(sample: Sample, card: DatasetCard) -> Cells:
    """Return the titled cells of a sample, each (h, w, 3) uint8 and CELL wide."""
    picture = flat(sample.image, sample.axes)
    cells: Cells = [(sample.id, _fitted(picture))]
    words = []
    for key, truth in sample.truth.items():
        told = card.truths[key]
        if isinstance(truth, Label):
            words.append(f"{key}: {told.classes[truth.value]}")
        elif isinstance(truth, Vector):
            words.append(f"{key}: " + " ".join(f"{v:.1f}" for v in truth.data[:4]))
        else:
            cells.append((key, _cell(picture, truth, told)))
    if words:
        cells[0] = (f"{sample.id}  {', '.join(words)}", cells[0][1])
    return cells


def flat(image: NDArray[Any], axes: str = "CYX") -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of a picture: RGB as it is; other channels as coloured light; a volume's brightest voxels
    along its depth."""
    planes = image.max(1) if axes == "CZYX" else image
    if len(planes) == 3 and planes.dtype == np.uint8:
        return np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    planes = planes.astype(np.float32)
    low, high = planes.min((1, 2), keepdims=True), planes.max((1, 2), keepdims=True)
    planes = (planes - low) / np.maximum(high - low, 1e-6)
    if len(planes) == 1:
        return np.repeat((planes[0] * 255).astype(np.uint8)[..., None], 3, -1)
    lights = _LIGHTS[np.arange(len(planes)) % len(_LIGHTS)]
    total = np.tensordot(planes, lights, axes=(0, 0))
    return np.asarray(np.clip(total * 200, 0, 255), np.uint8)


def _fitted(picture: NDArray[np.uint8], nearest: bool = False) -> NDArray[np.uint8]:
    height = max(1, round(CELL * picture.shape[0] / picture.shape[1]))
    how = cv2.INTER_NEAREST if nearest or picture.shape[1] < CELL else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (CELL, height), interpolation=how), np.uint8)


def _cell(picture: NDArray[np.uint8], truth: Truth, card: TruthCard) -> NDArray[np.uint8]:
    if isinstance(truth, Picture):
        return _fitted(flat(truth.data))
    shown = _fitted(picture)
    if isinstance(truth, Semantic):
        labels = truth.map.argmax(0) if truth.multilabel else truth.map
        colours = np.array(colours_of(card.classes, card.colours), np.uint8)
        return _fitted(colours[np.minimum(labels, len(colours) - 1)], nearest=True)
    if isinstance(truth, Instances):
        labels = truth.map.max(0) if truth.map.ndim == 3 else truth.map
        colours = np.array(colours_of(card.classes or ("object",), card.colours), np.uint8)
        kinds = np.ones(int(labels.max(initial=0)) + 1, np.intp)
        for label, kind in (truth.classes or {}).items():
            if label < len(kinds):
                kinds[label] = kind
        return _outlined(shown, labels, colours[kinds - 1])
    if isinstance(truth, Boxes):
        named = colours_of(card.classes, card.colours)
        scale = CELL / picture.shape[1]
        for box, kind in zip(truth.xyxy * scale, truth.classes, strict=True):
            x0, y0, x1, y1 = (int(v) for v in box)
            cv2.rectangle(shown, (x0, y0), (x1 - 1, y1 - 1), named[int(kind) - 1], 1)
    return shown


def _outlined(shown: NDArray[np.uint8], labels: NDArray[Any], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (shown.shape[1], shown.shape[0])
    labels = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST).astype(np.intp)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge &= labels > 0
    shown[edge] = colours[labels[edge]]
    return shown


def write(path: Path, rows: Sequence[Cells]) -> None:
    """Write the sheet as a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    heights = [max(cell.shape[0] for _, cell in cells) + _HEAD + _GAP for cells in rows]
    across = max(len(cells) for cells in rows)
    columns = across if across > 2 else 2 * across  # few truths: two samples side by side
    if columns != across:
        rows = [[*a, *b] for a, b in zip(rows[::2], [*rows[1::2], *([[]] if len(rows) % 2 else [])], strict=True)]
        heights = [max(pair) for pair in zip(heights[::2], [*heights[1::2], *heights[-1:]], strict=False)]
    canvas = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, sum(heights) + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    black: Rgb = (0, 0, 0)
    y = _GAP
    for cells, height in zip(rows, heights, strict=True):
        for k, (title, cell) in enumerate(cells):
            x = _GAP + k * (CELL + _GAP)
            pen.text((x, y + 2), title, fill=black, font=font)
            canvas.paste(Image.fromarray(cell), (x, y + _HEAD))
        y += height
    canvas.save(path)
