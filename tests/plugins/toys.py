"""Makes the toy packages findable as if they were installed, here and in a subprocess."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAMILIES = {"toy-tiny": "zoo_toy_tiny.family:Tiny", "toy-adversarial": "zoo_toy_adversarial.family:Translator"}

CARD = """zoo: 1
name: toy-squares
summary: Squares.
reader: {name: toy-squares}
licence: {name: CC0-1.0, allows: [research, commercial, redistribution, derivatives]}
truths:
  squares: {kind: semantic, classes: [background, square]}
  clean: {kind: picture, channels: [red, green, blue]}
  many: {kind: label, classes: [few, many]}
group: field
"""


def install(folder: Path) -> list[str]:
    """Write what an installer writes, a folder a package, and return what goes on the import path."""
    for name, target in FAMILIES.items():
        package = target.partition(".")[0]
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoo.families]\n{name} = {target}\n")
    return [str(folder), str(HERE)]


def register() -> None:
    """Make the toy packages' reader known again after the registry's tables were cleared."""
    from zoo import registry

    registry.table("reader").setdefault("toy-squares", "toy_squares:Squares")


@contextmanager
def installed(paths: list[str]) -> Iterator[None]:
    """Within the context the toy packages are installed in this process."""
    from zoo import registry

    sys.path[:0] = paths
    registry.table.cache_clear()
    register()
    try:
        yield
    finally:
        for path in paths:
            sys.path.remove(path)
        registry.table.cache_clear()


def environment(paths: list[str], **more: str) -> dict[str, str]:
    """Return the environment of a subprocess in which the packages are installed."""
    python_path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", **more}
    for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        found.pop(name, None)  # left behind by a launch in this process
    return found


def write_card(folder: Path) -> Path:
    """Write the card of the squares and return its folder, which is a dataset's name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo-dataset.yaml").write_text(CARD)
    return folder
