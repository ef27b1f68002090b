"""Resampling along one axis at a time, by windows: a band comes out as it would from the whole picture.

A pixel of the result that is larger than a pixel of the source averages over its area; a smaller one is interpolated
linearly between centres. (The same as OpenCV's INTER_AREA and INTER_LINEAR of a whole picture.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Resampling:
    """`old` pixels become `new` along an axis."""

    old: int
    new: int

    @property
    def identity(self) -> bool:
        """Return whether nothing changes."""
        return self.old == self.new

    @cached_property
    def _taps(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Source index and weight of each tap, (new, taps); indices of a row rise."""
        step = self.old / self.new
        position = np.arange(self.new)[:, None]
        if step > 1:
            first = np.floor(np.arange(self.new) * step).astype(np.int64)[:, None]
            index = first + np.arange(int(np.ceil(step)) + 1)[None]
            inside = np.minimum(index + 1, (position + 1) * step) - np.maximum(index, position * step)
            weight = np.clip(inside, 0, None)
        else:
            centre = (position + 0.5) * step - 0.5
            low = np.floor(centre)
            share = centre - low
            index = np.concatenate([low, low + 1], axis=1).astype(np.int64)
            weight = np.concatenate([1 - share, share], axis=1)
        weight = weight / weight.sum(axis=1, keepdims=True)
        return np.clip(index, 0, self.old - 1), weight.astype(np.float32)

    def needs(self, begin: int, end: int) -> tuple[int, int]:
        """Return the source pixels [first, last) that the new pixels [begin, end) are made from."""
        if self.identity:
            return begin, end
        index = self._taps[0]
        return int(index[begin].min()), int(index[end - 1].max()) + 1

    def ready(self, available: int) -> int:
        """Return how many new pixels can be made from the first `available` source pixels."""
        if self.identity or available >= self.old:
            return self.new if available >= self.old else available
        return int(np.searchsorted(self._taps[0].max(axis=1), available))

    def apply(self, array: NDArray[Any], dimension: int, begin: int, end: int, first: int) -> NDArray[Any]:
        """Return new pixels [begin, end) along `dimension`, float32; `array` starts at source pixel `first`."""
        if self.identity:
            return array
        index, weight = self._taps
        shape = [1] * array.ndim
        shape[dimension] = end - begin
        found: NDArray[Any] | None = None
        for tap in range(index.shape[1]):
            part = np.take(array, index[begin:end, tap] - first, axis=dimension).astype(np.float32)
            part *= weight[begin:end, tap].reshape(shape)
            found = part if found is None else np.add(found, part, out=found)
        assert found is not None
        return found
