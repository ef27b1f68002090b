"""Datasets: cards and readers, transforms, sampling, batching, the phantom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.data.datasets import Dataset as Dataset
    from zoo.data.datasets import open_dataset as open_dataset

_LAZY = {"Dataset": "zoo.data.datasets", "open_dataset": "zoo.data.datasets"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(name)
