"""H&E that shines: nuclei bright, the ground dark, a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.data import open_dataset
from zoo.data.augment import Augment
from zoo.errors import UserError
from zoo.schema import Component
from zoo.types import Instances, Sample


def augment(**arguments: object) -> Augment:
    return Augment([Component(name="fluorescence", arguments=dict(arguments))])


@pytest.fixture(scope="module")
def sample() -> Sample:
    return open_dataset("phantom-nuclei", split="train", arguments={"size": 96, "difficulty": "easy"})[0]


def test_nuclei_shine_on_a_dark_ground(sample: Sample) -> None:
    changed = augment(level=[0.6, 1.0], debris=0)(sample, 1)
    truth = sample.truth["nuclei"]
    assert isinstance(truth, Instances)
    grey = changed.image[0].astype(float)
    assert (changed.image == changed.image[:1]).all()
    assert np.median(grey[truth.map > 0]) > 3 * np.median(grey[truth.map == 0])
    before = sample.image.mean(0)
    assert np.median(before[truth.map > 0]) < np.median(before[truth.map == 0])
    assert changed.truth is sample.truth


def test_a_function_of_the_seed(sample: Sample) -> None:
    one, again, other = (augment()(sample, seed).image for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one.dtype == np.uint8


def test_regions_differ_where_they_are_uneven(sample: Sample) -> None:
    even, uneven = (augment(level=[1, 1], ground=0, debris=0, uneven=u)(sample, 5).image.astype(int) for u in (0, 0.9))
    assert (uneven <= even).all()
    shares = uneven[even > 100] / even[even > 100]
    assert shares.min() < 0.5 < shares.max()


def test_level_and_debris(sample: Sample) -> None:
    dim = augment(level=[0.2, 0.2], ground=[0.05, 0.05], debris=0)(sample, 0).image
    assert 45 <= dim.max() <= 80
    assert augment(level=[0.2, 0.2], debris=40)(sample, 0).image.max() > 200


def test_what_has_no_stain_is_refused(sample: Sample) -> None:
    with pytest.raises(UserError, match="Expected 3 of uint8"):
        augment()(sample.with_(image=sample.image[:1]), 0)
    with pytest.raises(UserError, match="level"):
        augment(level=[0.5, 2])
