"""A small published system, as a package outside the tree would bring it: a convolution, and a function of its name."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from zoo.cases import Case, fill

CONFIGURATION = {"channels": [2, 3], "padding": 1}
STATE = {
    "module.conv.weight": {"shape": [3, 2, 3, 3], "dtype": "float32"},
    "module.conv.bias": {"shape": [3], "dtype": "float32"},
    "module.steps": {"shape": [], "dtype": "int64"},
}


class Toy(torch.nn.Module):
    """What the toy's product is."""

    def __init__(self, channels: list[int], padding: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels[0], channels[1], 3, padding=padding)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return maps."""
        result: torch.Tensor = self.conv(image)
        return result


def convert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn published names into ours."""
    return {key.removeprefix("module."): value for key, value in state.items()}


@torch.no_grad()
def answer(case: Case) -> Mapping[str, Any]:
    """Answer the toy's cases."""
    sys.stdout.write("a library that talks\n")
    match case.kind:
        case "network" | "manifest":
            with case.building():
                toy = Toy(**case.configuration)
            case.load(toy, convert)
            if case.layout_only:
                return {}
            maps = toy(case.inputs["image"].float())
            return {"maps": maps, "order": maps.flatten().argsort()}
        case "loss" if case.component == "forgets":
            return {}
        case "loss" if case.component == "crashes":
            raise ZeroDivisionError("float division by zero\nat length")
        case "loss":
            return {"loss": case.inputs["a"].double().sum()}
    raise case.unknown()


def write(
    folder: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor] | None,
    state: Mapping[str, Any] | None = None,
    **about: Any,
) -> Path:
    """Write a case and return its path without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"system": "toy", "kind": "loss", "source": "here", "tolerance": {"default": 1e-4, "integer": 0}}
    (folder / f"{name}.json").write_text(json.dumps({**manifest, **about, "state_dict": state or {}}), encoding="utf-8")
    if tensors is not None:
        save_file(dict(tensors), str(folder / f"{name}.safetensors"))
    return folder / name


def network(folder: Path, name: str = "network", padding: int = 1, **about: Any) -> Path:
    """Write the network's case; its outputs are computed here, not by the product."""
    image = torch.arange(2 * 5 * 5).reshape(1, 2, 5, 5).to(torch.uint8)
    weight, bias = (fill(key, tuple(STATE[key]["shape"])) for key in list(STATE)[:2])
    maps = torch.nn.functional.conv2d(image.float(), weight, bias, padding=padding)
    tensors = {"in.image": image, "out.maps": maps, "out.order": maps.flatten().argsort().to(torch.int32)}
    return write(folder, name, tensors, STATE, **{"kind": "network", "configuration": CONFIGURATION} | about)
