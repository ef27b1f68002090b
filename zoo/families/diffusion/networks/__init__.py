"""Networks by name. Each is a class `Network` (`networks.base`) in a module of its own, imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from zoo.errors import UserError, suggest
from zoo.families.diffusion.networks.base import Condition, Network

NETWORKS: dict[str, str] = {
    "latent-unet": "zoo.families.diffusion.networks.latent_unet:LatentUNet",
    "pixel-unet": "zoo.families.diffusion.networks.pixel:PixelUNet",
    "pixcell": "zoo.families.diffusion.networks.pixcell:PixCell",
    "pixcell-control": "zoo.families.diffusion.networks.control:ControlledPixCell",
}
"""Name -> "module:class"."""

__all__ = ["NETWORKS", "Condition", "Network", "build", "names"]


def names() -> list[str]:
    """Return the names of the networks, sorted."""
    return sorted(NETWORKS)


def find(name: str) -> type[Network]:
    """Return the class of a name. Raises `UserError` with the nearest."""
    if name not in NETWORKS:
        raise UserError(f'no network "{name}". {suggest(name, names())}'.strip())
    module, _, attribute = NETWORKS[name].partition(":")
    cls: type[Network] = getattr(import_module(module), attribute)
    return cls


def build(name: str, **arguments: Any) -> Network:
    """Return an untrained network. Raises `UserError` for an unknown name or argument, with the nearest."""
    cls = find(name)
    known = cls.accepts()
    for key in arguments:
        if key not in known:
            raise UserError(f'network "{name}" has no argument "{key}". {suggest(key, known)}'.strip())
    return cls(**arguments)
