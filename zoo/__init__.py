"""Histozoo: models that look at tissue and draw.

>>> import zoo
>>> model = zoo.load("nuclei-unet-mobile")           # a torch module with its pre- and post-processing
>>> prediction = model.predict(image, mpp=0.5)       # image: (H, W, 3) uint8

Importing this package imports neither torch nor any other heavy library; the first call that needs one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.families.base import Family

__version__ = "0.1.0"
__all__ = ["__version__", "create", "load"]


def load(name: str | Path, **changes: Any) -> Family:
    """Return a trained model: a torch module with its preprocessing, decoding and specification.

    `name` is a weights name (`zoo list weights`), a run folder, a folder that `zoo weights push` made, a pulled
    `hf://OWNER/NAME@COMMIT` or a `.safetensors` file. `changes` are options of the family that differ from what was
    trained; where they change shapes, `adapt="input"`, `"classes"` or `"both"` makes the entries fit on request.
    Raises `zoo.errors.UserError`; touches no network.
    """
    from zoo.families.build import load as build_load

    return build_load(name, **changes)


def create(family: str, **options: Any) -> Family:
    """Return an untrained model: `zoo.create("unet", encoder="resnet18", classes=["background", "gland"])`.

    `options` are what a recipe may say under `model:` (`zoo show FAMILY` lists them). Raises `zoo.errors.UserError`.
    """
    from zoo.families.build import create as build_create

    return build_create(family, options)
