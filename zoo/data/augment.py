"""Augmentation in the loader's workers: image and truths change together, as a function of a seed.

The one module that wraps albumentations (affine, elastic, hue, JPEG, and any other of its transforms by name); flips,
stain, light, blur and noise are in `zoo.data.steps`. `zoo.data.augment_device` has the same presets on a device.

Where a transform pulls in what lies outside the image, the picture is mirrored but labels become "not annotated": a
mirrored nucleus is not one. Boxes become the boxes around their moved corners.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.data.compose import Mixing, Partner
from zoo.data.crop import crop_boxes
from zoo.data.resample import kept
from zoo.data.steps import Range, Step, in_range, number, rgb_bytes, store
from zoo.errors import UserError, suggest
from zoo.schema import Component
from zoo.types import Boxes, Instances, Picture, Sample, Semantic, Truth

PRESETS: dict[str, tuple[Component, ...]] = {
    "none": (),
    "light": (Component(name="flips"), Component(name="rotate90")),
    "he-strong": (
        Component(name="flips"),
        Component(name="rotate90"),
        Component(name="affine", arguments={"rotate": 20, "scale": [0.85, 1.2], "shear": 5, "p": 0.5}),
        Component(name="elastic", arguments={"pixels": 1.5, "sigma": 7, "p": 0.25}),
        Component(name="stain-jitter", arguments={"scale": 0.2, "shift": 0.03, "p": 0.8}),
        Component(name="brightness-contrast", arguments={"brightness": 0.12, "contrast": 0.15, "p": 0.5}),
        Component(name="blur", arguments={"sigma": [0.3, 1.4], "p": 0.2}),
        Component(name="jpeg", arguments={"quality": [50, 95], "p": 0.2}),
    ),
    "fluorescence": (
        Component(name="flips"),
        Component(name="rotate90"),
        Component(name="intensity", arguments={"scale": 0.35, "p": 0.7}),
        Component(name="gamma", arguments={"gamma": [0.6, 1.6], "p": 0.5}),
        Component(name="blur", arguments={"sigma": [0.3, 1.4], "p": 0.25}),
        Component(name="noise", arguments={"sigma": [0.005, 0.05], "p": 0.4}),
    ),
}


def components(spec: str | Sequence[Component]) -> tuple[Component, ...]:
    """Return the steps of a preset or list. Raises `UserError` for an unknown preset."""
    if not isinstance(spec, str):
        return tuple(spec)
    if spec not in PRESETS:
        raise UserError(f'augment: no preset "{spec}". {suggest(spec, PRESETS)}')
    return PRESETS[spec]


class Augment:
    """A chain of augmentations: `augment(sample, seed) -> Sample`.

    `spec`: a preset (none, light, he-strong, fluorescence) or registered augmentations with their arguments, in order.
    A preset works for any number of channels: those of its steps that need red, green and blue (stain jitter, JPEG) are
    left out of an image that has not three. In a list that is an error. Raises `UserError` for an unknown name or
    argument. Picklable; holds no random state.
    """

    def __init__(self, spec: str | Sequence[Component]) -> None:
        self.preset = isinstance(spec, str)
        self.steps = [build(component) for component in components(spec)]

    def split(self) -> tuple[Augment, Augment]:
        """Return the steps that move things, and those that change their light, as two chains."""
        chains = []
        for moves in (True, False):
            part = Augment(())
            part.preset, part.steps = self.preset, [step for step in self.steps if step.moves == moves]
            chains.append(part)
        return chains[0], chains[1]

    def check(self, channels: Sequence[str], axes: str = "CYX") -> None:
        """Raise `UserError` where a step of a list cannot work on such images."""
        for step in self.steps:
            if step.colour and len(channels) != 3 and not self.preset:
                raise UserError(
                    f"augment: {step.name}: works on 3 colour channels, but the images have {len(channels)} "
                    f"({', '.join(channels[:5])}). Remove it, or use intensity, gamma, blur, noise."
                )
            if step.planar and axes != "CYX":
                raise UserError(f"augment: {step.name}: works on planes, but the images are {axes}. Remove it.")

    def __call__(self, sample: Sample, seed: int, partner: Partner | None = None) -> Sample:
        """Return a changed sample; the same for the same sample and seed, on every process.

        `partner` draws another sample of the dataset, for steps that mix several; without it those do nothing.
        """
        rng = np.random.default_rng(seed)
        for step in self.steps:
            own = np.random.default_rng(int(rng.integers(2**63)))  # a step that is left out shifts no other
            if self.preset and step.colour and len(sample.image) != 3:
                continue
            if own.random() >= step.p:
                continue
            if isinstance(step, Mixing):
                if partner is not None:
                    sample = step.mix(sample, [partner(own) for _ in range(step.partners)], own)
            else:
                sample = step(sample, own)
        return sample


def build(component: Component) -> Step:
    """Return a registered augmentation with its arguments checked. Raises `UserError`."""
    made: type[Step] = registry.get("augmentation", component.name)
    known = [n for n in inspect.signature(made).parameters if n not in ("self", "others")]
    for name in component.arguments:
        free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made).parameters.values())
        if name not in known and not free:
            raise UserError(
                f'augment: {component.name}: unknown argument "{name}". {suggest(name, known)} '
                f"It takes {', '.join(known)}."
            )
    try:
        step = made(**component.arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"augment: {component.name}: {error}. It takes {', '.join(known)}.") from None
    step.name = component.name
    return step


# --- albumentations ---------------------------------------------------------------------------------------------------


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version otherwise
    return import_module("albumentations")


class Albumentations(Step):
    """Any transform of albumentations: `transform` is its class name, everything else its arguments.

    `colour`: whether it needs three colour channels. The transform's own `p` is set to 1; ours decides.
    """

    planar = True

    def __init__(self, transform: str, p: float = 1.0, **others: Any) -> None:
        super().__init__(p)
        self.transform, self.others = transform, others
        self._made: dict[str, Any] = {}
        library = _albumentations()
        found = getattr(library, transform, None)
        if not (isinstance(found, type) and issubclass(found, library.BasicTransform)):
            names = [
                n for n, v in vars(library).items() if isinstance(v, type) and issubclass(v, library.BasicTransform)
            ]
            raise ValueError(f'albumentations has no transform "{transform}". {suggest(transform, names)}')
        known = inspect.signature(found).parameters
        for name in others:
            if name not in known:
                raise ValueError(f'{transform} has no argument "{name}". {suggest(name, known)}')
        self.moves = issubclass(found, library.DualTransform)
        self.borders = "border_mode" in known and "border_mode" not in others
        self._compose("picture")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    def _compose(self, role: str) -> Any:
        """Return the transform for pictures (mirrored borders) or for labels (empty borders), made once."""
        if role not in self._made:
            library = _albumentations()
            mode = {"border_mode": cv2.BORDER_REFLECT_101 if role == "picture" else cv2.BORDER_CONSTANT}
            made = getattr(library, self.transform)(**self.others, **(mode if self.borders else {}), p=1.0)
            boxes = library.BboxParams(format="pascal_voc", label_fields=["places"], min_area=0, clip=False)
            self._made[role] = library.Compose([made], bbox_params=boxes if role == "labels" and self.moves else None)
        return self._made[role]

    def _picture(self, image: NDArray[Any], seed: int) -> NDArray[Any]:
        compose = self._compose("picture")
        compose.set_random_seed(seed)
        source = image if image.dtype in (np.uint8, np.float32) else image.astype(np.float32)
        found = compose(image=np.ascontiguousarray(np.moveaxis(source, 0, -1)))["image"]
        found = found[..., None] if found.ndim == 2 else found
        found = np.ascontiguousarray(np.moveaxis(found, -1, 0))
        return found if found.dtype == image.dtype else store(found, image.dtype)

    def _labels(self, sample: Sample, seed: int) -> dict[str, Truth]:
        """Return the truths moved: all maps as one stack, whose value 0 means "from outside the image"."""
        stack = _Stack(sample)
        compose = self._compose("labels")
        compose.set_random_seed(seed)
        boxes, places = stack.boxes()
        moved = compose(
            image=np.zeros(sample.shape, np.uint8), mask=stack.encoded(), bboxes=boxes, places=np.arange(len(boxes))
        )
        mask = moved["mask"]
        xyxy, kept_places = moved["bboxes"], np.asarray(moved["places"], int)
        shape = mask.shape[:2]
        return stack.decoded(mask[..., None] if mask.ndim == 2 else mask, xyxy, places, kept_places, shape)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        seed = int(rng.integers(2**31))
        if self.colour:
            rgb_bytes(self, sample)
        image = self._picture(sample.image, seed)
        if not self.moves:
            return sample.with_(image=image)
        truth = self._labels(sample, seed)
        for key, old in sample.truth.items():
            if isinstance(old, Picture):
                new = truth[key]
                assert isinstance(new, Picture)
                truth[key] = Picture(self._picture(old.data, seed), old.channels, new.valid, old.encoding)
        return sample.with_(image=image, truth=truth)


class _Stack:
    """The label maps of a sample as one (H, W, M) array for albumentations, and back."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.planes: list[NDArray[Any]] = []
        self.values: list[NDArray[Any]] = []
        for truth in sample.truth.values():
            for plane in self._planes(truth):
                self._add(plane)

    def _planes(self, truth: Truth) -> list[NDArray[Any]]:
        if isinstance(truth, Semantic):
            return list(truth.map) if truth.multilabel else [truth.map]
        if isinstance(truth, Instances):
            return [truth.map] if truth.ignore is None else [truth.map, truth.ignore]
        if isinstance(truth, Picture):
            return [np.ones(truth.data.shape[1:], bool) if truth.valid is None else truth.valid]
        return []

    def _add(self, plane: NDArray[Any]) -> None:
        """Keep a plane as places in the list of its values, from 1, so that ids of any size survive."""
        low, high = int(plane.min()), int(plane.max())
        if low >= 0 and high < 2**15:
            self.values.append(np.arange(high + 1).astype(plane.dtype))
            self.planes.append(plane.astype(np.uint16) + np.uint16(1))
        else:
            values, places = np.unique(plane, return_inverse=True)
            self.values.append(values)
            self.planes.append(places.reshape(plane.shape).astype(np.float32) + 1)

    def encoded(self) -> NDArray[np.float32]:
        planes = self.planes or [np.ones(self.sample.shape, np.float32)]
        return np.ascontiguousarray(np.stack(planes, axis=-1))

    def boxes(self) -> tuple[NDArray[np.float32], list[tuple[str, int]]]:
        """Return every box that has an area, and (truth key, number there) of each."""
        found: list[NDArray[Any]] = []
        places: list[tuple[str, int]] = []
        for key, truth in self.sample.truth.items():
            if isinstance(truth, Boxes):
                height, width = self.sample.shape
                clipped = np.clip(truth.xyxy, 0, [width, height, width, height])
                here = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(1))
                found += list(clipped[here])
                places += [(key, int(i)) for i in here]
        return np.asarray(found, np.float32).reshape(-1, 4), places

    def decoded(
        self,
        mask: NDArray[Any],
        xyxy: NDArray[Any],
        places: Sequence[tuple[str, int]],
        kept_places: NDArray[Any],
        shape: tuple[int, int],
    ) -> dict[str, Truth]:
        planes = iter(range(mask.shape[2]))

        def plane(fill: Any) -> NDArray[Any]:
            at = next(planes)
            values = self.values[at]
            table = np.concatenate([np.asarray([fill], values.dtype), values])
            return np.take(table, mask[..., at].astype(np.intp))

        truths: dict[str, Truth] = {}
        for key, old in self.sample.truth.items():
            if isinstance(old, Semantic):
                fill = 0 if old.ignore is None else old.ignore
                new = np.stack([plane(False) for _ in old.map]) if old.multilabel else plane(fill)
                truths[key] = Semantic(new, old.ignore, old.multilabel)
            elif isinstance(old, Instances):
                labels = plane(0)
                ignore = None if old.ignore is None else plane(True)
                truths[key] = replace(old, map=labels, classes=kept(old, labels), ignore=ignore)
            elif isinstance(old, Picture):
                valid = plane(False)
                truths[key] = Picture(old.data, old.channels, None if valid.all() else valid, old.encoding)
            elif isinstance(old, Boxes):
                truths[key] = self._moved_boxes(key, old, xyxy, places, kept_places, shape)
            else:
                truths[key] = old
        return truths

    def _moved_boxes(
        self,
        key: str,
        old: Boxes,
        xyxy: NDArray[Any],
        places: Sequence[tuple[str, int]],
        kept_places: NDArray[Any],
        shape: tuple[int, int],
    ) -> Boxes:
        rows = [(row, places[p][1]) for row, p in enumerate(kept_places) if places[p][0] == key]
        picked = np.asarray([number for _, number in rows], int)
        moved = np.asarray([xyxy[row] for row, _ in rows], np.float32).reshape(-1, 4)
        boxes = Boxes(
            moved,
            old.classes[picked],
            None if old.attributes is None else old.attributes[picked],
            None if old.crowd is None else old.crowd[picked],
        )
        return crop_boxes(boxes, (0, 0, shape[1], shape[0]))


