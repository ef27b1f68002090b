"""What is bundled: whole, within the budget, free to give away, and it predicts."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from zoo.cards import dataset_card, read_weights_card
from zoo.weights.store import BUNDLE, card_files, checksum

NAMES = sorted(path.stem for path in BUNDLE.glob("*.yaml"))


def test_the_first_two_are_there_and_the_budget_holds() -> None:
    assert {"quickstart", "nuclei-unet-mobile"} <= {name.split(".")[0] for name in NAMES}
    assert sum(path.stat().st_size for path in BUNDLE.glob("*.safetensors")) <= 60_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_file_is_what_its_card_says(name: str) -> None:
    card = read_weights_card(card_files()[name])
    assert card.name == name
    file = BUNDLE / str(card.source.file)
    assert file.stat().st_size == card.source.size
    assert file.stat().st_size <= 8_000_000
    assert checksum(file) == card.source.sha256
    assert card.numbers
    assert card.trained_on
    for seen in card.trained_on:
        assert "derivatives" in dataset_card(seen.dataset).licence.allows


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_find_dark_nuclei(name: str) -> None:
    image = np.full((96, 96, 3), (230, 200, 225), np.uint8)
    rows, columns = np.mgrid[:96, :96]
    truth = (rows % 32 - 16) ** 2 + (columns % 32 - 16) ** 2 < 64
    image[truth] = (90, 50, 130)
    found = zoo.load(name.split(".")[0]).predict(image)["semantic"].map > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7
