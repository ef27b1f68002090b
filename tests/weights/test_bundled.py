"""What is bundled: whole, within the budget, free to give away, and it predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

import zoo
from zoo.cards import dataset_card, read_weights_card
from zoo.data.datasets import open_dataset
from zoo.inference.generate import Drawing, generate
from zoo.inference.wishes import Asked
from zoo.weights.store import BUNDLE, card_files, checksum

NAMES = sorted(path.stem for path in BUNDLE.glob("*.yaml"))
GENERATORS = [name for name in NAMES if "-diffusion-" in name]
VOLUMES = [name for name in NAMES if "3d-" in name]
TRANSLATORS = [name for name in NAMES if "-translation-" in name]
SEGMENTERS = [name for name in NAMES if name not in GENERATORS + VOLUMES + TRANSLATORS]
KI67 = {"marker": "Ki67", "size": 192}


def test_the_first_two_are_there_and_the_budget_holds() -> None:
    assert {"quickstart", "nuclei-unet-mobile"} <= {name.split(".")[0] for name in NAMES}
    assert sum(path.stat().st_size for path in BUNDLE.glob("*.safetensors")) <= 60_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_file_is_what_its_card_says(name: str) -> None:
    card = read_weights_card(card_files()[name])
    assert card.name == name
    file = BUNDLE / str(card.source.file)
    assert file.stat().st_size == card.source.size
    assert file.stat().st_size <= (12_000_000 if name in GENERATORS else 8_000_000)
    assert checksum(file) == card.source.sha256
    assert card.numbers
    assert card.trained_on
    for seen in card.trained_on:
        assert "derivatives" in dataset_card(seen.dataset).licence.allows


@pytest.mark.parametrize("name", GENERATORS)
def test_a_bundled_generator_follows_its_mask(name: str, tmp_path: Path) -> None:
    """Nuclei that a bundled segmenter finds in what is drawn lie where the mask says, not where another one does."""
    where = Asked(["phantom-nuclei:test"], size=(64, 64), limit=6)
    drawing = Drawing(steps=10)
    done = generate(zoo.load(name.split(".")[0]), where, tmp_path, drawing=drawing, pairs=True)
    assert len(done.done) == 6
    segmenter, pairs = zoo.load("quickstart"), open_dataset(tmp_path, split="all")
    found, masks = [], []
    for index in range(len(pairs)):
        sample = pairs[index]
        found.append(segmenter.predict(np.moveaxis(sample.image, 0, -1), mpp="native")["semantic"].map > 0)
        masks.append(sample.truth["nuclei"].map > 0)  # type: ignore[union-attr]
    own, other = (dice(np.stack(found), np.stack(m)) for m in (masks, masks[3:] + masks[:3]))
    assert own >= 0.6
    assert other <= 0.3


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_bundled_weights_find_dark_nuclei(name: str) -> None:
    image = np.full((96, 96, 3), (230, 200, 225), np.uint8)
    rows, columns = np.mgrid[:96, :96]
    truth = (rows % 32 - 16) ** 2 + (columns % 32 - 16) ** 2 < 64
    image[truth] = (90, 50, 130)
    predicted = zoo.load(name.split(".")[0]).predict(image)
    found = (predicted["semantic"].map if isinstance(predicted, dict) else predicted.map) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_bundled_translator_paints_the_stain(name: str) -> None:
    """What it paints is more than twice as near to the immunostain as the H&E is, and brown lies on nuclei."""
    model, samples = zoo.load(name.split(".")[0]), open_dataset("phantom-stains", split="test", limit=4, arguments=KI67)
    near, brown, on_nuclei = [], 0, 0
    for index in range(len(samples)):
        sample = samples[index]
        truth, nuclei = sample.truth["ihc"].data, sample.truth["nuclei"].map > 0  # type: ignore[union-attr]
        painted = model.predict(np.moveaxis(sample.image, 0, -1), mpp=0.5).data.astype(float)
        near.append(np.abs(painted - truth).mean() / np.abs(sample.image.astype(float) - truth).mean())
        dab = painted[0] - painted[2] > 40
        brown, on_nuclei = brown + dab.sum(), on_nuclei + (dab & ndimage.binary_dilation(nuclei, iterations=2)).sum()
    assert max(near) < 0.5
    assert brown > 200
    assert on_nuclei > 0.8 * brown


@pytest.mark.parametrize("name", VOLUMES)
def test_bundled_weights_find_bright_nuclei_of_a_volume(name: str) -> None:
    z, y, x = np.mgrid[:20, :64, :64]
    away = (z - 10.0) ** 2 + (y % 32 - 16.0) ** 2 / 4 + (x % 32 - 16.0) ** 2 / 4  # um squared, from the nearest centre
    noise = np.random.default_rng(0).normal(0, 4, away.shape)
    volume = (20 + 160 * (away < 16) + noise).clip(0, 255).astype(np.uint8)
    predicted = zoo.load(name.split(".")[0]).predict(volume, mpp=(1.0, 0.5, 0.5))
    found, truth = predicted.map > 0, away < 16
    assert len(np.unique(predicted.map)) == 5
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7
