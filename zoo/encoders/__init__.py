"""An image or volume -> a feature pyramid, under one contract.

>>> from zoo.encoders import Pyramid, build_encoder
>>> encoder = build_encoder("resnet34", in_channels=3, weights="none")
>>> maps = Pyramid(encoder, (1, 2, 4, 8, 16, 32))(x)          # x: (B, 3, H, W), any size

Importing this package imports no torch; `zoo.encoders.listing` needs none at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.encoders.base import Encoder, Features
    from zoo.encoders.build import build_encoder
    from zoo.encoders.pyramid import Pyramid

__all__ = ["Encoder", "Features", "Pyramid", "build_encoder"]

_HOMES = {
    "Encoder": "zoo.encoders.base",
    "Features": "zoo.encoders.base",
    "Pyramid": "zoo.encoders.pyramid",
    "build_encoder": "zoo.encoders.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
