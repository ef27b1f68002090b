"""Pictures to look at: the image, the truth and the prediction, drawn alike.

Files lie in `pictures/` below the output folder, a JPEG each; what several rows share is written once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.truths import BACKGROUND, as_semantic
from zoo.families import score
from zoo.families.score import Task
from zoo.io.colours import colours_of, composite, from_hex, marker_colours
from zoo.io.images import to_rgb8
from zoo.io.volume_writers import montage, views
from zoo.types import (
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Semantic,
    SemanticPrediction,
    Truth,
)

RGB8 = NDArray[np.uint8]

SIDE = 420
"""Longest side of a drawn picture, pixels; larger images are shrunk, smaller ones enlarged by a whole number."""


def draw(
    out: Path, label: str, task: Task, sample: Sample, truth: Truth | None, prediction: Prediction
) -> dict[str, str]:
    """Write image, truth and prediction of one case; return role -> file below `out`."""
    if sample.axes == "CZYX":
        sample, truth, prediction = flat(sample), flat_labels(sample, truth), flat_labels(sample, prediction)
    base = f"pictures/{slug(sample.dataset)}/{slug(sample.id)}"
    files = {
        "image": f"{base}.image.jpg",
        "truth": f"{base}.{slug(task.truth)}.{slug('-'.join(task.classes) or 'as-is')}.truth.jpg",
        "prediction": f"{base}.{slug(label)}.{slug(task.output)}.jpg",
    }
    image = as_rgb8(sample.image)
    if truth is None:
        del files["truth"]
    for role, file in files.items():
        path = out / file
        if role != "prediction" and path.exists():
            continue
        shown = {"image": None, "truth": truth, "prediction": prediction}[role]
        write_jpeg(path, drawn(image, shown, task, ours=role == "prediction"))
    return files


def flat(sample: Sample) -> Sample:
    """Return a volume as a picture: its middle slices and maximum projections side by side."""
    seen = [views(_reader(channel), sample.shape) for channel in sample.image]
    planes = [montage(view, view, sample.spacing)[0][..., 0] for view in (_shown(v) for v in seen)]
    return sample.with_(image=np.stack(planes), axes="CYX", truth={})


def _shown(view: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    low, high = np.percentile(view["max xy"], (1, 99.8))
    return {k: (np.clip((v - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8) for k, v in view.items()}


def _reader(volume: NDArray[Any]) -> Any:
    return lambda begin, size: volume[begin[0] : begin[0] + size[0]]


def flat_labels(sample: Sample, shown: Any) -> Any:
    """Return the objects or classes of a volume as those of `flat`'s picture."""
    if not isinstance(shown, Instances | InstancesPrediction | Semantic | SemanticPrediction):
        return shown
    if shown.map.ndim != 3:
        return None
    seen = views(_reader(shown.map), shown.map.shape)
    labels = montage(seen, seen, sample.spacing)[1].astype(shown.map.dtype)
    return replace(shown, map=labels, ignore=None) if isinstance(shown, Instances) else replace(shown, map=labels)


def slug(text: str) -> str:
    """Return text that is safe as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:80] or "x"


def write_jpeg(path: Path, picture: RGB8, quality: int = 88) -> None:
    """Write (H, W, 3) RGB as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]  # sharp coloured lines
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), flags)
    if not done:
        raise OSError(f"{path}: the picture cannot be encoded")
    path.write_bytes(data.tobytes())


def as_rgb8(image: NDArray[Any], channels: Sequence[str] = ()) -> RGB8:
    """Return (H, W, 3) uint8 of a (C, H, W) image of any dtype: colour as it is, other channels as their mean, or
    (`channels`) each in the colour of its marker."""
    if channels:
        planes = image if image.dtype == np.uint8 else np.stack([to_rgb8(plane)[0][..., 0] for plane in image])
        return composite(planes, [from_hex(c) for c in marker_colours(channels)])
    if len(image) in (1, 3):
        return to_rgb8(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0])[0]
    greys = [to_rgb8(plane)[0] for plane in image]
    return np.asarray(np.mean(greys, axis=0), np.uint8)


