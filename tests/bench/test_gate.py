"""Gates: which cells are positive by their fluorescence, and the tables that readers find them in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from zoo.bench.gate import gate_dataset
from zoo.data import open_dataset
from zoo.errors import UserError
from zoo.metrics.calls import means
from zoo.metrics.cells import positivity
from zoo.types import Instances, Picture


def mixture(rng: np.random.Generator, positive: np.ndarray) -> np.ndarray:
    return np.where(positive, rng.normal(120, 12, len(positive)), rng.normal(15, 4, len(positive))).clip(0)


@pytest.mark.parametrize("how", ["posterior", "crossing"])
def test_two_groups_are_told_apart(how: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((400, 2)) < (0.3, 0.6)
    table = np.stack([mixture(rng, truth[:, m]) for m in range(2)], 1)
    score, called = positivity(table, ("CD31", "SMA"), how=how)  # type: ignore[arg-type]
    assert (called == truth).mean() > 0.99
    assert ((score > 0.5) == truth).mean() > 0.99


def test_a_child_needs_its_parent_and_epithelium_no_cd45() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((600, 3)) < 0.4
    table = np.stack([mixture(rng, truth[:, m]) for m in range(3)], 1)
    _, called = positivity(table, ("CD45", "CD3e", "Pan-CK"))
    assert (called[:, 0] == truth[:, 0]).mean() > 0.99
    assert (called[:, 1] == (truth[:, 1] & truth[:, 0])).mean() > 0.98
    assert (called[:, 2] == (truth[:, 2] & ~truth[:, 0])).mean() > 0.98
    _, free = positivity(table, ("CD45", "CD3e", "Pan-CK"), how="crossing")
    assert (free[:, 1] == truth[:, 1]).mean() > 0.99


def test_a_marker_that_shines_nowhere_is_nowhere_positive() -> None:
    score, called = positivity(np.zeros((30, 1)), ("CD20",))
    assert not called.any()
    assert not score.any()


def test_tables_of_a_dataset(tmp_path: Path) -> None:
    arguments = {"size": 96, "test": 2, "channels": ["Hoechst", "CD45", "Pan-CK"], "difficulty": "easy"}
    dataset = open_dataset("phantom-mif", split="test", arguments=arguments)
    sample = dataset[0]
    picture, cells = sample.truth["mif"], sample.truth["cells"]
    assert isinstance(picture, Picture)
    assert isinstance(cells, Instances)
    with pytest.raises(UserError, match="no picture with named channels"):
        gate_dataset(open_dataset("phantom-nuclei", split="test", arguments={"test": 1}), tmp_path)
    paths = gate_dataset(dataset, tmp_path / "tables", by="image")
    assert len(paths) == 2
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    ids, expected = means(picture.data, cells.map)
    assert [int(r["label"]) for r in rows] == ids.tolist()
    np.testing.assert_allclose([float(r["Pan-CK_mean"]) for r in rows], expected[:, 2], atol=1e-3)
    assert "Hoechst_mean" not in rows[0]  # the nuclear stain calls nothing
    assert {r["CD45_pos"] for r in rows} <= {"0", "1"}
    y, x = np.nonzero(cells.map == ids[0])
    assert (float(rows[0]["x"]), float(rows[0]["y"])) == pytest.approx((x.mean() + 0.5, y.mean() + 0.5), abs=0.01)
