"""The toy system registered, and the command line inside the test's process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zoo import registry
from zoo.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the toy, as a package outside the tree would."""
    monkeypatch.setitem(registry.TABLES["cases"], "toy", "toy_system:answer")
    registry.table.cache_clear()
    yield
    registry.table.cache_clear()


@pytest.fixture
def zoo(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `zoo WORDS...` and return status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run
