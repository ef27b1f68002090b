"""Cerberus's objects and targets against their slow twins; decoding in tiles against decoding whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cerberus_twin as twin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from zoo.data.phantom.reader import field, truths
from zoo.families.cerberus import objects, targets, tiles
from zoo.families.cerberus.objects import RULES

Planes = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def blobs(seed: int, shape: tuple[int, int], size: float, cut: float = 0.3) -> Planes:
    """Return probabilities of inside and contour: objects of about `size` pixels that touch, have holes and rings."""
    rng = np.random.default_rng(seed)
    wave = ndimage.gaussian_filter(rng.standard_normal(shape), size)
    wave /= wave.std()
    wave -= 1.6 * (wave > 1.9)  # holes
    inner = 1 / (1 + np.exp(-4 * (wave - cut - 0.4)))
    both = 1 / (1 + np.exp(-4 * (wave - cut)))
    return inner.astype(np.float32), (both - inner).clip(0, 1).astype(np.float32)


def of_truth(labels: Any, size: int, seed: int = 0) -> Planes:
    """Return maps as a trained network gives them for known objects: soft, noisy, contours where they belong."""
    target = targets.inner_and_contour(labels, size)
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 1.5) * 0.5
    soft = [ndimage.gaussian_filter((target == k).astype(np.float32), 0.7) for k in (1, 2)]
    inner = np.clip(soft[0] + noise, 0, 1).astype(np.float32)
    return inner, np.clip(soft[1], 0, 1 - inner).astype(np.float32)


SMALL = {name: replace(rule, min_size=min(rule.min_size, 30)) for name, rule in RULES.items()}


@pytest.mark.parametrize("name", list(RULES))
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1.5, 3.0, 6.0]), factor=st.sampled_from([1.0, 0.5]))
def test_objects_are_those_of_the_twin(name: str, seed: int, size: float, factor: float) -> None:
    inner, contour = blobs(seed, (90, 110), size)
    expected = twin.instances(inner, contour, SMALL[name], factor)
    found = objects.instances(inner, contour, SMALL[name], factor)
    assert np.array_equal(found, expected)
    classes = np.random.default_rng(seed).integers(0, 3, found.shape).astype(np.uint8)
    told, slow = objects.records(found, classes), twin.records(expected, classes)
    assert told.ids.tolist() == [r["id"] for r in slow]
    for i, record in enumerate(slow):
        assert told.boxes[i].tolist() == record["box"]
        assert np.allclose(told.centroids[i], record["centroid"])
        assert np.array_equal(told.contours[i], record["contour"])
        assert (told.types[i], told.shares[i]) == (record["type"], pytest.approx(record["share"]))


@pytest.mark.parametrize("name", list(RULES))
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1.5, 4.0, 9.0]), tile=st.sampled_from([13, 32, 50, 300]))
def test_decoding_in_tiles_is_decoding_whole(name: str, seed: int, size: float, tile: int) -> None:
    inner, contour = blobs(seed, (120, 141), size, cut=-0.1)
    whole = objects.instances(inner, contour, SMALL[name])
    read = lambda window: (inner[window], contour[window])  # noqa: E731
    assert np.array_equal(tiles.instances(read, whole.shape, tile, SMALL[name]), whole)


def test_a_nucleus_in_the_hole_of_a_ring_of_nuclei() -> None:
    """A ring of markers that touch at corners only is filled: what lies in it is one with it, in tiles too."""
    inner = np.zeros((40, 40), np.float32)
    rows, columns = np.indices(inner.shape)
    away = np.hypot(rows - 20, columns - 20)
    inner[(away > 11) & (away < 15)] = 0.9
    inner[away < 4] = 0.8
    contour = np.zeros_like(inner)
    whole = objects.instances(inner, contour, RULES["nuclei"])
    assert np.array_equal(whole, twin.instances(inner, contour, RULES["nuclei"]))
    for tile in (7, 16, 25):
        read = lambda window: (inner[window], contour[window])  # noqa: E731
        assert np.array_equal(tiles.instances(read, inner.shape, tile, RULES["nuclei"]), whole)


def test_a_phantom_field_in_tiles() -> None:
    """A field of synthetic tissue, decoded in the tiles that users choose (3000 pixels a side: benchmarks/)."""
    _, layout = field(3, "test", 3, size=700)
    known = truths(layout)
    for key, name in (("nuclei", "nuclei"), ("glands", "gland"), ("lumina", "lumen")):
        rule = RULES[name]
        inner, contour = of_truth(known[key].map, rule.contour)  # type: ignore[union-attr]
        whole = objects.instances(inner, contour, rule)
        assert whole.max() > 3
        for tile in (128, 256, 333):
            found = tiles.instances(lambda w, i=inner, c=contour: (i[w], c[w]), whole.shape, tile, rule)  # type: ignore[misc]
            assert np.array_equal(found, whole), (name, tile)


def test_sizes_at_the_limit() -> None:
    """An object of exactly the smallest size stays, one pixel less goes."""
    inner = np.zeros((20, 200), np.float32)
    inner[2, 10:160] = 0.9
    inner[10, 10:159] = 0.9
    found = objects.instances(inner, np.zeros_like(inner), replace(RULES["lumen"], grow=0))
    assert found.max() == 1
    assert (found == 1).sum() == 150


def test_no_objects() -> None:
    nothing = np.zeros((33, 47), np.float32)
    for rule in RULES.values():
        assert objects.instances(nothing, nothing, rule).max() == 0
        assert tiles.instances(lambda w: (nothing[w], nothing[w]), (33, 47), 16, rule).max() == 0
    assert len(objects.records(np.zeros((5, 5), np.int32)).ids) == 0


def test_votes() -> None:
    assert objects.vote(np.array([0, 0, 0, 2, 2, 1])) == (2, pytest.approx(2 / 6))
    assert objects.vote(np.array([0, 0])) == (0, pytest.approx(1))
    assert objects.vote(np.array([3, 1, 3, 1])) == (1, pytest.approx(0.5))


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5, 11])
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1.5, 4.0]))
def test_targets_are_those_of_the_twin(size: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.asarray(ndimage.label(blobs(seed, (60, 70), scale)[0] > 0.5)[0], np.int32)
    some = rng.random(int(labels.max()) + 1) < 0.2  # ids that stand for two blobs, as mirrors make them
    labels[some[labels] & (labels > 0)] = 1
    expected, weights = twin.target(labels, size)
    found, made = targets.object_targets(labels, size)
    assert np.array_equal(found, expected)
    assert np.allclose(made, weights, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, np.uint32, np.int64])
def test_ids_may_have_gaps_and_any_type(dtype: Any) -> None:
    labels = np.zeros((30, 30), dtype)
    labels[3:12, 3:12], labels[3:12, 12:20], labels[20:26, 20:26] = 7, 30000, 9
    plain = np.zeros((30, 30), np.int32)
    plain[3:12, 3:12], plain[3:12, 12:20], plain[20:26, 20:26] = 1, 3, 2
    for a, b in zip(targets.object_targets(labels, 3), targets.object_targets(plain, 3), strict=True):
        assert np.array_equal(a, b)
    if np.iinfo(dtype).max > 2**31:
        labels[labels == 30000] = 2**31 + 5
        assert np.array_equal(targets.object_targets(labels, 3)[0], targets.object_targets(plain, 3)[0])


def test_the_class_of_a_patch() -> None:
    classes = np.zeros((20, 20), np.uint8)
    classes[8:13, 8:13] = 2
    assert targets.patch_class(classes, 6) == 2
    assert targets.patch_class(classes, 20) == 0
    assert targets.patch_class(np.full((8, 8), 255, np.uint8), 4) == 255