def fitted(picture: NDArray[Any], nearest: bool = False) -> NDArray[Any]:
    """Return a picture whose longer side is at most `SIDE`, enlarged by a whole number where it is much smaller."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    factor = float(max(1, SIDE // longest)) if longest < SIDE else SIDE / longest
    if factor == 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_NEAREST if nearest else (cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(picture, size, interpolation=way))


def drawn(image: RGB8, shown: Prediction | Truth | None, task: Task, *, ours: bool) -> RGB8:
    """Return what is shown over the image: outlined and tinted classes or objects, boxes, or a picture by itself."""
    match shown:
        case None:
            return fitted(image)
        case Picture() | PicturePrediction():
            return fitted(as_rgb8(shown.data, () if shown.encoding == "rgb8" else shown.channels))
        case Boxes() | BoxesPrediction():
            return _boxes(image, shown)
        case InstancesPrediction() | Instances() if task.kind == "instances" or isinstance(shown, Instances):
            return _objects(image, shown, task, ours=ours)
        case Semantic() | SemanticPrediction():
            return _classes(image, shown, task)
    return fitted(image)


def colours(task: Task, names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class: the card's, else the palette's."""
    return dict(zip(names, colours_of(names, task.colours), strict=True))


def _classes(image: RGB8, shown: Semantic | SemanticPrediction, task: Task) -> RGB8:
    if isinstance(shown, Semantic):
        shown = as_semantic(shown, task.truth_classes, task.classes, task.merge or None)
    planes = [
        (k, shown.map[k] if shown.multilabel else shown.map == k)
        for k, name in enumerate(task.classes)
        if name != BACKGROUND
    ]
    picture = fitted(image).copy()
    chosen = colours(task, [task.classes[k] for k, _ in planes])
    for k, plane in planes:
        _tint(picture, plane, chosen[task.classes[k]])
    return picture


def _tint(picture: RGB8, mask: NDArray[Any], colour: Sequence[int]) -> None:
    """Tint a mask and outline it, in place."""
    small = fitted(mask.astype(np.uint8), nearest=True)
    inside = small > 0
    picture[inside] = (0.72 * picture[inside] + 0.28 * np.asarray(colour)).astype(np.uint8)
    edges, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, tuple(map(int, colour)), 1)


def _objects(image: RGB8, shown: Instances | InstancesPrediction, task: Task, *, ours: bool) -> RGB8:
    """Return objects outlined in the colour of their class."""
    picture = fitted(image).copy()
    names = [name for name in task.classes if name != BACKGROUND]
    if ours and isinstance(shown, InstancesPrediction):
        classes = score.class_map(shown)
        kinds = {k + 1: classes == k + 1 for k in range(len(names))}
    else:
        assert isinstance(shown, Instances)
        semantic = as_semantic(shown, task.truth_classes, (BACKGROUND, *names), task.merge or None)
        kinds = {k + 1: semantic.map == k + 1 for k in range(len(names))}
    labels = fitted(shown.map.astype(np.float32), nearest=True).astype(np.int64)  # exact up to 2^24 objects
    border = _borders(labels)
    chosen = colours(task, names)
    for k, mask in kinds.items():
        inside = fitted(mask.astype(np.uint8), nearest=True) > 0
        colour = chosen[names[k - 1]]
        picture[inside] = (0.8 * picture[inside] + 0.2 * np.asarray(colour)).astype(np.uint8)
        picture[inside & border] = colour
    return picture


def _borders(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the pixels of objects that touch another label by a side."""
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        ahead = np.diff(labels, axis=axis) != 0
        low = [slice(None), slice(None)]
        high = [slice(None), slice(None)]
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        border[tuple(low)] |= ahead
        border[tuple(high)] |= ahead
    return border & (labels > 0)


def _boxes(image: RGB8, shown: Boxes | BoxesPrediction) -> RGB8:
    picture = fitted(image).copy()
    scale = picture.shape[1] / image.shape[1]
    classes = shown.class_index if isinstance(shown, BoxesPrediction) else shown.classes - 1
    colours = colours_of([str(i) for i in range(int(classes.max(initial=0)) + 1)])
    for box, index in zip(shown.xyxy, classes, strict=True):
        x0, y0, x1, y1 = (round(float(v) * scale) for v in box)
        cv2.rectangle(picture, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), colours[int(index)], 1)
    return picture
