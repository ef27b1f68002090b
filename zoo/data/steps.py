"""Augmentations in plain numpy: flips, right angles, stain, light, blur, noise; fast, and for any number of channels.

Each is registered under `augmentation`; `zoo.data.augment` chains them and adds those of albumentations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.stain.matrices import stain_jitter
from zoo.types import Boxes, Instances, Picture, Sample, Semantic, Truth

Range = tuple[float, float]


def in_range(value: Any, low: float, high: float, what: str) -> Range:
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"{what} = {value} will not do. Expected two numbers from {low:g} to {high:g}, smaller first")
    return float(pair[0]), float(pair[1])


def number(value: Any, low: float, high: float, what: str) -> float:
    return in_range(value, low, high, what)[0]


class Step:
    """One augmentation. `p`: how often it is used; `colour`: needs red, green and blue; `planar`: not for volumes;
    `moves`: changes where things are, and not only their light."""

    name: str = ""
    colour: ClassVar[bool] = False
    planar: ClassVar[bool] = False
    moves: bool = False

    def __init__(self, p: float = 1.0) -> None:
        self.p = number(p, 0, 1, "p")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        raise NotImplementedError


# --- geometry in numpy ------------------------------------------------------------------------------------------------


def _arrays(truth: Truth, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Truth:
    """Return a truth of maps with each map changed."""
    if isinstance(truth, Semantic):
        return Semantic(change(truth.map), truth.ignore, truth.multilabel)
    if isinstance(truth, Instances):
        return replace(truth, map=change(truth.map), ignore=None if truth.ignore is None else change(truth.ignore))
    if isinstance(truth, Picture):
        valid = None if truth.valid is None else change(truth.valid)
        return Picture(change(truth.data), truth.channels, valid, truth.encoding)
    return truth


def _moved(sample: Sample, change: Callable[[NDArray[Any]], NDArray[Any]], boxes: Callable[[Boxes], Boxes]) -> Sample:
    truth = {k: boxes(t) if isinstance(t, Boxes) else _arrays(t, change) for k, t in sample.truth.items()}
    return sample.with_(image=change(sample.image), truth=truth)


def with_xyxy(boxes: Boxes, xyxy: NDArray[Any]) -> Boxes:
    return Boxes(xyxy.astype(np.float32).reshape(-1, 4), boxes.classes, boxes.attributes, boxes.crowd)


class Flips(Step):
    """Mirror each spatial axis with a chance of one half."""

    moves = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        axes = tuple(a - len(sample.shape) for a in range(len(sample.shape)) if rng.random() < 0.5)
        if not axes:
            return sample
        height, width = sample.shape[-2:]

        def boxes(old: Boxes) -> Boxes:
            x0, y0, x1, y1 = old.xyxy.T
            if -1 in axes:
                x0, x1 = width - x1, width - x0
            if -2 in axes:
                y0, y1 = height - y1, height - y0
            return with_xyxy(old, np.stack([x0, y0, x1, y1], 1))

        return _moved(sample, lambda array: np.flip(array, axes), boxes)


class Rotate90(Step):
    """Turn the plane by a random number of right angles; height and width change places where it is odd."""

    moves = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        turns = int(rng.integers(4))
        if not turns:
            return sample

        def boxes(old: Boxes) -> Boxes:
            xyxy = old.xyxy
            height, width = sample.shape[-2:]
            for _ in range(turns):  # anticlockwise: (x, y) -> (y, width - x)
                x0, y0, x1, y1 = xyxy.T
                xyxy = np.stack([y0, width - x1, y1, width - x0], 1)
                height, width = width, height
            return with_xyxy(old, xyxy)

        turned = _moved(sample, lambda array: np.rot90(array, turns, (-2, -1)), boxes)
        if sample.spacing is None or turns % 2 == 0:
            return turned
        return turned.with_(spacing=(*sample.spacing[:-2], sample.spacing[-1], sample.spacing[-2]))


class Hole(Step):
    """Empty one rectangle of image, pictures and objects alike: nothing was there and nothing is to be found.

    `side`: its height and width as shares of the image's, drawn apart. A semantic map becomes "not annotated" where it
    has an index for that, and stays as it is where it has none.
    """

    planar = True

    def __init__(self, side: float | Range = (0.0, 0.3), p: float = 0.1) -> None:
        super().__init__(p)
        self.side = in_range(side, 0, 1, "side")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        spans = []
        for length in sample.shape:
            size = round(length * float(rng.uniform(*self.side)))
            begin = int(rng.integers(0, length - size + 1))
            spans.append(slice(begin, begin + size))

        def emptied(array: NDArray[Any], value: int = 0) -> NDArray[Any]:
            found = array.copy()
            found[..., spans[0], spans[1]] = value
            return found

        truth: dict[str, Truth] = {}
        for key, known in sample.truth.items():
            if isinstance(known, Semantic):
                truth[key] = known if known.ignore is None else replace(known, map=emptied(known.map, known.ignore))
            elif isinstance(known, Instances):
                truth[key] = replace(known, map=emptied(known.map))
            else:
                truth[key] = replace(known, data=emptied(known.data)) if isinstance(known, Picture) else known
        return sample.with_(image=emptied(sample.image), truth=truth)


class Restained(Step):
    """Take a copy of the image that was stained anew (by CycleGAN, in MIPHEI-ViT) in its place, where there is one.

    `truth`: the key of the copy, a picture of the same field. Each time an image is drawn counts anew. Put it before
    what changes light.
    """

    def __init__(self, truth: str = "restained", p: float = 0.25) -> None:
        super().__init__(p)
        self.truth = truth

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        copy = sample.truth.get(self.truth)
        if copy is None:
            return sample
        where = f"augment: {self.name}: {sample.dataset}: {sample.id}: {self.truth}"
        if not isinstance(copy, Picture):
            raise UserError(f"{where} is no picture. Expected a copy of the image. Name another truth.")
        data = copy.data
        if data.dtype != sample.image.dtype or data.shape != sample.image.shape:
            raise UserError(
                f"{where} has {len(data)} channels of {data.dtype} and {data.shape[1:]} pixels. Expected those of the "
                f"image: {len(sample.image)}, {sample.image.dtype}, {sample.shape}. Name another truth."
            )
        return sample.with_(image=data)


# --- light in numpy ---------------------------------------------------------------------------------------------------


def store(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return np.clip(values + 0.5, bounds.min, bounds.max).astype(dtype)
    return values.astype(dtype)


def _span(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return (C, 1, 1) of what counts as the full range: 255 for uint8, else what each channel spans."""
    shape = (-1, *[1] * (image.ndim - 1))
    if image.dtype == np.uint8:
        return np.full(len(image), 255, np.float32).reshape(shape)
    flat = image.reshape(len(image), -1)
    span: NDArray[np.float32] = np.maximum(flat.max(1).astype(np.float32) - flat.min(1), 1e-6).reshape(shape)
    return span


