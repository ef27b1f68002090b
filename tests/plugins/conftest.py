"""The toy packages, findable as if they were installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "families"))  # the shared tester class


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    """toys.py."""
    spec = importlib.util.spec_from_file_location("toys", HERE / "toys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def site(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What goes on the import path for the toy packages to be installed."""
    paths: list[str] = toys.install(tmp_path_factory.mktemp("site"))
    return paths


@pytest.fixture(autouse=True, scope="module")
def plugins(toys: ModuleType, site: list[str]) -> Iterator[None]:
    """The toy packages are installed, here and in subprocesses."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(site)
    with toys.installed(site):
        yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def squares(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the squares' card."""
    return str(toys.write_card(tmp_path_factory.mktemp("squares")))


@pytest.fixture(scope="session")
def cli(toys: ModuleType, site: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `zoo ARGUMENTS` in a subprocess in which the toy packages are installed."""

    def run(*arguments: Any, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zoo.cli", *map(str, arguments)],
            env=toys.environment(site, **more),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    return run
