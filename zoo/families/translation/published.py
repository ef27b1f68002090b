"""Published layouts: the code base of pix2pix, CycleGAN, CUT, ASP and PyramidPix2pix, into ours.

The names of parameters are the same but for spectral norm (torch's old hook), blur kernels (constants, left out) and
the discriminators of CUT and PyramidPix2pix, which number the last convolution with the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.nn.discriminators import SPECTRAL

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.weights.convert import Converted, Files

State = dict[str, "Tensor"]


def convert(state: State) -> State:
    """Return a published network's state dict under our names."""
    last = _last_of_discriminator(state)
    found: State = {}
    for name, value in state.items():
        stem, _, word = name.rpartition(".")
        if word == "filt":
            continue
        if last is not None:
            number = int(stem.split(".")[1])
            stem = "final_conv" if number == last else f"enc.{number}"
        found[f"{stem}.{SPECTRAL.get(word, word)}"] = value
    return found


def _last_of_discriminator(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of the last convolution of a PatchGAN whose layers are numbered through, None for others.

    It is a plain sequence `model.N.NAME` whose last convolution gives one map.
    """
    if not state or not all(re.fullmatch(r"model\.\d+\.\w+", name) for name in state):
        return None
    last = max(int(name.split(".")[1]) for name in state)
    weight = state.get(f"model.{last}.weight", state.get(f"model.{last}.weight_orig"))
    if weight is None or weight.ndim != 4 or weight.shape[0] != 1 or weight.shape[-1] != 4:
        return None
    return last


def generator_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a recipe says of the ResNet or U-Net generator that a state dict belongs to. Raises `UserError`."""
    if any(name.startswith("model.model.") for name in state):
        return _unet_options(state)
    first = state.get("model.1.weight", state.get("model.1.weight_orig"))
    blocks = {int(m.group(1)) for name in state if (m := re.match(r"model\.(\d+)\.conv_block\.", name))}
    if first is None or not blocks:
        raise UserError("the file holds no generator of the pix2pix code base. Expected latest_net_G.pth.")
    numbers = sorted({int(name.split(".")[1]) for name in state})
    norm = "batch" if any(name.endswith("running_mean") for name in state) else "instance"
    filters = [n for n in numbers if f"model.{n}.filt" in state]
    transposed = [n for n in numbers if n > max(blocks) and _is_transposed(state, n)]
    return {
        "name": "resnet",
        "width": int(first.shape[0]),
        "blocks": len(blocks),
        "norm": norm,
        "dropout": any(".conv_block.6.weight" in name for name in state),
        "spectral": any(name.endswith("weight_orig") for name in state),
        "antialias": min(blocks) != 10 if filters or not transposed else False,
        "antialias_up": not transposed,
    }


def _is_transposed(state: Mapping[str, Tensor], number: int) -> bool:
    weight = state.get(f"model.{number}.weight", state.get(f"model.{number}.weight_orig"))
    return (
        weight is not None
        and weight.ndim == 4
        and weight.shape[-1] == 3
        and weight.shape[0] > weight.shape[1]
        and (f"model.{number - 1}.filt" not in state)
    )


def _unet_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state.get("model.model.0.weight")
    if first is None:
        raise UserError("the file holds no generator of the pix2pix code base. Expected latest_net_G.pth.")
    depth = max(name.count("model.") for name in state if name.endswith("weight")) - 1
    norm = "batch" if any(name.endswith("running_mean") for name in state) else "instance"
    return {"name": "unet", "width": int(first.shape[0]), "downs": depth, "norm": norm}


def convert_file(files: Files, *, file: str | None = None, truth: str = "ihc", mpp: float | None = None) -> Converted:
    """Return a published generator (`latest_net_G.pth`) as a model that predicts; it has no discriminator.

    `file`: its name where several were pulled; `truth`: key of what it paints; `mpp`: um per pixel it was trained at.
    """
    from zoo.weights.convert import Converted

    state = files.state_dict(file)
    options = {
        "generator": generator_options(state),
        "discriminator": None,
        "objective": ["l1"],
        "truth": truth,
        "target_channels": ["red", "green", "blue"],
        "mpp": mpp,
    }
    return Converted("translation", options, {f"generator.{name}": value for name, value in convert(state).items()})
