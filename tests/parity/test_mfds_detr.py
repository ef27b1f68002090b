"""Every published case of MFDS-DETR and AttriDet that is here holds."""

from __future__ import annotations

import pytest

from zoo import paths
from zoo.verify import read, run


@pytest.mark.parametrize("system", ["mfds-detr", "leukemia-attri"])
def test_every_case_holds(system: str) -> None:
    root = paths.parity_root()
    if root is None or not (root / system).is_dir():
        pytest.skip(f"no published cases of {system} here (ZOO_PARITY)")
    reports = [run.verify(name, manifest) for name, manifest in read.find([system])]
    assert [report.line() for report in reports if not report.ok] == []
