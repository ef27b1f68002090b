"""Finding files of weights, reading and writing them, and loading a state dict with a readable difference."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import cards
from zoo.errors import UserError, suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

BUNDLE = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine: its name, its path, its card where it has one."""

    name: str
    path: Path
    card: cards.WeightsCard | None = None


def card_files() -> dict[str, Path]:
    """Return weights name -> card file of every shipped card, without reading any."""
    return {path.stem: path for path in sorted(BUNDLE.glob("*.yaml"))}


def find(name: str | Path) -> Found:
    """Return the file behind a weights name, a run folder or a path. Raises `UserError` with the nearest names."""
    path = Path(name).expanduser()
    if path.is_dir():
        for file in ("best.safetensors", "last.safetensors"):
            if (path / file).is_file():
                return Found(path.name, path / file)
        raise UserError(f"{path}: the folder holds no best.safetensors or last.safetensors. Expected a run folder.")
    if path.is_file():
        return Found(path.stem, path)
    known = card_files()
    matching = [n for n in known if n == str(name) or n.split(".")[0] == str(name)]
    if str(name) in known:
        matching = [str(name)]
    chosen = [c for c in (cards.read_weights_card(known[n]) for n in matching) if c.name == str(name) or c.default]
    if not chosen:
        tags = f" It has tags: {', '.join(matching)}." if matching else ""
        raise UserError(f'no weights "{name}".{tags} {suggest(str(name), known, "zoo list weights")}')
    card = chosen[0]
    if card.source.kind != "bundled" or not card.source.file:
        why = f" ({card.source.reason})" if card.source.reason else ""
        raise UserError(f'weights "{card.name}" are not on this machine{why}. Where they are: zoo show {card.name}')
    return Found(card.name, BUNDLE / card.source.file, card)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file. Raises `UserError` where it is none."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: not a safetensors file. Expected weights that the zoo wrote, as best.safetensors of a run."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}). Copy or pull the file again.") from None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. Raises `UserError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Copy or pull the file again.") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; tensors that share memory are written once each.

    Equal tensors and metadata give equal bytes: the header is written with sorted metadata.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    data = sorted_header(save({k: v.clone() for k, v in sorted(tensors.items())}, dict(metadata)))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with its metadata sorted: the library writes it in the order of a hash map."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def difference(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return a line a missing, unexpected or mismatched entry."""
    lines = [f"missing    {k} {tuple(expected[k].shape)}" for k in expected if k not in given]
    lines += [f"unexpected {k} {tuple(given[k].shape)}" for k in given if k not in expected]
    lines += [
        f"mismatched {k}: the model has {tuple(expected[k].shape)}, the file {tuple(given[k].shape)}"
        for k in expected
        if k in given and expected[k].shape != given[k].shape
    ]
    return lines


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy a state dict into a module, every entry accounted for. Raises `UserError` with the difference."""
    lines = difference(module.state_dict(), tensors)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines[:12])
        more = f"\n  ... and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise UserError(
            f"{where}: {len(lines)} entries do not fit the model. Expected the same names and shapes.\n{shown}{more}"
        )
    module.load_state_dict(dict(tensors))
