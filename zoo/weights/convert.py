"""From a published file to weights of the zoo: what a family registers so that its published weights can be pulled.

A card says `convert: NAME`, with arguments; the registry's table "converter" says where the function is. It gets the
files that were pulled and returns what rebuilds the module: the family, its options, its state dict. It is called once,
on pull; the result is a safetensors file that `zoo.load` reads, checked strictly against the module before it counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import UserError
from zoo.weights import readers

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the metadata in a file of weights."""


@dataclass(frozen=True)
class Files:
    """The files of a card on this machine: `main` is the file that its source names (or, of an archive, the folder that
    it was unpacked into); `folder` holds everything, under the names that the card gives."""

    folder: Path
    main: Path

    def path(self, name: str) -> Path:
        """Return the one file of that name (below `folder`, at any depth). Raises `UserError` where there is none."""
        direct = self.folder / name
        if direct.is_file():
            return direct
        found = sorted(self.folder.rglob(Path(name).name))
        found = [file for file in found if file.is_file() and file.as_posix().endswith(name)]
        if len(found) != 1:
            what = "no" if not found else f"{len(found)} files named"
            raise UserError(f"{self.folder}: {what} {name}. Expected the files of the published model, as served.")
        return found[0]

    def find(self, pattern: str) -> list[Path]:
        """Return the files that match a glob pattern, below the folder, sorted."""
        return sorted(file for file in self.folder.rglob(pattern) if file.is_file())

    def read(self, name: str | None = None) -> readers.Contents:
        """Return the tensors and values of a file (default: the main one); nothing in it is executed."""
        return readers.read(self.main if name is None else self.path(name))

    def state_dict(self, name: str | None = None, key: str | None = None) -> dict[str, Tensor]:
        """Return the state dict of a file: below `key`, or below the usual wrappers; `module.` is cut off."""
        return readers.state_dict(self.main if name is None else self.path(name), key)

    def json(self, name: str) -> Any:
        """Return a JSON file's values. Raises `UserError` where it is none."""
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not valid JSON ({error}). Get the file again.") from None


@dataclass(frozen=True)
class Converted:
    """What a converter returns: `family` and `options` rebuild the module, `tensors` is its whole state dict; `more`
    becomes metadata of the file, as that of a trained one (recipe, trained_on, operating). Weights of an encoder alone
    have the family "" and timm's names."""

    family: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    more: Mapping[str, Any] = field(default_factory=dict)


class Converter(Protocol):
    """A function that a family registers: `"converter": {"NAME": "module:function"}` in `zoo.registry`."""

    def __call__(self, files: Files, **arguments: Any) -> Converted:
        """Return a module's options and state dict. Raises `UserError` for files of another layout."""


def metadata(family: str, options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file of weights: strings only, as safetensors wants them; equal content, equal bytes."""
    found = {"format": str(FORMAT), "family": family, "options": json.dumps(dict(options), sort_keys=True)}
    return found | {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in more.items()}


def zoo_file(files: Files) -> Converted:
    """Return a file that the zoo wrote, as it is: the converter of a card that names none."""
    contents = files.read()
    meta = {k: str(v) for k, v in contents.values.items()}
    if contents.format != "safetensors" or "family" not in meta or "options" not in meta:
        raise UserError(
            f"{files.main}: the file says no family. Expected weights that the zoo wrote, or a card with `convert`."
        )
    try:
        options = dict(json.loads(meta["options"]))
    except (ValueError, TypeError):
        raise UserError(f"{files.main}: its metadata (options) are damaged. Get the file again.") from None
    more = {k: v for k, v in meta.items() if k not in ("format", "family", "options")}
    return Converted(meta["family"], options, contents.tensors, more)


def plain_state_dict(
    files: Files,
    *,
    family: str,
    options: Mapping[str, Any] | None = None,
    file: str | None = None,
    key: str | None = None,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Converted:
    """Return the state dict of a file that needs no more than other names.

    `file`: where several were pulled; `key`: what it lies under; `drop`: regular expressions of entries to leave out;
    `rename`: regular expression -> replacement, applied in order at the start of each name.
    """
    tensors = {}
    for name, value in files.state_dict(file, key).items():
        if any(re.match(pattern, name) for pattern in drop):
            continue
        new = name
        for pattern, replacement in (rename or {}).items():
            new = re.sub(rf"^(?:{pattern})", replacement, new)
        if new in tensors:
            raise UserError(f'{files.main}: two entries would be named "{new}". Mend `rename` on the card.')
        tensors[new] = value
    return Converted(family, options or {}, tensors, more or {})


def keras_to_torch(name: str, value: Tensor) -> tuple[str, Tensor]:
    """Return the torch name and axes of one Keras weight of a convolution, dense or normalisation layer.

    `LAYER.kernel` (k.., in, out) -> `LAYER.weight` (out, in, k..); gamma -> weight, beta -> bias,
    moving_mean -> running_mean, moving_variance -> running_var; bias stays. Transposed and depth-wise convolutions have
    other axes: their converters do it themselves.
    """
    layer, _, kind = name.rpartition(".")
    if kind == "kernel":
        order = (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        return f"{layer}.weight", value.permute(order).contiguous()
    known = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    return f"{layer}.{known.get(kind, kind)}", value
