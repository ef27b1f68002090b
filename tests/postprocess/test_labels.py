"""Label maps against slow twins, and what must not depend on ids or directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zoo import postprocess as pp
from zoo.postprocess import Block

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
LABELS = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=st.integers(0, 3)
)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two label maps hold the same objects, whatever their ids."""
    pairs = {(int(x), int(y)) for x, y in zip(a.ravel(), b.ravel(), strict=True)}
    return len({x for x, _ in pairs}) == len({y for _, y in pairs}) == len(pairs) and all(
        (x == 0) == (y == 0) for x, y in pairs
    )


def slow_components(mask: np.ndarray, connectivity: int) -> np.ndarray:
    out = np.zeros(mask.shape, int)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if connectivity == 2 else [])
    for start in zip(*np.nonzero(mask), strict=True):
        if out[start]:
            continue
        out[start] = label = out.max() + 1
        queue = [start]
        while queue:
            i, j = queue.pop()
            for di, dj in steps:
                a, b = i + di, j + dj
                if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] and not out[a, b]:
                    out[a, b] = label
                    queue.append((a, b))
    return out


@given(MASKS, st.sampled_from([1, 2]))
def test_components(mask: np.ndarray, connectivity: int) -> None:
    found = pp.components(mask, connectivity)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, slow_components(mask, connectivity))
    assert same_partition(found[::-1, ::-1], pp.components(mask[::-1, ::-1], connectivity))


@given(LABELS, st.integers(0, 6))
def test_remove_small(labels: np.ndarray, least: int) -> None:
    found = pp.remove_small(labels * 5, least)
    kept = [k for k in range(1, 4) if (labels == k).sum() >= max(least, 1)]
    expected = np.zeros_like(labels)
    for new, old in enumerate(kept, start=1):
        expected[labels == old] = new
    np.testing.assert_array_equal(found, expected)


def test_relabel_keeps_order_and_closes_gaps() -> None:
    np.testing.assert_array_equal(pp.relabel(np.array([[0, 7, 7], [3, 0, 12]])), [[0, 2, 2], [1, 0, 3]])
    assert pp.relabel(np.zeros((3, 0), int)).shape == (3, 0)


def slow_fill(labels: np.ndarray, most: float) -> np.ndarray:
    out = labels.copy()
    holes = slow_components(labels == 0, 1)
    for hole in range(1, holes.max() + 1):
        pixels = np.argwhere(holes == hole)
        around = set()
        for i, j in pixels:
            for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                inside = 0 <= a < labels.shape[0] and 0 <= b < labels.shape[1]
                around.add(int(labels[a, b]) if inside else -1)
        around.discard(0)
        if len(around) == 1 and -1 not in around and len(pixels) <= most:
            out[holes == hole] = around.pop()
    return out


@given(LABELS, st.sampled_from([None, 1, 3]))
def test_fill_holes(labels: np.ndarray, most: int | None) -> None:
    np.testing.assert_array_equal(pp.fill_holes(labels, most), slow_fill(labels, most or np.inf))


def test_fill_holes_of_a_ring() -> None:
    ring = np.zeros((9, 9), int)
    ring[1:8, 1:8] = 4
    ring[2:7, 2:7] = 0
    ring[4, 4] = 2  # an object inside: the hole has two neighbours and stays
    assert (pp.fill_holes(ring) == ring).all()
    ring[4, 4] = 0
    assert (pp.fill_holes(ring)[1:8, 1:8] == 4).all()
    assert (pp.fill_holes(ring, max_size=24) == ring).all()


@given(LABELS, st.permutations([1, 2, 3]))
def test_ids_mean_nothing(labels: np.ndarray, order: list[int]) -> None:
    renamed = np.array([0, *order], np.int32)[labels]
    assert same_partition(pp.fill_holes(labels), pp.fill_holes(renamed))
    assert same_partition(pp.remove_small(labels, 2), pp.remove_small(renamed, 2))


def test_separate_splits_touching_objects_and_grows_them_back() -> None:
    front = np.zeros((20, 40), bool)
    rows, columns = np.mgrid[:20, :40]
    left, right = ((rows - 10) ** 2 + (columns - c) ** 2 <= 81 for c in (11, 27))
    front = left | right
    edge = front & (abs(columns - 19) <= 1)
    found = pp.separate(front, edge)
    assert found.max() == 2
    assert ((found > 0) == front).all()  # every pixel is back
    assert len(np.unique(found[left & ~right & (columns < 18)])) == 1
    assert found[10, 11] != found[10, 27]
    assert pp.separate(front, np.zeros_like(front)).max() == 1
    assert pp.separate(front, front).max() == 1  # all boundary: still an object
    assert pp.separate(front, edge, min_size=1000).max() == 0


