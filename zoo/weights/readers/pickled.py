"""Torch files: a pickle of names that point at raw storages. Read with torch's weights-only reader, which calls nothing
but what rebuilds tensors.

Checkpoints often hold the settings of a training beside the tensors (a namespace, paths, configuration objects). Those
classes are known by name: in their place comes an object without behaviour, so that the file can be read and its
classes need not be installed. Every other class or function refuses the whole file.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.weights.readers import Contents, check_claim, shortened

if TYPE_CHECKING:
    from torch import Tensor

INERT = (
    *("argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "datetime.datetime", "datetime.timedelta", "typing.Any"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.StringNode"),
    *("omegaconf.nodes.IntegerNode", "omegaconf.nodes.FloatNode", "omegaconf.nodes.BooleanNode"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "builtins.dict", "builtins.list"),
    *("builtins.int", "builtins.float", "builtins.str", "builtins.bool"),
)
"""Classes that hold data in published checkpoints: an inert object takes their place."""
INERT_MAPPINGS = (
    *("collections.defaultdict", "lightning.fabric.utilities.data.AttributeDict", "easydict.EasyDict"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
    *("addict.addict.Dict", "yacs.config.CfgNode"),
)
"""Dictionaries of other kinds: a plain one takes their place."""
_DEPTH = 12
_ENTRIES = 1_000_000
_CODECS = ("hex", "base64", "base_64", "uu", "quopri", "quoted_printable", "zlib", "bz2", "zip")


class Inert:
    """Stands where a file holds an object of a class that is not needed: takes anything, does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class InertMapping:
    """Makes a plain dictionary where a file holds one of another class."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        return OrderedDict()


def read(path: Path) -> Contents:
    """Return the tensors of a torch file by flat name, mapped from it where it is a zip file, and its plain values."""
    import pickle

    import torch

    _check_pickle(path)
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins()):
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    if isinstance(found, torch.Tensor):
        found = {"tensor": found}
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: the file holds a {type(found).__name__}, no state dict. Expected names and tensors.")
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    groups: set[str] = set()
    for name, value in _walk(path, found, groups):
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach()
        elif isinstance(value, str | int | float | bool):
            values[name] = value
    _check_tensors(path, tensors)
    return Contents(tensors, values, "torch", frozenset(groups))


def _stand_ins() -> list[Any]:
    """Return a class without behaviour a known name; torch finds it by the name that it bears."""
    found = []
    for names, base in ((INERT, Inert), (INERT_MAPPINGS, InertMapping)):
        for full in names:
            module, _, name = full.rpartition(".")
            found.append(type(name, (base,), {"__module__": module, "__qualname__": name}))
    return found


def _walk(
    path: Path, tree: Any, groups: set[str], prefix: str = "", depth: int = 0, budget: list[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, leaf) of nested dictionaries and lists, and note the names of the dictionaries in `groups`;
    what is nested without end is refused."""
    budget = [_ENTRIES] if budget is None else budget
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for key, value in entries:
        budget[0] -= 1
        if budget[0] < 0 or depth > _DEPTH:
            raise UserError(f"{path}: the file nests its entries without end. Expected a state dict. Nothing was used.")
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping | list | tuple):
            if isinstance(value, Mapping):
                groups.add(name)
            yield from _walk(path, value, groups, name, depth + 1, budget)
        else:
            yield name, value


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are none (sparse, quantised, without data) and what claims more than the file holds."""
    import torch

    limit = 4 * path.stat().st_size + 2**20  # entries may share a storage, as tied weights do
    total = 0
    for name, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f'{path}: "{name}" is no dense tensor ({value.layout}, {value.device}). Expected weights.')
        total += check_claim(path, name, value.shape, value.element_size(), limit - total)


def _check_pickle(path: Path) -> None:
    """Refuse a pickle that could fill the memory while it is read: codecs of bytes, applied again and again."""
    with _pickle_of(path) as stream:
        if stream is None:
            return
        texts, codecs = set(), False
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and str(argument).startswith("_codecs "):
                    codecs = True
                elif isinstance(argument, str) and len(argument) < 24:
                    texts.add(argument.lower().replace("-", "_").removesuffix("_codec"))
        except ValueError as error:
            raise UserError(
                f"{path}: its pickle is damaged ({shortened(str(error), 80)}). Get the file again."
            ) from None
    if codecs and texts & set(_CODECS):
        raise _refusal(path, "GLOBAL _codecs.encode ")


class _pickle_of:  # noqa: N801 - a context manager
    """The pickle inside a zip file, or the first of a legacy file; None where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[Any] = []

    def __enter__(self) -> IO[bytes] | None:
        if not zipfile.is_zipfile(self.path):
            stream: IO[bytes] = self.path.open("rb")
            self.open.append(stream)
            return stream
        archive = zipfile.ZipFile(self.path)
        self.open.append(archive)
        name = next((n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")), None)
        if name is None:
            return None
        self.open.append(archive.open(name))
        inner: IO[bytes] = self.open[-1]
        return inner

    def __exit__(self, *_: Any) -> None:
        for one in reversed(self.open):
            one.close()


def _refusal(path: Path, reason: str) -> UserError:
    found = re.search(r"GLOBAL (\S+)", reason) or re.search(r"unrecognized function (.+)", reason)
    what = f"{found.group(1)}, which is no tensor" if found else "more than tensors"
    return UserError(
        f"{path}: the file asks for {shortened(what, 100)}: nothing in it was executed. "
        "Expected a state dict. Save the tensors alone, as .safetensors or with torch.save(model.state_dict(), ...)."
    )
