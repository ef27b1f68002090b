"""Decoded samples are kept once and shared by forked processes."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from zoo.data.cache import SharedCache
from zoo.types import Sample, Semantic


def value(n: int) -> Sample:
    rng = np.random.default_rng(n)
    image = np.asfortranarray(rng.integers(0, 255, (3, 17 + n, 11), np.uint8))
    return Sample(str(n), "toy", image, truth={"t": Semantic(rng.integers(0, 9, (5, 3)))})


def same(a: Sample, b: Sample) -> bool:
    pairs = ((a.image, b.image), (a.truth["t"].map, b.truth["t"].map))  # type: ignore[union-attr]
    return a.id == b.id and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def test_values_come_back() -> None:
    cache = SharedCache(4, 1 << 20)
    assert cache.get(2) is None
    for n in (2, 0, 3):
        cache.put(n, value(n))
    assert all(same(cache.get(n), value(n)) for n in (0, 2, 3))
    assert cache.get(1) is None
    found = cache.get(0)
    with pytest.raises(ValueError, match="read-only"):
        found.image[0] = 0


def test_what_does_not_fit_is_not_kept() -> None:
    cache = SharedCache(50, 4096)
    for n in range(50):
        cache.put(n, value(n))
    held = [n for n in range(50) if cache.get(n) is not None]
    assert 0 < len(held) < 10
    assert all(same(cache.get(n), value(n)) for n in held)


def _fill(cache: SharedCache, start: int) -> None:
    for n in range(start, 60, 2):
        cache.put(n, value(n))


def test_forked_processes_share_what_they_put() -> None:
    context = multiprocessing.get_context("fork")
    cache = SharedCache(60, 1 << 22)
    processes = [context.Process(target=_fill, args=(cache, start)) for start in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(same(cache.get(n), value(n)) for n in range(60))


def test_a_pickled_cache_begins_empty_and_works() -> None:
    cache = SharedCache(3, 1 << 20)
    cache.put(1, value(1))
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get(1) is None
    copy.put(2, value(2))
    assert same(copy.get(2), value(2))
