from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zoo.io import tiff
from zoo.io.images import read_image
from zoo.io.png import PngRows
from zoo.io.tiff import TiffRows


def in_bands(array: np.ndarray, axis: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    cuts = np.unique(rng.integers(0, array.shape[axis] + 1, 3))
    return [part for part in np.split(array, cuts, axis) if part.shape[axis]]


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([(), (3,), (4,)]))
def test_png_rows_give_the_picture_back(tmp_path_factory: Any, height: int, width: int, tail: tuple[int, ...]) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    array = np.random.default_rng(height).integers(0, 255, (height, width, *tail), dtype=np.uint8)
    writer = PngRows(path, array.shape)
    for part in in_bands(array, 0, width):
        writer.put(part)
    writer.close()
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), array)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (256, 512), (300, 700), (3, 257, 255), (300, 280, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float16"])
def test_tiff_rows_give_the_picture_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: str, big: bool
) -> None:
    rgb = shape[-1] == 3
    if rgb and dtype != "uint8":
        return
    if big:
        monkeypatch.setattr(tiff, "_BIG", 0)
    array = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    writer = TiffRows(tmp_path / "a.tif", shape, dtype, rgb=rgb, mpp=0.5)
    for part in in_bands(array, 0 if rgb or len(shape) == 2 else 1, 2):
        writer.put(part)
    writer.close()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff is big
        assert file.pages[0].is_tiled
        assert file.pages[0].compression.name == "ADOBE_DEFLATE"
        np.testing.assert_array_equal(np.squeeze(file.asarray()), np.squeeze(array))
        assert file.pages[0].tags.valueof("XResolution") == (200_000_000, 10_000)
    if dtype == "uint8" and len(shape) == 2:
        with Image.open(tmp_path / "a.tif") as image:  # a reader that shares no code with tifffile
            np.testing.assert_array_equal(np.asarray(image), array)


def test_ome_names_channels_and_um(tmp_path: Path) -> None:
    array = np.random.default_rng(1).random((2, 300, 260)).astype(np.float16)
    writer = TiffRows(tmp_path / "a.ome.tif", array.shape, array.dtype, channels=('DAPI "1"', "Ki67 µ"), mpp=0.25)
    writer.put(array)
    writer.close()
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        assert file.series[0].axes == "CYX"
        metadata = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [c["Name"] for c in metadata["Channel"]] == ['DAPI "1"', "Ki67 µ"]
        np.testing.assert_array_equal(file.series[0].asarray(), array.astype(np.float32))
    assert read_image(tmp_path / "a.ome.tif").mpp == pytest.approx(0.25)


def test_missing_rows_are_said(tmp_path: Path) -> None:
    for writer in (PngRows(tmp_path / "a.png", (4, 4)), TiffRows(tmp_path / "a.tif", (4, 4), "uint8")):
        writer.put(np.zeros((3, 4), np.uint8))
        with pytest.raises(ValueError, match="1 rows"):
            writer.close()
