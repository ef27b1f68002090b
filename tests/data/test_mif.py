"""Readers of registered fluorescence on miniature trees of the published layouts: ORION, IMMUcan, HEMIT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.cards import dataset_card
from zoo.data import open_dataset
from zoo.data.augment import Augment
from zoo.errors import DataError, UserError
from zoo.schema import Component
from zoo.types import Instances, Picture

SIDE = 24
COLUMNS = "in_slide_name,image_path,target_path,nuclei_path\n"


def labels() -> np.ndarray:
    found = np.zeros((SIDE, SIDE), np.uint32)
    found[2:10, 2:10], found[12:20, 2:10], found[2:10, 14:22] = 101, 7, 250
    return found


def planes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, SIDE, SIDE), dtype=np.uint8)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def orion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One slide a split, two tiles each; paths in the tables are those of the machine that made them."""
    root = tmp_path / "orion-crc"
    for folder in ("he", "if", "nuclei", "cells"):
        (root / folder).mkdir(parents=True)
    away = "/data/of/another/machine"
    slides = "in_slide_name,in_slide_path,targ_slide_path,nuclei_slide_path,nuclei_csv_path\n"
    for number, split in enumerate(("train", "val", "test")):
        slide, rows = f"S{number}-registered.ome", COLUMNS
        for tile in range(2):
            name = f"{slide}_{512 * tile}_0_0_512_512"
            Image.fromarray(picture(tile)).save(root / "he" / f"{name}.jpeg", quality=95)
            tifffile.imwrite(root / "if" / f"{name}.tiff", np.moveaxis(planes(17, tile), 0, -1), planarconfig="contig")
            tifffile.imwrite(root / "nuclei" / f"{name}.tiff", labels())
            rows += f"{slide},{away}/he/{name}.jpeg,{away}/if/{name}.tiff,{away}/nuclei/{name}.tiff\n"
        (root / f"{split}_dataframe.csv").write_text(rows)
        slides += f"{slide},-,-,-,{away}/cells/{slide}.csv\n"
        cells = "label,x,y,CD31_score,CD31_pos,CD45_score,CD45_pos,Pan-CK_score\n"
        cells += "250,1,1,0.9,1,0.2,0,0.8\n7,2,2,0.1,0,0.7,1,\n"  # 101 is not in the table
        (root / "cells" / f"{slide}.csv").write_text(cells)
    (root / "slide_dataframe.csv").write_text(slides)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    return root


def test_orion(orion: Path) -> None:
    found = open_dataset("orion-crc", split="test")
    assert [e.group for e in found.index] == ["S2-registered.ome"] * 2
    sample = found[1]
    assert sample.spacing == (0.5, 0.5)
    assert sample.image.shape == (3, SIDE, SIDE)
    mif, cells = sample.truth["mif"], sample.truth["cells"]
    assert isinstance(mif, Picture)
    assert isinstance(cells, Instances)
    assert mif.channels == dataset_card("orion-crc").truths["mif"].channels
    np.testing.assert_array_equal(mif.data, planes(17, 1))
    assert mif.encoding == "log1p"
    np.testing.assert_array_equal(cells.map, labels())
    assert cells.values is not None
    assert set(cells.values) == {7, 250}  # the third nucleus is not annotated
    names = cells.value_names
    assert [float(cells.values[250][names.index(m)]) for m in ("CD31", "CD45")] == [1.0, 0.0]
    assert float(cells.values[250][names.index("Pan-CK")]) == pytest.approx(0.8)  # no call: the score
    assert np.isnan(cells.values[7][names.index("Pan-CK")])
    assert np.isnan(cells.values[7][names.index("FOXP3")])


def test_restained_copies(orion: Path) -> None:
    """Copies under the same names are a picture of the same field, and take the image's place now and then."""
    told = {"restained": "he-restained"}
    with pytest.raises(UserError, match=r"restained: .*jpeg is not there. Expected a copy of each tile"):
        open_dataset("orion-crc", split="train", arguments=told)
    (orion / "he-restained").mkdir()
    for path in (orion / "he").glob("*.jpeg"):
        Image.fromarray(picture(7)).save(orion / "he-restained" / path.name, quality=95)
    sample = open_dataset("orion-crc", split="train", arguments=told)[0]
    copy = sample.truth["restained"]
    assert isinstance(copy, Picture)
    assert np.abs(copy.data.astype(int) - sample.image).mean() > 20
    augment = Augment([Component(name="restained"), Component(name="flips")])
    taken = [augment(sample, seed) for seed in range(200)]
    assert 0.15 < np.mean([sorted(s.image.ravel()) == sorted(copy.data.ravel()) for s in taken]) < 0.35
    for one in taken[:20]:  # whichever it is, it lies as the fluorescence does
        mif = one.truth["mif"]
        assert isinstance(mif, Picture)
        flip = next(f for f in ((), (-1,), (-2,), (-1, -2)) if np.array_equal(np.flip(mif.data, f), planes(17, 0)))
        back = np.flip(one.image, flip)
        assert np.array_equal(back, sample.image) or np.array_equal(back, copy.data)
    without = sample.with_(truth={})
    assert augment(without, 1).image.shape == sample.image.shape
    with pytest.raises(UserError, match="is no picture"):
        Augment([Component(name="restained", arguments={"truth": "cells", "p": 1})])(sample, 0)
    with pytest.raises(UserError, match="17 channels of uint8"):
        Augment([Component(name="restained", arguments={"truth": "mif", "p": 1})])(sample, 0)


