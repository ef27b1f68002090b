"""A shelf of the user's own, with cards that point at a local server, and a small model to publish."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.recipe import dump_yaml

OPTIONS = {"encoder": "resnet10t", "classes": ["background", "gland"]}


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """The state dict of a small model that somebody published."""
    torch.manual_seed(3)
    return dict(zoo.create("unet", **OPTIONS).state_dict())


@pytest.fixture(scope="session")
def published(state: dict[str, torch.Tensor]) -> bytes:
    """It, as a checkpoint of torch, under another name for every entry."""
    buffer = io.BytesIO()
    torch.save({"desc": {f"module.net.{k}": v for k, v in state.items()}, "optimizer": {"step": 4}}, buffer)
    return buffer.getvalue()


@pytest.fixture
def shelf(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ZOO_WEIGHTS names."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def write_card(shelf: Path) -> Callable[..., Path]:
    """Writes a card: `write_card("gland-unet.lab", source={...}, ...)`."""

    def write(name: str, source: dict[str, Any], folder: Path = shelf, **more: Any) -> Path:
        values: dict[str, Any] = {
            "zoo": 1,
            "name": name,
            "summary": "Glands.",
            "family": "unet",
            "source": source,
            "convert": {"name": "plain", "arguments": {"family": "unet", "options": OPTIONS, "rename": {"net\\.": ""}}},
            "licence": {"code": "MIT", "weights": {"name": "MIT", "allows": ["research", "commercial"]}},
        }
        values = {k: v for k, v in (values | more).items() if v is not None}
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(dump_yaml(values))
        return path

    return write


def sha(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
