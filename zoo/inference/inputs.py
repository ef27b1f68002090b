"""Which images a user means: files, folders, globs; and what each one's results are called."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import UserError, suggest
from zoo.io.images import IMAGE_SUFFIXES
from zoo.io.volumes import VOLUME_SUFFIXES, is_volume_folder, suffix_of


@dataclass(frozen=True)
class Item:
    """An image and the name of its results below the output folder, with sub-folders and without an ending."""

    path: Path
    stem: Path


def find_images(paths: Iterable[str | Path], out: Path, volumes: bool = False) -> list[Item]:
    """Return the images of files, folders (with all below) and globs, sorted within each, each image once.

    `volumes`: look for volumes instead; a folder that is an OME-Zarr volume is one.

    What lies in `out` or in a hidden folder is left out. Sub-folders of a folder or of a glob's fixed part are kept in
    the stem; images that differ in their endings only keep them. Raises `UserError` where a path leads to nothing or
    two images would write the same files.
    """
    out = out.resolve()
    found: dict[Path, Path] = {}
    for path in paths:
        before = len(found)
        hits = list(_expand(Path(path).expanduser(), volumes))
        for image, relative in hits:
            resolved = image.resolve()
            if not resolved.is_relative_to(out):
                found.setdefault(image, relative)
        if not hits or (len(found) == before and not any(image in found for image, _ in hits)):
            if hits:
                raise UserError(f"{path}: all of it lies in {out}, where the results go. Choose another --out.")
            kinds = VOLUME_SUFFIXES if volumes else IMAGE_SUFFIXES
            what = "volume" if volumes else "image"
            raise UserError(f"{path}: no {what} there. Expected files that end in {', '.join(kinds)}.")
    if not found:
        raise UserError("no image given. Expected files, folders or globs.")
    return _named(found)


def _named(found: dict[Path, Path]) -> list[Item]:
    plain = Counter(_stem(relative) for relative in found.values())
    items = [
        Item(image, relative if plain[_stem(relative)] > 1 else _stem(relative)) for image, relative in found.items()
    ]
    taken: dict[Path, Path] = {}
    for item in items:
        other = taken.setdefault(item.stem, item.path)
        if other != item.path:
            raise UserError(
                f"{other} and {item.path}: both would write {item.stem}.*. Expected one image a name. "
                "Rename one, or take each folder by itself, with another --out."
            )
    return items


def _stem(path: Path) -> Path:
    """Return a path without its ending: the double ones of volumes as a whole."""
    name = path.name
    for ending in (".nii.gz", ".ome.zarr"):
        if name.lower().endswith(ending):
            return path.with_name(name[: -len(ending)])
    return path.with_suffix("")


def _expand(path: Path, volumes: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (image, its path relative to what the user named)."""
    if volumes and is_volume_folder(path):
        yield path, Path(path.name)
    elif path.is_dir():
        yield from _below(path, sorted(path.rglob("*")), volumes)
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(str(path)):
        root = Path(*_fixed(path))
        hits = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  (** and absolute)
        yield from _below(root, hits, volumes)
    else:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = [p.name for p in beside if p.suffix.lower() in IMAGE_SUFFIXES or p.is_dir()]
        raise UserError(f"{path}: there is no such file or folder. {suggest(path.name, near) if near else ''}".strip())


def _fixed(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _below(root: Path, candidates: Iterable[Path], volumes: bool) -> Iterator[tuple[Path, Path]]:
    inside: list[Path] = []
    for candidate in candidates:
        relative = candidate.relative_to(root)
        if any(part.startswith(".") for part in relative.parts) or any(candidate.is_relative_to(p) for p in inside):
            continue
        if volumes and is_volume_folder(candidate):
            inside.append(candidate)
            yield candidate, relative
        elif candidate.is_file():
            known = suffix_of(candidate) in VOLUME_SUFFIXES if volumes else candidate.suffix.lower() in IMAGE_SUFFIXES
            if known:
                yield candidate, relative
