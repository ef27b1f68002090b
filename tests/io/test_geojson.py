from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from zoo.io.geojson import Feature, measured, polygons_of, rectangle, write_features

RING = {
    "type": "array",
    "minItems": 4,
    "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}},
}
POLYGON = {"type": "array", "minItems": 1, "items": RING}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "features"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "FeatureCollection"},
        "histozoo": {"type": "object"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "geometry": {
                        "oneOf": [
                            {"properties": {"type": {"const": "Polygon"}, "coordinates": POLYGON}},
                            {
                                "properties": {
                                    "type": {"const": "MultiPolygon"},
                                    "coordinates": {"type": "array", "minItems": 2, "items": POLYGON},
                                }
                            },
                        ]
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["detection", "annotation"]},
                            "isLocked": {"type": "boolean"},
                            "name": {"type": "string"},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "color": {
                                        "type": "array",
                                        "minItems": 3,
                                        "maxItems": 3,
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                    },
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


def geometry_of(feature: Feature) -> Any:
    return shapely.from_geojson(json.dumps(feature.as_dict()["geometry"]))


def rasterized(geometry: Any, shape: tuple[int, int]) -> np.ndarray:
    """The slow twin: a pixel belongs to an object where its centre lies inside."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return np.asarray(shapely.contains_xy(geometry, x.ravel(), y.ravel())).reshape(shape)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.integers(1, 3))
def test_any_mask_becomes_a_valid_geometry_that_gives_it_back(mask: np.ndarray, step: int) -> None:
    if not mask.any():
        return
    feature = Feature(polygons_of(mask, (2, 5), step), "a", (1, 2, 3))
    geometry = geometry_of(feature)
    assert geometry.is_valid, shapely.is_valid_reason(geometry)
    assert geometry.area == mask.sum() * step**2
    large = np.pad(mask, ((2, 0), (5, 0))).repeat(step, 0).repeat(step, 1)
    np.testing.assert_array_equal(rasterized(geometry, large.shape), large)
    for polygon in feature.polygons:
        for ring in (polygon.outer, *polygon.holes):
            assert (ring[0] == ring[-1]).all()


@pytest.mark.parametrize(
    ("picture", "holes"),
    [
        (["111", "101", "111"], 1),
        (["1111", "1011", "1101", "1111"], 2),  # two holes that meet at a corner
        (["0111", "1101", "1111"], 1),
        (["1110", "1011", "1110"], 1),
        (["111", "101", "110"], 1),  # a hole that meets the outside at a corner
    ],
)
def test_holes_are_inner_rings(picture: list[str], holes: int) -> None:
    mask = np.array([[c == "1" for c in row] for row in picture])
    (polygon,) = polygons_of(mask)
    assert len(polygon.holes) == holes
    geometry = geometry_of(Feature([polygon], "a", (0, 0, 0)))
    assert geometry.is_valid
    assert geometry.area == mask.sum()


def test_a_collection_follows_the_schema(tmp_path: Path) -> None:
    checker = np.indices((4, 4)).sum(0) % 2 == 0
    features = [
        Feature(
            polygons_of(np.ones((3, 2), bool)), "nucleus", (230, 159, 0), "n1", measurements=measured(6, 0.5, 0.9, 1)
        ),
        Feature(polygons_of(checker), "gland", (0, 1, 255), kind="annotation"),
        Feature([rectangle(0.5, 1, 3, 4.25)], 'odd "name" µ', (0, 0, 0)),
    ]
    path = tmp_path / "a.geojson"
    assert write_features(path, iter(features)) == 3
    found = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    first, second, third = found["features"]
    assert first["properties"]["measurements"] == {
        "Label": 1,
        "Area px^2": 6.0,
        "Area um^2": 1.5,
        "Score": 0.9,
    }
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1]
    assert second["geometry"]["type"] == "MultiPolygon"
    assert third["properties"]["classification"]["name"] == 'odd "name" µ'
    assert "histozoo" not in found
    asked: list[int] = []
    written = (asked.append(1) or feature for feature in features)  # type: ignore[func-returns-value]
    write_features(path, written, lambda: {"seen": len(asked)})
    found = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(found, SCHEMA)
    assert found["histozoo"] == {"seen": 3}
    assert write_features(path, [], dict) == 0
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
