"""What the benchmark says of boxes: each class, attributes, and which class was taken for which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import zoo
from zoo.bench.run import bench
from zoo.families import build
from zoo.families.detr.model import Detr
from zoo.families.score import Task, score
from zoo.types import Boxes, BoxesPrediction

SHAPE = {"nuclear_shape": ["regular", "irregular"], "nucleolus": ["inconspicuous", "prominent"]}


def test_classes_attributes_and_confusion_stand_in_every_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    few = {"classes": ["RBC", "neutrophil"], "neck": "plain", "encoder_layers": 0, "threshold": 0.0}
    family = zoo.create("detr", **(Detr.tiny() | few | {"attributes": {"values": SHAPE}}))
    build.save(family, tmp_path / "cells.safetensors")
    found = bench([str(tmp_path / "cells.safetensors")], ["phantom-smear:test"], tmp_path / "out", limit=2, cache=False)
    assert not found.failures
    row = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]
    wanted = {"coco_ap50@RBC", "coco_ap50@neutrophil", "coco_ap@RBC", "differential_error", "attribute_f1_pooled"}
    assert wanted | {f"attribute_f1_pooled@{name}" for name in SHAPE} <= set(row["metrics"])
    assert not any("lymphocyte" in name for name in row["metrics"])
    confusion = row["confusion"]
    counts = np.array(confusion["counts"])
    assert confusion["classes"] == ["RBC", "neutrophil"]  # what only one side knows is left out
    assert counts[:, :-1].sum() == 40  # ten queries of two classes, two images: each somewhere
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| coco_ap50@RBC |" in table
    assert "cells: boxes that are | taken for RBC" in table
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Confusion: cells" in page
    assert page.count('class="off"') + page.count('class="right"') == counts.size - 1


def test_what_is_ignored_swallows_boxes_of_every_class() -> None:
    task = Task("boxes", "boxes", "cells", ("white",), ("WBC", "smudge", "RBC"), ("box_f1",), {"ignore": ("smudge",)})
    task = replace(task, merge={**task.merge, "white": ("WBC",)})
    there = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], np.float32)
    truth = Boxes(there, np.array([1, 2, 3]))
    prediction = BoxesPrediction(there[:2], ("white",), np.zeros(2, np.int64), np.array([0.9, 0.8]))
    assert score(task, prediction, truth) == {"box_f1": 1.0}
    red = BoxesPrediction(there[[0, 2]], ("white",), np.zeros(2, np.int64), np.array([0.9, 0.8]))
    assert score(task, red, truth) == {"box_f1": 2 / 3}
