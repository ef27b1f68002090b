"""The toy packages, findable as if installed; a small recipe for them; scenarios in subprocesses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.recipe import Recipe

HERE = Path(__file__).resolve().parent


def _toys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toys", HERE.parent / "plugins" / "toys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    """tests/plugins/toys.py."""
    return _toys()


@pytest.fixture(scope="session")
def site(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What goes on the import path for the toy packages to be installed."""
    paths: list[str] = toys.install(tmp_path_factory.mktemp("site"))
    return paths


@pytest.fixture(autouse=True, scope="module")
def plugins(toys: ModuleType, site: list[str]) -> Iterator[None]:
    """The toy packages are installed for this module."""
    with toys.installed(site):
        yield


@pytest.fixture(scope="session")
def squares(toys: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the squares' card."""
    return str(toys.write_card(tmp_path_factory.mktemp("squares")))


Make = Callable[..., dict[str, Any]]


@pytest.fixture
def values(squares: str) -> Make:
    """Makes the values of a small recipe: `values("toy-tiny", model={...}, workers=0, epochs=2, ...)`."""

    def make(
        family: str = "toy-tiny",
        *,
        model: dict[str, Any] | None = None,
        output: Path | str = "run",
        batch: int = 2,
        samples: int = 10,
        workers: int = 0,
        augment: str = "none",
        arguments: dict[str, Any] | None = None,
        validate: bool = True,
        **train: Any,
    ) -> dict[str, Any]:
        def source(split: str) -> list[dict[str, Any]]:
            return [{"name": squares, "split": split, "arguments": arguments or {}}]

        loading = {
            "datasets": source("train"),
            "size": [16, 16],
            "batch": batch,
            "samples": samples,
            "workers": workers,
            "augment": augment,
        }
        data: dict[str, Any] = {"train": loading}
        if validate:
            data["validate"] = {"datasets": source("val"), "batch": 2, "workers": 0}
        return {
            "zoo": 1,
            "name": "toy",
            "summary": "A toy.",
            "family": family,
            "model": model or {},
            "output": str(output),
            "data": data,
            "train": {"epochs": 2, "pictures_every": 0, **train},
        }

    return make


@pytest.fixture
def recipe(values: Make) -> Callable[..., Recipe]:
    """Makes a small recipe."""
    return lambda *a, **k: Recipe.model_validate(values(*a, **k))


@pytest.fixture(scope="session")
def script(toys: ModuleType, site: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of the scripts beside this file with the toy packages installed."""

    def run(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(HERE / name), *map(str, arguments)],
            env=toys.environment(site),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def scenario(
    script: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """Runs actions of scenario.py on a recipe; returns a result an action, and what stood on standard error."""

    def run(folder: Path, values: dict[str, Any], *actions: str) -> tuple[list[dict[str, Any]], str]:
        (folder / "recipe.json").write_text(json.dumps(values))
        done = script("scenario.py", folder / "recipe.json", *actions)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run