@given(MASKS, st.integers(0, 50))
def test_separate_loses_no_pixel_and_joins_no_two_seeds(front: np.ndarray, seed: int) -> None:
    edge = front & (np.random.default_rng(seed).random(front.shape) < 0.4)
    found = pp.separate(front, edge)
    np.testing.assert_array_equal(found > 0, front)
    seeds = pp.components(front & ~edge)
    owners = {k: set(found[seeds == k].tolist()) for k in range(1, seeds.max(initial=0) + 1)}
    assert all(len(o) == 1 for o in owners.values())
    assert len(set.union(set(), *owners.values())) == len(owners)
    np.testing.assert_array_equal(np.unique(found[found > 0]), np.arange(1, found.max(initial=0) + 1))


def test_regrow_goes_to_the_nearest_seed() -> None:
    seeds = np.zeros((1, 9), np.int32)
    seeds[0, 1], seeds[0, 8] = 5, 2
    np.testing.assert_array_equal(pp.regrow(seeds, np.ones((1, 9), bool)), [[5, 5, 5, 5, 5, 2, 2, 2, 2]])
    blocked = np.ones((1, 9), bool)
    blocked[0, 3] = False
    np.testing.assert_array_equal(pp.regrow(seeds, blocked), [[5, 5, 5, 0, 2, 2, 2, 2, 2]])
    assert (pp.regrow(np.zeros((2, 2), int), np.ones((2, 2))) == 0).all()


def test_majority_and_means() -> None:
    labels = np.array([[1, 1, 0], [2, 2, 2]])
    values = np.array([[[0.9, 0.2, 1], [0.1, 0.1, 0.1]], [[0.1, 0.8, 1], [0.3, 0.5, 0.1]]])
    np.testing.assert_array_equal(pp.majority(labels, values), [0, 1])
    np.testing.assert_allclose(pp.means(labels, values[1]), [0.45, 0.3], rtol=1e-6)
    assert pp.means(np.zeros((2, 2), int), np.zeros((2, 2))).shape == (0,)


# --- blocks -----------------------------------------------------------------------------------------------------------


def scattered(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Discs that do not touch."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for _ in range(30):
        i, j, r = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(2, 5)
        disc = (rows - i) ** 2 + (columns - j) ** 2 <= r * r
        wide = (rows - i) ** 2 + (columns - j) ** 2 <= (r + 2) ** 2
        if not labels[wide].any():
            labels[disc] = labels.max() + 1
    return labels


def cut(labels: np.ndarray, tile: int, overlap: int) -> list[Block]:
    """Blocks as a model would give them: ids of their own, from 1."""
    blocks = []
    for row in range(0, labels.shape[0], tile - overlap):
        for column in range(0, labels.shape[1], tile - overlap):
            part = labels[row : row + tile, column : column + tile]
            blocks.append(Block(pp.components(part > 0, 2), row, column))
    return blocks


@given(st.integers(0, 10_000), st.sampled_from([2, 6, 12]))
def test_merge_blocks_gives_whole_objects_once(seed: int, overlap: int) -> None:
    rng = np.random.default_rng(seed)
    labels = scattered(rng, (61, 50))
    blocks = cut(labels, 25, overlap)
    merged = pp.merge_blocks(blocks, labels.shape)
    assert same_partition(merged, pp.relabel(labels))
    np.testing.assert_array_equal(np.unique(merged[merged > 0]), np.arange(1, merged.max() + 1))
    order = rng.permutation(len(blocks))
    assert same_partition(pp.merge_blocks([blocks[k] for k in order], labels.shape), merged)


def test_merge_blocks_joins_an_object_over_four_blocks() -> None:
    whole = np.zeros((20, 20), int)
    whole[4:16, 4:16] = 1
    blocks = [Block(whole[a : a + 12, b : b + 12], a, b) for a in (0, 8) for b in (0, 8)]
    merged = pp.merge_blocks(blocks, (20, 20))
    np.testing.assert_array_equal(merged, whole)


def test_merge_blocks_keeps_touching_objects_apart() -> None:
    whole = np.zeros((8, 24), int)
    whole[2:6, 4:12], whole[2:6, 12:20] = 1, 2
    left, right = whole[:, :16].copy(), whole[:, 8:].copy()
    assert same_partition(pp.merge_blocks([Block(left, 0, 0), Block(right, 0, 8)], whole.shape), whole)


def test_merge_blocks_trusts_the_block_that_sees_deeper() -> None:
    left, right = np.zeros((4, 10), int), np.zeros((4, 10), int)
    left[:, 9] = 1  # an artefact at the left block's border, which the right block does not see
    assert pp.merge_blocks([Block(left, 0, 0), Block(right, 0, 6)], (4, 16)).max() == 0
    assert pp.merge_blocks([], (3, 3)).shape == (3, 3)


@pytest.mark.parametrize("what", [pp.components, pp.relabel, pp.fill_holes, lambda x: pp.remove_small(x, 1)])
def test_volumes_and_empty_arrays(what: Any) -> None:
    volume = np.zeros((4, 5, 6), int)
    volume[1:3, 1:3, 1:3] = 1
    assert what(volume).sum() == 8
    assert what(np.zeros((0, 4), int)).shape == (0, 4)
