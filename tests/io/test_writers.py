from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet

from zoo import registry
from zoo.io import overlay, spool, writers
from zoo.io.colours import brightened, colours_of, composite, from_hex, marker_colours
from zoo.io.overlay import Entry, Outlines, Rectangles
from zoo.io.spool import Spool
from zoo.io.writers import Sparse, Target
from zoo.types import InstancesPrediction, LabelPrediction, PicturePrediction, SemanticPrediction


def target(folder: Path, shape: tuple[int, int], mpp: float | None = None) -> Target:
    return Target(lambda ending: folder / f"a.{ending}", shape, mpp)


@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_a_spool_gives_windows_back(in_memory: int) -> None:
    array = np.random.default_rng(0).integers(0, 2**31 - 1, (70, 33)).astype(np.int32)
    with Spool(array.shape, in_memory=in_memory) as found:
        for part in np.split(array, [10, 11, 60]):
            found.put(part)
        np.testing.assert_array_equal(found.window(5, 40, 3, 20), array[5:40, 3:20])
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in found.bands(16)]), array)
        found.write(7, array[:3])
        np.testing.assert_array_equal(found.window(7, 10), array[:3])


@pytest.mark.parametrize("step", [1, 3, 7])
def test_sparse_rows_do_not_depend_on_the_bands(step: int) -> None:
    array = np.random.default_rng(0).integers(0, 9, (2, 40, 23))
    found = Sparse(step)
    for part, begin in zip(np.split(array, [2, 3, 20], axis=1), [0, 2, 3, 20], strict=True):
        found.put(begin, part)
    np.testing.assert_array_equal(found.map, array[:, ::step, ::step])


@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_provisional_ids_become_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
    labels = np.zeros((20, 12), np.int32)
    labels[2:6, 1:5] = 3
    labels[6:9, 1:5] = 5  # the same object, seen by the next block
    labels[15:19, 6:12] = 9
    meaning = SimpleNamespace(
        final=np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 2]), class_index=np.array([1, 0]), scores=np.array([0.5, 1.0])
    )
    writer = registry.get("writer", "instances")(target(tmp_path, labels.shape, 2.0))
    for begin in range(0, 20, 6):
        part = InstancesPrediction(labels[begin : begin + 6], ("a", "b"), np.zeros(0, np.int64))
        writer.put(begin, part)
    writer.end(meaning)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.labels.tif"), meaning.final[labels])
    rows = [line.split(",") for line in (tmp_path / "a.objects.csv").read_text().splitlines()]
    assert rows[0][:11] == ["label", "class", "score", "area_px", "area_um2", "x", "y", "x0", "y0", "x1", "y1"]
    assert rows[1][:11] == ["1", "b", "0.5", "28", "112.0", "3.0", "5.5", "1", "2", "5", "9"]
    assert rows[2][:11] == ["2", "a", "1.0", "24", "96.0", "9.0", "17.0", "6", "15", "12", "19"]
    table = parquet.read_table(tmp_path / "a.objects.parquet").to_pydict()
    assert list(table) == rows[0]
    assert table["class"] == ["b", "a"]
    assert table["area_px"] == [28, 24]
    assert table["eccentricity"][0] == pytest.approx(float(rows[1][rows[0].index("eccentricity")]), abs=1e-4)
    layers, entries = writer.layers()
    assert [entry.text for entry in entries] == ["a 1", "b 1"]
    assert layers[0].labels.shape == (20, 12)
    assert [f.class_name for f in writer.features()] == ["b", "a"]


def test_large_maps_are_traced_coarsely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "IN_MEMORY", 100)
    index = np.zeros((40, 40), np.uint8)
    index[8:24, 12:32] = 1
    writer = registry.get("writer", "semantic")(target(tmp_path, index.shape))
    writer.put(0, SemanticPrediction(index, ("background", "a")))
    writer.end(None)
    (feature,) = writer.features()
    assert feature.measurements == {"Area px^2": 320.0}
    assert feature.polygons[0].outer.min(0).tolist() == [12, 8]
    assert writer.about_features()["outline_step_px"] == 4
    assert not (tmp_path / "a.probability.tif").exists()


def test_what_is_left_out_of_a_geojson_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "MOST_REGIONS", 3)
    index = np.zeros((9, 9), np.uint8)
    index[::2, ::2] = 1
    index[0, :2] = 1
    writer = registry.get("writer", "semantic")(target(tmp_path, index.shape))
    writer.put(0, SemanticPrediction(index, ("background", "a")))
    writer.end(None)
    assert max(f.measurements["Area px^2"] for f in writer.features()) > 1
    assert writer.about_features() == {"smallest_left_out": {"a": 21}}


def test_a_multi_label_map_has_a_file_a_class(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).random((2, 9, 7)) > 0.5
    writer = registry.get("writer", "semantic")(target(tmp_path, (9, 7)))
    writer.put(0, SemanticPrediction(planes, ("a", "b"), planes.astype(np.float32), multilabel=True))
    writer.end(None)
    for plane, name in zip(planes, "ab", strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"a.{name}.classes.png")), plane)
    found = tifffile.imread(tmp_path / "a.probability.tif")
    np.testing.assert_array_equal(found, planes)


