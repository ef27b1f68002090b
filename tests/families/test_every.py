"""The tester over every registered family, those of other installed packages too.

A family with a test file of its own beside this one is tested there.
"""

from __future__ import annotations

from pathlib import Path

from tester import FamilyTester

from zoo import registry

HERE = Path(__file__).parent
ELSEWHERE = [name for name in registry.names("family") if not (HERE / f"test_{name.replace('-', '_')}.py").is_file()]

for _name in ELSEWHERE:
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (FamilyTester,), {"family": _name})


def test_every_family_is_tested() -> None:
    tested = {name for name in registry.names("family") if f"Test_{name}" in globals()}
    assert tested == set(ELSEWHERE)
    assert "unet" not in tested
