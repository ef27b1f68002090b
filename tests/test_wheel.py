"""A wheel, away from the checkout, is whole and works."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tool("wheel_check").build_wheel(tmp_path_factory.mktemp("wheel"))
    return found


def test_recipes_cards_and_all_else_are_inside(wheel: Path) -> None:
    check = tool("wheel_check")
    names = check.contents(wheel)
    assert "zoo/recipes/quickstart.yaml" in names
    assert "zoo/datasets/glas.yaml" in names
    assert "zoo/py.typed" in names
    assert check.missing(names) == []
    assert not [n for n in names if n.startswith(("tests/", "datasets/", "recipes/"))], "a package that shadows others"


def test_the_smoke_test_passes_elsewhere(wheel: Path, tmp_path: Path) -> None:
    assert "smoke test passed" in tool("wheel_check").smoke(wheel, tmp_path)


def test_every_dependency_has_a_lower_bound_that_the_constraints_respect() -> None:
    from packaging.version import Version

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {n.lower().replace("_", "-"): v for n, _, v in (line.partition("==") for line in lines) if v}
    for bound in tool("lower_bounds").bounds():
        name, _, lowest = bound.partition("==")
        assert name.lower() in pinned, f"{name} is not in constraints.txt"
        assert Version(pinned[name.lower()]) >= Version(lowest)
