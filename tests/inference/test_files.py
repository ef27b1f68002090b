from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from zoo import registry
from zoo.errors import Interrupted, UserError, ZooError
from zoo.families import build
from zoo.families.base import Family
from zoo.inference import files
from zoo.inference.files import predict_files
from zoo.inference.inputs import find_images
from zoo.inference.predict import predict_array

Make = Callable[..., Family]
Blobs = Callable[..., np.ndarray]


@pytest.fixture
def folder(tmp_path: Path, blobs: Blobs) -> Path:
    root = tmp_path / "images"
    (root / "case" / "deep").mkdir(parents=True)
    Image.fromarray(blobs(40, 60, 1)).save(root / "a.png")
    Image.fromarray(blobs(70, 33, 2)).save(root / "case" / "b.png")
    tifffile.imwrite(root / "case" / "deep" / "c.tif", blobs(100, 90, 3), tile=(16, 16), photometric="rgb")
    return root


def names(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def test_semantic_files_hold_the_prediction(make: Make, folder: Path, tmp_path: Path) -> None:
    family = make("threshold", kind="semantic")
    out = tmp_path / "out"
    summary = predict_files(family, [folder], out, progress=False)
    assert summary.status == 0
    assert summary.done == ["a", "case/b", "case/deep/c"]
    endings = ["classes.png", "geojson", "overlay.png", "prediction.json", "probability.tif"]
    assert names(out) == sorted(f"{stem}.{e}" for stem in summary.done for e in endings)
    image = np.asarray(Image.open(folder / "case" / "b.png"))
    expected: Any = predict_array(family, image)["semantic"]
    classes = Image.open(out / "case" / "b.classes.png")
    assert classes.mode == "L"
    np.testing.assert_array_equal(np.asarray(classes), expected.map)
    probability = tifffile.imread(out / "case" / "b.probability.tif")
    assert probability.dtype == np.float16
    np.testing.assert_allclose(probability, expected.probability, atol=1e-3)


def test_instances_files_agree_with_each_other(make: Make, folder: Path, tmp_path: Path) -> None:
    family = make("threshold", kind="instances")
    out = tmp_path / "out"
    predict_files(family, [folder / "a.png"], out, mpp=0.5, progress=False)
    labels = tifffile.imread(out / "a.labels.tif")
    assert labels.dtype == np.uint32
    assert labels.shape == (40, 60)
    areas = np.bincount(labels.ravel())[1:]
    features = json.loads((out / "a.geojson").read_text())["features"]
    assert len(features) == labels.max() > 2
    for feature in features:
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        measures = feature["properties"]["measurements"]
        assert shape.is_valid
        assert shape.area == measures["Area px^2"] == areas[int(measures["Label"]) - 1]
        assert measures["Area um^2"] == pytest.approx(shape.area / 4)
    lines = (out / "a.objects.csv").read_text().splitlines()
    assert lines[0].startswith("label,class,score,area_px,area_um2,x,y,x0,y0,x1,y1,perimeter_px,")
    assert lines[0].endswith(",mean_od")
    assert (out / "a.objects.parquet").is_file()
    assert {"Perimeter um", "Eccentricity", "Optical density mean"} <= set(features[0]["properties"]["measurements"])
    assert [int(line.split(",")[3]) for line in lines[1:]] == areas.tolist()


def test_boxes_and_pictures(make: Make, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    family = make("threshold", kind="boxes")
    predict_files(family, [folder / "a.png"], out, progress=False)
    found = json.loads((out / "a.boxes.json").read_text())
    expected: Any = predict_array(family, np.asarray(Image.open(folder / "a.png")))["boxes"]
    np.testing.assert_allclose([b["xyxy"] for b in found["boxes"]], expected.xyxy)
    lines = (out / "a.boxes.csv").read_text().splitlines()
    assert lines[0].startswith("class,score,x0,y0,x1,y1")
    assert len(lines) == 1 + len(expected.xyxy)
    predict_files(family, [folder / "a.png"], out, progress=False)
    whole = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in whole["images"]] == ["a.png"]
    x, y, w, h = whole["annotations"][0]["bbox"]
    np.testing.assert_allclose([x, y, x + w, y + h], expected.xyxy[0], atol=0.02)
    predict_files(make(kind="picture"), [folder / "a.png"], tmp_path / "pictures", progress=False)
    with tifffile.TiffFile(tmp_path / "pictures" / "a.picture.ome.tif") as file:
        assert file.is_ome
        assert file.series[0].shape == (2, 40, 60)


def test_several_outputs_of_one_kind_are_told_apart(make: Make, folder: Path, tmp_path: Path) -> None:
    family = make("threshold", kind="semantic+instances")
    predict_files(family, [folder / "a.png"], tmp_path / "out", progress=False)
    found = names(tmp_path / "out")
    assert "a.classes.png" in found
    assert "a.labels.tif" in found
    assert found.count("a.geojson") == 1


def test_broken_files_are_reported_and_skipped(make: Make, folder: Path, tmp_path: Path) -> None:
    data = (folder / "a.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.tif").write_bytes(b"")
    out = tmp_path / "out"
    summary = predict_files(make("threshold"), [folder], out, progress=False)
    assert summary.status == 1
    assert len(summary.done) == 3
    failures = json.loads((out / "failures.json").read_text())
    assert [Path(f["file"]).name for f in failures] == ["broken.png", "empty.tif"]
    assert all("\n" not in f["error"] for f in failures)
    assert not [name for name in names(out) if "broken" in name or "part" in name]
    (folder / "broken.png").unlink()
    (folder / "empty.tif").unlink()
    again = predict_files(make("threshold"), [folder], out, progress=False)
    assert again.status == 0
    assert not (out / "failures.json").exists()


def test_running_again_skips_what_is_done(make: Make, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    family = make("threshold")

    def run(**changes: Any) -> tuple[int, int]:
        summary = predict_files(family, [folder], out, progress=False, **changes)
        return len(summary.done), len(summary.skipped)

    assert run() == (3, 0)
    assert run() == (0, 3)
    assert run(batch=3) == (0, 3)  # how many tiles at once does not matter
    assert run(threshold=0.7) == (3, 0)  # options do
    assert run(threshold=0.7, overwrite=True) == (3, 0)
    (out / "a.classes.png").unlink()
    assert run(threshold=0.7) == (1, 2)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    assert run(threshold=0.7) == (1, 2)
    with __import__("torch").no_grad():
        family.layer.weight[0, 0, 0, 0] += 1  # type: ignore[operator,index,union-attr]
    assert run(threshold=0.7) == (3, 0)


def test_an_interrupted_run_goes_on(make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    whole = files.write_features

    def stop(path: Path, *rest: Any) -> int:
        if path.name == "b.geojson":
            raise KeyboardInterrupt
        return whole(path, *rest)

    monkeypatch.setattr(files, "write_features", stop)
    with pytest.raises(Interrupted, match="goes on from here"):
        predict_files(make("threshold"), [folder], out, progress=False)
    assert not [name for name in names(out) if "b." in name]
    monkeypatch.setattr(files, "write_features", whole)
    summary = predict_files(make("threshold"), [folder], out, progress=False)
    assert summary.skipped == ["a"]
    assert summary.done == ["case/b", "case/deep/c"]


def test_a_disk_that_fills_on_the_way_keeps_what_is_done(
    make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = files._write, []

    def write(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(files, "_write", write)
    with pytest.raises(ZooError, match=r"No space left on device.*1 predicted.*goes on from here") as said:
        predict_files(make(), [folder], tmp_path / "out", progress=False)
    assert said.value.status == 1
    again = predict_files(make(), [folder], tmp_path / "out", progress=False)
    assert len(again.skipped) == 1


def test_what_a_killed_process_left_is_taken_away(make: Make, folder: Path, tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    out = tmp_path / "out"
    left, others = out / f".a.part-{killed.pid}", out / f".a.part-{os.getppid()}"
    for one in (left, others):
        one.mkdir(parents=True)
        (one / "a.labels.tif").touch()
    predict_files(make("threshold", kind="semantic"), [folder / "a.png"], out, progress=False)
    assert not left.exists()
    assert others.exists()  # of a process that is at work


def test_a_model_with_a_resolution_asks(make: Make, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"--mpp") as caught:
        predict_files(make("threshold", mpp=0.5), [folder], out, progress=False)
    assert "a.png" in str(caught.value)
    assert not out.exists()
    assert predict_files(make("threshold", mpp=0.5), [folder], out, mpp=0.25, progress=False).status == 0
    assert json.loads((out / "a.prediction.json").read_text())["mpp"] == 0.25


@pytest.mark.parametrize("name", ["nothing.png", "*.jpg", "case2"])
def test_a_path_to_nothing_is_the_users_mistake(make: Make, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no image there|no such file"):
        predict_files(make(), [folder / name], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_where_the_results_go_are_no_images(folder: Path) -> None:
    with pytest.raises(UserError, match=r"all of it lies in .*, where the results go"):
        find_images([folder / "case"], folder / "case")


def test_globs_keep_sub_folders_and_out_is_left_out(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(out / "a.classes.png")
    assert [item.stem.as_posix() for item in find_images([folder], out)] == ["a", "case/b", "case/deep/c"]
    assert [item.stem.as_posix() for item in find_images([folder / "**/*.png"], out)] == ["a", "case/b"]
    assert [item.stem.as_posix() for item in find_images([folder / "case" / "b.png"], out)] == ["b"]


def test_names_that_collide(folder: Path, blobs: Blobs, tmp_path: Path) -> None:
    Image.fromarray(blobs(9, 9)).save(folder / "a.jpg")
    assert [i.stem.as_posix() for i in find_images([folder], tmp_path / "o")][:2] == ["a.jpg", "a.png"]
    with pytest.raises(UserError, match="both would write"):
        find_images([folder / "case", folder / "case" / "b.png", folder / "case" / ".." / "case"], tmp_path / "o")


def test_an_unwritable_folder_is_said_first(make: Make, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        predict_files(make(), [folder], tmp_path / "file" / "out", progress=False)


@pytest.mark.parametrize(
    ("family", "given", "words"),
    [
        ("unet", {"threshold": 7}, "unet: threshold is 7"),
        ("unet", {"threshold": "half"}, "unet: threshold is half"),
        ("stardist", {"prob": 1}, "stardist: prob is 1"),
        ("stardist", {"max_candidates": 0}, "stardist: max_candidates is 0"),
        ("detr", {"threshold": 2}, "threshold: 2 will not do"),
        ("detr", {"threshold": {"WBS": 0.5}}, "Did you mean WBC?"),
        ("detr", {"top": 0}, "top: 0 boxes will not do"),
    ],
)
def test_an_option_that_cannot_be_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, family: str, given: dict[str, Any], words: str
) -> None:
    tiny = {"unet": {"mode": "binary", "instances": None, "classes": ["background", "nucleus"]}}.get(family, {})
    made = build.create(family, registry.get("family", family).tiny() | tiny)
    with pytest.raises(UserError, match=re.escape(words)):
        predict_files(made, [folder], tmp_path / "out", mpp=1.0, progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_names_the_nearest(make: Make, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threshold"):
        predict_files(make(), [folder], tmp_path / "out", progress=False, treshold=0.3)
