"""Zip files: those of numpy (.npz) are read here; those of torch are told apart, TorchScript is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from zoo.errors import UserError
from zoo.weights.readers import Contents, check_claim

RATIO = 200
"""Unpacked bytes a packed one that weights cannot reach: random numbers do not compress, zeros are no weights."""
_SMALL = 2**24
_SCRIPT = (
    "the file is TorchScript: it holds a program, and loading it would run it. "
    "Expected a state dict. Save it where the model was made: torch.save(model.state_dict(), FILE)."
)


def kind_of_zip(path: Path) -> str:
    """Return "torch" or "npz". Raises `UserError` for TorchScript, exported programs, Keras archives and other zips."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: the file is damaged ({error}). Download or copy it again.") from None
    names = [info.filename for info in infos]
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith(("/", "\\")):
            raise UserError(f'{path}: it holds "{name}", which leads outside the file. Get the file elsewhere.')
    inside = {PurePosixPath(*PurePosixPath(n).parts[1:]).as_posix() for n in names} | set(names)
    if "constants.pkl" in inside or any(n.startswith("code/") for n in inside):
        raise UserError(f"{path}: {_SCRIPT}")
    if any(n.endswith("serialized_exported_program.json") or n.startswith("models/model.json") for n in inside):
        raise UserError(f"{path}: the file is an exported program. Expected a state dict: save the tensors alone.")
    if "data.pkl" in inside:
        if any(i.compress_type != zipfile.ZIP_STORED for i in infos):
            raise UserError(f"{path}: its parts are packed, which torch never does. Expected what torch.save writes.")
        return "torch"
    if names and all(n.endswith(".npy") for n in names):
        return "npz"
    if "model.weights.h5" in inside:
        raise UserError(f"{path}: a Keras archive. Expected its weights alone: unzip it and give model.weights.h5.")
    raise UserError(f"{path}: a zip file of something else. Expected weights: unpack it and give the file inside.")


def read(path: Path) -> Contents:
    """Return the arrays of an .npz file as tensors. Raises `UserError` for pickled objects and for bombs."""
    import torch

    with zipfile.ZipFile(path) as archive:
        packed, unpacked = path.stat().st_size, sum(i.file_size for i in archive.infolist())
        if unpacked > _SMALL and unpacked > RATIO * packed:
            raise UserError(
                f"{path}: {packed} bytes claim to hold {unpacked}, more than {RATIO} times as much. Nothing was loaded."
            )
        tensors = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(member)
            if dtype.hasobject:
                raise UserError(f'{path}: "{name}" holds pickled objects: nothing was executed. Expected numbers.')
            if dtype.kind not in "biuf":
                raise UserError(f'{path}: "{name}" is of type {dtype}. Expected numbers.')
            check_claim(path, name, shape, dtype.itemsize, info.file_size)
            with archive.open(info) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            if name in tensors:
                raise UserError(f'{path}: "{name}" stands twice. Expected every name once.')
            native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
            tensors[name] = torch.from_numpy(native.reshape(array.shape))
    return Contents(tensors, {}, "npz")
