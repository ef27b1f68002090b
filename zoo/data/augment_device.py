"""The presets of `zoo.data.augment`, batched on the device that a batch is on (affine, elastic, blur, JPEG by kornia).

They move finished targets, so they fit targets that are maps of classes (integers, bool). A map of distances or
directions would have to be recomputed: those families augment in the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data import stains_device
from zoo.data.augment import build, components
from zoo.data.steps import Step
from zoo.errors import UserError, suggest
from zoo.schema import Component
from zoo.stain.matrices import HED
from zoo.types import Batch

_MOVES = ("flips", "rotate90", "affine", "elastic")
_COLOUR = ("stain-jitter", "jpeg", "randstainna", "stain-augment")


class DeviceAugment:
    """A chain of augmentations of whole batches: `augment(batch, seed) -> Batch`.

    `spec` as for `zoo.data.augment.Augment`; of single steps, those of the presets are known here. The image becomes
    float32, uint8 as [0, 1]. Integer and bool targets of the image's size, and `valid`, move along by the nearest
    pixel; what comes from outside the image is 0 with `valid` False. Raises `UserError` for targets that cannot be
    moved (floats, lists). Streams in `others` are left as they are.
    """

    def __init__(self, spec: str | Sequence[Component]) -> None:
        self.preset = isinstance(spec, str)
        self.steps: list[Step] = []
        for component in components(spec):
            step = build(component)
            if step.name not in _STEPS:
                raise UserError(
                    f"augment: {step.name}: runs in workers only. {suggest(step.name, _STEPS)} "
                    "Or set `augment_on: workers`."
                )
            stains_device.refuse(step)
            self.steps.append(step)

    def __call__(self, batch: Batch, seed: int) -> Batch:
        """Return a changed batch; a function of the batch and the seed on one kind of device."""
        if not self.steps:
            return batch
        image = batch.inputs["image"]
        if image.ndim != 4:
            raise UserError("augment_on: device: works on planes, and the images are volumes. Use `workers`.")
        if any(step.name in _MOVES for step in self.steps):
            for name, target in batch.targets.items():
                _movable(name, target, image)
        labels = _Labels(batch)
        picture = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        generator = torch.Generator().manual_seed(seed)
        devices = [image.device] if image.is_cuda else []
        for step in self.steps:
            own = int(torch.randint(2**62, (), generator=generator))
            if step.name in _COLOUR and picture.shape[1] != 3:
                if self.preset:
                    continue
                raise UserError(f"augment: {step.name}: works on 3 channels, not {picture.shape[1]}. Remove it.")
            with torch.random.fork_rng(devices):
                torch.manual_seed(own)
                chosen = torch.rand(len(picture)) < step.p
                if bool(chosen.any()):
                    picture, labels.stack = _STEPS[step.name](step, picture, labels.stack, chosen.to(image.device))
        if image.dtype != torch.uint8:
            return labels.unpacked(batch, picture)
        found = labels.unpacked(batch, picture.clamp(0, 1))
        if "range" in found.inputs:  # it is in the numbers of the picture
            found.inputs["range"] = found.inputs["range"] / 255
        return found


def _movable(name: str, target: Tensor | list[Tensor], image: Tensor) -> None:
    if isinstance(target, list) or target.is_floating_point() or target.shape[-2:] != image.shape[-2:]:
        raise UserError(
            f'augment_on: target "{name}" cannot be moved on the device: it is no map of classes of the size of the '
            "image. Set `augment_on: workers`."
        )


class _Labels:
    """Every label map of a batch as one float stack (B, M, H, W), value + 1, so that 0 means "from outside"."""

    def __init__(self, batch: Batch) -> None:
        image = batch.inputs["image"]
        size = image.shape[-2:]
        valid = batch.valid
        self.valid = valid if valid is not None else torch.ones(len(image), *size, device=image.device).bool()
        self.maps = {
            name: target
            for name, target in batch.targets.items()
            if isinstance(target, Tensor) and not target.is_floating_point() and target.shape[-2:] == size
        }
        self.lows = {name: int(target.min()) for name, target in self.maps.items()}
        flat = [(t.float() - self.lows[n]).reshape(len(t), -1, *size) for n, t in self.maps.items()]
        self.stack = torch.cat([self.valid[:, None].float(), *flat], 1) + 1

    def unpacked(self, batch: Batch, picture: Tensor) -> Batch:
        """Return the batch with its labels replaced by what the stack holds now."""
        size = self.stack.shape[-2:]
        targets = dict(batch.targets)
        at = 1
        for name, old in self.maps.items():
            planes = old[0].numel() // (old.shape[-2] * old.shape[-1])
            part = self.stack[:, at : at + planes].round()
            inside = (part - 1 + self.lows[name]) * (part > 0)
            targets[name] = inside.to(old.dtype).reshape(*old.shape[:-2], *size)
            at += planes
        valid = self.stack[:, 0].round() == 2
        return replace(batch, inputs={**batch.inputs, "image": picture}, targets=targets, valid=valid)


# --- steps: (settings, picture, label stack, which samples) -> picture, label stack -----------------------------------

Pair = tuple[Tensor, Tensor]


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (old.ndim - 1)), new, old)


def _flips(_: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    for axis in (-2, -1):
        turned = chosen & (torch.rand(len(picture)) < 0.5).to(chosen.device)
        picture, labels = (_where(turned, t.flip(axis), t) for t in (picture, labels))
    return picture, labels


def _rotate90(_: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    """Right angles; half turns only where height and width differ, as all images of a batch have one size."""
    turns = torch.randint(4, (len(picture),)).to(chosen.device) * chosen
    square = picture.shape[-1] == picture.shape[-2]
    for k in (1, 2, 3):
        if square or k == 2:
            picture, labels = (_where(turns == k, t.rot90(k, (-2, -1)), t) for t in (picture, labels))
    return picture, labels


def _kornia_moved(make: Callable[[str, str], Any], picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    """Move the picture by bilinear interpolation with mirrored borders and the labels, the same way, by the nearest."""
    mover = make("bilinear", "reflection")
    moved = mover(picture)
    follower = make("nearest", "zeros")
    return _where(chosen, moved, picture), _where(chosen, follower(labels, params=mover._params), labels)


def _affine(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    from kornia.augmentation import RandomAffine

    settings = step.others
    slant = settings["shear"][1]

    def make(resample: str, padding: str) -> Any:
        return RandomAffine(
            settings["rotate"],
            scale=settings["scale"],
            shear=(-slant, slant) if slant else None,
            resample=resample,
            padding_mode=padding,
            p=1.0,
        )

    return _kornia_moved(make, picture, labels, chosen)


def _elastic(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    from kornia.augmentation import RandomElasticTransform

    sigma = step.sigma
    kernel = min(2 * round(3 * sigma) + 1, 2 * (min(picture.shape[-2:]) // 2) - 1)
    strength = tuple(2 * step.amplitude / size for size in picture.shape[:-3:-1])  # kornia measures in half images

    def make(resample: str, padding: str) -> Any:
        return RandomElasticTransform(
            (kernel, kernel), (sigma, sigma), strength, resample=resample, padding_mode=padding, p=1.0
        )

    return _kornia_moved(make, picture, labels, chosen)


def _stain(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    stains = torch.from_numpy(np.ascontiguousarray(HED)).to(picture)
    count = len(picture)
    scale = (1 + step.scale * (2 * torch.rand(count, 3) - 1)).to(picture)
    shift = (step.shift * (2 * torch.rand(count, 3) - 1)).to(picture)
    absorbed = -torch.log((picture * 255 + 1) / 256)
    amounts = torch.einsum("bchw,cs->bshw", absorbed, torch.linalg.inv(stains))
    mixed = torch.einsum("bshw,sc->bchw", amounts * scale[:, :, None, None] + shift[:, :, None, None], stains)
    return _where(chosen, ((torch.exp(-mixed) * 256 - 1) / 255).clamp(0, 1), picture), labels


def _span(picture: Tensor) -> Tensor:
    """Return (B, C, 1, 1) of what counts as the full range: 1 for what was uint8, else what each channel spans."""
    flat = picture.flatten(2)
    spread = (flat.amax(2) - flat.amin(2)).clamp_min(1e-6)
    unit = bool((picture.amin() >= 0) & (picture.amax() <= 1))
    return (torch.ones_like(spread) if unit else spread)[..., None, None]


def _uniform(picture: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    return (low + (high - low) * torch.rand(len(picture), channels, 1, 1)).to(picture)


def _light(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    add = _uniform(picture, -step.brightness, step.brightness) * _span(picture)
    times = 1 + _uniform(picture, -step.contrast, step.contrast)
    middle = picture.mean((1, 2, 3), keepdim=True)
    return _where(chosen, (picture - middle) * times + middle + add, picture), labels


def _intensity(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    factors = 1 + _uniform(picture, -step.scale, step.scale, picture.shape[1])
    return _where(chosen, picture * factors, picture), labels


def _gamma(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    power = torch.exp(_uniform(picture, *np.log(step.gamma).tolist()))
    low, high = picture.amin((2, 3), keepdim=True), picture.amax((2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return _where(chosen, ((picture - low) / span).clamp(0, 1) ** power * span + low, picture), labels


def _blur(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    from kornia.augmentation import RandomGaussianBlur

    kernel = 2 * int(np.ceil(3 * step.sigma[1])) + 1
    blurred = RandomGaussianBlur((kernel, kernel), step.sigma, border_type="reflect", p=1.0)(picture)
    return _where(chosen, blurred, picture), labels


def _noise(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    sigma = _uniform(picture, *step.sigma) * _span(picture)
    return _where(chosen, picture + torch.randn(picture.shape, device=picture.device) * sigma, picture), labels


def _jpeg(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    from kornia.augmentation import RandomJPEG

    low, high = step.others["quality_range"]
    stored = RandomJPEG((float(low), float(high)), p=1.0)(picture.clamp(0, 1))
    return _where(chosen, stored, picture), labels


def _randstainna(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    return _where(chosen, stains_device.randstainna(step, picture), picture), labels


def _stain_augment(step: Any, picture: Tensor, labels: Tensor, chosen: Tensor) -> Pair:
    return _where(chosen, stains_device.stain_augment(step, picture), picture), labels


_STEPS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Pair]] = {
    "flips": _flips,
    "rotate90": _rotate90,
    "affine": _affine,
    "elastic": _elastic,
    "stain-jitter": _stain,
    "brightness-contrast": _light,
    "intensity": _intensity,
    "gamma": _gamma,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "randstainna": _randstainna,
    "stain-augment": _stain_augment,
}
