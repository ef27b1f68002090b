"""`zoo stain` on files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from stained import E, H, mixed

from zoo.data.stains import statistics_of
from zoo.stain import estimate
from zoo.stain.density import optical_density


def tile(seed: int, shape: tuple[int, int] = (60, 50)) -> Any:
    return mixed(seed, shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiles in sub-folders, a blank one, a broken one."""
    base = tmp_path / "tiles"
    (base / "a").mkdir(parents=True)
    Image.fromarray(tile(0)).save(base / "a" / "one.png")
    Image.fromarray(tile(1)).save(base / "two.jpg", quality=95)
    Image.fromarray(np.full((30, 30, 3), 250, np.uint8)).save(base / "white.png")
    (base / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    return base


def test_normalise_a_folder(zoo: Any, folder: Path, tmp_path: Path) -> None:
    done = zoo("stain", "normalise", folder, "--out", tmp_path / "out", "--target", folder / "a" / "one.png")
    assert done.status == 1
    assert "broken.png" in done.err
    assert "white.png: no stained tissue: left as it is" in done.out
    assert "3 images, 1 failed" in done.out
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"a/one.png", "two.png", "white.png", "stain.json", "failures.json"}
    same = np.asarray(Image.open(tmp_path / "out" / "a" / "one.png")).astype(int)
    assert np.abs(same - tile(0)).mean() < 4
    told = json.loads((tmp_path / "out" / "stain.json").read_text())
    assert told["normaliser"]["method"] == "macenko"
    assert [r["normalised"] for r in told["images"]].count(False) == 1


def test_a_large_image_has_one_look_and_becomes_a_tiff(
    zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.inference import stains

    monkeypatch.setattr(stains, "PNG_MOST", 1000)
    monkeypatch.setattr(stains, "BAND", 64)
    picture = tile(2, (300, 200))
    tifffile.imwrite(tmp_path / "slide.tif", picture, tile=(64, 64), resolution=(20000, 20000), resolutionunit=3)
    assert zoo("stain", "normalise", tmp_path / "slide.tif", "--out", tmp_path / "out").status == 0
    found = tifffile.imread(tmp_path / "out" / "slide.tif")
    from zoo.stain.normalise import normaliser

    change = normaliser("macenko")
    assert np.array_equal(found, change.apply(picture, change.measure(picture)))


def test_separate_and_measure(zoo: Any, folder: Path, tmp_path: Path) -> None:
    matrix = "0.6,0.7,0.38 0.15,0.93,0.33"
    one = folder / "a" / "one.png"
    done = zoo("stain", "separate", one, "--out", tmp_path / "s", "--method", "custom", "--matrix", matrix)
    assert done.status == 0, done.err
    with tifffile.TiffFile(tmp_path / "s" / "one.stains.ome.tif") as file:
        planes = file.asarray()
        assert 'Name="haematoxylin"' in str(file.ome_metadata)
    rows = np.stack([H, E])
    expected = estimate.concentrations(optical_density(tile(0)), rows)
    np.testing.assert_allclose(np.moveaxis(planes, 0, -1), expected, atol=1e-5)
    assert done.out.endswith(f"{tmp_path / 's'}: 1 image\n")
    told = json.loads(zoo("stain", "measure", one, "--json").out)
    assert np.shape(told["images"][0]["matrix"]) == (2, 3)


def test_separate_says_what_it_measured_and_nothing_of_normalising(zoo: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").unlink()
    pink = np.exp(-np.random.default_rng(0).gamma(2, 0.3, (60, 60, 1)) * estimate.RUIFROK[1])
    Image.fromarray((255 * pink).astype(np.uint8)).save(folder / "pink.png")
    for method, blank in (("macenko", "; the directions are the reference's"), ("ruifrok", "")):
        done = zoo("stain", "separate", folder, "--out", tmp_path / method, "--method", method)
        assert done.status == 0, done.err
        assert f"white.stains.ome.tif: no stained tissue{blank}\n" in done.out
        assert not any(word in done.out for word in ("left as it is", "kept", "held", "would change"))
        told = json.loads((tmp_path / method / "stain.json").read_text())
        assert told["method"] == method
        assert [Path(r["file"]).name for r in told["images"]] == ["one.png", "pink.png", "two.jpg", "white.png"]
        assert all(np.shape(record["matrix"]) == (2, 3) for record in told["images"])
    assert told["images"][3]["matrix"] == estimate.RUIFROK.tolist()
    measured = zoo("stain", "measure", folder, "--method", "ruifrok")
    assert "white.png: no stained tissue\n" in measured.out
    assert "pink.png" in measured.out
    assert "hardly any haematoxylin\n" in measured.out


def test_statistics_feed_the_augmentation(zoo: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").unlink()
    done = zoo("stain", "statistics", folder, "--out", tmp_path / "look.yaml")
    assert done.status == 0
    assert "statistics of 2 images, 1 without stained tissue left out" in done.out
    look = statistics_of(str(tmp_path / "look.yaml"), "lab")
    assert 0 < look.mean_of_means[0] < 255
    told = json.loads(zoo("stain", "statistics", folder, "--out", tmp_path / "look.yaml", "--json").out)
    assert tuple(told["statistics"]["lab"]["mean_of_means"]) == look.mean_of_means
    assert [record["counted"] for record in told["images"]] == [True, True, False]


def test_statistics_need_a_file_to_write(zoo: Any, folder: Path, tmp_path: Path) -> None:
    done = zoo("stain", "statistics", folder, "--out", tmp_path)
    assert (done.status, "it is a folder" in done.err) == (2, True)
    done = zoo("stain", "statistics", folder, "--out", folder / "white.png" / "look.yaml")
    assert (done.status, "cannot write there" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["normalise", "{one}"], "no --out"),
        (["normalise", "{one}", "--out", "{out}", "--method", "maceko"], "Did you mean macenko"),
        (["normalise", "{one}", "--out", "{out}", "--target", "nothing.png"], "there is no such file"),
        (["separate", "{one}", "--out", "{out}", "--method", "reinhard"], "knows no stains"),
        (["separate", "{one}", "--out", "{out}", "--method", "custom"], "needs 2 or 3 rows"),
        (["measure", "{one}", "--method", "custom", "--matrix", "a,b"], "--matrix"),
        (["measure", "nowhere"], "no such file or folder"),
        (["mesure", "{one}"], "measure"),
        (["measure", "{one}", "--out", "{out}"], "nothing is written"),
        (["statistics", "{one}", "--out", "{out}", "--method", "vahadane"], "--method: colours are counted"),
        (["normalise", "{one}", "--out", "{out}", "--target", "{here}"], "is a folder. Expected one picture"),
        (
            ["normalise", "{one}", "--out", "{out}", "--target", "{here}/white.png"],
            "will not do: no stained tissue. Choose one",
        ),
    ],
)
def test_mistakes(zoo: Any, folder: Path, tmp_path: Path, words: list[str], said: str) -> None:
    filled = [w.format(one=folder / "a" / "one.png", out=tmp_path / "out", here=folder) for w in words]
    done = zoo("stain", *filled)
    assert done.status == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()
