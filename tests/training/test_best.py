"""Which validations' weights are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from zoo.recipe import Train
from zoo.training.best import Best
from zoo.training.folder import RunFolder


def best(path: Path, lower: bool = True, **train: Any) -> Best:
    return Best(RunFolder(path), Train.model_validate({"epochs": 9, **train}), lower)


@pytest.mark.parametrize("lower", [True, False])
def test_of_equal_validations_the_newest_counts(tmp_path: Path, lower: bool) -> None:
    """Without pairs a translation has nothing to validate by: its first weights are not its best."""
    kept = best(tmp_path, lower, keep=2)
    for epoch in (1, 2, 3):
        paths = kept.observe(0.0, epoch)
        assert paths == [kept.folder.best, kept.folder.checkpoints / f"best-{epoch:04d}.safetensors"]
    assert [epoch for _, epoch in kept.kept] == [3, 2]


def test_a_worse_or_unknown_validation_is_not_kept(tmp_path: Path) -> None:
    kept = best(tmp_path)
    assert kept.observe(math.nan, 1) == []
    assert kept.observe(2.0, 2) == [kept.folder.best]
    assert kept.observe(3.0, 3) == []
    assert kept.observe(1.0, 4) == [kept.folder.best]
