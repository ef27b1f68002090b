"""GeoJSON as QuPath reads and writes it: objects as closed rings in pixels of level 0.

A ring runs along pixel edges, so that a polygon's area is the object's number of pixels. Points are (x, y); outer rings
have positive shoelace area, holes are inner rings with negative area (RFC 7946, read with y pointing down). An object
in several pieces is a MultiPolygon.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.io.colours import Rgb
from zoo.postprocess.contours import Polygon, mask_polygons

Ring = NDArray[Any]


@dataclass(frozen=True)
class Feature:
    """One object to write: its polygons, its class and what was measured on it.

    `kind`: what QuPath makes of it; "detection" is light and meant for many objects. `metadata`: words about it, name
    -> word.
    """

    polygons: Sequence[Polygon]
    class_name: str
    colour: Rgb
    name: str = ""
    kind: Literal["detection", "annotation"] = "detection"
    measurements: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the feature as GeoJSON."""
        rings = [[p.outer.tolist(), *(hole.tolist() for hole in p.holes)] for p in self.polygons]
        single = len(rings) == 1
        properties: dict[str, Any] = {
            "objectType": self.kind,
            "classification": {"name": self.class_name, "color": list(self.colour)},
            "isLocked": False,
        }
        if self.name:
            properties["name"] = self.name
        if self.measurements:
            properties["measurements"] = self.measurements
        if self.metadata:
            properties["metadata"] = self.metadata
        return {
            "type": "Feature",
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": rings[0] if single else rings,
            },
            "properties": properties,
        }


def write_features(
    path: Path, features: Iterable[Feature], about: Callable[[], Mapping[str, Any]] | None = None
) -> int:
    """Write a FeatureCollection, one feature a line, as they come; return how many there were.

    `about` tells, after the last one, what holds for all of them; it becomes the collection's member "histozoo" (a
    foreign member, which readers pass over: RFC 7946, section 6.1).
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for feature in features:
            file.write(",\n" if count else "\n")
            file.write(json.dumps(feature.as_dict(), separators=(",", ":")))  # dumps encodes in C, dump does not
            count += 1
        told = about() if about else {}
        file.write(f'\n],"histozoo":{json.dumps(told)}}}\n' if told else "\n]}\n")
    return count


def polygons_of(mask: NDArray[Any], offset: tuple[int, int] = (0, 0), step: int = 1) -> list[Polygon]:
    """Return a mask's polygons with rings that touch neither themselves nor, but in points, each other.

    `offset`: (row, column) of the mask's first pixel; `step`: side of the mask's pixels in pixels of level 0.
    """
    return [Polygon(p.outer * step, [hole * step for hole in p.holes]) for p in mask_polygons(mask, offset)]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """Return a box as a polygon."""
    return Polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]], float))


def measured(area: float, mpp: float | None, score: float | None = None, label: int | None = None) -> dict[str, float]:
    """Return an object's measurements under the names that every file uses."""
    found: dict[str, float] = {}
    if label is not None:
        found["Label"] = label
    found["Area px^2"] = round(float(area), 4)
    if mpp is not None:
        found["Area um^2"] = round(float(area) * mpp**2, 4)
    if score is not None:
        found["Score"] = round(float(score), 5)
    return found
