"""Metrics of the class of a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Named(NamedTuple):
    """The class of an image, and the class that it was taken for."""

    truth: str
    guess: str


def label_accuracy(one: Named) -> float:
    """Return 1 where the class of an image is right, else 0."""
    return float(one.truth == one.guess)


def balanced(records: Sequence[Named]) -> float:
    """Return the mean, over the classes that images have, of the share of their images that is right."""
    right: dict[str, list[bool]] = {}
    for one in records:
        right.setdefault(one.truth, []).append(one.truth == one.guess)
    shares = [sum(found) / len(found) for found in right.values()]
    return sum(shares) / len(shares) if shares else float("nan")
