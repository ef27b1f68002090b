"""Reading other people's files of weights: any format -> a flat dict of tensors, and nothing in it is executed.

`read` looks at a file's first bytes, never at its name. What it gives are tensors on the CPU by name; nested
dictionaries are flattened with dots, names and axes are those of the file. Whoever knows the layout (a converter that a
family registers, see `zoo.weights.convert`) renames and transposes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = (
    *("state_dict", "model", "teacher", "model_state", "model_state_dict", "network_weights", "net", "desc"),
    *("params", "weights"),
)
"""Keys under which a torch file commonly keeps its state dict beside the state of an optimiser and the like."""
PREFIXES = ("module.", "_orig_mod.")
"""What wrappers of torch put before every name: data-parallel training, compilation."""
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    `tensors` by flat name, in the order of the file; `values`, what is plain beside them (numbers, texts); `format`
    ("safetensors", "torch", "hdf5", "npz"); `groups`, the dotted keys that are dictionaries in the file, so that a
    nested state dict is told from a module whose name has a dot.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)
    format: str = ""
    groups: frozenset[str] = frozenset()

    def under(self, key: str) -> dict[str, Tensor]:
        """Return the tensors below a dotted key, the key cut off; empty where there are none."""
        start = f"{key}."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def read(path: Path) -> Contents:
    """Return what a .safetensors, torch (.pth, .pt, .ckpt, .bin, .tar), Keras or plain HDF5, or .npz file holds.

    Raises `UserError`, in one line, for a file of another kind, one that is damaged, one that holds more than data
    (code, pickled objects), one whose parts lie outside it, and one that claims to be larger than it is.
    """
    kind = format_of(path)
    try:
        contents: Contents = _reader(kind)(path)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: reading it needs more memory than there is. Nothing was loaded.") from None
    except Exception as error:  # a truncated or foreign file fails in many ways
        reason = " ".join((str(error).splitlines() or [""])[0].split()) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as {kind} ({reason[:160]}). Expected whole weights. Get it again."
        ) from None
    if not contents.tensors:
        raise UserError(f"{path}: the file holds no tensors. Expected names and tensors.")
    return contents


def state_dict(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file: what lies under `key`, or under the wrappers that are commonly used.

    `module.` and `_orig_mod.` are cut off where every name has them. Raises `UserError`.
    """
    contents = read(path)
    if key is not None:
        found = contents.under(key)
        if not found:
            tops = ", ".join(dict.fromkeys(name.split(".")[0] for name in contents.tensors))
            raise UserError(f'{path}: nothing lies under "{key}". It has {shortened(tops)}.')
        return stripped(found)
    found, at = contents.tensors, ""
    for _ in range(3):
        inside = [w for w in WRAPPERS if f"{at}{w}" in contents.groups and contents.under(f"{at}{w}")]
        if not inside:
            break
        at = f"{at}{inside[0]}."
        found = contents.under(at[:-1])
    return stripped(found)


def stripped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes that every name has."""
    found = dict(tensors)
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: value for name, value in found.items()}
    return found


def format_of(path: Path) -> str:
    """Return "safetensors", "torch", "hdf5" or "npz" by a file's first bytes. Raises `UserError` for anything else."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(257)
            tar = file.read(5) == b"ustar"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Copy or pull the file again.") from None
    if start.startswith(_HDF5):
        return "hdf5"
    if start.startswith(b"PK\x03\x04"):
        from zoo.weights.readers.zipped import kind_of_zip

        return kind_of_zip(path)
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return "safetensors"
    what = "is an archive (tar)" if tar else "is empty" if not start else _named(start)
    raise UserError(f"{path}: the file {what}. Expected weights as .safetensors, .pth, .pt, .ckpt, .h5 or .npz.")


def _named(start: bytes) -> str:
    text = start.lstrip()[:20].lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "is a web page, not weights: the server sent its page in place of the file"
    if text.startswith(b"version https://git"):
        return "is a pointer of Git LFS, not the weights themselves"
    if start[4:8] == b"TFL3" or start[:4] == b"\x08\x03\x12\x00":
        return "is a model of another framework"
    return "is of no known kind"


def _reader(kind: str) -> Any:
    from importlib import import_module

    module = {"safetensors": "safe", "torch": "pickled", "hdf5": "hdf5", "npz": "zipped"}[kind]
    return import_module(f"zoo.weights.readers.{module}").read


def check_claim(path: Path, name: str, shape: Sequence[int], itemsize: int, limit: int) -> int:
    """Return the bytes of an array. Raises `UserError` where they are more than `limit`, before any is allocated."""
    size = math.prod(shape) * itemsize
    if size > limit or any(n < 0 for n in shape):
        raise UserError(
            f'{path}: "{name}" claims {size / 1e9:.1f} GB, more than a file of this size can hold. Nothing was loaded.'
        )
    return size


def shortened(text: str, width: int = 120) -> str:
    """Return a text cut to a width, for an error of one line."""
    return text if len(text) <= width else text[: width - 3] + "..."
