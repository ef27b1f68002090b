"""NIfTI volumes in miniature: orientation, spacing, ids by name, and files that are broken."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from zoo.cards import dataset_card
from zoo.data.datasets import Dataset, open_dataset
from zoo.errors import DataError, UserError
from zoo.types import Semantic

CARD = """zoo: 1
name: bodies
summary: Two volumes.
reader:
  name: nifti
  arguments:
    volumes:
      ct: {image: ct.nii.gz, labels: ct_labels.nii.gz, center: ct}
      mr: {image: mr.nii.gz, labels: mr_labels.nii.gz, center: mr}
licence: {name: own, allows: []}
source: {steps: [Make them.]}
layout: Two pairs.
axes: CZYX
channels: [intensity]
truths:
  organs: {kind: semantic, classes: [background, liver, spleen]}
"""


def table(**names: int) -> Any:
    labels = "".join(f'<Label Key="{i}" Red="1"><![CDATA[{name}]]></Label>\n' for name, i in names.items())
    text = f'<?xml version="1.0"?><CaretExtension><LabelTable>\n{labels}</LabelTable></CaretExtension>'
    return nibabel.nifti1.Nifti1Extension("ignore", text.encode())


def save(path: Path, zyx: np.ndarray, zooms: tuple[float, float, float] = (1, 1, 1), extension: Any = None) -> None:
    """Save a volume given as (head, back, left): as its file would have it whose x axis goes to the right."""
    image = nibabel.Nifti1Image(zyx[:, ::-1, ::-1].transpose(2, 1, 0), np.diag([*zooms, 1.0]))
    image.header.set_xyzt_units("mm")
    if extension is not None:
        image.header.extensions.append(extension)
    nibabel.save(image, path)


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    (tmp_path / "zoo-dataset.yaml").write_text(CARD)
    zyx = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    save(tmp_path / "ct.nii.gz", zyx, (0.5, 1.0, 3.0))
    save(tmp_path / "ct_labels.nii.gz", (zyx % 3).astype(np.uint8), extension=table(spleen=1, liver=2))
    lps = nibabel.Nifti1Image(zyx.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))  # the other way round
    nibabel.save(lps, tmp_path / "mr.nii.gz")
    save(tmp_path / "mr_labels.nii.gz", (zyx % 4).astype(np.uint8))
    return tmp_path


def test_volumes_in_one_orientation_with_their_spacing(bodies: Path) -> None:
    data = open_dataset(bodies, split="all")
    ct, mr = data
    expected = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    for sample in (ct, mr):
        np.testing.assert_array_equal(sample.image, expected)
        assert sample.image.dtype == np.int16
        assert sample.image.flags.c_contiguous
        assert sample.axes == "CZYX"
    assert (ct.id, ct.center, ct.spacing) == ("ct", "ct", (3000.0, 1000.0, 500.0))
    assert mr.spacing == (1000.0, 1000.0, 1000.0)


def organs(data: Dataset, position: int) -> np.ndarray:
    truth = data[position].truth["organs"]
    assert isinstance(truth, Semantic)
    assert truth.ignore == 255
    return truth.map


def test_ids_are_matched_by_name_where_the_file_names_them(bodies: Path) -> None:
    data = open_dataset(bodies, split="all")
    number = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(organs(data, 0), np.array([0, 2, 1])[number % 3])
    np.testing.assert_array_equal(organs(data, 1), np.array([0, 1, 2, 255])[number % 4])  # an id that no class has


def test_broken_and_absent_files_are_named(bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(bodies, split="all")
    save(bodies / "mr_labels.nii.gz", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(DataError, match=r"mr_labels.nii.gz: shape \(2, 3, 5\), that of the volume is \(2, 3, 4\)"):
        data[1]
    whole = (bodies / "ct.nii.gz").read_bytes()
    for content in (b"no volume", whole[: len(whole) // 2]):
        (bodies / "ct.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"ct.nii.gz: cannot be read as NIfTI"):
            data[0]
    (bodies / "ct.nii.gz").unlink()
    assert [entry.id for entry in open_dataset(bodies, split="all").index] == ["mr"]
    (bodies / "mr.nii.gz").unlink()
    with pytest.raises(UserError, match=r"holds none of ct.nii.gz, mr.nii.gz"):
        open_dataset(bodies, split="all")


def test_without_nibabel_it_says_what_to_install(bodies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(bodies, split="all")
    load = builtins.__import__
    monkeypatch.delitem(sys.modules, "nibabel")
    monkeypatch.setattr(
        builtins, "__import__", lambda n, *a, **k: load("no-such-package" if n == "nibabel" else n, *a, **k)
    )
    with pytest.raises(UserError, match=r"pip install 'histozoo\[volumes\]'"):
        data[0]


def test_the_real_files(data_root: Path) -> None:
    data = open_dataset("totalsegmentator", split="all", root=data_root)
    ct, mr = data
    assert [ct.image.shape, mr.image.shape] == [(1, 30, 101, 122), (1, 20, 91, 117)]
    assert ct.spacing == mr.spacing == (3000.0, 3000.0, 3000.0)
    classes = dataset_card("totalsegmentator").truths["organs"].classes
    for position in range(2):
        found = organs(data, position)
        assert found.max() < len(classes)  # every id has a name
        assert (found == classes.index("liver")).sum() > 5000
        _, y, x = np.nonzero(found == classes.index("liver"))
        _, _, spleen = np.nonzero(found == classes.index("spleen"))
        assert x.mean() < spleen.mean()  # the patient's right comes first
        _, front, _ = np.nonzero(found == classes.index("spinal_cord"))
        assert y.mean() < front.mean()  # and the front before the back
