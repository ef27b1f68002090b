"""The run folder: what scripts may rely on finding, and the checks before anything is written into it.

`recipe.yaml` (resolved), `last.safetensors`, `best.safetensors` (no time or path in their metadata), `checkpoints/`,
`metrics.csv` (flushed), `pictures/`, `environment.json`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError, suggest
from zoo.recipe import Recipe, dump_yaml, load_recipe
from zoo.training import checkpoint, standing

FORMAT = 1
LIBRARIES = (
    "histozoo",
    "torch",
    "lightning",
    "numpy",
    "segmentation-models-pytorch",
    "timm",
    "monai",
    "albumentations",
)


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.csv"
        self.pictures = path / "pictures"
        self.checkpoints = path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.pt"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"

    def refuse_existing(self) -> None:
        """Raise `UserError` where a run, or anything else, is already there, or the folder cannot be written."""
        if self.recipe.exists() or self.last_checkpoint.exists():
            raise UserError(
                f"{self.path}: a run is already there. Expected a new folder. "
                f"Go on with it: zoo train --resume {self.path}, or name another folder: output=DIR"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path}: exists and is no empty folder. Name another folder: output=DIR")
        base = existing_parent(self.path)
        if not os.access(base, os.W_OK | os.X_OK):
            raise UserError(
                f"{base}: cannot be written. Expected a folder to make the run in. Name another: output=DIR"
            )

    def refuse_little_space(self, needed: int) -> None:
        """Raise `UserError` where the disk has less than `needed` bytes."""
        free = shutil.disk_usage(existing_parent(self.path)).free
        if free < needed:
            raise UserError(
                f"{self.path}: the disk has {size(free)} free. Expected at least {size(needed)} for checkpoints "
                "and weights. Make room or name another folder: output=DIR"
            )

    def create(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Make the folder; the recipe is written last, so that a folder with a recipe is complete."""
        try:
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"format": FORMAT, **environment}, indent=2) + "\n"
            checkpoint.write_bytes(self.environment, text.encode())
            checkpoint.write_bytes(self.recipe, dump_yaml(recipe.values()).encode())
        except OSError as error:
            raise UserError(
                f"{self.path}: the run folder cannot be written ({error.strerror}). Name another: output=DIR"
            ) from None

    def open(self) -> tuple[Recipe, dict[str, Any], dict[str, Any] | None]:
        """Return recipe, environment and the last checkpoint (None before the first). Raises `UserError`."""
        if not self.path.exists():
            beside = self.path.parent.iterdir() if self.path.parent.is_dir() else ()
            runs = [str(p) for p in sorted(beside) if (p / "recipe.yaml").is_file()]
            raise UserError(f"{self.path}: there is no such run folder. {suggest(str(self.path), runs)}".strip())
        if not self.recipe.is_file() or not self.environment.is_file():
            raise UserError(
                f"{self.path}: not a run folder: recipe.yaml or environment.json is missing. See: zoo train"
            )
        try:
            environment: dict[str, Any] = json.loads(self.environment.read_text(encoding="utf-8"))
            version = environment["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.environment}: cannot be read ({error}). Expected what zoo train wrote.") from None
        if version != FORMAT:
            raise UserError(
                f"{self.environment}: format: the run folder has format {version}. Expected {FORMAT}. "
                "Go on with the version of the package that wrote it, or start again."
            )
        for folder in (self.path, self.checkpoints):
            checkpoint.tidy(folder)
        state = checkpoint.load(self.last_checkpoint) if self.last_checkpoint.is_file() else None
        state = state and standing.restored(state, self.checkpoints)
        return load_recipe(self.path), environment, state


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above (or at) `path` that exists."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


def size(count: float) -> str:
    """Return bytes in words: 12 MB, 3.4 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def environment(device: str, world: int, threads: int, command: Sequence[str] | None, **more: Any) -> dict[str, Any]:
    """Return versions, hardware, thread count and command, as `environment.json` holds them."""
    from importlib import metadata

    import torch

    from zoo.nn.precision import has_bfloat16

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {
        "command": list(command if command is not None else sys.argv),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "hardware": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "bfloat16": has_bfloat16(torch.device(device)),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "device": device,
        "world": world,
        "threads": threads,
        **more,
    }
