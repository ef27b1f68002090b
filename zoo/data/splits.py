"""Splits: by group, so that one patient or slide never stands on both sides; the same from the same ids and seed.

Everything here works on ids, groups and labels alone. Order comes from a hash of seed and group name, never from the
order of the files, so that a new image moves as few others as possible.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

from zoo.data.readers.base import Entry
from zoo.errors import UserError, counted


def _key(seed: int, unit: str) -> str:
    return hashlib.sha256(f"{seed}\0{unit}".encode()).hexdigest()


def units(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return group (or the id of an item that stands alone) -> ids, in the order of first appearance."""
    found: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        found[entry.unit].append(entry.id)
    return dict(found)


def _assign(
    entries: Sequence[Entry], shares: Sequence[float], seed: int, labels: Mapping[str, Hashable] | None
) -> list[list[str]]:
    """Return one list of ids a share; whole groups, sizes and label counts as near the shares as groups allow.

    Groups go, largest first (ties by hash), to the part that lacks most of what the group brings: the sum over its
    labels of (wanted - had) / wanted, weighted by how many images of the label the group holds.
    """
    grouped = units(entries)
    label_of = {e.id: (labels or {}).get(e.id) for e in entries}
    totals = Counter(label_of.values())
    total_share = sum(shares)
    wanted = [{label: n * share / total_share for label, n in totals.items()} for share in shares]
    had: list[Counter[Hashable]] = [Counter() for _ in shares]
    parts: list[list[str]] = [[] for _ in shares]
    for unit in sorted(grouped, key=lambda u: (-len(grouped[u]), _key(seed, u))):
        brings = Counter(label_of[i] for i in grouped[unit])

        def lacks(part: int, brings: Counter[Hashable] = brings) -> float:
            short = ((wanted[part][k] - had[part][k]) / max(wanted[part][k], 1e-9) * n for k, n in brings.items())
            return sum(short) / sum(brings.values())

        sizes = [sum(h.values()) / (share / total_share) for h, share in zip(had, shares, strict=True)]
        best = max(range(len(shares)), key=lambda part: (round(lacks(part), 9), -sizes[part], -part))
        parts[best] += grouped[unit]
        had[best].update(brings)
    order = {e.id: position for position, e in enumerate(entries)}
    return [sorted(part, key=order.__getitem__) for part in parts]


def split_by_group(
    entries: Sequence[Entry],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    labels: Mapping[str, Hashable] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return split name -> ids, no group on two sides.

    `shares` are relative sizes; `labels` (id -> label) keeps the mix of labels alike in every split as far as whole
    groups allow. Raises `UserError` where there are fewer groups than splits.
    """
    if not shares or any(share <= 0 for share in shares.values()):
        raise UserError(f"shares: {dict(shares)} will not do. Expected a positive share for each split.")
    count = len(units(entries))
    if count < len(shares):
        raise UserError(
            f"splits: {counted(count, 'group')} cannot be cut into {len(shares)} splits. "
            "Use fewer splits, or a finer group."
        )
    parts = _assign(entries, list(shares.values()), seed, labels)
    return {name: tuple(part) for name, part in zip(shares, parts, strict=True)}


def folds_by_group(
    entries: Sequence[Entry], folds: int, *, seed: int = 0, labels: Mapping[str, Hashable] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Return `folds` tuples of ids: every id in exactly one, no group in two, sizes as even as groups allow.

    Raises `UserError` where there are fewer groups than folds, or fewer than two folds.
    """
    if folds < 2:
        raise UserError(f"folds: {folds} will not do. Expected at least 2.")
    count = len(units(entries))
    if count < folds:
        raise UserError(f"folds: {counted(count, 'group')} cannot be cut into {folds} folds. Use at most {count}.")
    return tuple(tuple(part) for part in _assign(entries, [1.0] * folds, seed, labels))
