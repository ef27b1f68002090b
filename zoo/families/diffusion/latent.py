"""Between pictures and what noise is put on: nothing in the setting pixel, an autoencoder in the setting latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.families.diffusion import first_stage
from zoo.families.diffusion.first_stage import FirstStage
from zoo.families.diffusion.kept import Kept, identity
from zoo.families.diffusion.options import DiffusionOptions


def own_stage(options: DiffusionOptions) -> FirstStage | None:
    """Return the autoencoder that is a part of the weights; None in pixels, or where it has weights of its own."""
    if options.first_stage is None or options.first_stage_weights != "none":
        return None
    return first_stage.build(options.first_stage.name, **options.first_stage.arguments)


class Borrowed:
    """An autoencoder with weights of its own, looked up when it is first needed and kept out of the model's weights."""

    def __init__(self, options: DiffusionOptions) -> None:
        self.options = options
        self.stage: FirstStage | None = None
        self.name = ""

    def get(self, device: torch.device) -> FirstStage:
        """Return it, filled. Raises `UserError` where its weights are not on this machine."""
        component = self.options.first_stage
        assert component is not None
        if self.stage is None:
            with torch.random.fork_rng(devices=[]):
                stage = first_stage.build(component.name, **component.arguments)
            first_stage.load(stage, self.options.first_stage_weights)
            self.stage = stage
        self.stage = self.stage.to(device)
        return self.stage

    def identity(self, stage: FirstStage) -> str:
        """Return a hash of an autoencoder's weights, taken once."""
        self.name = self.name or identity(stage, "moments")
        return self.name


def outline(options: DiffusionOptions) -> tuple[int, int]:
    """Return channels of what is denoised, and pixels a number of it along a side; (3, 1) in pixels."""
    if options.first_stage is None:
        return 3, 1
    return first_stage.outline(options.first_stage.name, **options.first_stage.arguments)


@torch.no_grad()
def encode(stage: FirstStage, pictures: Tensor, generator: torch.Generator, kept: Kept, name: str) -> Tensor:
    """Return latents of pictures (B, 3, H, W) in [-1, 1]: a draw where the autoencoder gives a deviation.

    What the autoencoder says of a picture is looked up in `kept` under `name`; the draw is new each time.
    """

    def moments(one: Tensor) -> Tensor:
        with torch.autocast(one.device.type, enabled=False):
            mean, deviation = stage.moments(one.float())
        return mean if deviation is None else torch.cat([mean, deviation], 1)

    if kept.where == "none":
        found = torch.cat([moments(picture[None]) for picture in pictures])
    else:
        found = kept.of(name, pictures, moments)
    if found.shape[1] == stage.channels:
        return found
    mean, deviation = found.chunk(2, 1)
    return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean)


@torch.no_grad()
def decode(stage: FirstStage, latents: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1], one after another: a picture does not depend on its neighbours."""
    with torch.autocast(latents.device.type, enabled=False):
        return torch.cat([stage.decode(latent[None].float()) for latent in latents])


def mask_of(options: DiffusionOptions, stage: FirstStage | None, planes: Tensor, factor: int) -> Tensor:
    """Return a class map's planes (B, K, H, W) as the network is told them, at the size of what is denoised.

    Planes: the share of a number's pixels that are of a class. Latent: of the picture of the map, black where it is
    background, white where it is the last class, grey between; the autoencoder's mean.
    """
    assert options.mask is not None
    if options.mask.told == "planes" or stage is None:
        return planes if factor == 1 else F.avg_pool2d(planes, factor, ceil_mode=True, count_include_pad=False)
    count = len(options.mask.classes or ())
    levels = torch.linspace(0, 1, count, device=planes.device).view(1, -1, 1, 1)
    drawn = (planes[:, :count] * levels).sum(1)
    with torch.no_grad(), torch.autocast(planes.device.type, enabled=False):
        return torch.cat([stage.encode_mask(one[None].float()) for one in drawn])


def told_planes(options: DiffusionOptions, channels: int) -> int:
    """Return how many planes the network is told of a class map. Raises `ValueError` where it has no classes."""
    assert options.mask is not None
    if options.mask.classes is None:
        raise ValueError("the classes are not known. Write them down: mask: {classes: [background, ...]}")
    if options.mask.told == "latent":
        return channels
    return len(options.mask.classes) + (options.mask.boundary > 0)


def padded(x: Tensor, divisor: int, value: float | None = None) -> Tensor:
    """Return (B, C, H, W) continued below and to the right to a multiple of a divisor: by its edge, or by a value."""
    height, width = x.shape[-2:]
    below, right = -height % divisor, -width % divisor
    if not (below or right):
        return x
    if value is not None:
        return F.pad(x, (0, right, 0, below), value=value)
    return F.pad(x, (0, right, 0, below), mode="replicate")


def sizes(shape: Sequence[int], divisor: int, factor: int) -> tuple[int, int]:
    """Return the size of what is denoised for pictures of (H, W) pixels."""
    height, width = (-(-n // (divisor * factor)) * divisor for n in shape)
    return height, width