class StainJitter(Step):
    """Change how much haematoxylin, eosin and DAB there is: c * (1 +- scale) +- shift."""

    colour = True

    def __init__(self, scale: float = 0.15, shift: float = 0.02, p: float = 1.0) -> None:
        super().__init__(p)
        self.scale, self.shift = number(scale, 0, 1, "scale"), number(shift, 0, 1, "shift")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        scale, shift = 1 + rng.uniform(-self.scale, self.scale, 3), rng.uniform(-self.shift, self.shift, 3)
        rgb = rgb_bytes(self, sample)
        return sample.with_(image=stain_jitter(rgb, scale, shift))


def rgb_bytes(step: Step, sample: Sample) -> NDArray[np.uint8]:
    if sample.image.dtype != np.uint8 or len(sample.image) != 3:
        what = f"{len(sample.image)} channels of {sample.image.dtype}"
        raise UserError(f"augment: {step.name}: {sample.dataset} has {what}. Expected 3 of uint8. Remove this step.")
    return sample.image


class BrightnessContrast(Step):
    """Add up to +- brightness of the range, stretch round the mean by up to +- contrast; all channels alike."""

    def __init__(self, brightness: float = 0.1, contrast: float = 0.1, p: float = 1.0) -> None:
        super().__init__(p)
        self.brightness = number(brightness, 0, 1, "brightness")
        self.contrast = number(contrast, 0, 1, "contrast")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.image
        add = np.float32(rng.uniform(-self.brightness, self.brightness))
        times = np.float32(1 + rng.uniform(-self.contrast, self.contrast))
        middle = (
            image.mean(dtype=np.float32)
            if image.dtype == np.uint8
            else image.mean(axis=tuple(range(1, image.ndim)), dtype=np.float32, keepdims=True)
        )
        offset = (1 - times) * middle + add * _span(image)
        if image.dtype == np.uint8:
            table = store(np.arange(256, dtype=np.float32) * times + np.float32(offset.flat[0]), image.dtype)
            return sample.with_(image=np.take(table, image))
        return sample.with_(image=store(image * times + offset, image.dtype))


class Intensity(Step):
    """Multiply each channel by its own factor, 1 +- scale: exposure and staining in fluorescence."""

    def __init__(self, scale: float = 0.2, p: float = 1.0) -> None:
        super().__init__(p)
        self.scale = number(scale, 0, 1, "scale")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.image
        factors = 1 + rng.uniform(-self.scale, self.scale, len(image)).astype(np.float32)
        return sample.with_(image=store(image * factors.reshape(-1, *[1] * (image.ndim - 1)), image.dtype))


class Gamma(Step):
    """Raise each channel, between its smallest and largest value, to one power."""

    def __init__(self, gamma: Range = (0.7, 1.5), p: float = 1.0) -> None:
        super().__init__(p)
        self.gamma = in_range(gamma, 0.1, 10, "gamma")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.image
        power = np.float32(np.exp(rng.uniform(*np.log(self.gamma))))
        axes = tuple(range(1, image.ndim))
        low = image.min(axes, keepdims=True).astype(np.float32)
        span = np.maximum(image.max(axes, keepdims=True).astype(np.float32) - low, 1e-6)
        return sample.with_(image=store(((image - low) / span) ** power * span + low, image.dtype))


class Blur(Step):
    """Gaussian blur in the plane; sigma in pixels."""

    def __init__(self, sigma: Range = (0.3, 1.2), p: float = 1.0) -> None:
        super().__init__(p)
        self.sigma = in_range(sigma, 0.05, 50, "sigma")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sigma = float(rng.uniform(*self.sigma))
        planes = sample.image.reshape(-1, *sample.shape[-2:])
        exact = planes.dtype in (np.uint8, np.uint16, np.float32)
        source = planes if exact else planes.astype(np.float32)
        found = np.stack([cv2.GaussianBlur(np.ascontiguousarray(plane), (0, 0), sigma) for plane in source])
        image = found if exact else store(found, planes.dtype)
        return sample.with_(image=image.reshape(sample.image.shape))


class Noise(Step):
    """Add Gaussian noise; sigma is a share of the range."""

    def __init__(self, sigma: Range = (0.0, 0.03), p: float = 1.0) -> None:
        super().__init__(p)
        self.sigma = in_range(sigma, 0, 1, "sigma")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.image
        grain = rng.standard_normal(image.shape, np.float32) * (_span(image) * np.float32(rng.uniform(*self.sigma)))
        return sample.with_(image=store(image + grain, image.dtype))
