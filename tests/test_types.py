"""Samples and batches."""

from __future__ import annotations

import pickle

import numpy as np
import torch

from zoo.types import Batch, Geometry, Instances, Meta, Sample, Semantic


def batch() -> Batch:
    inner = Batch(inputs={"image": torch.zeros(1, 3, 2, 2)})
    return Batch(
        inputs={"image": torch.zeros(2, 3, 4, 4)},
        targets={"map": torch.zeros(2, 4, 4), "boxes": [torch.zeros(1, 4), torch.zeros(0, 4)]},
        has={"map": torch.tensor([True, False])},
        valid=torch.ones(2, 4, 4, dtype=torch.bool),
        meta=[Meta("a", "d", Geometry((4, 4))), Meta("b", "d", Geometry((4, 4)))],
        others={"unpaired": inner},
    )


def test_a_sample_says_its_shape_and_copies() -> None:
    sample = Sample("a", "d", np.zeros((3, 5, 7), np.uint8), truth={"x": Semantic(np.zeros((5, 7), np.uint8))})
    assert sample.shape == (5, 7)
    other = sample.with_(id="b")
    assert (other.id, sample.id) == ("b", "a")
    assert pickle.loads(pickle.dumps(sample)).truth["x"].kind == "semantic"
    assert Instances(np.zeros((2, 2), np.int32)).kind == "instances"


def test_a_batch_moves_whole() -> None:
    moved = batch().to("meta")
    assert len(moved) == 2
    boxes = moved.targets["boxes"]
    assert isinstance(boxes, list)
    tensors = [moved.inputs["image"], moved.targets["map"], *boxes, moved.has["map"], moved.valid]
    tensors.append(moved.others["unpaired"].inputs["image"])
    assert all(isinstance(t, torch.Tensor) and t.device.type == "meta" for t in tensors)
    assert [m.id for m in moved.meta] == ["a", "b"]


def test_streams_come_in_a_fixed_order() -> None:
    made = batch()
    made.others = {"z": made.others["unpaired"], "a": made.others["unpaired"]}
    assert [name for name, _ in made.streams()] == ["main", "a", "z"]
