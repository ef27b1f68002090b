"""The Encoder contract: any picture in, a feature pyramid of declared channels and sizes out.

Everything in which backbones differ is handled here, once: inputs of any size (padded to the divisor, maps cropped),
maps that come out a pixel too small, frozen batch statistics, learning rates that fall with depth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import UserError
from zoo.nn import vit_necks

if TYPE_CHECKING:
    from zoo.encoders.kept import FeatureCache

RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What an encoder says about a batch.

    `maps`: finest first, level i (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). Only for transformers on
    patches: `tokens` (B, N, D), the last layer's normalised patch tokens, row by row over a grid of
    ceil(H / patch) x ceil(W / patch); `prefix`, for each map the (B, P, D) class and register tokens beside it.
    """

    maps: tuple[Tensor, ...]
    tokens: Tensor | None = None
    prefix: tuple[Tensor, ...] = ()


def ceil_div(size: int, by: int) -> int:
    """Return size / by, rounded up."""
    return -(-size // by)


def pad_to(x: Tensor, divisor: int, minimum: int = 1) -> Tensor:
    """Pad (..., H, W) with zeros at the bottom and on the right: to a multiple of `divisor`, at least `minimum`.

    Zeros are what a convolution sees outside a picture, and unlike reflection they have a deterministic gradient.
    """
    height, width = x.shape[-2:]
    bottom = ceil_div(max(height, minimum), divisor) * divisor - height
    right = ceil_div(max(width, minimum), divisor) * divisor - width
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


def fit(level: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map resized to `size` where its backbone made it a few pixels too small or too large."""
    if tuple(level.shape[-2:]) == size:
        return level
    return F.interpolate(level, size=size, mode="bilinear", align_corners=False)


def per_channel(rgb: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return statistics for any number of channels: the average for one, red, green and blue in turn for more.

    First layers are widened in the same way when pretrained weights meet another number of channels.
    """
    if len(rgb) == channels:
        return tuple(rgb)
    return (sum(rgb) / len(rgb),) if channels == 1 else tuple(islice(cycle(rgb), channels))


class Encoder(nn.Module):
    """Base of every encoder. A subclass implements `extract` and says in its constructor what comes out.

    `channels`, `strides`: of each map, finest first. `mean`, `std`: of each input channel on the scale [0, 1], what the
    pretrained weights expect. `mpp`: um per pixel that they were trained at, None where it is not known or does not
    matter. `patch`: side of a transformer's patch, None for a pyramid. `divisor`, `minimum`: what `extract` can take;
    `forward` takes any size. `unpadded`: what is pooled over a whole picture comes from the picture as it is.
    """

    name: str = ""
    weights: str = "none"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        in_channels: int = 3,
        mean: Sequence[float] = RGB_MEAN,
        std: Sequence[float] = RGB_STD,
        mpp: float | None = None,
        patch: int | None = None,
        divisor: int = 32,
        minimum: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.in_channels = in_channels
        self.mean, self.std = per_channel(mean, in_channels), per_channel(std, in_channels)
        self.mpp, self.patch = mpp, patch
        self.divisor, self.minimum = divisor, minimum
        self.pool = "mean"
        self.neck: vit_necks.Kind = "simple"
        self.neck_width = 256
        self.layer_decay = 1.0
        self.unpadded = False
        self.kept: FeatureCache | None = None
        self.still: tuple[nn.Module, ...] = ()
        self._still = False

    @abstractmethod
    def extract(self, x: Tensor) -> Features:
        """Return the features of (B, C, H, W) whose sides are multiples of `divisor` and at least `minimum`."""

    def embedding(self, features: Features, pool: str | None = None) -> Tensor:
        """Return one vector a picture, (B, D), as `pool` (default: the encoder's own) says.

        "class": the class token after the last norm; "class+mean": with the mean of the patch tokens behind it; "mean":
        the mean of the coarsest map, or of the patch tokens. Raises `UserError` where there is no class token.
        """
        pool = pool or self.pool
        if pool == "none":
            raise UserError(
                f"encoder {self.name}: how its publishers pool tokens is not known here. "
                "Say one of class, class+mean, mean."
            )
        mean = features.maps[-1].mean((2, 3)) if features.tokens is None else features.tokens.mean(1)
        if pool == "mean":
            return mean
        if not features.prefix:
            raise UserError(f"encoder {self.name}: it has no class token. Expected pool mean, not {pool}.")
        first = features.prefix[-1][:, 0]
        return torch.cat([first, mean], 1) if pool == "class+mean" else first

    @abstractmethod
    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers from the input to the output, for learning rates that fall with depth."""

    def forward(self, x: Tensor, pad: bool = True) -> Features:
        """Return the features of (B, in_channels, H, W) of any size. Raises `UserError` on other channels.

        `pad=False` hands the picture to the layers as it is, which convolutions with padding of their own can take: no
        value depends on pixels that are not there. A transformer then looks at whole patches only, floor(H / patch) x
        floor(W / patch) of them, and leaves out the pixels at the bottom and on the right that fill none.
        """
        self._check(x)
        if self.kept is not None and not x.requires_grad:
            return self.kept.features(self, x, pad)
        return self.compute(x, pad)

    def pooled(self, x: Tensor) -> Features:
        """Return the features of (B, in_channels, H, W) that a vector a picture is pooled from (`embedding`).

        They are those of `forward`, but where the encoder is `unpadded`: then nothing is added to the picture, and maps
        have the sizes that the layers give them, which may be a cell less. Raises `UserError` on other channels.
        """
        sides = x.shape[-2:]
        if not self.unpadded or min(sides) < self.divisor or not any(n % self.divisor for n in sides):
            found: Features = self(x)
            return found
        self._check(x)
        return self.extract(x)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise UserError(
                f"encoder {self.name}: the input has shape {tuple(x.shape)}. "
                f"Expected (B, {self.in_channels}, H, W). Build the encoder with the in_channels of the data."
            )

    def compute(self, x: Tensor, pad: bool) -> Features:
        """Return what `forward` does, without looking for features that were kept."""
        height, width = x.shape[-2:]
        padded = pad_to(x, self.divisor, self.minimum) if pad else self._whole_patches(x)
        whole = padded.shape[-2], padded.shape[-1]
        found = self.extract(padded)
        maps = tuple(
            fit(level, (ceil_div(whole[0], s), ceil_div(whole[1], s)))[..., : ceil_div(height, s), : ceil_div(width, s)]
            for level, s in zip(found.maps, self.strides, strict=True)
        )
        return Features(maps, found.tokens, found.prefix)

    def _whole_patches(self, x: Tensor) -> Tensor:
        """Return what whole patches cover; all of it where there are no patches."""
        side = self.patch or 1
        height, width = (n // side * side for n in x.shape[-2:])
        if not height or not width:
            raise UserError(
                f"encoder {self.name}: the picture has {x.shape[-2]} x {x.shape[-1]} pixels, less than one patch. "
                f"Expected at least {side} x {side}. Use larger pictures or tiles."
            )
        return x[..., :height, :width]

    # --- training ---

    def freeze(self, bn: bool = True) -> Self:
        """Make every weight stand still; with `bn` the running batch statistics too, whatever `train()` says."""
        self.requires_grad_(False)
        self._still = bn
        return self.train(self.training)

    def unfreeze(self) -> Self:
        """Let every weight and the batch statistics move again."""
        self.requires_grad_(True)
        self._still, self.still = False, ()
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every layer; frozen batch statistics stay in evaluation mode."""
        super().train(mode and self.kept is None)  # what is kept must not hang on chance
        for module in self.modules() if self._still else self.still:
            if isinstance(module, _BatchNorm):
                module.train(False)
        return self

    def groups(self, decay: float | None = None) -> list[dict[str, Any]]:
        """Return optimiser groups (`params`, `lr_scale`, and `weight_decay` 0 for biases, norms and embeddings).

        Layer i of n (from 1, at the input) gets the learning rate times decay ** (n + 1 - i), so that a head at scale 1
        stands one layer above the last (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT). Frozen weights are left
        out. `decay` None: `layer_decay`.
        """
        decay = self.layer_decay if decay is None else decay
        layers = list(self.layers())
        inside = [list(layer.named_parameters()) for layer in layers]
        owned = {id(p) for part in inside for _, p in part}
        embeddings = [(n, p) for n, p in self.named_parameters() if id(p) not in owned]
        found: list[dict[str, Any]] = []
        for depth, part in enumerate([embeddings, *inside]):
            scale = decay ** (len(layers) + 1 - max(depth, 1))
            trainable = [p for _, p in part if p.requires_grad]
            plain = [p for p in trainable if depth > 0 and p.ndim > 1]
            bare = [p for p in trainable if depth == 0 or p.ndim <= 1]
            if plain:
                found.append({"params": plain, "lr_scale": scale})
            if bare:
                found.append({"params": bare, "lr_scale": scale, "weight_decay": 0.0})
        return found

    def repatch(self, patch: int) -> Self:
        """Change the side of a transformer's patches. Raises `UserError` where there are none."""
        raise UserError(f"encoder {self.name}: it has no patches, patch: {patch} means nothing to it. Leave it out.")

    def checkpoint(self, on: bool = True) -> Self:
        """Compute activations again in the backward pass. Raises `UserError` where the network cannot."""
        raise UserError(
            f"encoder {self.name}: it cannot compute its blocks twice. "
            "Expected a vision transformer. Leave checkpointing out."
        )

    def adapt(self, rank: int, *, alpha: float | None = None, projections: Sequence[str] = ("q", "v")) -> Self:
        """Freeze the encoder and add low-rank adapters. Raises `UserError` where there is no attention to adapt."""
        raise UserError(
            f"encoder {self.name}: it has no attention layers to adapt. "
            "Expected a vision transformer. Train the encoder whole, or freeze it."
        )


def decayed(module: nn.Module) -> list[dict[str, Any]] | None:
    """Return the optimiser groups of the encoders inside a module whose `layer_decay` is below 1; None for none."""
    found = [m for m in module.modules() if isinstance(m, Encoder) and m.layer_decay < 1]
    return [group for encoder in found for group in encoder.groups()] or None


def walk(module: nn.Module, depth: int = 3) -> Iterator[nn.Module]:
    """Yield a network's layers in order: containers, and stages that hold a container, are opened up."""
    for child in module.children():
        if not any(True for _ in child.parameters()):
            continue
        if depth > 0 and _holds_layers(child):
            yield from walk(child, depth - 1)
        else:
            yield child


def _holds_layers(module: nn.Module) -> bool:
    """Return whether a module is a container, holds one, or holds nothing but blocks of one kind (RegNet's stages)."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return True
    children = list(module.children())
    alike = len(children) > 1 and len({type(c) for c in children}) == 1 and any(True for _ in children[0].children())
    return alike or any(isinstance(c, nn.Sequential | nn.ModuleList) and len(c) > 1 for c in children)


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def statistics_of(config: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and std of a timm configuration; grey configurations are for one channel."""
    mean, std = tuple(config.get("mean") or RGB_MEAN), tuple(config.get("std") or RGB_STD)
    return (mean, std) if len(mean) == 3 else (mean * 3, std * 3)


@torch.no_grad()
def untouched(model: nn.Module, twin: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return names of weights of `model` that no tensor of a file filled in.

    Those equal the weights of `twin`, initialised from the same seed; one that begins at a fixed value may also stand
    in the file with that very value.
    """
    fresh = dict(twin.named_parameters())

    def given(parameter: Tensor) -> bool:
        flat = parameter.flatten()
        return any(
            t.numel() == flat.numel() and torch.equal(t.flatten().to(flat.dtype), flat) for t in tensors.values()
        )

    same = [(n, p) for n, p in model.named_parameters() if p.ndim > 1 and torch.equal(p, fresh[n])]
    return [n for n, p in same if not given(p)]
