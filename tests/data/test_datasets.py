"""Opening datasets by name: miniature copies of every published layout, and the real copies where they are here."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo.data
from zoo.cards import dataset_card, dataset_files
from zoo.data.datasets import Dataset, open_dataset
from zoo.data.readers.dsb2018 import modality_of
from zoo.errors import DataError, UserError
from zoo.types import Boxes, Instances, Label, Picture, Semantic

RNG = np.random.default_rng(0)


def picture(path: Path, height: int = 24, width: int = 32, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(path)
    return array


def labels(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture
def glas(tmp_path: Path) -> Path:
    folder = tmp_path / "glas"
    names = ["train_1", "train_2", "train_10", "testA_1", "testB_1"]
    for name in names:
        picture(folder / f"{name}.bmp")
        mask = np.zeros((24, 32))
        mask[2:5, 2:5], mask[10:20, 10:20] = 1, 3
        labels(folder / f"{name}_anno.bmp", mask)
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    rows += [f"{n},{p}, {g},x" for n, p, g in zip(names, (1, 1, 2, 3, 2), ("benign", "malignant") * 3, strict=False)]
    (folder / "Grade.csv").write_bytes("\r".join(rows).encode())
    return tmp_path


def test_glas_in_miniature(glas: Path) -> None:
    data = open_dataset("glas", root=glas)
    assert [e.id for e in data.index] == ["testA_1", "testB_1", "train_1", "train_2", "train_10"]
    assert [e.group for e in open_dataset("glas", split="train", root=glas).index] == [
        "patient-1", "patient-1", "patient-2",
    ]  # fmt: skip
    sample = open_dataset("glas", split="testA", root=glas)[0]
    assert sample.image.shape == (3, 24, 32)
    assert sample.image.dtype == np.uint8
    assert sample.spacing == (0.62, 0.62)
    glands = sample.truth["glands"]
    assert isinstance(glands, Instances)
    assert np.unique(glands.map).tolist() == [0, 1, 3]
    assert sample.truth["grade"] == Label(1)
    with Image.open(glas / "glas" / "testA_1.bmp") as stored:
        assert (sample.image.transpose(1, 2, 0) == np.asarray(stored)).all()


def test_glas_png_without_annotation_or_grades(glas: Path) -> None:
    folder = glas / "glas"
    with Image.open(folder / "train_1.bmp") as image:
        image.save(folder / "train_77.png")
    sample = open_dataset("glas", root=glas)[5]
    assert sample.id == "train_77"
    assert not sample.truth
    (folder / "Grade.csv").write_text("name,patient,grade\rtrain_1,1,strange\r")
    with pytest.raises(UserError, match=r"Grade\.csv:2: 'train_1,1,strange'"):
        open_dataset("glas", root=glas)
    (folder / "Grade.csv").unlink()
    with pytest.raises(UserError, match="names the patient"):
        open_dataset("glas", root=glas)


def test_a_dataset_is_picklable_lazy_and_limited(glas: Path) -> None:
    data = zoo.data.open_dataset("glas", root=glas, limit=2)
    assert isinstance(data, zoo.data.Dataset)
    assert len(data) == 2
    again = pickle.loads(pickle.dumps(data))
    assert (again[1].image == data[1].image).all()
    assert [s.id for s in data.subset([1, 0])] == [data.index[1].id, data.index[0].id]
    (glas / "glas" / "train_1.bmp").write_bytes(b"broken")
    whole = open_dataset("glas", root=glas, split="train")  # opening decodes nothing
    with pytest.raises(DataError, match=r"train_1\.bmp"):
        whole[0]
    assert whole[1].id == "train_2"
    with pytest.raises(UserError, match=r"no image .train_9."):
        whole.position("train_9")


def test_mistakes_in_opening(glas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"It has: testA, testB, train, all. Did you mean testA"):
        open_dataset("glas", split="tstA", root=glas)
    with pytest.raises(UserError, match="Did you mean glas"):
        open_dataset("glass", root=glas)
    with pytest.raises(UserError, match=r'arguments\.colour: unknown key "colour"'):
        open_dataset("glas", arguments={"colour": 1}, root=glas)
    with pytest.raises(UserError, match=r"fold: 5 will not do. Expected 0 to 4"):
        open_dataset("glas", fold=5, root=glas)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as caught:
        open_dataset("glas")
    for part in (str(tmp_path / "nowhere" / "glas"), "ZOO_DATA=DIR", "warwick.ac.uk", "licence: GlaS research"):
        assert part in str(caught.value)
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "config.yaml"))
    with pytest.raises(UserError, match="no data root is set"):
        open_dataset("glas")
    (tmp_path / "config.yaml").write_text(f"data: {glas}\n")
    assert len(open_dataset("glas")) == 5


def test_an_unreadable_data_root(tmp_path: Path) -> None:
    (tmp_path / "glas").write_text("a file, not a folder")
    with pytest.raises(UserError, match="is not there"):
        open_dataset("glas", root=tmp_path)
    (tmp_path / "glas").unlink()
    (tmp_path / "glas").mkdir()
    with pytest.raises(UserError, match=r"Grade\.csv is not there"):
        open_dataset("glas", root=tmp_path)
    (tmp_path / "glas" / "Grade.csv").write_text("name,patient,grade\n")
    with pytest.raises(UserError, match=r"holds no image named train_1\.bmp"):
        open_dataset("glas", root=tmp_path)
    (tmp_path / "glas" / "Grade.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset("glas", root=str(tmp_path))


def test_a_folder_without_rights(glas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(glas / "glas"))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(UserError, match=r"glas cannot be read \(Permission denied\)"):
            open_dataset("glas", root=glas)


def test_size_mismatch_names_both_files(glas: Path) -> None:
    labels(glas / "glas" / "train_1_anno.bmp", np.zeros((24, 33)))
    with pytest.raises(DataError, match=r"train_1_anno\.bmp: the mask has 24 x 33 pixels, its image train_1\.bmp"):
        open_dataset("glas", root=glas, split="train")[0]


def test_folds_hold_out_patients(glas: Path) -> None:
    held: list[str] = []
    for fold in range(3):
        parts = {p: open_dataset("glas", root=glas, fold=fold, folds=3, part=p) for p in ("train", "validate")}  # type: ignore[arg-type]
        groups = [{e.group for e in part.index} for part in parts.values()]
        assert not groups[0] & groups[1]
        assert sum(map(len, parts.values())) == 5
        held += [e.id for e in parts["validate"].index]
    assert sorted(held) == sorted(e.id for e in open_dataset("glas", root=glas).index)


@pytest.fixture
def wbc(tmp_path: Path) -> Path:
    folder = tmp_path / "wbc"
    for number in (1, 112, 139):
        picture(folder / "Dataset 1" / f"{number:03d}.bmp")
        mask = np.zeros((24, 32))
        mask[4:20, 4:20], mask[8:12, 8:12] = 128, 255
        mask[0, :3] = (2, 7, 42)
        labels(folder / "Dataset 1" / f"{number:03d}.png", mask)
    (folder / "Class Labels of Dataset 1.csv").write_bytes(b"image ID,class label\r\n1,2\r\n112,1\r\n")
    return tmp_path


def test_wbc_in_miniature(wbc: Path) -> None:
    data = open_dataset("wbc-1", root=wbc)
    assert [(e.id, e.group) for e in data.index] == [("001", None), ("112", "same-as-112"), ("139", "same-as-112")]
    sample = data[0]
    cell = sample.truth["cell"]
    assert isinstance(cell, Semantic)
    assert cell.ignore == 255
    assert cell.map[0, :4].tolist() == [255, 255, 255, 0]
    assert (cell.map[10, 10], cell.map[5, 5]) == (2, 1)
    assert sample.truth["type"] == Label(1)
    assert sample.center == "jiangxi-tecom"
    assert sample.spacing is None
    boxes = sample.truth["cells"]
    assert isinstance(boxes, Boxes)
    assert (boxes.xyxy.tolist(), boxes.classes.tolist()) == ([[4, 4, 20, 20]], [1])
    assert "type" not in data[2].truth
    with pytest.raises(UserError, match=r"of its 143 images are not here .* zoo data check wbc-1"):
        open_dataset("wbc-1", split="train", root=wbc)
    with pytest.raises(UserError, match="holds no image"):
        open_dataset("wbc-2", root=wbc)
    (wbc / "wbc" / "Class Labels of Dataset 1.csv").write_text("image,class\n1,9\n")
    with pytest.raises(UserError, match=r"csv:2: '1,9' will not do"):
        open_dataset("wbc-1", root=wbc)


@pytest.fixture
def dsb(tmp_path: Path) -> Path:
    base = tmp_path / "dsb2018" / "stage1_train"
    looks: dict[str, Callable[[], np.ndarray]] = {
        "aa": lambda: RNG.integers(0, 255, (16, 20, 3)),
        "bb": lambda: np.full((16, 20, 3), 9),
        "cc": lambda: np.full((16, 20, 3), 220),
    }
    for name, look in looks.items():
        (base / name / "images").mkdir(parents=True)
        rgba = np.dstack([look(), np.full((16, 20), 255)]).astype(np.uint8)
        Image.fromarray(rgba).save(base / name / "images" / f"{name}.png")
        for number, box in enumerate([(0, 5), (4, 9), None]):
            mask = np.zeros((16, 20))
            if box:
                mask[box[0] : box[1], 3:8] = 255
            labels(base / name / "masks" / f"{number}.png", mask)
    return tmp_path


def test_dsb2018_in_miniature(dsb: Path) -> None:
    """Images that the committed table does not know are told apart by the rule; masks overlap and are empty."""
    for modality, name in (("he", "aa"), ("fluorescence", "bb"), ("brightfield", "cc")):
        data = open_dataset(f"dsb2018-{modality}", root=dsb)
        assert [(e.id, e.group) for e in data.index] == [(name, None)]
        sample = data[0]
        nuclei = sample.truth["nuclei"]
        assert isinstance(nuclei, Instances)
        assert sample.image.shape == (3, 16, 20)
        assert np.unique(nuclei.map).tolist() == [0, 1, 2]
        assert (nuclei.map[4, 5], nuclei.map[5, 5]) == (1, 2)  # the shared row belongs to the first file
    assert len(open_dataset("dsb2018-he", root=dsb, arguments={"modality": "all"})) == 3
    labels(dsb / "dsb2018" / "stage1_train" / "aa" / "masks" / "0.png", np.zeros((5, 5)))
    with pytest.raises(DataError, match=r"0\.png: the mask has 5 x 5"):
        open_dataset("dsb2018-he", root=dsb)[0]
    (dsb / "empty" / "dsb2018").mkdir(parents=True)
    with pytest.raises(UserError, match="stage1_train is not there"):
        open_dataset("dsb2018-he", root=dsb / "empty")


def test_the_committed_dsb2018_table_is_whole(root: Path) -> None:
    table = json.loads((root / "datasets" / "dsb2018.json").read_text())
    count = {m: [i for i, (kind, _) in table.items() if kind == m] for m in ("fluorescence", "he", "brightfield")}
    assert {m: len(ids) for m, ids in count.items()} == {"fluorescence": 104, "he": 83, "brightfield": 5}
    for modality, ids in count.items():
        splits = json.loads((root / "datasets" / f"dsb2018-{modality}.json").read_text())
        assert sorted(i for part in splits.values() for i in part) == sorted(ids)
        groups = [{table[i][1] for i in part} for part in splits.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))


def voc(path: Path, *boxes: tuple[str, int, int, int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    things = "".join(
        f"<object><name>{n}</name><truncated>{t}</truncated><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for n, t, a, b, c, d in boxes
    )
    path.write_text(f"<annotation>{things}</annotation>")


def test_bccd_in_miniature(tmp_path: Path) -> None:
    base = tmp_path / "bccd" / "BCCD"
    for number in range(3):
        picture(base / "JPEGImages" / f"BloodImage_0000{number}.jpg")
    voc(base / "Annotations" / "BloodImage_00000.xml", ("WBC", 0, 1, 2, 20, 22), ("RBC", 1, 5, 5, 5, 9))
    voc(base / "Annotations" / "BloodImage_00001.xml", ("WHAT", 0, 1, 2, 20, 22))
    (base / "ImageSets" / "Main").mkdir(parents=True)
    (base / "ImageSets" / "Main" / "train.txt").write_text("BloodImage_00000\nBloodImage_00001\n")
    data = open_dataset("bccd", root=tmp_path, split="train")
    cells = data[0].truth["cells"]
    assert isinstance(cells, Boxes)
    assert cells.xyxy.tolist() == [[1, 2, 20, 22]]
    assert cells.classes.tolist() == [2]
    assert cells.attributes is not None
    assert cells.attributes.tolist() == [[0]]
    with pytest.raises(DataError, match='unknown class "WHAT"'):
        data[1]
    assert not open_dataset("bccd", root=tmp_path)[2].truth
    voc(base / "Annotations" / "BloodImage_00001.xml", ("RBC", 0, 32, 2, 40, 22))
    with pytest.raises(DataError, match="lies outside the image of 24 x 32"):
        data[1]
    (base / "Annotations" / "BloodImage_00001.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="no Pascal VOC"):
        data[1]


def test_deepliif_in_miniature(tmp_path: Path) -> None:
    array = picture(tmp_path / "deepliif" / "train" / "Lung1.png", 8, 48)
    picture(tmp_path / "deepliif" / "val" / "Lung1.png", 8, 40)
    data = open_dataset("deepliif", root=tmp_path)
    assert [(e.id, e.group) for e in data.index] == [("train/Lung1", "Lung1"), ("val/Lung1", "Lung1")]
    sample = data[0]
    assert (sample.image == array[:, :8].transpose(2, 0, 1)).all()
    marker = sample.truth["marker"]
    assert isinstance(marker, Picture)
    assert (marker.data == array[:, 32:40].transpose(2, 0, 1)).all()
    with pytest.raises(DataError, match="6 square tiles"):
        data[1]


def test_images_that_come_with_packages() -> None:
    flat = open_dataset("stardist-2d", split="test")[0]
    assert (flat.image.shape, flat.image.dtype) == ((1, 512, 512), np.uint16)
    nuclei = flat.truth["nuclei"]
    assert isinstance(nuclei, Instances)
    assert len(np.unique(nuclei.map)) == 126
    deep = open_dataset("stardist-3d")[0]
    assert (deep.axes, deep.image.shape) == ("CZYX", (1, 31, 61, 57))
    assert isinstance(deep.truth["nuclei"], Instances)
    assert len(np.unique(deep.truth["nuclei"].map)) == 52
    for name, shape in (("stardist-he", (3, 300, 500)), ("skimage-ihc", (3, 512, 512))):
        sample = open_dataset(name)[0]
        assert (sample.image.shape, sample.image.dtype, sample.truth) == (shape, np.uint8, {})
    arguments: dict[str, Any] = {"package": "no_such_package"}
    with pytest.raises(UserError, match="not installed"):
        open_dataset("stardist-2d", arguments=arguments)
    with pytest.raises(UserError, match="came without"):
        open_dataset("stardist-2d", arguments={"image": "data/none.tif"})


def test_opening_imports_no_heavy_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from zoo.data import open_dataset; open_dataset('stardist-2d')[0]; "
        "heavy = {'torch', 'stardist', 'skimage', 'scipy', 'cv2', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(dataset_files()))
def test_every_card_is_valid_and_says_what_one_may_do(name: str) -> None:
    card = dataset_card(name)
    assert card.name == name
    assert card.licence.name
    assert card.source.url or card.reader.name not in ("glas", "dsb2018", "wbc", "bccd", "deepliif")
    for truth in card.truths.values():
        assert truth.kind == "picture" or truth.classes or truth.values


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "images", "groups"),
    [
        ("glas", 105, 15),
        ("dsb2018-fluorescence", 104, 85),
        ("dsb2018-he", 83, 28),
        ("dsb2018-brightfield", 5, 5),
        ("wbc-1", 240, 239),
        ("wbc-2", 40, 40),
        ("bccd", 292, 292),
        ("deepliif", 3, 3),
    ],
)
def test_real_copies(data_root: Path, name: str, images: int, groups: int) -> None:
    data = open_dataset(name, root=data_root)
    assert len(data) >= images
    assert len({e.unit for e in data.index}) >= groups
    for position in range(0, len(data), max(1, len(data) // 4)):
        sample = data[position]
        assert sample.image.shape[0] == 3
        assert set(sample.truth) <= set(data.card.truths)
        if name.startswith("dsb2018"):
            assert f"dsb2018-{modality_of(sample.image)}" == name


@pytest.mark.data
@pytest.mark.parametrize("name", ["dsb2018-fluorescence", "dsb2018-he", "dsb2018-brightfield", "wbc-1", "wbc-2"])
def test_fixed_splits_are_whole_and_apart(data_root: Path, name: str) -> None:
    parts: list[Dataset] = [open_dataset(name, split=s, root=data_root) for s in ("train", "val", "test")]
    assert all(len(part) for part in parts)
    units = [{e.unit for e in part.index} for part in parts]
    assert sum(map(len, units)) == len(set.union(*units))
