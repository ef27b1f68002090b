"""Volumes in blocks, from every format, to label volumes, tables and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from zoo.errors import DataError, UserError
from zoo.families import build
from zoo.families.base import Maps
from zoo.families.stardist import StarDist, StarDistOptions
from zoo.inference import volumes
from zoo.inference.files import predict_files
from zoo.inference.predict import predict_array
from zoo.io.volumes import read_volume

SHAPE = (20, 70, 90)


class Balls(StarDist):
    """A network in closed form: bright voxels are centres, as bright as the ball is large (radius in voxels)."""

    def __init__(self, options: StarDistOptions) -> None:
        super().__init__(options)
        self.blocks: list[tuple[int, ...]] = []

    def forward(self, inputs: Mapping[str, torch.Tensor], taps: Sequence[str] = ()) -> Maps:
        image = inputs["image"].float()
        self.blocks.append(tuple(image.shape[2:]))
        steps = (..., *(slice(None, None, g) for g in self.grid))
        small = image[steps]
        logits = torch.where(small > 0, 2 + small / 100, torch.full_like(small, -20.0))
        return {
            "prob": logits,
            "dist": (small + 0.013).clamp_min(0.5).expand(-1, self.options.ray_count, *small.shape[2:]),
        }


def family(**options: Any) -> Balls:
    base = {"dims": 3, "backbone": "resnet", "resnet": {"filters": 2, "blocks": 1, "convs": 2, "features": 2}}
    base |= {"rays": 24, "grid": [1, 1, 1], "classes": ["nucleus"], "channels": ["nuclei"], "normalise": None}
    return Balls(StarDistOptions.model_validate(base | {"tile": [16, 40, 40], "margin": 6} | options)).eval()


def centres(seed: int = 0) -> NDArray[np.uint8]:
    """Return a volume of single bright voxels, one a ball, with radii of 3 to 6."""
    rng = np.random.default_rng(seed)
    volume = np.zeros(SHAPE, np.uint8)
    for z in range(4, SHAPE[0] - 3, 12):
        for y in range(5, SHAPE[1] - 4, 14):
            for x in range(5, SHAPE[2] - 4, 14):
                volume[z, y + int(rng.integers(-1, 2)), x + int(rng.integers(-1, 2))] = rng.integers(3, 7)
    return volume


def test_a_large_volume_may_have_more_candidates_than_a_block_but_does_not_consist_of_them() -> None:
    volume = centres()
    assert 30 < (volume > 0).sum() < volume.size / 4
    few = predict_array(family(max_candidates=30), volume)["instances"]
    many = predict_array(family(), volume)["instances"]
    assert np.array_equal(few.map, many.map)
    assert len(few.scores) == (volume > 0).sum()
    with pytest.raises(UserError, match=r"candidates in the volume. Expected at most 30: .* Raise the threshold"):
        predict_array(family(), volume, max_candidates=30)
    count = volume.size
    with pytest.raises(UserError, match=rf"{count} candidates in the volume. Expected at most {count // 4}: "):
        predict_array(family(max_candidates=30_000, border=0), np.full(SHAPE, 3, np.uint8))


def test_blocks_change_nothing() -> None:
    """Labels are unique and whole across borders: the same as without blocks, up to the order of equals."""
    volume = centres()
    blocked, whole = family(), family(tile=128)
    found = predict_array(blocked, volume)["instances"]
    once = predict_array(whole, volume)["instances"]
    assert len(whole.blocks) == 1
    assert len(blocked.blocks) > 8
    assert max(map(np.prod, blocked.blocks)) <= 16 * 40 * 40
    np.testing.assert_array_equal(found.map, once.map)
    np.testing.assert_allclose(found.scores, once.scores)
    assert int(found.map.max()) == int((volume > 0).sum()) == len(found.scores)
    decoded = whole.decode(
        whole.activate(whole.forward({"image": torch.from_numpy(volume)[None, None]})),
        [volumes.Geometry(SHAPE, (1.0,) * 3, (0.0,) * 3)],
    )[0]["instances"]
    assert ((decoded.map > 0) == (once.map > 0)).all()


def test_windows_of_drawing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = centres(1)
    once = predict_array(family(), volume)["instances"].map
    monkeypatch.setattr(volumes.windows, "__defaults__", ((7, 32, 25),))
    np.testing.assert_array_equal(predict_array(family(), volume)["instances"].map, once)


def test_other_voxels_are_resampled() -> None:
    """Twice as fine a volume of a model that knows its voxel size: the same balls, twice as large in voxels."""
    model = family(spacing=[2, 1, 1], tile=128, grid=[1, 1, 1])
    volume = centres().astype(np.float32)
    fine = volume.repeat(2, 1).repeat(2, 2)
    small = predict_array(model, volume, mpp=(2.0, 1.0, 1.0))["instances"].map
    large = predict_array(model, fine, mpp=(2.0, 0.5, 0.5))["instances"].map
    ratio = (large > 0).sum() / (small > 0).sum()
    assert large.shape == fine.shape
    assert 3.2 < ratio < 4.8
    assert abs(int(large.max()) - int(small.max())) <= 2


def write(path: Path, volume: NDArray[Any], spacing: Sequence[float]) -> None:
    z, y, x = spacing
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        image = nibabel.Nifti1Image(volume.T, np.diag([x / 1e3, y / 1e3, z / 1e3, 1]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    elif path.suffix == ".zarr":
        import zarr

        group: Any = zarr.open_group(str(path), mode="w", zarr_format=2)
        group.create_array("0", shape=volume.shape, chunks=(8, 32, 32), dtype=volume.dtype)[...] = volume
        scale = {"type": "scale", "scale": [z / 1e3, y, x]}
        axes = [{"name": "z", "unit": "millimeter"}, *({"name": n, "unit": "micrometer"} for n in "yx")]
        group.attrs["multiscales"] = [
            {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
        ]
    elif path.name.endswith(".ome.tif"):
        sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeZ": z}
        tifffile.imwrite(path, volume, ome=True, metadata={"axes": "ZYX", **sizes})
    else:
        tifffile.imwrite(
            path, volume, imagej=True, resolution=(1 / x, 1 / y), metadata={"axes": "ZYX", "spacing": z, "unit": "um"}
        )


@pytest.mark.parametrize("name", ["v.tif", "v.ome.tif", "v.nii", "v.nii.gz", "v.zarr"])
def test_formats_with_their_voxel_sizes(tmp_path: Path, name: str) -> None:
    volume = centres()
    write(tmp_path / name, volume, (2.0, 0.5, 0.25))
    file = read_volume(tmp_path / name)
    assert file.shape == SHAPE
    assert file.spacing is not None
    np.testing.assert_allclose(file.spacing, (2.0, 0.5, 0.25), rtol=1e-3)
    np.testing.assert_array_equal(file.read((3, 10, 20), (5, 30, 40))[0], volume[3:8, 10:40, 20:60])
    file.close()


@pytest.mark.parametrize("labels", ["tif", "zarr"])
def test_files(tmp_path: Path, labels: Any) -> None:
    volume, out = centres(), tmp_path / "out"
    write(tmp_path / "a.ome.tif", volume, (2.0, 0.5, 0.5))
    (tmp_path / "broken.tif").write_bytes(b"no tiff")
    model = family()
    summary = predict_files(model, [tmp_path / "*.tif"], out, labels=labels, progress=False)
    assert [Path(f["file"]).name for f in summary.failures] == ["broken.tif"]
    ending = "labels.tif" if labels == "tif" else "labels.ome.zarr"
    found = read_volume(out / f"a.ome.{ending}")
    assert found.dtype == np.uint32
    np.testing.assert_allclose(found.spacing or (), (2.0, 0.5, 0.5))
    map_ = found.read()[0]
    np.testing.assert_array_equal(map_, predict_array(model, volume)["instances"].map)
    rows = list(csv.DictReader((out / "a.ome.objects.csv").read_text().splitlines()))
    assert [int(row["label"]) for row in rows] == list(range(1, int(map_.max()) + 1))
    for row in rows[::7]:
        here = np.argwhere(map_ == int(row["label"]))
        assert int(row["voxels"]) == len(here)
        assert abs(float(row["volume_um3"]) - len(here) * 0.5) < 1e-3
        np.testing.assert_allclose([float(row[a]) for a in "zyx"], here.mean(0) + 0.5, atol=0.01)
        assert [int(row[f"{a}0"]) for a in "zyx"] == here.min(0).tolist()
        assert [int(row[f"{a}1"]) for a in "zyx"] == (here.max(0) + 1).tolist()
    picture = np.asarray(Image.open(out / "a.ome.overlay.png"))
    assert (picture[..., 0] != picture[..., 2]).sum() > 500  # coloured outlines on grey
    record = json.loads((out / "a.ome.prediction.json").read_text())
    assert record["mpp"] == [2.0, 0.5, 0.5]
    again = predict_files(model, [tmp_path / "a.ome.tif"], out, labels=labels, progress=False)
    assert again.skipped == ["a.ome"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_picture_for_a_model_of_volumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a picture, and the model predicts volumes"):
        predict_array(family(), np.zeros((50, 60), np.uint8))
    tifffile.imwrite(tmp_path / "flat.tif", np.zeros((50, 60), np.uint8))
    with pytest.raises(DataError, match=r"holds a picture .* Expected a volume"):
        read_volume(tmp_path / "flat.tif")


def test_a_volume_for_a_model_of_pictures(tmp_path: Path) -> None:
    model = build.create("stardist", StarDist.tiny())
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((9, 50, 60), np.uint8), metadata={"axes": "ZYX"})
    summary = predict_files(model, [tmp_path / "stack.tif"], tmp_path / "out", progress=False)
    assert "holds a stack" in summary.failures[0]["error"]
    with pytest.raises(UserError, match="shape"):
        predict_array(model, np.zeros((9, 50, 60, 1), np.uint8))


def test_axes_in_another_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Channels stand last"):
        predict_array(family(), np.zeros((1, 9, 50, 60), np.uint8))
    tifffile.imwrite(tmp_path / "time.tif", np.zeros((9, 50, 60), np.uint8), ome=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match="series in time"):
        read_volume(tmp_path / "time.tif")


def test_a_voxel_size_is_asked_for(tmp_path: Path) -> None:
    model = family(spacing=[2, 0.5, 0.5])
    tifffile.imwrite(tmp_path / "v.tif", centres(), metadata={"axes": "ZYX"})
    with pytest.raises(UserError, match=r"voxel size is not known .* 2,0.5,0.5 um .* --mpp Z,Y,X"):
        predict_files(model, [tmp_path / "v.tif"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    done = predict_files(model, [tmp_path / "v.tif"], tmp_path / "out", mpp="native", progress=False)
    assert done.done == ["v"]
    with pytest.raises(UserError, match="um per voxel of z, y and x"):
        predict_array(model, centres(), mpp=(1.0, 2.0))


def test_a_block_without_a_core() -> None:
    with pytest.raises(UserError, match="have no core"):
        predict_array(family(), centres(), tile=12)


def test_a_volume_smaller_than_the_divisor() -> None:
    model = build.create(
        "stardist", {"dims": 3, "grid": [2, 2, 2], "rays": 8, "channels": ["n"], "unet": {"filters": 2, "features": 2}}
    )
    found = predict_array(model, np.zeros((3, 5, 2), np.uint8))["instances"]
    assert found.map.shape == (3, 5, 2)


def test_nothing_to_find() -> None:
    found = predict_array(family(), np.zeros(SHAPE, np.uint8))["instances"]
    assert not found.map.any()
    assert len(found.scores) == 0


def test_a_mapped_array_is_a_volume_too(tmp_path: Path) -> None:
    """NumPy files are read without a copy, so what comes of them cannot be written to."""
    np.save(tmp_path / "v.npy", centres())
    model = family()
    summary = predict_files(model, [tmp_path / "v.npy"], tmp_path / "out", progress=False)
    assert summary.done == ["v"]
    with read_volume(tmp_path / "out" / "v.labels.tif") as found:
        np.testing.assert_array_equal(found.read()[0], predict_array(model, centres())["instances"].map)


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No box that is read or drawn is larger than a block or a window, however large the volume."""
    read: list[int] = []
    wide = np.tile(centres(), (2, 3, 3))
    whole = read_volume

    def watched(path: Any) -> Any:
        file = whole(path)
        box = file._box

        def seen(window: tuple[slice, ...]) -> Any:
            read.append(int(np.prod([s.stop - s.start for s in window])))
            return box(window)

        file._box = seen
        return file

    np.save(tmp_path / "v.npy", wide)
    monkeypatch.setattr("zoo.inference.volume_files.read_volume", watched)
    summary = predict_files(family(), [tmp_path / "v.npy"], tmp_path / "out", progress=False)
    assert summary.done == ["v"]
    slabs = 16 * wide.shape[1] * wide.shape[2]  # those of the picture
    assert max(read) <= max(16 * 40 * 40, slabs) < wide.size / 2
