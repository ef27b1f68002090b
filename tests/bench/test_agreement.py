"""What a validation says while a model is trained is what the benchmark says of the same weights afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.bench.run import bench
from zoo.families import build
from zoo.families.base import Supervised
from zoo.recipe import Loading
from zoo.training.validate import Validation

MODEL = {
    "encoder": "resnet10t",
    "decoder": {"name": "unet", "arguments": {"channels": [8, 8, 8, 8, 8]}},
    "merge": {"nucleus": ["epithelial", "lymphocyte"]},
    "classes": ["background", "nucleus"],
    "channels": ["red", "green", "blue"],
    "encoding": "rgb8",
    "truth": "nuclei",
    "instances": {"min_size": 4},
    "tile": 256,
    "margin": 32,
}


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


def test_validation_and_benchmark_agree(tmp_path: Path, one_thread: None) -> None:
    # Rounding alone may tell the two apart: validation runs batches with channels first, prediction single tiles with
    # channels last, whose convolutions add up in another order. Of seed 3, one pixel has a logit of 1.5e-7 in float64,
    # and either path is off by up to 1e-6 (the benchmark's equals a plain forward with channels last, bit for bit).
    torch.manual_seed(4)
    family = build.create("unet", MODEL).eval()
    loading = Loading.model_validate(
        {"datasets": [{"name": "phantom-nuclei", "split": "val", "limit": 4}], "batch": 3, "workers": 0}
    )
    validation = Validation(loading, family, seed=0, rank=0, world=1, gather=lambda sums: [sums])
    heard: list[tuple[int, int]] = []
    validation.run(family, Supervised(), 0.0, most=1, tell=lambda *done: heard.append(done))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    told = validation.run(family, Supervised(), 0.0, tell=lambda *done: heard.append(done))
    assert heard[3:] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    validation.close()
    assert 0 < told["semantic/dice"] < 1
    build.save(family, tmp_path / "x.safetensors")
    metrics = ["dice", "iou", "pixel_f1", "object_f1", "pq"]
    found = bench([tmp_path / "x.safetensors"], ["phantom-nuclei:val"], tmp_path / "out", limit=4, metrics=metrics)
    rows = [row for row in found.rows if not row.baseline]
    assert {row.output for row in rows} == {"semantic", "instances"}
    for row in rows:
        for metric in set(metrics) & {name.rpartition("/")[2] for name in told if name.startswith(row.output)}:
            assert row.means[metric].value == pytest.approx(told[f"{row.output}/{metric}"], abs=1e-6), metric
