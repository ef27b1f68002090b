"""The slow, obvious way to make Cerberus's objects, targets and records: step by step as published, on whole pictures.

It is what the fast code is compared with, here and in `benchmarks/cerberus_decoding.py`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed


def drop_small(labels: NDArray[Any], least: int) -> NDArray[Any]:
    """Return labels without the components of fewer than `least` pixels."""
    out = labels.copy()
    sizes = np.bincount(labels.ravel())
    out[(sizes < least)[labels]] = 0
    return out


def instances(inner: Any, contour: Any, rule: Any, factor: float = 1.0) -> NDArray[np.int32]:
    """Return instances."""
    return nuclei(inner, contour, rule) if rule.method == "watershed" else grown(inner, contour, rule, factor)


def grown(inner: Any, contour: Any, rule: Any, factor: float) -> NDArray[np.int32]:
    """Glands and lumina."""
    score = inner - (contour > 0.5)
    labels = ndimage.label(score > rule.threshold)[0]
    labels = ndimage.label(drop_small(labels, int(rule.min_size * factor * factor)) > 0)[0]
    size = int(rule.grow * factor)
    height, width = labels.shape
    out = np.zeros(labels.shape, np.int32)
    for number in range(1, labels.max() + 1):
        mask = (labels == number).astype(np.uint8)
        rows, columns = np.nonzero(mask)
        y1, y2, x1, x2 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        pad = 2 * size
        y1 = y1 - pad if y1 - pad >= 0 else y1
        x1 = x1 - pad if x1 - pad >= 0 else x1
        x2 = x2 + pad if x2 + pad <= width - 1 else x2
        y2 = y2 + pad if y2 + pad <= height - 1 else y2
        crop = mask[y1:y2, x1:x2]
        if size:
            crop = cv2.dilate(crop, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
        crop = ndimage.binary_fill_holes(crop)
        out[y1:y2, x1:x2][crop] = number
    return out


def nuclei(inner: Any, contour: Any, rule: Any) -> NDArray[np.int32]:
    """Touching nuclei, told apart by a watershed."""
    mask = (inner + contour > rule.threshold).astype(np.uint8)
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    mask = cv2.erode(mask, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8))
    mask = drop_small(ndimage.label(mask)[0], rule.min_size) > 0
    markers = drop_small(ndimage.label(inner > rule.threshold)[0], rule.min_seed) > 0
    markers = ndimage.label(ndimage.binary_fill_holes(markers))[0]
    return np.asarray(watershed(-inner, markers, mask=mask), np.int32)


def records(labels: NDArray[Any], classes: NDArray[Any] | None) -> list[dict[str, Any]]:
    """Return what is said of each object."""
    found = []
    for number in np.unique(labels)[1:]:
        mask = (labels == number).astype(np.uint8)
        rows, columns = np.nonzero(mask)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        contour = contours[0].reshape(-1, 2)
        if len(contour) < 3:
            continue
        record = {
            "id": int(number),
            "box": [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1],
            "centroid": (columns.mean(), rows.mean()),
            "contour": contour,
        }
        if classes is not None:
            values, counts = np.unique(classes[mask > 0], return_counts=True)
            order = sorted(range(len(values)), key=lambda i: (-counts[i], values[i]))
            best = order[1] if values[order[0]] == 0 and len(order) > 1 else order[0]
            record |= {"type": int(values[best]), "share": counts[best] / (mask.sum() + 1e-6)}
        found.append(record)
    return found


def target(labels: NDArray[Any], size: int, w0: float = 10.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the target of a map of instances and its weights, object by object."""
    whole = labels.copy().astype(np.int32)
    for number in [n for n in np.unique(labels) if n]:
        pieces, count = ndimage.label(labels == number)
        for piece in range(2, count + 1):
            whole[pieces == piece] = whole.max() + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    inside, edge = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for number in [n for n in np.unique(whole) if n]:
        mask = (whole == number).astype(np.uint8)
        inner, outer = cv2.erode(mask, kernel), cv2.dilate(mask, kernel)
        inside |= inner > 0
        edge |= (outer - inner) > 0
    pieces, count = ndimage.label(inside)
    weight = np.ones(labels.shape)
    if count >= 2:
        distances = []
        for piece in range(1, count + 1):
            rows, columns = np.nonzero(pieces == piece)
            window = (
                slice(max(0, rows.min() - 10), rows.max() + 11),
                slice(max(0, columns.min() - 10), columns.max() + 11),
            )
            distance = np.full(labels.shape, 1000.0)
            distance[window] = ndimage.distance_transform_edt(pieces != piece)[window]
            distances.append(distance)
        first, second = np.sort(np.stack(distances), axis=0)[:2]
        weight = weight + np.where(pieces > 0, 0, w0 * np.exp(-(((first + second) / size) ** 2) / 2))
    return inside + 2 * edge, weight
