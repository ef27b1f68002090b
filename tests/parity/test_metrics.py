"""Every published metric on this machine is answered by the registry's functions, within its tolerance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo import paths, registry
from zoo.cases import Case, CaseError
from zoo.metrics import cases
from zoo.verify.run import verify

ROOT = paths.parity_root()
FOUND = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix()
    for path in (ROOT.rglob("*.json") if ROOT else ())
    if json.loads(path.read_text()).get("kind") == "metric"
)


@pytest.mark.skipif(not FOUND, reason="the published cases are not on this machine (set ZOO_PARITY)")
@pytest.mark.parametrize("name", FOUND or ["none"])
def test_a_published_metric(name: str) -> None:
    assert ROOT is not None
    report = verify(name, Path(ROOT) / f"{name}.json")
    assert report.ok, report.line()


def case(system: str, inputs: dict[str, Any], wanted: tuple[str, ...] = (), **configuration: Any) -> Case:
    tensors = {name: torch.as_tensor(value) for name, value in inputs.items()}
    return Case("made", {"system": system, "kind": "metric", "configuration": configuration}, tensors, {}, wanted)


def test_what_no_part_answers_is_refused() -> None:
    with pytest.raises(CaseError, match="no answer for a case of kind metric"):
        cases.answer(case("stardist", {"other": np.zeros(3)}))
    assert registry.get("cases", "stardist/metric") is cases.answer


def test_pairs_of_label_maps_as_a_manifest_writes_them() -> None:
    true, predicted = np.eye(4, dtype=np.int32), np.ones((4, 4), np.int32)
    made = case(
        "stardist",
        {"y_true": true, "y_pred": predicted},
        ("dataset_pooled", "dataset_by_image"),
        thresholds=[0.25, 0.5],
        columns=["tp", "fp", "fn", "f1"],
        dataset_pairs=["(y_true, y_pred)", "(y_true[1:3, :], zeros)", "(y_true[:2], y_true[:2])"],
    )
    found = cases.answer(made)
    assert found["dataset_pooled"] == [[2, 0, 1, 0.8], [1, 1, 2, 0.4]]
    np.testing.assert_allclose(found["dataset_by_image"], [[2, 0, 1, 2 / 3], [1, 1, 2, 1 / 3]])
    for text in ("(y_true, __import__('os'))", "y_true", "(zeros, zeros)"):
        made.manifest["configuration"]["dataset_pairs"] = [text]
        with pytest.raises(CaseError, match="not understood"):
            cases.answer(made)
