"""What holds for every layout: flips, densities, sites, no tricks, bytes."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.datasets import open_dataset
from zoo.data.phantom import he, immuno, layout, markers, smear, volume
from zoo.data.phantom.noise import Noise, cloud
from zoo.data.phantom.optics import RANGES, Camera, Draws, Site
from zoo.data.resample import present_ids
from zoo.types import Boxes, Instances, Picture, Sample

FEW = settings(max_examples=6, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)
DIFFICULTIES = st.sampled_from(["easy", "medium", "hard"])


def plain(camera: Camera) -> Camera:
    """Return a camera that packs nothing: JPEG's blocks do not turn with the picture."""
    return replace(camera, quality=None)


def within_one(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(np.abs(a.astype(int) - b).max() <= 1)


@FEW
@given(SEEDS, DIFFICULTIES, st.sampled_from([0, 1]))
def test_flipping_a_layout_flips_every_rendering(seed: int, difficulty: str, axis: int) -> None:
    laid = layout.lay_out(seed, (90, 110), 0.5, layout.ANATOMY[difficulty])
    turned = laid.flipped(axis)
    draws, limits = Draws((seed,)), RANGES[difficulty]
    stain = he.draw_stain(draws, difficulty)
    stain = replace(stain, camera=plain(stain.camera))
    brown = immuno.draw_brown(draws, limits)
    brown = replace(brown, camera=plain(brown.camera))
    names = ("HER2", "Ki67", "Pan-CK")
    pictures = []
    for one in (laid, turned):
        cells = markers.cells_of(one)
        amounts = {name: markers.carried(one, cells.types, name, 0.4)[1] for name in names}
        shift = immuno.displacement(one, 4, "elastic")
        pictures.append(
            [
                he.render(one, stain),
                *(immuno.immunohistochemistry(one, cells, n, amounts[n], brown) for n in names),
                immuno.immunohistochemistry(one, cells, names[0], amounts[names[0]], brown, shift),
                immuno.fluorescence(one, cells, amounts, ("Hoechst", *names), draws, limits),
                one.cut(cells.body)[None],
            ]
        )
    for first, second in zip(*pictures, strict=True):
        assert within_one(np.flip(first, axis + 1), second)
    assert (pictures[0][0] != pictures[1][0]).any()


@FEW
@given(SEEDS, DIFFICULTIES, st.sampled_from([0, 1]))
def test_flipping_a_smear_flips_its_picture(seed: int, difficulty: str, axis: int) -> None:
    crowd = smear.CROWDS[difficulty]
    laid = smear.lay_out(seed, (70, 80), 0.2, crowd, 1.0, Draws((seed,)), (1,) * 6)
    stain = smear.draw_stain(Draws((seed,)), crowd, RANGES[difficulty])
    stain = replace(stain, camera=plain(stain.camera))
    turned = laid.flipped(axis)
    assert within_one(np.flip(smear.render(laid, stain), axis + 1), smear.render(turned, stain))
    first, second = smear.census(laid), smear.census(turned)
    assert (np.flip(first.objects, axis) == second.objects).all()
    size = first.objects.shape[axis]
    low, high = (1, 3) if axis == 0 else (0, 2)
    assert (first.boxes[:, low] == size - second.boxes[:, high]).all()


@FEW
@given(SEEDS, DIFFICULTIES, st.sampled_from([0, 1, 2]))
def test_flipping_a_volume_flips_its_picture(seed: int, difficulty: str, axis: int) -> None:
    depths = volume.DEPTHS[difficulty]
    laid = volume.lay_out(seed, (8, 20, 24), (1.5, 0.5, 0.5), depths)
    first, second = volume.render(laid, depths), volume.render(laid.flipped(axis), depths)
    assert np.abs(np.flip(first, axis + 1).astype(int) - second).max() <= 257  # one grey level of 255


@FEW
@given(SEEDS, st.integers(-5000, 5000), st.integers(-5000, 5000), st.sampled_from([3.0, 9.0, 40.0, 120.0]))
def test_a_window_continues_the_plane(seed: int, y: int, x: int, scale: float) -> None:
    whole = Noise(seed, (80, 96), 0.5, (y, x)).smooth("k", scale)
    part = Noise(seed, (30, 40), 0.5, (y + 17, x + 23)).smooth("k", scale)
    assert np.abs(whole[17:47, 23:63] - part).max() < 1e-4
    at_y, at_x = ((np.arange(n) + 0.5 + o) * 0.5 for n, o in ((80, y), (96, x)))
    assert np.abs(cloud(seed, "k", scale, at_y[:, None], at_x[None]) - whole).max() < 0.35
    points = cloud(seed, "k", scale, at_y[5:9], at_x[5:9])
    grid = cloud(seed, "k", scale, at_y[5:9, None], at_x[None, 5:9])
    assert np.abs(np.diagonal(grid) - points).max() < 1e-3


@FEW
@given(SEEDS, DIFFICULTIES)
def test_ids_classes_and_pixels_agree(seed: int, difficulty: str) -> None:
    arguments = {"seed": seed, "difficulty": difficulty, "size": [64, 80]}
    for item in (
        open_dataset("phantom-multitask", split="val", arguments=arguments)[0],
        open_dataset("phantom-smear", split="val", arguments=arguments)[0],
    ):
        for truth in item.truth.values():
            if isinstance(truth, Instances) and truth.classes is not None:
                assert set(truth.classes) == set(present_ids(truth.map).tolist())
        boxes, objects = item.truth.get("cells"), item.truth.get("objects")
        if isinstance(boxes, Boxes) and isinstance(objects, Instances):
            where = ndimage.find_objects(objects.map)
            assert len(where) == len(boxes.classes)
            for box, (rows, columns) in zip(boxes.xyxy, where, strict=True):
                assert box.tolist() == [columns.start, rows.start, columns.stop, rows.stop]


@pytest.mark.parametrize(("lymphocytes", "fibroblasts"), [(1.0, 2.0), (3.0, 1.0)])
def test_densities_come_out_as_asked(lymphocytes: float, fibroblasts: float) -> None:
    anatomy = replace(layout.ANATOMY["medium"], lymphocytes=lymphocytes, fibroblasts=fibroblasts)
    found, shown, area = np.zeros(2), np.zeros(2), np.zeros(2)
    for number in range(10):
        laid = layout.lay_out(500 + number, (280, 280), 0.5, anatomy, even=True)
        kinds = (laid.classes == layout.LYMPHOCYTE, (laid.classes == layout.FIBROBLAST) & ~laid.walls)
        stroma = laid.tissue == layout.STROMA
        area += [m.sum() * 0.25 / 1000 for m in (stroma, laid.cut(stroma))]
        whole, part = (
            np.bincount(m.ravel(), minlength=len(laid.classes) + 1)[1:] for m in (laid.nuclei, laid.cut(laid.nuclei))
        )
        found += [k.sum() for k in kinds]
        shown += [(part / np.maximum(whole, 1))[k].sum() for k in kinds]
    assert found / area[0] == pytest.approx([lymphocytes, fibroblasts], rel=0.06)
    assert shown / area[1] == pytest.approx([lymphocytes, fibroblasts], rel=0.2)  # crowds lie in the margin, or do not


@pytest.mark.parametrize("marker", list(markers.MARKERS))
def test_a_marker_sits_where_it_belongs(marker: str) -> None:
    laid = layout.lay_out(7, (200, 200), 0.5, layout.ANATOMY["easy"])
    cells = markers.cells_of(laid)
    main = markers.TYPES.index(next(iter(markers.MARKERS[marker].carriers))) + 1
    positive, amount = markers.carried(laid, cells.types, marker, 0.5)
    shown = np.isin(np.arange(1, len(cells.types) + 1), laid.cut(laid.nuclei)) & (cells.types == main)
    assert positive[shown].sum() == round(0.5 * shown.sum())
    assert (amount[~positive] < 0.1).all()
    everywhere = markers.laid(laid, cells, marker, np.ones(len(cells.types), np.float32))
    inside, around = laid.nuclei > 0, (cells.body > 0) & (laid.nuclei == 0)
    place = markers.MARKERS[marker].place
    assert (everywhere[inside].mean() > 2 * everywhere[around].mean()) == (place == "nucleus")
    assert everywhere[cells.body == 0].max(initial=0) < 0.5


def test_sites_have_their_own_look_and_slides_of_one_site_share_it() -> None:
    def tone(site: Site, slide: int) -> Any:
        stain = he.draw_stain(Draws((0, 0, slide), site), "medium")
        return np.concatenate([stain.matrix.ravel() * 3, [stain.haematoxylin, stain.eosin], stain.camera.white / 40])

    sites: tuple[Site, ...] = ("a", "b", "c", "d", "e", "f")
    table = {site: [tone(site, slide) for slide in range(4)] for site in sites}
    within = np.mean([np.linalg.norm(t - np.mean(ts, 0)) for ts in table.values() for t in ts])
    middles = [np.mean(ts, 0) for ts in table.values()]
    between = np.mean([np.linalg.norm(m - np.mean(middles, 0)) for m in middles])
    assert between > 4 * within
    dataset = open_dataset("phantom-nuclei", split="train", arguments={"sites": ["b", "d"], "size": 32, "train": 32})
    assert [e.center for e in dataset.index[::8]] == ["site-b", "site-d", "site-b", "site-d"]
    assert dataset[8].center == "site-d"


# --- bytes ------------------------------------------------------------------------------------------------------------

STORED = Path(__file__).parent / "phantom_bytes.json"
PICTURES = Path(__file__).parent / "phantom_pictures.npz"
SMALL: dict[str, dict[str, Any]] = {
    "phantom-nuclei": {"size": 64},
    "phantom-multitask": {"size": 64, "difficulty": "hard"},
    "phantom-stains": {"size": 64, "offset": 3, "kind": "elastic"},
    "phantom-mif": {"size": 64},
    "phantom-smear": {"size": 96},
    "phantom-volume": {"size": [8, 32, 32]},
    "phantom-slide": {"size": [32, 40]},
}


def this_platform() -> str:
    """Return what bytes may depend on: system, processor's widest arithmetic, versions of what computes."""
    from numpy._core._multiarray_umath import __cpu_features__ as features  # type: ignore[attr-defined]

    wide = next((f for f in ("AVX512_SKX", "AVX2", "ASIMD") if features.get(f)), "plain")
    numpy, opencv = (".".join(v.split(".")[:2]) for v in (np.__version__, cv2.__version__))
    return f"{sys.platform}-{platform.machine()}-{wide}-numpy{numpy}-opencv{opencv}"


def reference(name: str) -> Sample:
    return open_dataset(name, split="test", arguments=SMALL[name])[2]


def digest(item: Sample) -> str:
    state = hashlib.sha256(item.image.tobytes())
    for key in sorted(item.truth):
        truth = item.truth[key]
        for part in ("map", "xyxy", "attributes", "data", "value"):
            value = getattr(truth, part, None)
            if value is not None and not (part == "data" and not isinstance(truth, Picture)):
                state.update(np.ascontiguousarray(value).tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("name", SMALL)
def test_the_bytes_are_the_stored_ones(name: str) -> None:
    item = reference(name)
    stored = json.loads(STORED.read_text()).get(this_platform())
    if stored is not None:
        assert digest(item) == stored[name]
    kept = np.load(PICTURES)[name]
    level = 257 if kept.dtype == np.uint16 else 1
    apart = np.abs(kept.astype(int) - item.image) > level  # an edge may fall to the other side of a pixel
    assert apart.mean() < 0.002


def record() -> None:
    """Store bytes and pictures anew: `python tests/data/test_phantom_properties.py`."""
    known = json.loads(STORED.read_text()) if STORED.exists() else {}
    known[this_platform()] = {name: digest(reference(name)) for name in SMALL}
    STORED.write_text(json.dumps(known, indent=1) + "\n")
    np.savez_compressed(PICTURES, **{name: reference(name).image for name in SMALL})


if __name__ == "__main__":
    record()
