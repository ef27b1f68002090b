"""Large pictures decoded from maps on disk: what decoding the whole says, in the memory of a tile."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from torch import Tensor

from zoo.errors import UserError
from zoo.families import build
from zoo.families.base import Maps
from zoo.families.cerberus import large
from zoo.families.cerberus.model import Cerberus
from zoo.inference import files, stored
from zoo.inference.predict import Settings, assemble, predict_source, settings_for
from zoo.inference.source import of_array
from zoo.types import InstancesPrediction, LabelPrediction, SemanticPrediction


class Painted(Cerberus):
    """Reads inside, contour and class off the picture's red, green and blue, pixel by pixel."""

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        inner, contour, other = inputs["image"].clamp(0, 1).unbind(1)
        objects = torch.stack([1 - inner - contour, inner, contour], 1).clamp_min(1e-6).log()
        kinds = torch.stack([inner / 3, other, 1 - other], 1) * 5
        maps = {n: objects if t.kind == "objects" else kinds for n, t in self.tasks.items()}
        return {n: m for n, m in maps.items() if n in self.tasks}


def model(output: str = "map") -> Painted:
    options = Cerberus.tiny()
    options["tasks"]["tissue"]["output"] = output
    made = Painted(type(build.create("cerberus", options)).Options.model_validate(options))
    assert made.spec.encoding.mean == (0.0, 0.0, 0.0)
    return made.eval()


def picture(shape: tuple[int, int] = (301, 260), size: float = 6.0, level: float = 0.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    wave, other = (ndimage.gaussian_filter(rng.standard_normal(shape), size) for _ in range(2))
    wave, other = wave / wave.std(), other / other.std()
    wave -= 1.6 * (wave > 1.9)  # holes
    inner, both, kind = (1 / (1 + np.exp(-4 * v)) for v in (wave - level - 0.2, wave - level + 0.2, other))
    return np.rint(np.stack([inner, both - inner, kind], -1) * 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "TILE", 50)
    monkeypatch.setattr(large, "ROWS", 37)


@pytest.mark.parametrize("output", ["map", "label"])
@pytest.mark.parametrize("mpp", ["native", 0.25, 0.8])
def test_what_is_said_of_the_whole(mpp: Any, output: str) -> None:
    family, image = model(output), picture()
    whole, parts = (
        assemble(predict_source(family, of_array(image, family.spec), Settings(mpp=mpp, whole=most)), image.shape[:2])
        for most in (2**24, 1)
    )
    assert set(whole) == set(parts) == {"gland", "lumen", "nuclei", "tissue"}
    for name, first in whole.items():
        second = parts[name]
        if isinstance(first, InstancesPrediction):
            assert isinstance(second, InstancesPrediction)
            assert first.map.max() > 3, name
            np.testing.assert_array_equal(second.map, first.map)
            np.testing.assert_array_equal(second.class_index, first.class_index)
            assert first.scores is not None
            assert second.scores is not None
            np.testing.assert_allclose(second.scores, first.scores, atol=1e-6)
            assert second.classes == first.classes
        elif isinstance(first, SemanticPrediction):
            assert isinstance(second, SemanticPrediction)
            assert first.probability is not None
            assert second.probability is not None
            np.testing.assert_allclose(second.probability, first.probability, atol=1e-6)
            np.testing.assert_array_equal(second.map, first.map)
        else:
            assert isinstance(first, LabelPrediction)
            assert isinstance(second, LabelPrediction)
            assert second.value == first.value
            np.testing.assert_allclose(second.probability, first.probability, atol=1e-6)
    assert {"epithelial", "lymphocyte"} == {whole["nuclei"].classes[i] for i in set(whole["nuclei"].class_index)}


def test_no_object_at_all() -> None:
    family, image = model(), np.zeros((90, 70, 3), np.uint8)
    source = of_array(image, family.spec)
    found = assemble(predict_source(family, source, Settings(mpp="native", whole=1)), image.shape[:2])
    nuclei = found["nuclei"]
    assert isinstance(nuclei, InstancesPrediction)
    assert not nuclei.map.any()
    assert len(nuclei.class_index) == 0


def test_windows_are_small_and_files_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window that is read holds more than a tile, a strip or a piece; results and the folder are as ever."""
    family, image = model(), picture(size=4, level=1.3)
    tifffile.imwrite(tmp_path / "a.tif", image)
    read: list[int] = []
    plain = stored.Room.read

    def watched(room: stored.Room, window: Any) -> Any:
        found = plain(room, window)
        read.append(found[0].size)
        return found

    monkeypatch.setattr(stored.Room, "read", watched)
    for out, most in (("whole", 2**24), ("parts", 1)):
        monkeypatch.setattr(files, "settings_for", lambda *a, m=most, **k: replace(settings_for(*a, **k), whole=m))
        summary = files.predict_files(family, [tmp_path / "a.tif"], tmp_path / out, mpp="native", progress=False)
        assert summary.done == ["a"]
        assert bool(read) == (out == "parts")
    names = [sorted(p.name for p in (tmp_path / out).rglob("*")) for out in ("whole", "parts")]
    assert names[0] == names[1]
    for task in ("gland", "lumen", "nuclei"):
        one, two = (tifffile.imread(tmp_path / out / f"a.{task}.labels.tif") for out in ("whole", "parts"))
        np.testing.assert_array_equal(one, two)
        tables = [(tmp_path / out / f"a.{task}.objects.csv").read_text() for out in ("whole", "parts")]
        assert tables[0] == tables[1]
    assert max(read) < 301 * 260 / 3, max(read)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored.os, "posix_fallocate", full)
    family, image = model(), picture()
    with pytest.raises(UserError, match=r"cannot be kept \(No space left on device\). Expected .* GiB"):
        assemble(predict_source(family, of_array(image, family.spec), Settings(mpp="native", whole=1)), image.shape[:2])
