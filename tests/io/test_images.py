"""Every odd image format: right, or one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zoo.errors import DataError
from zoo.io.images import read_array, read_image, read_indices, to_rgb8

RGB = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def save(path: Path, array: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def rgb_of(path: Path) -> np.ndarray:
    image = read_image(path)
    array = image.read()
    assert array.shape == image.shape
    assert array.dtype == image.dtype
    out, _ = to_rgb8(array)
    assert (image.read_rgb8() == out).all()
    return out


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".npy"])
def test_lossless_rgb_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, RGB)
    elif suffix == ".webp":
        save(path, RGB, lossless=True)
    else:
        save(path, RGB)
    assert (rgb_of(path) == RGB).all()
    assert (read_image(path).read(3, 5, 7, 9) == RGB[3:10, 5:14]).all()


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 51
    out = rgb_of(save(tmp_path / "a.png", rgba))
    assert (out[:10] == 255).all()
    assert np.abs(out[10:20] - (RGB[10:20] * 0.2 + 255 * 0.8)).max() <= 0.5
    assert (out[20:] == RGB[20:]).all()
    assert "over white" in (to_rgb8(rgba)[1] or "")


def test_grey_grey_alpha_and_one_bit(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    assert (rgb_of(save(tmp_path / "g.png", grey)) == grey[..., None]).all()
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(np.full_like(grey, 255))])
    la.save(tmp_path / "la.png")
    assert (rgb_of(tmp_path / "la.png") == grey[..., None]).all()
    bits = grey > 128
    Image.fromarray(bits).save(tmp_path / "one.png")
    tifffile.imwrite(tmp_path / "one.tif", bits, photometric="minisblack")
    tifffile.imwrite(tmp_path / "white.tif", ~bits, photometric="miniswhite")
    for name in ("one.png", "one.tif", "white.tif"):
        assert (rgb_of(tmp_path / name) == np.where(bits, 255, 0)[..., None]).all()
    assert (read_indices(tmp_path / "white.tif") == ~bits).all()  # a mask is what was stored, whatever white means


def test_palette_and_its_indices(tmp_path: Path) -> None:
    indices = (RGB[..., 0] % 3).astype(np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    palette.save(tmp_path / "p.png")
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)
    assert (rgb_of(tmp_path / "p.png") == colours[indices]).all()
    assert (read_indices(tmp_path / "p.png") == indices).all()


def test_cmyk_is_converted(tmp_path: Path) -> None:
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[:] = (200, 40, 90)
    save(tmp_path / "c.jpg", flat, "CMYK", quality=98)
    save(tmp_path / "c.tif", flat, "CMYK")
    for name in ("c.jpg", "c.tif"):
        out = rgb_of(tmp_path / name)
        assert out.shape == flat.shape
        assert np.abs(out.astype(int) - flat).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Pillow's own transposition is the reference for the JPEG; the TIFF must agree with it."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "e.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "e.jpg") as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened))
        stored = np.asarray(opened)
    assert (rgb_of(tmp_path / "e.jpg") == seen).all()
    tifffile.imwrite(tmp_path / "e.tif", stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert (rgb_of(tmp_path / "e.tif") == seen).all()


def test_sixteen_bit_colour_and_grey(tmp_path: Path) -> None:
    import imagecodecs

    deep = RGB.astype(np.uint16) * 257
    (tmp_path / "d.png").write_bytes(imagecodecs.png_encode(deep))
    assert (rgb_of(tmp_path / "d.png") == RGB).all()
    twelve = (np.arange(4096, dtype=np.uint16).reshape(64, 64, 1) * np.ones(3, np.uint16)).astype(np.uint16)
    out, note = to_rgb8(twelve)
    assert out.min() == 0
    assert out.max() == 255
    assert note == "uint16 values from 0 to 4095 were scaled to 0..255"
    grey = np.linspace(100, 900, 10_000).astype(np.uint16).reshape(100, 100)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert rgb_of(tmp_path / "g.png").max() == 255
    assert (read_image(tmp_path / "g.png").read() == grey).all()


def test_floats() -> None:
    assert (to_rgb8(RGB.astype(np.float32) / 255)[0] == RGB).all()
    assert (to_rgb8(RGB.astype(np.float64))[0] == RGB).all()
    assert to_rgb8(np.linspace(-5, 5, 100).reshape(10, 10))[0].max() == 255
    bad = np.zeros((4, 4), np.float32)
    bad[0, 0] = np.nan
    with pytest.raises(DataError, match="not numbers"):
        to_rgb8(bad)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 5), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((0, 4)), np.zeros(3)]
)
def test_shapes_that_are_no_picture(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"pixel|no picture"):
        to_rgb8(array)


@pytest.mark.parametrize("array", [np.zeros((4, 4), complex), np.zeros((0, 4), np.uint8), np.zeros((4, 4), "U3")])
def test_arrays_that_are_no_picture_are_refused_when_opened(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy: .*(are no picture|has no pixel)"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".npy"])
def test_truncated_empty_and_missing_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".npy":
        np.save(path, RGB)
    else:
        save(path, RGB)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=str(path)) as caught:
            read_image(path).read()
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_image(path)


def test_truncated_tiled_tiff(tmp_path: Path) -> None:
    path = tmp_path / "t.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8), tile=(64, 64))
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"t\.tif"):
        read_image(path).read()


def test_unknown_suffix_and_window_outside(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(DataError, match="no image format"):
        read_image(tmp_path / "a.doc")
    image = read_image(save(tmp_path / "a.png", RGB))
    with pytest.raises(DataError, match="leaves the image of 40 x 30"):
        image.read(35, 0, 10, 10)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"tile": (64, 64), "compression": "deflate", "photometric": "rgb"}, (200, 150, 3)),
        ({"tile": (64, 64), "photometric": "minisblack"}, (200, 150)),
        ({"tile": (64, 64), "planarconfig": "separate", "photometric": "rgb"}, (3, 200, 150)),
        ({"rowsperstrip": 8, "photometric": "rgb"}, (200, 150, 3)),
    ],
)
@given(data=st.data())
def test_windows_of_tiled_tiffs(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], shape: tuple[int, ...], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"w-{len(shape)}-{'-'.join(map(str, options.values()))}.tif".replace(
        " ", ""
    )
    array = np.random.default_rng(1).integers(0, 60_000, shape).astype(np.uint16)
    if not path.exists():
        tifffile.imwrite(path, array, **options)
    whole = array.transpose(1, 2, 0) if shape[0] == 3 else array
    image = read_image(path)
    assert image.windowed
    assert image.shape == whole.shape
    y0, x0 = data.draw(st.integers(0, 199)), data.draw(st.integers(0, 149))
    h, w = data.draw(st.integers(1, 200 - y0)), data.draw(st.integers(1, 150 - x0))
    assert (image.read(y0, x0, h, w) == whole[y0 : y0 + h, x0 : x0 + w]).all()
    assert (pickle.loads(pickle.dumps(image)).read(y0, x0, h, w) == whole[y0 : y0 + h, x0 : x0 + w]).all()


def test_windows_are_scaled_alike(tmp_path: Path) -> None:
    grey = np.linspace(0, 3000, 256 * 256).astype(np.uint16).reshape(256, 256)
    tifffile.imwrite(tmp_path / "g.tif", grey, tile=(64, 64))
    image = read_image(tmp_path / "g.tif")
    whole = image.read_rgb8()
    assert (image.read_rgb8(100, 20, 50, 60) == whole[100:150, 20:80]).all()


def test_stack_is_no_picture_but_an_array(tmp_path: Path) -> None:
    stack = np.zeros((5, 20, 20), np.uint16)
    tifffile.imwrite(tmp_path / "z.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match="a stack of shape"):
        read_image(tmp_path / "z.tif")
    assert read_array(tmp_path / "z.tif").shape == stack.shape


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (101_600, 101_600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}, None),
        ({"description": "Aperio Image |AppMag = 40|MPP = 0.2520"}, 0.252),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.345, "PhysicalSizeY": 0.345}}, 0.345),
        ({"ome": True, "metadata": {"PhysicalSizeX": 345, "PhysicalSizeY": 345, "PhysicalSizeXUnit": "nm",
          "PhysicalSizeYUnit": "nm"}}, 0.345),
        ({"imagej": True, "resolution": (4.0, 4.0), "metadata": {"unit": "um"}}, 0.25),
        ({}, None),
    ],
)  # fmt: skip
def test_um_per_pixel_of_tiffs(tmp_path: Path, options: dict[str, Any], mpp: float | None) -> None:
    path = tmp_path / ("a.ome.tif" if options.get("ome") else "a.tif")
    tifffile.imwrite(path, RGB[..., 0], **options)
    found = read_image(path).mpp
    assert found == (None if mpp is None else pytest.approx(mpp, rel=1e-3))


def test_um_per_pixel_of_png_counts_only_where_it_may_be_tissue(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", RGB, dpi=(50_800, 50_800))).mpp == pytest.approx(0.5, rel=1e-3)
    assert read_image(save(tmp_path / "b.png", RGB, dpi=(300, 300))).mpp is None


def test_large_whole_formats_lie_in_a_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.io.images._RAM", 1000)
    image = read_image(save(tmp_path / "a.png", RGB))
    assert (image.read(1, 2, 3, 4) == RGB[1:4, 2:6]).all()
    assert isinstance(image._whole, np.memmap)


def test_label_images(tmp_path: Path) -> None:
    labels = (RGB[..., 0] % 5).astype(np.uint8)
    save(tmp_path / "rgb.png", np.repeat(labels[..., None], 3, 2))
    save(tmp_path / "rgba.png", np.dstack([labels] * 3 + [np.full_like(labels, 255)]))
    np.save(tmp_path / "a.npy", labels.astype(np.int64))
    tifffile.imwrite(tmp_path / "a.tif", labels.astype(np.uint32)[None])
    for name in ("rgb.png", "rgba.png", "a.npy", "a.tif"):
        assert (read_indices(tmp_path / name) == labels).all(), name
    with pytest.raises(DataError, match="one number a pixel"):
        read_indices(save(tmp_path / "colour.png", RGB))
