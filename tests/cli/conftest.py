"""Running the command line inside the test's process, which imports torch once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from zoo.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command said."""

    status: int
    out: str
    err: str


Zoo = Callable[..., Done]


@pytest.fixture
def zoo(capfd: pytest.CaptureFixture[str]) -> Zoo:
    """Run `zoo WORDS...` and return status, standard output and standard error."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return run