def test_orion_without_tables_of_slides_has_nuclei_alone(orion: Path) -> None:
    (orion / "slide_dataframe.csv").unlink()
    cells = open_dataset("orion-crc", split="val")[0].truth["cells"]
    assert isinstance(cells, Instances)
    assert cells.values is None


def test_planes_that_were_written_as_pixels(orion: Path) -> None:
    """The published tile writer hands planes to a writer that expects pixels."""
    for path in (orion / "if").glob("*.tiff"):
        tifffile.imwrite(path, planes(17), planarconfig="contig", photometric="minisblack")
    mif = open_dataset("orion-crc", split="train")[0].truth["mif"]
    assert isinstance(mif, Picture)
    np.testing.assert_array_equal(mif.data, planes(17))


def test_what_is_wrong_with_tables(orion: Path) -> None:
    for path in (orion / "if").glob("*.tiff"):
        tifffile.imwrite(path, np.moveaxis(planes(16), 0, -1), planarconfig="contig")
    with pytest.raises(DataError, match=r"16 channels. Expected 17, as the card of orion-crc names them: Hoechst"):
        open_dataset("orion-crc", split="train")[0]
    for path in (orion / "cells").glob("*.csv"):
        path.write_text("label,CD99_pos\n7,1\n")
    for path in (orion / "if").glob("*.tiff"):
        tifffile.imwrite(path, np.moveaxis(planes(17), 0, -1), planarconfig="contig")
    with pytest.raises(DataError, match="no column CD31_pos or CD31_score, nor of another marker"):
        open_dataset("orion-crc", split="train")[0]
    (orion / "train_dataframe.csv").write_text(COLUMNS.replace("target_path", "target"))
    with pytest.raises(UserError, match=r'no column "target_path"\. Did you mean image_path, target'):
        open_dataset("orion-crc", split="train")
    for split in ("train", "val", "test"):
        (orion / f"{split}_dataframe.csv").unlink()
    with pytest.raises(UserError, match=r"none of the tables train_dataframe\.csv, val_dataframe\.csv"):
        open_dataset("orion-crc", split="train")


def test_immucan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "immucan"
    root.mkdir()
    Image.fromarray(picture()).save(root / "a.png")
    tifffile.imwrite(root / "a.tif", np.moveaxis(planes(6), 0, -1), planarconfig="contig")
    tifffile.imwrite(root / "n.tif", labels())
    (root / "test_dataframe.csv").write_text(COLUMNS + "s,a.png,a.tif,n.tif\n")
    (root / "slide_dataframe.csv").write_text("in_slide_name,nuclei_csv_path\ns,c.csv\n")
    (root / "c.csv").write_text("label,CD3e_pos,CD8a_pos,CD4_pos,FOXP3_pos,Pan-CK_pos\n7,1,0,1,0,0\n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    sample = open_dataset("immucan", split="test")[0]
    cells = sample.truth["cells"]
    assert isinstance(cells, Instances)
    assert cells.values is not None
    assert cells.values[7].tolist() == [1, 0, 1, 0, 0]


def test_hemit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hemit"
    for split in ("train", "val", "test"):
        for folder in ("input", "label"):
            (root / split / folder).mkdir(parents=True)
            for name in ("one", "two"):
                Image.fromarray(picture(len(folder))).save(root / split / folder / f"{name}.png")
    for folder in ("mask", "csv"):
        (root / "test" / folder).mkdir()
    tifffile.imwrite(root / "test" / "mask" / "one.tif", labels())
    (root / "test" / "csv" / "one.csv").write_text("label,Pan-CK_pos,CD3_pos\n7,1,0\n101,0,1\n250,0,0\n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    one, two = open_dataset("hemit", split="test")
    mif, cells = one.truth["mif"], one.truth["cells"]
    assert isinstance(mif, Picture)
    assert isinstance(cells, Instances)
    assert mif.channels == ("Pan-CK", "CD3", "DAPI")
    np.testing.assert_array_equal(np.moveaxis(mif.data, 0, -1), picture(5))
    assert cells.values is not None
    assert cells.values[101].tolist() == [0, 1]
    assert set(two.truth) == {"mif", "mihc"}
    assert one.spacing == (0.25, 0.25)
    (root / "val" / "label" / "two.png").unlink()
    with pytest.raises(UserError, match="two has no partner in"):
        open_dataset("hemit", split="val")