class Affine(Albumentations):
    """Turn by up to +- rotate degrees, scale, shear by up to +- shear degrees."""

    def __init__(self, rotate: float = 15, scale: Range = (0.9, 1.1), shear: float = 0, p: float = 1.0) -> None:
        turn, slant = number(rotate, 0, 180, "rotate"), number(shear, 0, 45, "shear")
        super().__init__(
            "Affine",
            p,
            rotate=(-turn, turn),
            scale=in_range(scale, 0.1, 10, "scale"),
            shear=(-slant, slant),
            keep_ratio=True,
        )


class Elastic(Albumentations):
    """Bend: random displacements of deviation `pixels`, smooth over about `sigma` pixels."""

    def __init__(self, pixels: float = 1.5, sigma: float = 7, p: float = 1.0) -> None:
        self.pixels, self.sigma = number(pixels, 0, 50, "pixels"), number(sigma, 1, 200, "sigma")
        super().__init__("ElasticTransform", p, alpha=self.amplitude, sigma=self.sigma, noise_distribution="uniform")

    @property
    def amplitude(self) -> float:
        """Return the factor on uniform noise in [-1, 1] that leaves the wanted deviation after smoothing."""
        return self.pixels * 2 * math.sqrt(3 * math.pi) * self.sigma


class Hue(Albumentations):
    """Shift hue and saturation by up to +- that many of 255 levels."""

    colour = True

    def __init__(self, hue: float = 8, saturation: float = 15, p: float = 1.0) -> None:
        h, s = number(hue, 0, 180, "hue"), number(saturation, 0, 255, "saturation")
        super().__init__(
            "HueSaturationValue", p, hue_shift_limit=(-h, h), sat_shift_limit=(-s, s), val_shift_limit=(0, 0)
        )


class Jpeg(Albumentations):
    """Store as JPEG and read again."""

    colour = True

    def __init__(self, quality: Range = (60, 95), p: float = 1.0) -> None:
        low, high = in_range(quality, 1, 100, "quality")
        super().__init__("ImageCompression", p, quality_range=(round(low), round(high)))
