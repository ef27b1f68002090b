"""Fixtures for every test: no network but loopback, deterministic property tests, where the published data lie."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tests" / "support"))  # what several folders of tests share

settings.register_profile("zoo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("zoo")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback and local sockets are open in a test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"a test tried to reach {host}; only loopback sockets are open in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of published data sets; skips where there is none."""
    named = os.environ.get("ZOO_DATA")
    found = Path(named) if named else ROOT.parent / "shared" / "data"
    if not found.is_dir():
        pytest.skip("the published data sets are not on this machine (set ZOO_DATA)")
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of their own: cache, configuration and hub's cache are empty folders, the network is allowed, no token."""
    folder = tmp_path / "home"
    for name in (
        "ZOO_OFFLINE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "ZOO_MIRROR",
        "ZOO_DATA",
        "ZOO_WEIGHTS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
    monkeypatch.setenv("ZOO_CONFIG", str(folder / "config" / "config.yaml"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    return folder


@pytest.fixture
def server() -> Iterator[Any]:
    """A local HTTP server that misbehaves on request (tests/support/local_server.py)."""
    from local_server import serving

    with serving() as state:
        yield state
