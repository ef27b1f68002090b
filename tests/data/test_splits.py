"""Splits and folds never cut a group, cover everything once, and depend on ids and seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.readers.base import Entry
from zoo.data.splits import folds_by_group, split_by_group
from zoo.errors import UserError

entries_of = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=8, max_size=80).map(
    lambda rows: ([Entry(f"i{k}", None if g == 0 else f"g{g}") for k, (g, _) in enumerate(rows)],
                  {f"i{k}": label for k, (_, label) in enumerate(rows)})
)  # fmt: skip


@given(entries_of, st.integers(2, 5), st.integers(0, 3))
def test_folds(drawn: tuple[list[Entry], dict[str, int]], folds: int, seed: int) -> None:
    entries, labels = drawn
    unit = {e.id: e.unit for e in entries}
    if len(set(unit.values())) < folds:
        with pytest.raises(UserError, match="cannot be cut"):
            folds_by_group(entries, folds, seed=seed)
        return
    for given_labels in (None, labels):
        parts = folds_by_group(entries, folds, seed=seed, labels=given_labels)
        assert sorted(i for part in parts for i in part) == sorted(unit)
        assert all(parts)
        sides = [{unit[i] for i in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert parts == folds_by_group(entries, folds, seed=seed, labels=given_labels)
    largest = max(Counter(unit.values()).values())
    sizes = [len(part) for part in folds_by_group(entries, folds, seed=seed)]
    assert max(sizes) - min(sizes) <= largest  # greedy, largest first: never further apart than one group


def test_order_of_the_files_does_not_matter() -> None:
    entries = [Entry(f"i{k}", f"g{k // 3}") for k in range(30)]
    forward, backward = (folds_by_group(e, 4, seed=1) for e in (entries, entries[::-1]))
    assert [set(part) for part in forward] == [set(part) for part in backward]
    assert [set(p) for p in folds_by_group(entries, 4, seed=2)] != [set(part) for part in forward]


def test_shares_and_strata() -> None:
    entries = [Entry(f"i{k}") for k in range(200)]
    labels = {f"i{k}": "rare" if k % 10 == 0 else "common" for k in range(200)}
    splits = split_by_group(entries, {"train": 0.6, "val": 0.15, "test": 0.25}, labels=labels)
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 120, "val": 30, "test": 50}
    assert {n: sum(labels[i] == "rare" for i in ids) for n, ids in splits.items()} == {"train": 12, "val": 3, "test": 5}


def test_mistakes() -> None:
    entries = [Entry("a", "g"), Entry("b", "g")]
    with pytest.raises(UserError, match="1 group cannot be cut into 2 splits"):
        split_by_group(entries, {"train": 1, "test": 1})
    with pytest.raises(UserError, match="positive share"):
        split_by_group(entries, {"train": 0})
    with pytest.raises(UserError, match="at least 2"):
        folds_by_group(entries, 1)
