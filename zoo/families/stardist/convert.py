"""Published StarDist models (`config.json`, `thresholds.json`, `weights_*.h5`): options and state dict of ours.

Layers of the published networks carry names of their own or automatic ones (conv2d, conv2d_7, ...). Named ones map by
name. Automatic ones map by the order in which they stand in the file, because their numbers depend on what the process
that wrote it had built before; a residual block's shortcut is told by its kernel of one pixel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.errors import UserError, suggest
from zoo.families.stardist.rays import KINDS
from zoo.weights.convert import Converted, Files

AUTO = re.compile(r"^(conv[23]d|batch_normalization)(_\d+)?$")

BACKBONES: dict[str, dict[str, str]] = {
    "unet": {
        "unet_n_depth": "depth",
        "unet_n_filter_base": "filters",
        "unet_expansion": "expansion",
        "unet_n_conv_per_depth": "convs",
        "unet_kernel_size": "kernel",
        "unet_pool": "pool",
        "unet_activation": "activation",
        "unet_last_activation": "last_activation",
        "unet_batch_norm": "batch_norm",
        "unet_dropout": "dropout",
        "unet_prefix": "prefix",
        "net_conv_after_unet": "features",
    },
    "resnet": {
        "resnet_n_blocks": "blocks",
        "resnet_n_filter_base": "filters",
        "resnet_n_conv_per_block": "convs",
        "resnet_kernel_size": "kernel",
        "resnet_activation": "activation",
        "resnet_batch_norm": "batch_norm",
        "net_conv_after_resnet": "features",
    },
}
"""Published backbone -> key of its configuration -> option of ours."""

KNOWN = {
    *("n_dim", "axes", "n_channel_in", "n_channel_out", "n_rays", "rays", "rays_json", "grid", "anisotropy"),
    *("backbone", "n_classes", "resnet_kernel_init", "net_input_shape", "net_mask_shape", "use_gpu"),
    *(key for table in BACKBONES.values() for key in table),
}
"""Keys of a published configuration that say what the network is; those that begin with train_ say how it learnt."""


def options_of(config: Mapping[str, Any], thresholds: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return our options of a published configuration. Missing keys mean the published defaults.

    Raises `UserError` for keys that nothing is known about, and for values that no published model has.
    """
    for key in config:
        if key not in KNOWN and not key.startswith("train_"):
            raise UserError(f'config.json: unknown key "{key}". {suggest(key, KNOWN)}'.strip())
    dims = _dims(config)
    backbone = str(config.get("backbone", "unet"))
    if backbone not in BACKBONES:
        raise UserError(f'config.json: backbone "{backbone}" is not known. Expected unet or resnet.')
    parts = {ours: config[key] for key, ours in BACKBONES[backbone].items() if config.get(key) is not None}
    channels = int(config.get("n_channel_in", 1))
    names = ("red", "green", "blue") if channels == 3 else tuple(f"channel{i}" for i in range(channels))
    found: dict[str, Any] = {
        "dims": dims,
        "backbone": backbone,
        backbone: parts,
        "grid": tuple(config.get("grid") or (1,) * dims),
        "rays": _rays(config, dims),
        "channels": ("nuclei",) if channels == 1 else names,
        "classes": _classes(config.get("n_classes")),
    }
    if dims == 3 and config.get("anisotropy") is not None:
        found["anisotropy"] = tuple(config["anisotropy"])
    if thresholds is not None:
        found["thresholds"] = {
            "prob": _inside(thresholds.get("prob"), 0.5),
            "nms": _inside(thresholds.get("nms"), 0.4),
            "found": True,
        }
    if config.get("train_loss_weights"):
        weights = [float(w) for w in config["train_loss_weights"]]
        found["loss_weights"] = tuple((*weights, 1.0)[:3])
    if config.get("train_dist_loss"):
        found["loss"] = config["train_dist_loss"]
    return found


def _dims(config: Mapping[str, Any]) -> int:
    if "n_dim" in config:
        dims = int(config["n_dim"])
    else:
        three = "rays_json" in config or "anisotropy" in config or len(config.get("grid", ())) == 3
        dims = 3 if three or config.get("backbone") == "resnet" else 2
    if dims not in (2, 3):
        raise UserError(f"config.json: n_dim is {dims}. Expected 2 or 3.")
    return dims


def _rays(config: Mapping[str, Any], dims: int) -> Any:
    """Return the number of rays, or a kind with arguments; classes are looked up by name, never evaluated."""
    if dims == 2:
        return int(config.get("n_rays", 32))
    described = config.get("rays_json")
    if described is None:
        given = config.get("rays") or config.get("n_rays") or 96
        anisotropy = config.get("anisotropy")
        arguments = {"n": int(given), "anisotropy": None if anisotropy is None else [float(a) for a in anisotropy]}
        return {"name": "golden-spiral", "arguments": arguments}
    names = {cls: kind for kind, cls in KINDS.items()}
    name = str(described.get("name"))
    if name not in names:
        raise UserError(f'config.json: rays_json: no rays "{name}". Expected one of {", ".join(names)}.')
    return {"name": names[name], "arguments": dict(described.get("kwargs", {}))}


def _classes(count: Any) -> tuple[str, ...]:
    return ("object",) if count is None else tuple(f"class{i}" for i in range(1, int(count) + 1))


