"""The other phantoms: each gives what its card says, and its truths agree with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from zoo.cards import dataset_card
from zoo.data.datasets import open_dataset
from zoo.data.phantom import smear
from zoo.data.phantom.reader_slide import SlideReader
from zoo.data.resample import present_ids
from zoo.errors import UserError
from zoo.types import Boxes, Instances, Label, Picture, Sample, Semantic, Vector

SMALL: dict[str, dict[str, Any]] = {
    "phantom-stains": {"size": 128},
    "phantom-mif": {"size": 128},
    "phantom-smear": {"size": [160, 200]},
    "phantom-volume": {"size": [12, 40, 48]},
    "phantom-slide": {"size": [40, 56]},
    "phantom-twin": {"size": 96},
}


def sample(name: str, number: int = 0, split: str = "train", **arguments: Any) -> Sample:
    return open_dataset(name, split=split, arguments={**SMALL[name], **arguments})[number]


@pytest.mark.parametrize("name", SMALL)
def test_cards_and_samples_agree(name: str) -> None:
    card, found = dataset_card(name), sample(name, 1)
    assert set(found.truth) == set(card.truths)
    assert {k: t.kind for k, t in found.truth.items()} == {k: t.kind for k, t in card.truths.items()}
    assert found.axes == card.axes
    assert found.channels == card.channels
    assert len(found.spacing or ()) == len(found.shape)
    for key, truth in found.truth.items():
        if isinstance(truth, Instances):
            assert truth.map.shape == found.shape
            assert truth.map.dtype == np.int32
            if truth.classes is not None:
                assert set(truth.classes) == set(present_ids(truth.map).tolist())
                assert set(truth.classes.values()) <= set(range(1, len(card.truths[key].classes) + 1))
        if isinstance(truth, Picture):
            assert truth.channels == card.truths[key].channels
            assert truth.data.shape == (len(truth.channels), *found.shape)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_a_field_and_splits_differ(name: str) -> None:
    def pixels(**arguments: Any) -> bytes:
        return sample(name, **arguments).image.tobytes()

    assert pixels() == pixels()
    assert len({pixels(), pixels(split="val"), pixels(split="test"), pixels(seed=1), pixels(number=1)}) == 5
    assert len({pixels(difficulty=d) for d in ("easy", "medium", "hard")}) == 3


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_objects_boxes_classes_and_parts_of_a_smear_agree(difficulty: str) -> None:
    seen = 0
    for number in range(3):
        found = sample("phantom-smear", number, difficulty=difficulty, leukocytes=3)
        boxes, objects, parts, nuclei = (found.truth[k] for k in ("cells", "objects", "cell", "nuclei"))
        assert isinstance(boxes, Boxes)
        assert isinstance(objects, Instances)
        assert isinstance(parts, Semantic)
        assert isinstance(nuclei, Instances)
        assert objects.classes is not None
        assert nuclei.classes is not None
        assert boxes.attributes is not None
        assert present_ids(objects.map).tolist() == list(range(1, len(boxes.classes) + 1))
        assert [objects.classes[i + 1] for i in range(len(boxes.classes))] == boxes.classes.tolist()
        for box, where in zip(boxes.xyxy, ndimage.find_objects(objects.map), strict=True):
            assert box.tolist() == [where[1].start, where[0].start, where[1].stop, where[0].stop]
        white = boxes.classes >= smear.FIRST
        assert (boxes.attributes[~white] == -1).all()
        assert (boxes.attributes[white] >= 0).all()
        sizes = [len(values) for values in dataset_card("phantom-smear").truths["cells"].attributes.values()]
        assert (boxes.attributes < np.array(sizes)).all()
        of_white = np.isin(objects.map, 1 + np.flatnonzero(white))
        assert ((parts.map > 0) == of_white).all()
        assert ((nuclei.map > 0) == (parts.map == 2)).all()
        assert (nuclei.map[nuclei.map > 0] == objects.map[nuclei.map > 0]).all()
        seen += int(white.sum())
    assert seen > 2


def test_positive_rates_and_places_come_out_as_asked() -> None:
    for rate in (0.0, 0.3, 1.0):
        found = sample("phantom-stains", 32, marker="Ki67", positive=rate, difficulty="easy", size=224)
        nuclei, cells, ihc = (found.truth[k] for k in ("nuclei", "cells", "ihc"))
        assert isinstance(nuclei, Instances)
        assert isinstance(cells, Instances)
        assert isinstance(ihc, Picture)
        assert nuclei.classes is not None
        assert cells.classes is not None
        assert (nuclei.map == cells.map).all()
        epithelial = [i for i, kind in nuclei.classes.items() if kind == 1]
        assert len(epithelial) > 10
        assert sum(cells.classes[i] == 2 for i in epithelial) == round(rate * len(epithelial))
        if rate == 0.3:
            brown = ihc.data[2].astype(float) - ihc.data[0]  # blue light is what DAB takes away
            positive = [i for i in epithelial if cells.classes[i] == 2]
            negative = [i for i in epithelial if cells.classes[i] == 1]
            inside = {k: brown[np.isin(cells.map, v)].mean() for k, v in (("+", positive), ("-", negative))}
            assert inside["+"] + 30 < inside["-"]


@pytest.mark.parametrize("kind", ["shift", "elastic"])
def test_misalignment_is_what_was_asked_and_is_reported(kind: str) -> None:
    aligned, off = (sample("phantom-stains", 5, offset=o, kind=kind, positive=0.5, size=192) for o in (0, 6))
    report = off.truth["misalignment"]
    assert isinstance(report, Vector)
    assert report.data[2] == pytest.approx(6, rel=1e-3)
    assert (aligned.image == off.image).all()
    (still, first), (moved, second) = ((s.truth["cells"], s.truth["ihc"]) for s in (aligned, off))
    assert isinstance(still, Instances)
    assert isinstance(moved, Instances)
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    x, y = np.rint(report.data[:2]).astype(int)
    inner = (slice(12, -12), slice(12, -12))
    back = np.roll(moved.map, (y, x), (0, 1))[inner] > 0  # what lies at p + shift is shown at p
    dice = {
        k: 2 * (a & b).sum() / (a.sum() + b.sum())
        for k, a, b in (("there", moved.map[inner] > 0, still.map[inner] > 0), ("back", back, still.map[inner] > 0))
    }
    assert dice["there"] < 0.75
    again = np.abs(np.roll(second.data, (y, x), (1, 2)).astype(int) - first.data)[:, *inner].mean()
    if kind == "shift":
        assert dice["back"] > 0.9
        assert again < np.abs(second.data.astype(int) - first.data)[:, *inner].mean() / 2
        sides = {
            k: (m.map > 0) & np.isin(m.map, [i for i, c in (m.classes or {}).items() if c == 2])
            for k, m in (("still", still), ("moved", moved))
        }
        a, b = sides["still"][inner], np.roll(sides["moved"], (y, x), (0, 1))[inner]
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85  # the same cells are positive
    else:
        assert dice["back"] < 0.9


def test_a_cell_shines_as_much_as_it_carries() -> None:
    found = sample("phantom-mif", 6, difficulty="easy", size=256)
    cells, picture = found.truth["cells"], found.truth["mif"]
    assert isinstance(cells, Instances)
    assert isinstance(picture, Picture)
    assert cells.values is not None
    assert cells.classes is not None
    names = dataset_card("phantom-mif").truths["cells"].values
    assert names == picture.channels
    ids = present_ids(cells.map)
    table = np.stack([cells.values[int(i)] for i in ids])
    assert table.shape == (len(ids), len(names))
    kinds = np.array([cells.classes[int(i)] for i in ids])
    channel = names.index("Ki67")
    light = ndimage.mean(picture.data[channel], cells.map, ids)
    assert np.corrcoef(light, table[:, channel])[0, 1] > 0.9
    assert (table[kinds == 1][:, names.index("Pan-CK")] > 0.15).mean() > 0.9
    assert (table[kinds > 1][:, names.index("Pan-CK")] > 0.15).sum() == 0
    assert (table[(kinds >= 2) & (kinds <= 5)][:, names.index("CD45")] > 0.15).mean() > 0.8
    assert (table[kinds == 1][:, names.index("CD45")] > 0.15).sum() == 0


def test_the_low_twin_is_the_same_field_with_less_in_it() -> None:
    found = open_dataset("phantom-twin", split="val", arguments={"size": [50, 66], "weaker": 4})[0]
    low = found.truth["low"]
    assert isinstance(low, Picture)
    assert low.data.shape == found.image.shape
    image, blurred = (p[:, :48, :64].astype(float) for p in (found.image, low.data))
    blocks = [p.reshape(3, 12, 4, 16, 4).mean((2, 4)) for p in (image, blurred)]
    assert np.abs(blocks[0] - blocks[1]).mean() < 4  # the same light over each square
    assert np.abs(np.diff(blurred, axis=2)).mean() < 0.7 * np.abs(np.diff(image, axis=2)).mean()


def test_volumes_are_what_was_asked() -> None:
    found = sample("phantom-volume", 0, size=[24, 64, 64], um=[1.5, 0.5, 0.5], difficulty="easy")
    truth = found.truth["nuclei"]
    assert isinstance(truth, Instances)
    assert found.image.shape == (1, 24, 64, 64)
    assert found.image.dtype == np.uint16
    assert found.spacing == (1.5, 0.5, 0.5)
    bright, dark = found.image[0][truth.map > 0], found.image[0][truth.map == 0]
    assert np.median(bright) > 2 * np.median(dark)
    extents = [
        [(s.stop - s.start) * u for s, u in zip(where, found.spacing, strict=True)]
        for where in ndimage.find_objects(truth.map)
        if all(s.start > 0 and s.stop < n for s, n in zip(where, found.shape, strict=True))
    ]
    assert np.median(extents, axis=0) == pytest.approx(7, abs=1.6)  # round in um, not in voxels


def test_windows_of_a_slide_are_pieces_of_the_whole_at_any_resolution() -> None:
    reader = open_dataset("phantom-slide", arguments={"size": [48, 64], "overview": 4, "um": 2}).reader
    assert isinstance(reader, SlideReader)
    entry = reader.index()[1]
    whole, regions = reader.slide(entry).read(0, 0, 96, 128)
    sample_ = reader.read(entry)
    assert sample_.image.shape == (3, 96, 128)
    assert (sample_.image == whole).all()
    other = reader.slide(entry)
    other.block = 40  # other blocks, the same slide, but for the noise of the camera and the grain of the finest fields
    for y, x, h, w in ((0, 0, 96, 128), (30, 50, 41, 37), (90, 120, 6, 8)):
        part, kinds = reader.slide(entry).read(y, x, h, w)
        assert (part == whole[:, y : y + h, x : x + w]).all()
        assert (kinds == regions[y : y + h, x : x + w]).all()
        apart, apart_kinds = other.read(y, x, h, w)
        assert (apart_kinds == kinds).mean() > 0.95
        assert np.abs(apart.astype(int) - part).mean() < 15
    coarse = open_dataset("phantom-slide", arguments={"size": [48, 64], "overview": 4})[1]
    truth = coarse.truth["regions"]
    assert isinstance(truth, Semantic)
    assert (truth.map == regions[::2, ::2]).mean() > 0.9


def test_a_slide_s_label_follows_from_its_content() -> None:
    found = open_dataset("phantom-slide", split="train", limit=6, arguments={"size": [72, 96], "overview": 8})
    names = found.card.truths["regions"].classes
    for item in found:
        label, regions = item.truth["diagnosis"], item.truth["regions"]
        assert isinstance(label, Label)
        assert isinstance(regions, Semantic)
        tumour = int((regions.map == names.index("tumour")).sum())
        assert (tumour > 0) == bool(label.value)
        assert (regions.map == 0).mean() > 0.1


def test_mistakes_are_said() -> None:
    for name, arguments, said in (
        ("phantom-stains", {"marker": "HER3"}, "HER2"),
        ("phantom-stains", {"kind": "sideways"}, "shift"),
        ("phantom-mif", {"channels": ["DAPI"]}, "Hoechst"),
        ("phantom-smear", {"kinds": {"neutrophile": 1}}, "neutrophil"),
        ("phantom-smear", {"kinds": {"blast": 0}}, "above 0"),
        ("phantom-smear", {"size": 8}, "size"),
        ("phantom-volume", {"size": [64, 64]}, "size"),
        ("phantom-slide", {"um": -1}, "um"),
        ("phantom-volume", {"sites": ["x"]}, "sites"),
    ):
        with pytest.raises(UserError, match=said):
            open_dataset(name, arguments=arguments)
