"""Every published case of PixCell and of large-image diffusion that is here holds."""

from __future__ import annotations

import pytest

from zoo import paths
from zoo.verify.run import verify

ROOT = paths.parity_root()
CASES = sorted((ROOT / "pixcell").rglob("*.json")) if ROOT else []


@pytest.mark.skipif(not CASES, reason="published cases are not here (ZOO_PARITY)")
@pytest.mark.parametrize("manifest", CASES, ids=lambda p: p.stem)
def test_case(manifest: object) -> None:
    report = verify(str(manifest), manifest)  # type: ignore[arg-type]
    assert report.ok, report.line()
