"""A run that was killed anywhere and resumed equals one that was not, bit for bit."""

from __future__ import annotations

import csv
import random
import signal
from pathlib import Path
from typing import Any

import pytest

CASES = [
    pytest.param("toy-tiny", [3, 7, 11], id="tiny"),
    pytest.param("toy-adversarial", random.Random(6).sample(range(2, 14), 3), id="adversarial"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("family", "batches"), CASES)
def test_killed_and_resumed_equals_unbroken(
    family: str, batches: list[int], tmp_path: Path, values: Any, scenario: Any
) -> None:
    """SIGKILL at three batches and inside a checkpoint write, SIGTERM once; two workers, augmentation, dropout, a
    running average, gradients that wait across checkpoints, and one place before the first checkpoint."""
    made = values(
        family,
        model={"dropout": 0.3},
        workers=2,
        augment="light",
        epochs=3,
        ema=0.9,
        accumulate=3,
        checkpoint_every=3,
        keep=2,
        clip=1.0,
    )
    torn, stopped = tmp_path / "torn", tmp_path / "stopped"
    actions = [f"train:{tmp_path}/whole"]
    for batch in batches:
        actions += [f"kill:{tmp_path}/kill{batch}:{batch}", f"resume:{tmp_path}/kill{batch}"]
    actions += [f"tear:{torn}:3", f"resume:{torn}", f"term:{stopped}:8", f"resume:{stopped}"]
    results, said = scenario(tmp_path, made, *actions)
    whole, *rest = results
    assert whole["status"] == 0, said
    broken, resumed = rest[::2], rest[1::2]
    assert [r["signal"] for r in broken[:-1]] == [signal.SIGKILL] * (len(batches) + 1), said
    assert broken[-1]["status"] == 130
    assert f"zoo train --resume {stopped}" in said
    for result in resumed:
        assert result["status"] == 0, said
        assert (result["last"], result["best"]) == (whole["last"], whole["best"]), result["action"]
        folder = Path(result["action"].split(":")[1])
        assert rows(folder) == rows(tmp_path / "whole")
        assert not list(folder.rglob(".*.part"))
        best = [p.name for p in sorted((folder / "checkpoints").glob("best-*"))]
        assert best == [p.name for p in sorted((tmp_path / "whole" / "checkpoints").glob("best-*"))]
        assert 1 <= len(best) <= 2
    assert whole["last"] != broken[1]["last"]  # the runs did not all end before they were killed