def test_pictures_and_labels(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (3, 9, 7), dtype=np.uint8)
    writer = registry.get("writer", "picture")(target(tmp_path, (9, 7)))
    writer.put(0, PicturePrediction(data, ("red", "green", "blue")))
    writer.end(None)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.picture.png")), data.transpose(1, 2, 0))
    label: Any = registry.get("writer", "label")(target(tmp_path, (9, 7)))
    label.put(0, LabelPrediction(1, ("benign", "malignant"), np.array([0.25, 0.75], np.float32)))
    label.end(None)
    assert '"class": "malignant"' in (tmp_path / "a.label.json").read_text()
    assert label.layers()[1][0].text == "malignant"


def test_an_overlay_draws_on_edges_only_and_has_a_legend() -> None:
    picture = np.full((1000, 1000, 3), 200, np.uint8)
    labels = np.zeros((1000, 1000), np.int32)
    labels[100:200, 100:200], labels[100:200, 200:300] = 1, 2  # two objects that touch
    table = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    boxes = Rectangles(np.array([[400.0, 400.0, 500.0, 450.0]]), np.array([[0, 0, 255]], np.uint8))
    found = overlay.draw(picture, [Outlines(labels, table), boxes], [Entry((255, 0, 0), "nucleus 1")])
    assert found.shape[0] > 1000
    assert found.shape[1:] == (1000, 3)
    assert (found[150, 150] == 200).all()  # inside
    assert (found[150, 99] == 200).all()  # outside
    assert (found[150, 100] == (255, 0, 0)).all()
    assert (found[150, 199] == (255, 0, 0)).all()
    assert (found[150, 200] == (0, 255, 0)).all()
    assert (found[400, 450] == (0, 0, 255)).all()
    assert (found[425, 450] == 200).all()
    assert (found[1000:] == (255, 0, 0)).all(-1).any()


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert overlay.draw(np.zeros((100, 60, 3), np.uint8), [], []).shape == (1000, 600, 3)
    assert overlay.reduction((2048, 10)) == 1
    assert overlay.reduction((10, 2049)) == 2


def test_colours() -> None:
    assert colours_of(["background", "a", "b"], {"b": "#0102ff"})[2] == (1, 2, 255)
    assert len(set(colours_of([str(i) for i in range(21)]))) == 21
    with pytest.raises(ValueError, match="#rrggbb"):
        from_hex("red")


def test_a_picture_of_markers_is_an_ome_tiff_that_others_read(tmp_path: Path) -> None:
    """Names, colours and um per pixel by tifffile, and by OME's schema; bands give the same file as the whole."""
    from ome_types import from_xml

    planes = np.random.default_rng(0).integers(0, 255, (3, 300, 40), dtype=np.uint8)
    names = ("Hoechst", "Pan-CK", "α-new & <odd>")
    writer = registry.get("writer", "picture")(target(tmp_path, (300, 40), 0.5))
    for begin in range(0, 300, 128):
        writer.put(begin, PicturePrediction(planes[:, begin : begin + 128], names, "linear"))
    writer.end(None)
    path = tmp_path / "a.picture.ome.tif"
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        np.testing.assert_array_equal(file.series[0].asarray(), planes)
        xml = file.ome_metadata
    assert xml is not None
    pixels = from_xml(xml, validate=True).images[0].pixels
    assert [c.name for c in pixels.channels] == list(names)
    assert (pixels.size_c, pixels.size_y, pixels.size_x) == (3, 300, 40)
    assert (pixels.physical_size_x, pixels.physical_size_y) == (0.5, 0.5)
    colours = [c.color.as_rgb_tuple()[:3] for c in pixels.channels]
    assert colours == [from_hex(c) for c in marker_colours(names)]
    shown = np.asarray(Image.open(tmp_path / "a.composite.png"))
    expected = composite(brightened(planes), colours)
    factor = shown.shape[1] // 40
    np.testing.assert_array_equal(shown[: 300 * factor : factor, ::factor][:300, :40], expected)
    assert len(shown) > 300 * factor  # the legend


def test_the_brightest_channel_is_what_is_seen() -> None:
    planes = np.array([[[255, 0, 100]], [[0, 255, 200]]], np.uint8)
    found = composite(planes, [(255, 0, 0), (0, 255, 255)])
    assert found.tolist() == [[[255, 0, 0], [0, 255, 255], [100, 200, 200]]]
    other, pan = marker_colours(["Pan-CK", "unheard of"]), marker_colours(["PAN-ck"])
    assert other[0] == pan[0] != other[1]


def test_channels_are_brightened_alike() -> None:
    planes = np.zeros((2, 100, 100), np.uint8)
    planes[0, :10], planes[1, :1] = 50, 25
    found = brightened(planes)
    assert (found[0, 0, 0], found[1, 0, 0]) == (255, 127)
    assert np.array_equal(brightened(np.zeros((1, 4, 4), np.uint8)), np.zeros((1, 4, 4), np.uint8))
