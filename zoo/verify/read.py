"""Reading published cases: a manifest in JSON, and tensors beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import paths
from zoo.cases import Case, CaseError
from zoo.errors import Problem, Problems, suggest

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".json", ".safetensors")


@dataclass(frozen=True)
class Published:
    """A case as it was published: what goes to the build, and the outputs (`out.NAME` -> tensor) that it must give."""

    case: Case
    expected: dict[str, Tensor]


def find(words: Iterable[str]) -> list[tuple[str, Path]]:
    """Return (name as given, path of the manifest) of each case; a folder stands for every case below it.

    A name is a path with or without suffix, or a path below the folder of published cases (`ZOO_PARITY`). Raises
    `Problems` for what does not exist, all at once.
    """
    found: list[tuple[str, Path]] = []
    problems: list[Problem] = []
    for word in words:
        hits = _of(word)
        found += hits
        if not hits:
            problems.append(Problem(word, what=_missing(word)))
    if problems:
        raise Problems(problems)
    return found


def _of(word: str) -> list[tuple[str, Path]]:
    stem = bare(word)
    roots = [Path(), *([root] if (root := paths.parity_root()) else [])]
    for base in roots:
        path = base / Path(stem).expanduser()
        manifest = path.with_name(path.name + ".json") if path.name else path
        if path.name and manifest.is_file():
            return [(word, manifest)]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*.json") if p.is_file())
            if not inside:
                continue  # a folder of that name that has nothing to do with cases
            return [(str(p.with_name(p.name.removesuffix(".json"))), p) for p in inside]
    return []


def bare(word: str) -> str:
    """Return a path without the suffix of a manifest or of a tensor file (other dots are part of a name)."""
    for suffix in SUFFIXES:
        if word.endswith(suffix):
            return word.removesuffix(suffix)
    return word


def _missing(word: str) -> str:
    root = paths.parity_root()
    names = [p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.json")] if root else []
    near = suggest(bare(word), names) if names else "Set ZOO_PARITY to the folder of published cases."
    return f"no such case. Expected a manifest (NAME.json, with or without suffix) or a folder of them. {near}".rstrip()


def read(name: str, manifest: Path) -> Published:
    """Return one case. Raises `CaseError` where its files are not what they should be."""
    values = _manifest(manifest)
    tensors_file = manifest.with_name(manifest.name.removesuffix(".json") + ".safetensors")
    if not tensors_file.is_file():
        if not values.get("state_dict"):
            raise CaseError("neither a tensor file nor a state dict: nothing to compare")
        return Published(Case(name, values, layout_only=True), {})
    tensors = _tensors(tensors_file)
    parts: dict[str, dict[str, Tensor]] = {"in": {}, "const": {}, "out": {}}
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        if prefix not in parts or not rest:
            raise CaseError(f'{tensors_file.name}: the tensor "{key}" is none of in.*, out.* and const.*')
        parts[prefix][rest] = value
    if not parts["out"]:
        raise CaseError(f"{tensors_file.name}: no expected output (out.*)")
    case = Case(name, values, parts["in"], parts["const"], tuple(parts["out"]))
    return Published(case, {f"out.{key}": value for key, value in parts["out"].items()})


def _manifest(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaseError(f"{path.name}: not a manifest in JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("system"), str):
        raise CaseError(f'{path.name}: no "system". Expected a manifest with system, kind and configuration')
    if not isinstance(values.get("kind"), str):
        raise CaseError(f'{path.name}: no "kind". Expected network, loss, target, postprocess or another word')
    for key in ("configuration", "tolerance", "state_dict", "aliases"):
        if not isinstance(values.get(key) or {}, dict):
            raise CaseError(f'{path.name}: "{key}" is not an object. Expected names and values: {{"NAME": VALUE}}')
    return values


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(path)))
    except (OSError, SafetensorError) as error:
        raise CaseError(f"{path.name}: cannot be read as safetensors ({error})") from None
