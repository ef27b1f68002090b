"""A picture of what a model does, on an image that one may give away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.cards import dataset_card
from zoo.data import open_dataset
from zoo.errors import UserError, ZooError
from zoo.families.base import Family
from zoo.recipe import Recipe
from zoo.training import pictures
from zoo.types import Sample


def draw(family: Family, recipe: Recipe, path: Path) -> str:
    """Write image and predictions side by side, and return the name of the dataset that the image is of.

    The image is the first of a dataset of the recipe whose licence allows redistribution (what it is judged on first,
    then what it is trained on); where there is none, of the phantom.
    """
    name, sample = _sample(family, recipe)
    image = pictures.as_rgb(pictures.middle(sample.image, 1) if sample.axes == "CZYX" else sample.image)
    spacing = None if sample.spacing is None else sample.spacing[-1]
    given: NDArray[Any] = np.moveaxis(sample.image, 0, -1) if sample.axes == "CYX" else sample.image
    found = registry.get("engine", "predict")(family, np.ascontiguousarray(given), mpp=spacing or family.spec.mpp)
    panels = [image]
    panels += [
        pictures.rendered(image, found[key], output) for key, output in family.spec.outputs.items() if key in found
    ]
    pictures.write(path, np.concatenate([pictures.framed(pictures.thinned(p, 512)) for p in panels], axis=1))
    return name


def _sample(family: Family, recipe: Recipe) -> tuple[str, Sample]:
    sources = list(recipe.evaluate.datasets) if recipe.evaluate else []
    for stage in recipe.all_stages:
        data = stage.data or recipe.data
        sources += [s for loading in (data.validate_, data.train) if loading for s in loading.datasets] if data else []
    names = [s.name for s in sources]
    for name in dict.fromkeys([*names, "phantom-nuclei"]):
        try:
            if "redistribution" not in dataset_card(name).licence.allows:
                continue
            sample = open_dataset(name, split="all", limit=1)[0]
        except ZooError:
            continue
        if _fits(sample, family.spec.channels):
            return name, sample
    raise UserError("no image that may be given away fits the model's channels. Give one: --example IMAGE")


def _fits(sample: Sample, channels: Sequence[str]) -> bool:
    return len(sample.channels) == len(channels)