def _inside(value: Any, default: float) -> float:
    """Return a threshold; one that cannot be becomes the published default."""
    return float(value) if isinstance(value, int | float) and 0 < value < 1 else default


# --- weights ----------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def state_of(module: nn.Module, layers: Mapping[str, Mapping[str, NDArray[Any] | Tensor]]) -> dict[str, Tensor]:
    """Return the state dict of a published network's module from layers in file order: name -> weight -> array.

    Kernels come as (*spatial, inputs, outputs). Every parameter of the file and of the module is accounted for; raises
    `UserError` where one is left over.
    """
    ours = _ours(module)
    pairs = _pairs(ours, layers)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    filled: set[str] = set()
    for name, (path, layer) in pairs.items():
        for weight, array in layers[name].items():
            target = f"{path}.{'conv.' if hasattr(layer, 'conv') else ''}{WEIGHTS.get(weight, weight)}"
            value = _turned(weight, torch.as_tensor(np.asarray(array), dtype=torch.float32))
            if target not in state or state[target].shape != value.shape:
                have = tuple(state[target].shape) if target in state else "nothing"
                raise UserError(
                    f"{name}/{weight}: shape {tuple(value.shape)} does not fit; the network has {have} there. "
                    "Expected the weights of this config.json."
                )
            state[target] = value
            filled.add(target)
    missing = [n for n in state if n not in filled and not n.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{missing[0]}: the file has nothing for it ({len(missing)} entries). Copy the model again.")
    return state


def _turned(weight: str, value: Tensor) -> Tensor:
    """Return a kernel with outputs and inputs first; other weights as they are."""
    if weight != "kernel":
        return value
    axes = value.ndim
    return value.permute(axes - 1, axes - 2, *range(axes - 2)).contiguous()


def _ours(module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return layer name -> (its path in the state dict, the layer), in the order of creation."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, child in module.named_modules():
        if path.rpartition(".")[0].endswith("layers"):
            found[path.rpartition(".")[2]] = (path, child)
    return found


def _pairs(
    ours: Mapping[str, tuple[str, nn.Module]], layers: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, nn.Module]]:
    """Return layer of the file -> layer of ours."""
    with_weights = [name for name, weights in layers.items() if weights]
    found = {name: ours[name] for name in with_weights if name in ours and not AUTO.match(name)}
    strange = [name for name in with_weights if name not in found and not AUTO.match(name)]
    if strange:
        raise UserError(f'layer "{strange[0]}" is not in the network of this config.json. {suggest(strange[0], ours)}')
    theirs_by, ours_by = _kinds_of_file(layers, with_weights), _kinds_of_ours(ours)
    for kind in {*theirs_by, *ours_by}:
        theirs, mine = theirs_by.get(kind, []), ours_by.get(kind, [])
        if len(theirs) != len(mine):
            raise UserError(
                f"the file has {len(theirs)} layers of kind {kind}, and the network of this config.json {len(mine)}. "
                "Expected weights and configuration of one model."
            )
        found |= {name: ours[name_ours] for name, name_ours in zip(theirs, mine, strict=True)}
    return found


def _kinds_of_file(layers: Mapping[str, Mapping[str, Any]], names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        if AUTO.match(name):
            kernel = layers[name].get("kernel")
            single = kernel is not None and all(k == 1 for k in np.shape(kernel)[:-2])
            kind = "batch norm" if kernel is None else "shortcut" if single else "convolution"
            found.setdefault(kind, []).append(name)
    return found


def _kinds_of_ours(ours: Mapping[str, tuple[str, nn.Module]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, (_, layer) in ours.items():
        if AUTO.match(name):
            kernel = getattr(layer, "kernel", None)
            single = kernel is not None and all(k == 1 for k in kernel)
            kind = "batch norm" if kernel is None else "shortcut" if single else "convolution"
            found.setdefault(kind, []).append(name)
    return found


# --- a published folder -----------------------------------------------------------------------------------------------


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return layer -> weight -> tensor from flat names LAYER.WEIGHT, in their order."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, weight = name.rpartition(".")
        found.setdefault(layer, {})[weight] = value
    return found


def folder(files: Files, **options: Any) -> Converted:
    """Return a published model folder as weights of the zoo: the converter "stardist".

    `config.json` and, of several `weights_*.h5`, the best are needed; `thresholds.json` is optional. `options` replace
    what the configuration says, as channel or class names, which it does not know.
    """
    from zoo.families.stardist.model import StarDist
    from zoo.families.stardist.options import StarDistOptions

    config = files.json("config.json")
    limits = files.json("thresholds.json") if files.find("thresholds.json") else None
    weights = files.find("*.h5")
    if not weights:
        raise UserError(f"{files.folder}: no weights_*.h5. Expected a StarDist model folder.")
    best = [file for file in weights if "best" in file.name] or weights
    newest = max(best, key=lambda file: file.stat().st_mtime)
    checked = StarDistOptions.model_validate(options_of(config, limits) | options)
    module = StarDist(checked)
    tensors = by_layer(files.read(str(newest.relative_to(files.folder))).tensors)
    return Converted("stardist", module.options.model_dump(mode="json"), state_of(module, tensors))
