"""Stains in the loader: normalisation of every image (preprocessing), and random stains (augmentation).

The preprocessing is a recipe's `stains:` and holds for training, validation, prediction and benchmark alike; the
augmentations are named under `augment:` and hold for training alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.steps import Step, number, rgb_bytes
from zoo.errors import DataError, UserError, suggest
from zoo.schema import Component, read_yaml
from zoo.stain import colour, density, estimate
from zoo.stain.colour import PUBLISHED, SPACES, Statistics
from zoo.stain.normalise import Normaliser, augmented, flaw, normaliser
from zoo.types import Sample

RGB = ("red", "green", "blue")
KNOWN = ("target", "reference", "matrix", "threshold", "percentile", "weight")


def picture(path: str | Path) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of a reference picture. Raises `UserError`."""
    from zoo.io.images import read_image

    if Path(path).expanduser().is_dir():
        raise UserError(f"stain: target: {path} is a folder. Expected one picture.")
    try:
        with read_image(Path(path).expanduser()) as file:
            return np.asarray(file.read_rgb8(), np.uint8)
    except DataError as error:
        raise UserError(f"stain: target: {error}") from None


def from_component(component: Component) -> Normaliser:
    """Return the normaliser that a recipe's `stains:` names. Raises `UserError`."""
    arguments = dict(component.arguments)
    for name in arguments:
        if name not in KNOWN:
            raise UserError(f'stain: unknown argument "{name}". {suggest(name, KNOWN)} It takes {", ".join(KNOWN)}.')
    target = arguments.pop("target", None)
    if target is not None and "reference" in arguments:
        raise UserError("stain: target and reference say the same thing. Expected one of them. Remove the other.")
    try:
        return normaliser(component.name, target=None if target is None else picture(target), **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"stain: {component.name}: {error}") from None


def to_component(made: Normaliser) -> Component:
    """Return what a recipe's `stains:` says of a normaliser, with numbers in place of files."""
    values = made.values()
    return Component(name=values.pop("method"), arguments=values)


class Prepared:
    """Normalises the image of a sample: `prepared(sample) -> sample`. Picklable."""

    def __init__(self, made: Normaliser) -> None:
        self.made = made

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with its image normalised. Raises `UserError` for one that is no RGB picture."""
        if sample.channels != RGB or sample.image.dtype != np.uint8:
            raise UserError(
                f"stain: {sample.dataset} has {', '.join(sample.channels)} of {sample.image.dtype}. Expected RGB of "
                "uint8. Remove `stains` from the recipe."
            )
        rgb = np.ascontiguousarray(np.moveaxis(sample.image, 0, -1))
        found = self.made(rgb).image
        return sample.with_(image=np.ascontiguousarray(np.moveaxis(found, -1, 0)))


# --- augmentations ----------------------------------------------------------------------------------------------------


class StainAugment(Step):
    """Find haematoxylin and eosin (macenko, vahadane or ruifrok) and change their amounts: c * (1 +- scale) +- shift.

    `background`: change glass too. Of a picture without two stains, Ruifrok's directions are used.
    """

    colour = True

    def __init__(
        self, method: str = "macenko", scale: float = 0.4, shift: float = 0.2, background: bool = False, p: float = 0.5
    ) -> None:
        super().__init__(p)
        if method not in ("macenko", "vahadane", "ruifrok"):
            raise ValueError(f'method "{method}" will not do. Expected macenko, vahadane or ruifrok')
        self.method, self.background = method, bool(background)
        self.scale, self.shift = number(scale, 0, 1, "scale"), number(shift, 0, 1, "shift")

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the factor and the addend of each stain."""
        return 1 + rng.uniform(-self.scale, self.scale, 2), rng.uniform(-self.shift, self.shift, 2)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        rgb = np.ascontiguousarray(np.moveaxis(rgb_bytes(self, sample), 0, -1))
        alpha, beta = self.draw(rng)
        mask = (
            None if self.background else density.tissue_mask(rgb, 0.85) & density.stained(density.optical_density(rgb))
        )
        return sample.with_(image=_planes(augmented(rgb, self.directions(rgb), alpha, beta, mask)))

    def directions(self, rgb: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the (2, 3) directions of a picture."""
        if self.method == "ruifrok":
            return estimate.RUIFROK
        try:
            seen = estimate.tissue_density(rgb)
            found = estimate.macenko(seen) if self.method == "macenko" else estimate.vahadane(seen)
        except estimate.NoTissueError:
            return estimate.RUIFROK
        return estimate.RUIFROK if flaw(found)[0] else found


class RandStainNA(Step):
    """Give each channel of a colour space a random mean and deviation, as a set of pictures has them.

    `statistics`: crc, monuseg, or a file that `zoo stain statistics` wrote. `space`: lab, hsv or hed. `hyper`: the
    spread is multiplied by 1 + hyper. `distribution`: normal, laplace or uniform.
    """

    colour = True

    def __init__(
        self,
        statistics: str = "crc",
        space: str = "lab",
        hyper: float = 0.0,
        distribution: str = "normal",
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        if space not in SPACES:
            raise ValueError(f'space "{space}" will not do. Expected lab, hsv or hed')
        if distribution not in ("normal", "laplace", "uniform"):
            raise ValueError(f'distribution "{distribution}" will not do. Expected normal, laplace or uniform')
        self.space, self.distribution = space, distribution
        self.hyper = number(hyper, -1, 10, "hyper")
        self.statistics = statistics_of(statistics, space)

    def draw(self, rng: np.random.Generator) -> NDArray[Any]:
        """Return a (3, 2) template: mean and deviation of each channel."""
        return colour.draw_template(rng, self.statistics, self.hyper, self.distribution)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        rgb = np.ascontiguousarray(np.moveaxis(rgb_bytes(self, sample), 0, -1))
        return sample.with_(image=_planes(colour.retemplate(rgb, self.space, self.draw(rng))))


class StainNormalise(Step):
    """Normalise to a reference (`zoo stain --help` names methods); as preprocessing, `stains:` does it everywhere."""

    colour = True

    def __init__(self, method: str = "macenko", p: float = 0.5, **others: Any) -> None:
        super().__init__(p)
        self.made = from_component(Component(name=method, arguments=others))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        rgb = np.ascontiguousarray(np.moveaxis(rgb_bytes(self, sample), 0, -1))
        return sample.with_(image=_planes(self.made(rgb).image))


def _planes(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(rgb, -1, 0))


def statistics_of(name: str, space: str) -> Statistics:
    """Return published statistics, or those of a file of `zoo stain statistics`. Raises `ValueError`."""
    if name in PUBLISHED:
        return PUBLISHED[name][space]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f'no statistics "{name}". Expected {", ".join(PUBLISHED)} or a file of zoo stain statistics')
    values = read_yaml(path).values.get(space)
    if not isinstance(values, Mapping) or set(values) != set(Statistics._fields):
        raise ValueError(f"{path}: no statistics of {space} in it. Expected {', '.join(Statistics._fields)}")
    numbers = Statistics(*(tuple(float(v) for v in values[field]) for field in Statistics._fields))
    if any(len(part) != 3 for part in numbers):
        raise ValueError(f"{path}: {space}: expected three numbers each")
    return numbers
