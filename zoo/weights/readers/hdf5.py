"""HDF5: Keras's files of weights in their legacy layout, and any other file as its datasets by path.

A dataset may point at another file, at raw bytes anywhere on the disk, or at parts of other datasets; each of these is
refused, and so are filters that would load a plug-in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.weights.readers import Contents, check_claim

_FILTERS = (None, "gzip", "lzf", "szip")
_RATIO = 200
_MOST = 100_000


def read(path: Path) -> Contents:
    """Return the datasets of an HDF5 file as tensors, axes as in the file.

    Keras's legacy layout (root or `model_weights` has `layer_names`): names are `LAYER.WEIGHT` ("conv2d.kernel"), read
    through the attributes and in their order, without ":0" and without the layer's name repeated. The axes are Keras's:
    a kernel is (k.., in, out). Other files: the path with dots. `values`: attributes of the root that are texts or
    numbers, and `layer_names` as JSON, layers without weights included.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        root: Any = file
        if isinstance(file.get("model_weights", getlink=False) if "model_weights" in file else None, h5py.Group):
            root = file["model_weights"]
        values = _attributes(file) | _attributes(root)
        if "layer_names" in root.attrs:
            layers = _texts(root.attrs["layer_names"])
            return Contents(_legacy(path, root, layers), values | {"layer_names": json.dumps(layers)}, "hdf5")
        tensors: dict[str, Any] = {}
        _all(path, file, "", tensors, [path.stat().st_size * _RATIO + 2**20, _MOST])
        return Contents(tensors, values, "hdf5")


def _attributes(group: Any) -> dict[str, Any]:
    found = {}
    for name in group.attrs:
        try:
            value = group.attrs[name]
        except (OSError, TypeError):
            continue
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str | int | float) and len(str(value)) < 1_000_000:
            found[name] = value
    return found


def _texts(values: Any) -> list[str]:
    return [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in np.asarray(values).ravel().tolist()]


def _legacy(path: Path, root: Any, layers: list[str]) -> dict[str, Any]:
    import h5py

    budget = [path.stat().st_size * _RATIO + 2**20, _MOST]
    tensors: dict[str, Any] = {}
    for layer in layers:
        group = _child(path, root, layer)
        if not isinstance(group, h5py.Group):
            raise UserError(f'{path}: layer "{layer}" is listed and not there. Get the file again.')
        for weight in _texts(group.attrs.get("weight_names", [])):
            short = weight.removesuffix(":0").removeprefix(f"{layer}/").replace("/", ".")
            name = f"{layer}.{short}"
            if name in tensors:
                raise UserError(f'{path}: "{name}" stands twice. Expected every name once.')
            tensors[name] = _tensor(path, name, _child(path, group, weight), budget)
    return tensors


def _child(path: Path, group: Any, name: str) -> Any:
    """Return what lies at a path below a group, following no link out of the file."""
    import h5py

    for part in name.split("/"):
        if not part:
            continue
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part in group else None
        if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            raise UserError(f'{path}: "{name}" is a link to elsewhere. Expected the numbers themselves.')
        if link is None:
            raise UserError(f'{path}: "{name}" is listed and not there. Get the file again.')
        group = group[part]
    return group


def _all(path: Path, group: Any, prefix: str, tensors: dict[str, Any], budget: list[int], depth: int = 0) -> None:
    import h5py

    for name in group:
        child = _child(path, group, name)
        full = f"{prefix}.{name}" if prefix else name
        budget[1] -= 1
        if depth > 64 or budget[1] < 0:
            raise UserError(f"{path}: the file nests its groups without end. Expected weights.")
        if isinstance(child, h5py.Group):
            _all(path, child, full, tensors, budget, depth + 1)
        elif child.dtype.kind in "biuf":
            tensors[full] = _tensor(path, full, child, budget)


def _tensor(path: Path, name: str, dataset: Any, budget: list[int]) -> Any:
    import h5py
    import torch

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
        raise UserError(f'{path}: "{name}" holds no numbers. Expected an array.')
    if dataset.external or dataset.is_virtual:
        raise UserError(f'{path}: "{name}" keeps its numbers in another file. Expected them in this one.')
    if dataset.compression not in _FILTERS or _other_filters(dataset):
        raise UserError(f'{path}: "{name}" is packed with a filter that is not built in. Expected gzip or none.')
    budget[0] -= check_claim(path, name, dataset.shape, dataset.dtype.itemsize, budget[0])
    array = np.asarray(dataset[()])
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)
    return torch.from_numpy(native)


def _other_filters(dataset: Any) -> bool:
    plist = dataset.id.get_create_plist()
    builtin = (1, 2, 3, 4, 32000)  # deflate, shuffle, fletcher32, szip, lzf
    return any(plist.get_filter(i)[0] not in builtin for i in range(plist.get_nfilters()))
