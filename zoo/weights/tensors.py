"""Files of tensors: read and written, compared with a module, copied into it, and nothing lost to a broken file."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import paths
from zoo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file. Raises `UserError` where it is none."""
    from safetensors import SafetensorError, safe_open

    _is_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}). Copy or pull the file again.") from None


def _is_safetensors(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path}: not a safetensors file. Expected weights that the zoo wrote, as best.safetensors of a run."
        )


_RANK: tuple[str, ...] = (
    "bool",
    "uint8",
    "int8",
    "float8_e5m2",
    "float8_e4m3fn",
    "int16",
    "uint16",
    "float16",
    "bfloat16",
    "int32",
)
_RANK += ("uint32", "float32", "complex64", "float64", "int64", "uint64")
"""torch's names of types, in the order in which the library of the format lays tensors out, last first."""
_NAMES = {"float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "bfloat16": "BF16", "bool": "BOOL", "complex64": "C64"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, a tensor at a time; tensors that share memory are written once each.

    Equal tensors and metadata give equal bytes: those of the format's library, with sorted metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(tensors, key=lambda k: (-_RANK.index(_type(tensors[k])), k))
    with paths.replacing(path) as file:
        file.write(_header({k: tensors[k] for k in order}, metadata))
        for name in order:
            file.write(_bytes(tensors[name]))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        kind = _type(tensor)
        short = _NAMES.get(kind) or kind[0].upper() + kind.lstrip("uintfloa")
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": short, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """Return the bytes of a tensor, row by row, without a copy where it lies so in memory already."""
    import torch

    if tensor.numel() == 0:
        return b""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


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
    refuse_difference(module.state_dict(), tensors, where)
    module.load_state_dict(dict(tensors))


def refuse_difference(expected: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` with the difference of names and shapes, and what one change would mend it, where there is any.

    The values need a `shape` only.
    """
    lines = difference(expected, given)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines[:12])
        more = f"\n  ... and {len(lines) - 12} more" if len(lines) > 12 else ""
        hint = _hint(expected, given)
        what = f"{len(lines)} entries do not fit the model. Expected the same names and shapes.{hint}"
        raise UserError(f"{where}: {what}\n{shown}{more}")


def _hint(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return what one change would mend all of it, as a sentence, or ""."""
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    for long, short, what in ((unexpected, missing, "has"), (missing, unexpected, "lacks")):
        if long and short and len(long) == len(short):
            prefix = long[0].removesuffix(short[0])
            if prefix != long[0] and all(b == prefix + a for a, b in zip(short, long, strict=True)):
                return f' Every name of the file {what} the prefix "{prefix}".'
    shapes = [(k, tuple(expected[k].shape), tuple(given[k].shape)) for k in expected if k in given]
    other = [(k, ours, theirs) for k, ours, theirs in shapes if ours != theirs]
    if missing or unexpected or not other:
        return ""
    if all(a[1:] == b[1:] for _, a, b in other):
        return ' Only the number of classes differs: load with adapt="classes" to start those anew.'
    if len(other) == 1 and len(other[0][1]) > 2 and other[0][1][0] == other[0][2][0]:
        return ' Only the number of input channels differs: load with adapt="input" to spread the first layer.'
    return ""


Make = Callable[["Tensor", "Tensor"], "Tensor"]
"""(the module's entry, the file's entry) -> the file's entry in the shape of the module's."""
Change = Callable[[Mapping[str, "Tensor"], Mapping[str, Any], Mapping[str, str]], Mapping[str, Make]]
"""(the module's state, shapes of the file, its metadata) -> entry -> how it is made to fit."""

# --- loading ----------------------------------------------------------------------------------------------------------

_GROUP = 2**26
"""Bytes of a file that are mapped into memory at a time."""


def load_file(
    module: nn.Module, path: Path, change: Change | None = None, absent: Collection[str] = ()
) -> dict[str, str]:
    """Copy a safetensors file into a module, entry by entry, every one accounted for, and return its metadata.

    `absent`: entries of the module that the file does not hold, and that stay as they are.

    The file is mapped a part at a time, so that loading takes no memory beside the module's own; floats of other widths
    become the module's. `change` makes fitting entries of those that differ in shape. Raises `UserError`.
    """
    import torch

    left = set(absent)
    own = {name: value for name, value in module.state_dict().items() if name not in left}
    shapes, meta = read_shapes(path)
    changed = {} if change is None else change(own, shapes, meta)
    refuse_difference(own, {**shapes, **{k: own[k] for k in changed}}, str(path))
    batch: list[str] = []
    size = 0
    with torch.no_grad():
        for name in own:
            batch.append(name)
            size += own[name].nbytes
            if size >= _GROUP:
                _copy(path, batch, own, changed)
                batch, size = [], 0
        _copy(path, batch, own, changed)
    return meta


def _copy(path: Path, names: list[str], own: Mapping[str, Tensor], changed: Mapping[str, Make]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # closing it gives the mapped pages back
        for name in names:
            value = file.get_tensor(name)
            own[name].copy_(changed[name](own[name], value) if name in changed else value)


@dataclass(frozen=True)
class Shape:
    """The shape of an entry of a file that was not read."""

    shape: tuple[int, ...]


def read_shapes(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return name -> shape, and the metadata, of a safetensors file from its header. Raises `UserError`."""
    from safetensors import SafetensorError, safe_open

    _is_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: Shape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}). Copy or pull the file again.") from None
