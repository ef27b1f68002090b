"""A picture with outlines and a legend, to look at. Large pictures are shown smaller, small ones larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.io.colours import Rgb

LARGEST, SMALLEST = 2048, 1000
"""Longest side of an overlay: larger pictures are reduced, smaller ones enlarged by a whole factor."""

MOST_WORDS = 60
"""Boxes of a picture from which on nothing is written at them."""


@dataclass(frozen=True)
class Outlines:
    """Regions to outline: `labels` (h, w), 0 = nothing; `colour_of` (labels, 3) uint8; `fill`: opacity inside."""

    labels: NDArray[Any]
    colour_of: NDArray[np.uint8]
    fill: float = 0.0


@dataclass(frozen=True)
class Rectangles:
    """Boxes to draw: `xyxy` (N, 4) in pixels of the picture shown, `colours` (N, 3) uint8; `words`: what is written at
    each, none where there are many."""

    xyxy: NDArray[Any]
    colours: NDArray[np.uint8]
    words: tuple[str, ...] = ()


Layer = Outlines | Rectangles


@dataclass(frozen=True)
class Entry:
    """A line of the legend: a colour (None = no swatch) and its words."""

    colour: Rgb | None
    text: str


def reduction(shape: tuple[int, int]) -> int:
    """Return the side, in pixels of level 0, of a pixel of the overlay of a picture of that shape."""
    return max(1, -(-max(shape) // LARGEST))


def draw(picture: NDArray[np.uint8], layers: Sequence[Layer], legend: Sequence[Entry]) -> NDArray[np.uint8]:
    """Return (h, w, 3) uint8: the picture (H, W, 3) with its layers, and a legend below it."""
    factor = -(-SMALLEST // max(picture.shape[:2]))
    shown = _enlarged(picture, factor).copy()
    for layer in layers:
        if isinstance(layer, Outlines):
            _outline(shown, layer, factor)
        else:
            _rectangles(shown, layer, factor)
    return np.concatenate([shown, _legend(shown.shape[1], legend)]) if legend else shown


def _enlarged(array: NDArray[Any], factor: int) -> NDArray[Any]:
    return array if factor == 1 else array.repeat(factor, 0).repeat(factor, 1)


def _outline(shown: NDArray[np.uint8], layer: Outlines, factor: int) -> None:
    labels = _enlarged(layer.labels, factor)
    if layer.fill:
        inside = labels > 0
        tint = layer.colour_of[labels[inside]].astype(np.float32)
        shown[inside] = np.rint(shown[inside] * (1 - layer.fill) + tint * layer.fill).astype(np.uint8)
    width = 1 if max(labels.shape) < 900 else 2
    line = np.zeros(labels.shape, bool)
    for distance in range(1, width + 1):
        for axis in (0, 1):
            near, far = [slice(None)] * 2, [slice(None)] * 2
            near[axis], far[axis] = slice(distance, None), slice(None, -distance)
            differs = labels[tuple(near)] != labels[tuple(far)]
            line[tuple(near)] |= differs
            line[tuple(far)] |= differs
    line &= labels > 0
    shown[line] = layer.colour_of[labels[line]]


def _rectangles(shown: NDArray[np.uint8], layer: Rectangles, factor: int) -> None:
    width = 2 if max(shown.shape[:2]) < 1000 else 3
    for box, colour in zip(layer.xyxy * factor, layer.colours, strict=True):
        x0, y0 = (int(v) for v in np.floor(box[:2]))
        x1, y1 = (int(v) for v in np.ceil(box[2:]))
        x0, y0 = max(x0, 0), max(y0, 0)
        inner = (slice(y0 + width, max(y1 - width, y0 + width)), slice(x0 + width, max(x1 - width, x0 + width)))
        kept = shown[inner].copy()
        shown[y0:y1, x0:x1] = colour
        shown[inner] = kept
    if 0 < len(layer.words) <= MOST_WORDS:
        shown[:] = _written(shown, layer, factor)


def _written(shown: NDArray[np.uint8], layer: Rectangles, factor: int) -> NDArray[np.uint8]:
    """Return the picture with words at each box, on its colour: above the box or below it, so that they do not hide it,
    and inside the picture as far as they fit; the strongest box on top."""
    from PIL import Image, ImageDraw, ImageFont

    size = int(np.clip(max(shown.shape[:2]) / 80, 10, 22))
    font = ImageFont.load_default(size)
    canvas = Image.fromarray(shown)
    pen = ImageDraw.Draw(canvas)
    boxes = list(zip(layer.xyxy * factor, layer.colours, layer.words, strict=True))
    for box, colour, words in reversed(boxes):
        left, top, right, bottom = pen.multiline_textbbox((0, 0), words, font=font, spacing=1)
        wide, high = right - left + 4, bottom - top + 4
        above = box[1] - high
        y = above if above >= 0 else min(box[3], shown.shape[0] - high)
        x, y = max(min(box[0], shown.shape[1] - wide), 0), max(y, 0)
        pen.rectangle((x, y, x + wide, y + high), fill=tuple(int(c) for c in colour))
        ink = "black" if float(colour @ np.array([0.299, 0.587, 0.114])) > 140 else "white"
        pen.multiline_text((x + 2 - left, y + 2 - top), words, font=font, spacing=1, fill=ink)
    return np.asarray(canvas)


def _legend(width: int, entries: Sequence[Entry]) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    size = int(np.clip(width / 45, 13, 30))
    line, gap = round(size * 1.7), round(size * 0.6)
    font = ImageFont.load_default(size)
    places: list[tuple[int, int, Entry]] = []
    x, y = gap, 0
    for entry in entries:
        swatch = size + gap if entry.colour else 0
        needed = swatch + round(font.getlength(entry.text)) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + line
        places.append((x, y, entry))
        x += needed
    canvas = Image.new("RGB", (width, y + line), "white")
    pen = ImageDraw.Draw(canvas)
    for x, y, entry in places:
        middle = y + line // 2
        if entry.colour:
            pen.rectangle((x, middle - size // 2, x + size, middle + size // 2), fill=entry.colour)
            x += size + gap
        pen.text((x, middle), entry.text, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)
