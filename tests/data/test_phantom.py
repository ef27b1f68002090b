"""The phantom: one seed one field, truths that agree with each other and the picture, splits that share nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from zoo.cards import dataset_card
from zoo.data.datasets import open_dataset
from zoo.data.phantom import layout as tissue
from zoo.data.phantom import reader
from zoo.errors import UserError
from zoo.types import Instances, Sample, Semantic

KINDS = [60, 2, 16]
SHARES = [0.0, 0.3095, 0.4759, 0.2145]
NAMES = ("phantom-nuclei", "phantom-glands", "phantom-multitask")
DIFFICULTIES = ("easy", "medium", "hard")


def sample(number: int = 0, split: str = "train", **arguments: Any) -> Sample:
    return open_dataset("phantom-multitask", split=split, arguments={"size": 160, **arguments})[number]


def digest(field: Sample) -> str:
    state = hashlib.sha256(field.image.tobytes())
    for key in sorted(field.truth):
        for name in ("map", "xyxy", "data", "attributes", "value"):
            value = getattr(field.truth[key], name, None)
            if value is not None:
                state.update(np.asarray(value).tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_cards_and_samples_agree(name: str) -> None:
    card = dataset_card(name)
    dataset = open_dataset(name, split="val", arguments={"size": 96})
    found = dataset[1]
    assert found.image.shape == (3, 96, 96)
    assert found.image.dtype == np.uint8
    assert set(found.truth) == set(card.truths)
    assert {key: truth.kind for key, truth in found.truth.items()} == {k: t.kind for k, t in card.truths.items()}
    assert found.spacing == (card.spacing.um, card.spacing.um)
    assert card.truths.get("nuclei") is None or card.truths["nuclei"].classes == tissue.NUCLEI
    assert "tissue" not in card.truths or card.truths["tissue"].classes == tissue.TISSUE


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("number", [0, 3])
def test_truths_agree_with_each_other(difficulty: str, number: int) -> None:
    field = sample(number, difficulty=difficulty)
    nuclei, glands, lumina, classes = (field.truth[k] for k in ("nuclei", "glands", "lumina", "tissue"))
    assert isinstance(nuclei, Instances)
    assert isinstance(glands, Instances)
    assert isinstance(lumina, Instances)
    assert isinstance(classes, Semantic)
    assert nuclei.classes is not None
    assert set(nuclei.classes) == set(np.unique(nuclei.map).tolist()) - {0}
    assert set(nuclei.classes.values()) <= {1, 2, 3}
    assert nuclei.map.dtype == glands.map.dtype == np.int32
    assert ((glands.map > 0) == np.isin(classes.map, (tissue.EPITHELIUM, tissue.LUMEN))).all()
    assert ((lumina.map > 0) == (classes.map == tissue.LUMEN)).all()
    for label, kind in nuclei.classes.items():
        under = classes.map[nuclei.map == label]
        home = tissue.EPITHELIUM if kind == tissue.EPITHELIAL else tissue.STROMA
        if len(under) > 20:  # at the border a nucleus may show only its other end
            assert (under == home).mean() > 0.6
    for lumen in set(np.unique(lumina.map).tolist()) - {0}:
        assert len(np.unique(glands.map[lumina.map == lumen])) == 1  # a cavity belongs to one gland


def test_the_picture_shows_its_truth() -> None:
    field = sample(3, difficulty="easy")
    red = field.image[0].astype(float)
    nuclei, classes = field.truth["nuclei"], field.truth["tissue"]
    assert isinstance(nuclei, Instances)
    assert isinstance(classes, Semantic)
    inside, outside = red[nuclei.map > 0], red[nuclei.map == 0]
    assert np.median(inside) + 60 < np.median(outside)
    bright = field.image.min(0)
    if (classes.map == tissue.LUMEN).any():
        assert np.median(bright[classes.map == tissue.LUMEN]) > np.median(bright[classes.map == tissue.STROMA]) + 20
    # to the pixel: moving the truth by two pixels either way fits worse
    mask = nuclei.map > 0
    fits = {(dy, dx): red[np.roll(mask, (dy, dx), (0, 1))].mean() for dy in (-2, 0, 2) for dx in (-2, 0, 2)}
    assert min(fits, key=lambda k: fits[k]) == (0, 0)


def test_one_seed_one_field_in_any_process() -> None:
    here = digest(sample(5))
    assert here == digest(sample(5))
    code = (
        "import sys; sys.path.insert(0, 'tests/data'); from test_phantom import digest, sample;print(digest(sample(5)))"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == here


def test_layout_is_the_recorded_one() -> None:
    """Numbers that a change of the generator would move, with room for another processor's last digit."""
    _, laid = reader.field(0, "test", 3, size=192)
    kinds = np.bincount(laid.classes, minlength=4)[1:]
    shares = np.bincount(laid.cut(laid.tissue).ravel(), minlength=6)[:4] / 192**2
    assert kinds.tolist() == pytest.approx(KINDS, abs=1)
    assert shares.tolist() == pytest.approx(SHARES, abs=0.005)


