"""GeoJSON annotations (QuPath) as masks: classes by name, holes, multipolygons.

Coordinates are level-0 pixels (x, y) with the zoo's convention: a pixel belongs to a polygon when its centre
(j + 0.5, i + 0.5) lies inside, by the even-odd rule over all rings of the polygon.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, nearest, suggest

Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """One annotated object: its class name (None: not classified) and its polygons, each a list of (M, 2) rings.

    `detection`: whether QuPath calls it a detection, cell or tile; anything else is an annotation (a region).
    """

    name: str | None
    polygons: tuple[tuple[Ring, ...], ...]
    detection: bool = False

    @property
    def area(self) -> float:
        """Return the area in square pixels, holes taken off."""
        return sum(abs(_area(p[0])) - sum(abs(_area(r)) for r in p[1:]) for p in self.polygons)


def read_shapes(path: Path) -> list[Shape]:
    """Return the polygons of a GeoJSON file, as QuPath writes it; points and lines have no area and are left out.

    Raises `DataError` where the file is no GeoJSON.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise DataError(f"{path}:{line}: not valid JSON. Expected GeoJSON, as QuPath exports it.") from None
    features = values
    if isinstance(values, dict):
        features = values.get("features", [values] if values.get("type") == "Feature" else None)
    if not isinstance(features, list) or not all(isinstance(f, dict) for f in features):
        raise DataError(f"{path}: the file holds no features. Expected a FeatureCollection, as QuPath exports it.")
    shapes = []
    for number, feature in enumerate(features):
        try:
            polygons = tuple(_polygons(feature.get("geometry") or {}))
        except (TypeError, ValueError, KeyError, IndexError):
            raise DataError(
                f"{path}: features[{number}].geometry: the coordinates will not do. Expected rings of [x, y] pairs."
            ) from None
        if polygons:
            properties = feature.get("properties") or {}
            kind = properties.get("objectType") or properties.get("object_type")
            shapes.append(Shape(_class_name(properties), polygons, kind in ("detection", "cell", "tile")))
    return shapes


def _class_name(properties: dict[str, Any]) -> str | None:
    found = properties.get("classification") or properties.get("class") or properties.get("label")
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(found.get("names", [])) or None
    return str(found) if found else None


def _polygons(geometry: dict[str, Any]) -> list[tuple[Ring, ...]]:
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        return [polygon for part in geometry["geometries"] for polygon in _polygons(part)]
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    found = []
    for polygon in [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]:
        rings = tuple(np.asarray(ring, np.float64)[:, :2] for ring in polygon)
        if any(len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
            raise ValueError
        if rings:
            found.append(rings)
    return found


def _area(ring: Ring) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def rasterise(rings: Sequence[Ring], shape: tuple[int, int]) -> tuple[slice, slice, NDArray[np.bool_]]:
    """Return the window (rows, columns) that a polygon covers in an image of `shape`, and which of its pixels it holds.

    `rings`: outline and holes, (M, 2) of (x, y), closed or not. The window is empty where the polygon lies outside.
    """
    points = np.concatenate(list(rings))
    x0, y0 = np.clip(np.floor(points.min(axis=0)).astype(int), 0, (shape[1], shape[0]))
    x1, y1 = np.clip(np.ceil(points.max(axis=0)).astype(int), 0, (shape[1], shape[0]))
    height, width = max(0, y1 - y0), max(0, x1 - x0)
    inside = np.zeros((height, width), np.bool_)
    window = slice(y0, y0 + height), slice(x0, x0 + width)
    if not inside.size:
        return *window, inside
    end = np.concatenate([np.roll(r, -1, axis=0) for r in rings])
    flips = np.zeros((height, width + 1), np.int64)
    rows = np.arange(height) + y0 + 0.5
    for (ax, ay), (bx, by) in zip(points, end, strict=True):
        if ay == by:
            continue
        crossed = np.flatnonzero((rows >= min(ay, by)) & (rows < max(ay, by)))
        x = ax + (rows[crossed] - ay) * (bx - ax) / (by - ay)
        flips[crossed, np.clip(np.ceil(x - 0.5 - x0).astype(int), 0, width)] += 1
    inside[:] = np.cumsum(flips, axis=1)[:, :width] % 2 == 1
    return *window, inside


def semantic_map(path: Path, classes: Sequence[str], shape: tuple[int, int], ignore: int | None) -> NDArray[np.uint8]:
    """Return class indices (H, W): index 0 where no polygon lies; smaller shapes lie on top of larger ones.

    Classes whose name ends in "*" are QuPath's own: `Ignore*` becomes `ignore` (255 where the card names none), others
    are not painted. Raises `DataError` for a class name that the card does not have.
    """
    out = np.zeros(shape, np.uint8)
    for item in sorted(read_shapes(path), key=lambda s: -s.area):
        if item.name and item.name.endswith("*") and item.name != "Ignore*":
            continue
        index = (255 if ignore is None else ignore) if item.name == "Ignore*" else _index(item, classes[1:], path) + 1
        for polygon in item.polygons:
            rows, columns, inside = rasterise(polygon, shape)
            out[rows, columns][inside] = index
    return out


def instance_map(
    path: Path, classes: Sequence[str], shape: tuple[int, int]
) -> tuple[NDArray[np.int32], dict[int, int], NDArray[np.bool_] | None]:
    """Return object ids (H, W), the class index of each (from 1), and where `Ignore*` was drawn (None: nowhere)."""
    out = np.zeros(shape, np.int32)
    ignore = np.zeros(shape, np.bool_)
    found: dict[int, int] = {}
    for item in sorted(read_shapes(path), key=lambda s: -s.area):
        if item.name and item.name.endswith("*") and item.name != "Ignore*":
            continue
        number = len(found) + 1
        if item.name != "Ignore*":
            found[number] = _index(item, classes, path) + 1
        for polygon in item.polygons:
            rows, columns, inside = rasterise(polygon, shape)
            if item.name == "Ignore*":
                ignore[rows, columns] |= inside
            else:
                out[rows, columns][inside] = number
    return out, found, ignore if ignore.any() else None


def _index(item: Shape, classes: Sequence[str], path: Path) -> int:
    """Return the position of a shape's class among the foreground classes."""
    if item.name is None and len(classes) == 1:
        return 0
    folded = [c.casefold() for c in classes]
    if item.name is not None and item.name.casefold() in folded:
        return folded.index(item.name.casefold())
    named = f'unknown class "{item.name}"' if item.name else "an object without classification"
    near = suggest(item.name, classes) if item.name and nearest(item.name, classes) else ""
    raise DataError(
        f"{path}: {named}. Expected one of {', '.join(classes)}. {near} Classify it in QuPath, or name the class in "
        "the card.".replace("  ", " ")
    )
