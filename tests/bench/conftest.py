"""A family that learns nothing, and a folder of dark squares: enough to judge the judge."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from zoo import registry
from zoo.data.readers.base import Entry
from zoo.errors import DataError
from zoo.families import build
from zoo.families.base import Encoding, Family, IOSpec, MapSpec, Output
from zoo.postprocess.labels import components
from zoo.types import (
    Geometry,
    Instances,
    InstancesPrediction,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    SemanticPrediction,
)

SIDE = 48


class Darkness(Family):
    """Says "square" where the image is darker than `level`; also as objects and as a cleaned picture, where asked."""

    name = "darkness"

    class Options(Family.Options):
        level: float = 0.5
        says: tuple[str, ...] = ("semantic",)
        merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
        breaks_on: float = 2.0

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.level = nn.Parameter(torch.tensor(options.level))
        outputs = {
            "semantic": Output("semantic", ("background", "square"), "squares"),
            "instances": Output("instances", ("square",), "squares"),
            "clean": Output("picture", (), "clean", channels=("red", "green", "blue")),
        }
        self.spec = IOSpec(
            maps={"dark": MapSpec(1)},
            outputs={name: outputs[name] for name in options.says},
            encoding=Encoding("rgb8", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            divisor=1,
            margin=0,
            tile=64,
        )

    @classmethod
    def targets(cls, options: Any, card: Any) -> Any:
        raise NotImplementedError

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> dict[str, Tensor]:
        brightness = inputs["image"].mean(1, keepdim=True)
        if float(brightness.mean()) > self.options.breaks_on:
            raise RuntimeError("too bright for this model")
        return {"dark": self.level - brightness}

    def loss(self, maps: Any, batch: Any, progress: float) -> dict[str, Tensor]:
        raise NotImplementedError

    def decode(self, maps: dict[str, Tensor], geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        return [self._one(plane[0].numpy()) for plane in maps["dark"]]

    def _one(self, dark: Any) -> dict[str, Prediction]:
        mask = dark > 0
        labels = components(mask)
        clean = np.where(mask, 40, 220).astype(np.uint8)
        found: dict[str, Prediction] = {
            "semantic": SemanticPrediction(mask.astype(np.uint8), ("background", "square")),
            "instances": InstancesPrediction(labels, ("square",), np.zeros(int(labels.max()), np.int64)),
            "clean": PicturePrediction(np.repeat(clean[None], 3, 0), ("red", "green", "blue")),
        }
        return {name: found[name] for name in self.options.says}


class DarkSquares:
    """Reader: images of three dark squares on white, two a slide; the image "broken" cannot be read."""

    from zoo.data.readers.base import NoArguments as Arguments

    needs_folder = False

    def __init__(self, card: Any, folder: Path | None, arguments: Any) -> None:
        self.card = card

    def index(self) -> list[Entry]:
        entries = [Entry(f"field-{n}", f"slide-{n // 2}", split="train" if n < 4 else "test") for n in range(12)]
        return entries + ([Entry("broken", "slide-9", split="test")] if "broken" in self.card.name else [])

    def read(self, entry: Entry) -> Sample:
        if entry.id == "broken":
            raise DataError("broken.png: the file ends in the middle of the picture.")
        seed = int(entry.id.rpartition("-")[2])
        rng = np.random.default_rng(seed)
        labels = np.zeros((SIDE, SIDE), np.int32)
        for number in range(3):
            row, column = 16 * number + 2, int(rng.integers(0, SIDE - 12))
            labels[row : row + 10, column : column + 10] = number + 1
        clean = np.where(labels > 0, 40, 220).astype(np.uint8)[None].repeat(3, 0)
        noisy = np.clip(clean + rng.normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
        inverted = 255 - noisy if "inverted" in self.card.name else noisy
        truth = {"squares": Instances(labels), "clean": Picture(clean, ("red", "green", "blue"))}
        chosen = {key: truth[key] for key in self.card.truths}
        return Sample(entry.id, self.card.name, inverted, group=entry.group, truth=chosen)


CARD = """zoo: 1
name: {name}
summary: Dark squares.
reader: {{name: dark-squares}}
licence: {{name: CC0-1.0, allows: [research, commercial, redistribution, derivatives]}}
group: slide
truths:
  squares: {{kind: instances, classes: [{classes}]}}
"""
PICTURE = "  clean: {kind: picture, channels: [red, green, blue]}\n"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what a test predicts to itself."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make family and reader known for one test."""
    module = types.ModuleType("bench_fakes")
    module.Darkness, module.DarkSquares = Darkness, DarkSquares  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bench_fakes", module)
    monkeypatch.setitem(registry.TABLES["family"], "darkness", "bench_fakes:Darkness")
    monkeypatch.setitem(registry.TABLES["reader"], "dark-squares", "bench_fakes:DarkSquares")
    registry.table.cache_clear()
    yield
    registry.table.cache_clear()
    registry.resolve.cache_clear()


@pytest.fixture
def make_dataset(tmp_path: Path) -> Any:
    """Write a card and return its folder, which is a dataset's name."""

    def make(name: str = "squares", classes: str = "square", picture: bool = False) -> str:
        folder = tmp_path / name
        folder.mkdir()
        text = CARD.format(name=name, classes=classes) + (PICTURE if picture else "")
        (folder / "zoo-dataset.yaml").write_text(text)
        return str(folder)

    return make


@pytest.fixture
def make_weights(tmp_path: Path) -> Any:
    """Write weights and return their path."""

    def make(name: str = "dark", trained_on: Any = (), **options: Any) -> str:
        path = tmp_path / f"{name}.safetensors"
        more = {} if trained_on is None else {"trained_on": list(trained_on)}
        build.save(build.create("darkness", options), path, **more)
        return str(path)

    return make
