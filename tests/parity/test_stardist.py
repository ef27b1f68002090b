"""Published StarDist cases, answered by this build."""

from __future__ import annotations

import pytest

from zoo import paths
from zoo.verify.run import verify

ROOT = paths.parity_root()
CASES = sorted((ROOT / "stardist").rglob("*.json")) if ROOT else []


@pytest.mark.skipif(not CASES, reason="published cases are not here (ZOO_PARITY)")
@pytest.mark.parametrize("manifest", [c for c in CASES if c.parent.name != "matching"], ids=lambda p: p.stem)
def test_case(manifest: object) -> None:
    report = verify(str(manifest), manifest)  # type: ignore[arg-type]
    assert report.ok, report.line()