def test_splits_seeds_and_difficulties_differ() -> None:
    fields = [sample(2, split) for split in ("train", "val", "test")]
    fields += [sample(2, seed=1), sample(3), *(sample(2, difficulty=d) for d in ("easy", "hard"))]
    assert len({digest(f) for f in fields}) == len(fields)
    whole = open_dataset("phantom-nuclei").index
    ids = {split: {e.id for e in whole if e.split == split} for split in ("train", "val", "test")}
    groups = {split: {e.group for e in whole if e.split == split} for split in ids}
    assert sum(map(len, ids.values())) == len(whole) == len({e.id for e in whole})
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]


def test_a_slide_shares_its_stain() -> None:
    def tone(number: int) -> Any:
        field = sample(number, difficulty="easy", size=128)
        truth = field.truth["tissue"]
        assert isinstance(truth, Semantic)
        return np.median(field.image[:, truth.map == tissue.STROMA], axis=1)

    within = np.linalg.norm(tone(0) - tone(1)) + np.linalg.norm(tone(8) - tone(9))
    between = np.linalg.norm(tone(0) - tone(8)) + np.linalg.norm(tone(1) - tone(9))
    assert within < between


def _otsu_dice(field: Sample) -> float:
    truth = field.truth["nuclei"]
    assert isinstance(truth, Instances)
    mask = truth.map > 0
    scores = []
    for plane in (cv2.cvtColor(np.moveaxis(field.image, 0, -1).copy(), cv2.COLOR_RGB2GRAY), field.image[0]):
        level, _ = cv2.threshold(np.ascontiguousarray(plane), 0, 255, cv2.THRESH_OTSU)
        found = plane <= level
        scores.append(2 * float((found & mask).sum()) / max(1, int(found.sum() + mask.sum())))
    return max(scores)


def test_difficulty_is_what_it_says() -> None:
    means = {d: np.mean([_otsu_dice(sample(n, "test", difficulty=d)) for n in range(0, 80, 8)]) for d in DIFFICULTIES}
    assert means["easy"] > 0.9
    assert means["hard"] <= 0.75
    assert means["easy"] > means["medium"] > means["hard"]


def test_easy_nuclei_do_not_touch_and_hard_ones_do() -> None:
    def touching(difficulty: str) -> int:
        truth = sample(1, difficulty=difficulty).truth["nuclei"]
        assert isinstance(truth, Instances)
        a, b = truth.map[:, :-1], truth.map[:, 1:]
        return int(((a != b) & (a > 0) & (b > 0)).sum())

    assert touching("easy") == 0
    assert touching("hard") > 20


def test_resolution_is_physical() -> None:
    """The same um2 hold about as many nuclei of about the same size, however many pixels show them."""
    areas = {}
    for um, size in ((0.5, 256), (1.0, 128)):
        found: list[float] = []
        for number in range(0, 32, 8):
            truth = sample(number, um=um, size=size).truth["nuclei"]
            assert isinstance(truth, Instances)
            found += (np.bincount(truth.map.ravel())[1:] * um**2).tolist()
        areas[um] = [a for a in found if a]
    assert len(areas[1.0]) == pytest.approx(len(areas[0.5]), rel=0.3)
    assert np.median(areas[1.0]) == pytest.approx(np.median(areas[0.5]), rel=0.15)


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="difficulty"):
        open_dataset("phantom-nuclei", arguments={"difficulty": "harder"})
    with pytest.raises(UserError, match="sise"):
        open_dataset("phantom-nuclei", arguments={"sise": 64})
    card = dataset_card("phantom-glands")
    card = card.model_copy(update={"truths": {"vessels": card.truths["glands"]}})
    with pytest.raises(UserError, match="vessels"):
        reader.PhantomReader(card, None, reader.PhantomArguments())
