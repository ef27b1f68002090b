"""The published cases of stain tools, where they are here; and one that is not among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo import paths
from zoo.cases import Case, CaseError
from zoo.stain.cases import answer
from zoo.verify.run import verify


def test_published_cases() -> None:
    root = paths.parity_root()
    if root is None or not (root / "stain").is_dir():
        pytest.skip("the published cases are not on this machine (set ZOO_PARITY)")
    reports = [verify(path.stem, path) for path in sorted((root / "stain").glob("*.json"))]
    assert reports
    assert not [report.line() for report in reports if not report.ok]


def test_other_settings_change_the_answer() -> None:
    rng = np.random.default_rng(0)
    pictures = {k: torch.from_numpy(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for k in ("source", "target")}

    def found(**configuration: float) -> np.ndarray:
        manifest = {"system": "stain", "source": "tiatoolbox stainnorm.py MacenkoNormalizer"}
        case = Case("x", {**manifest, "configuration": configuration}, pictures, wanted=("normalised",))
        return np.asarray(answer(case)["stain_matrix_source"])

    assert not np.allclose(found(angular_percentile=99), found(angular_percentile=95))
    with pytest.raises(CaseError, match="no answer"):
        answer(Case("x", {"system": "stain", "source": "someone else's tool"}))
