"""What comes when: even coverage, exact shares, rare classes, foreground."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.sampling import FOREGROUND, Plan, contents, mixture, places, shares, stream
from zoo.types import Instances, Sample, Semantic


@given(size=st.integers(1, 12), samples=st.integers(1, 30), epochs=st.integers(1, 8))
def test_every_image_comes_equally_often(size: int, samples: int, epochs: int) -> None:
    plan = Plan([size], samples, seed=3)
    drawn = [draw.image for epoch in range(epochs) for draw in plan.epoch(epoch)]
    counts = Counter(drawn)
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(size)) <= 1
    assert drawn == stream(size, 0, samples * epochs, 3)


def test_stream_is_a_row_of_permutations() -> None:
    whole = stream(5, 0, 50, 1)
    assert all(sorted(whole[i : i + 5]) == list(range(5)) for i in range(0, 50, 5))
    assert len({tuple(whole[i : i + 5]) for i in range(0, 50, 5)}) > 5
    assert stream(5, 13, 9, 1) == whole[13:22]
    assert stream(5, 0, 50, 2) != whole


@given(st.integers(0, 100), st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_shares_are_exact_and_near(count: int, weights: list[float]) -> None:
    found = shares(count, weights)
    assert sum(found) == count
    assert all(abs(f - count * w / sum(weights)) < 1 for f, w in zip(found, weights, strict=True))


def test_datasets_by_weight() -> None:
    plan = Plan([30, 2], 20, seed=0, balance="datasets", weights=[1, 1])
    draws = plan.epoch(0)
    assert Counter(d.dataset for d in draws) == {0: 10, 1: 10}
    assert [d.position for d in draws] == list(range(20))
    assert [d.dataset for d in draws] != sorted(d.dataset for d in draws)
    drawn = Counter(d.image for e in range(3) for d in plan.epoch(e) if d.dataset == 0)
    assert len(drawn) == 30  # three epochs of ten see all thirty


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(sum))
def test_a_mixture_holds_each_kind_in_its_share_everywhere(counts: list[int]) -> None:
    found = np.array(mixture(counts))
    assert np.bincount(found, minlength=len(counts)).tolist() == counts
    for kind, count in enumerate(counts):
        seen = np.cumsum(found == kind) - np.arange(1, len(found) + 1) * count / sum(counts)
        assert np.abs(seen).max() < len(counts)  # at any place


def test_equal_weights_mix_batches_as_published() -> None:
    plan = Plan([5, 7, 9], 24, seed=3, balance="batches")
    for epoch in range(2):  # position j of a batch of 12 comes from dataset j mod 3
        assert [draw.dataset for draw in plan.epoch(epoch)] == [j % 3 for j in range(24)]
    seen = [draw.image for epoch in range(5) for draw in plan.epoch(epoch) if draw.dataset == 0]
    assert np.bincount(seen).tolist() == [8] * 5  # 40 draws: every image equally often


def test_every_batch_has_every_dataset_by_weight() -> None:
    plan = Plan([50, 7, 9], 320, seed=0, balance="batches", weights=[0.4, 0.35, 0.25])
    draws = [draw.dataset for draw in plan.epoch(1)]
    batches = [np.bincount(draws[i : i + 8], minlength=3) for i in range(0, 320, 8)]
    assert np.abs(np.array(batches) - [3.2, 2.8, 2.0]).max() <= 1.3
    assert np.sum(batches, 0).tolist() == [128, 112, 80]


def test_classes_come_equally_often() -> None:
    held = [frozenset({("t", 1)})] * 9 + [frozenset({("t", 1), ("t", 2)})]
    plan = Plan([6, 4], 40, seed=0, balance="classes", contents=held)
    draws = plan.epoch(0)
    assert Counter(d.focus for d in draws) == {("t", 1): 20, ("t", 2): 20}
    assert {(d.dataset, d.image) for d in draws if d.focus == ("t", 2)} == {(1, 3)}
    assert len({(d.dataset, d.image) for d in draws if d.focus == ("t", 1)}) > 5


def test_every_other_patch_has_foreground() -> None:
    draws = Plan([5], 10, seed=0, balance="foreground").epoch(0)
    assert [d.focus for d in draws] == [None, FOREGROUND] * 5


def test_contents_and_places_agree() -> None:
    labels = np.array([[0, 5, 5], [9, 0, 7]], np.int32)
    tissue = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)
    layers = np.stack([tissue == k for k in range(3)])
    sample = Sample(
        "a",
        "b",
        np.zeros((3, 2, 3), np.uint8),
        truth={
            "nuclei": Instances(labels, {5: 2, 9: 1}),  # 7 is not classified
            "cells": Instances(labels),
            "tissue": Semantic(tissue, ignore=255),
            "layers": Semantic(layers, multilabel=True),
        },
    )
    found = contents(sample)
    expected = {"nuclei": (1, 2), "cells": (1,), "tissue": (1, 2), "layers": (0, 1, 2)}
    assert found == {(key, k) for key, classes in expected.items() for k in classes}
    assert places(sample, ("nuclei", 2)).tolist() == [1, 2]
    assert places(sample, ("cells", 1)).tolist() == [1, 2, 3, 5]
    assert places(sample, ("tissue", 2)).tolist() == [3, 4]
    assert places(sample, ("layers", 1)).tolist() == [1]
    assert places(sample, FOREGROUND).tolist() == [1, 2, 3, 5]
    assert all(len(places(sample, focus)) for focus in found)
    assert not len(places(sample, ("absent", 1)))
    only_map = sample.with_(truth={"tissue": sample.truth["tissue"]})
    assert places(only_map, FOREGROUND).tolist() == [1, 3, 4]
