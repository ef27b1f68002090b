"""The one module that knows timm: its pyramids and its vision transformers as encoders."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import timm
import torch
from timm.layers import PatchEmbed, SwiGLUPacked
from torch import Tensor, nn

from zoo.encoders.base import Encoder, Features, statistics_of, walk
from zoo.encoders.listing import Info
from zoo.errors import UserError
from zoo.nn.flexi import resize_kernel
from zoo.nn.lora import add_low_rank


class TimmPyramid(Encoder):
    """A timm model under `features_only`; maps that come as NHWC (Swin) are turned.

    `stem_stride` 1: the first convolution keeps the picture's size, so that every level is twice as fine (and costs
    four times as much). `final_relu` False: a DenseNet's last map as its last norm leaves it, pooled from pictures that
    are not padded (both as KimiaNet's publishers do).
    """

    def __init__(
        self, net: nn.Module, info: Info, in_channels: int, *, stem_stride: int = 2, final_relu: bool = True
    ) -> None:
        found: Any = net.feature_info
        mean, std = (info.mean, info.std) if info.card else statistics_of(_config(net, info))
        strides, divisor = list(found.reduction()), info.divisor
        if stem_stride != 2:
            _keep_size(net, info, stem_stride)
            strides, divisor = [s // 2 for s in strides], max(1, divisor // 2)
        if not final_relu:
            _drop_final_relu(net, info)
        super().__init__(
            found.channels(),
            strides,
            in_channels=in_channels,
            mean=mean,
            std=std,
            mpp=info.mpp,
            divisor=max(divisor, *strides),
            minimum=info.minimum,
        )
        self.net = net
        self.unpadded = not final_relu
        self._last = str(getattr(net, "output_fmt", None) or "NCHW").endswith("NHWC")

    def extract(self, x: Tensor) -> Features:
        maps = self.net(x)
        if self._last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        return Features(tuple(maps))

    def layers(self) -> Iterator[nn.Module]:
        return walk(self.net)


def _keep_size(net: nn.Module, info: Info, stem_stride: int) -> None:
    """Give the first convolution stride 1. Raises `UserError` where it is not one of stride 2 that pads."""
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if stem_stride != 1 or first is None or first.stride != (2, 2) or first.kernel_size[0] < 3:
        raise UserError(
            f"encoder {info.name}: stem_stride is {stem_stride}. Expected 2, or 1 for an encoder that begins with a "
            "convolution of stride 2, such as a ResNet. Leave it out."
        )
    first.stride = (1, 1)


def _drop_final_relu(net: nn.Module, info: Info) -> None:
    """Take the activation of a DenseNet's last norm away. Raises `UserError` for another encoder."""
    last: Any = getattr(net, "features_norm5", None)
    if last is None or not hasattr(last, "act"):
        raise UserError(f"encoder {info.name}: final_relu is for DenseNets. Leave it out.")
    last.act = nn.Identity()


class Attentive(Encoder):
    """What transformers of timm share: gradient checkpointing and low-rank adapters. `net` is timm's whole model."""

    net: nn.Module

    def layers(self) -> Iterator[nn.Module]:
        return walk(self.net)

    def checkpoint(self, on: bool = True) -> Self:
        """Compute blocks again in the backward pass, which takes less memory and a third more time."""
        set_checkpointing: Any = getattr(self.net, "set_grad_checkpointing", None)
        if set_checkpointing is None:
            return super().checkpoint(on)
        set_checkpointing(on)
        return self

    def adapt(self, rank: int, *, alpha: float | None = None, projections: Sequence[str] = ("q", "v")) -> Self:
        """Freeze the encoder and let low-rank changes of its attention layers (or others) learn.

        `alpha`: the change is alpha / rank times the product, `rank` unless given. `projections`: of "q", "k", "v" (of
        fused layers too), and any names of linear layers in a block: "proj", "fc1", "fc2". Raises `UserError` where
        the encoder has none of a name.
        """
        self.freeze()
        wanted = list(dict.fromkeys(projections))
        found: set[str] = set()
        for name, layer in [(n, m) for n, m in self.net.named_modules() if isinstance(m, nn.Linear)]:
            last = name.rpartition(".")[2]
            if last == "qkv" and any(p in "qkv" for p in wanted):
                blocks = [i for i, p in enumerate("qkv") if p in wanted]
                add_low_rank(layer, rank, alpha=alpha, blocks=3, adapted=blocks)
                found |= set("qkv") & set(wanted)
            elif hit := {last, last.removesuffix("_proj")} & set(wanted):
                add_low_rank(layer, rank, alpha=alpha)
                found |= hit
        linear = sorted({n.rpartition(".")[2] for n, m in self.net.named_modules() if isinstance(m, nn.Linear)})
        if not found and not {"qkv", "q", "q_proj"} & set(linear):
            return super().adapt(rank)
        if missing := [p for p in wanted if p not in found]:
            raise UserError(
                f"encoder {self.name}: it has no layers {', '.join(missing)} to adapt. "
                f"Expected some of q, k, v and {', '.join(n for n in linear if n != 'qkv')}."
            )
        return self


class TimmViT(Attentive):
    """A plain vision transformer: `levels` maps from evenly spaced blocks, all with the patch as stride.

    `levels` may name the blocks (from 0) instead. `norm`: whether the last norm is applied to every map (as DINOv2's
    intermediate layers do). `norm_eps`: what the norms add to a variance, where it is not timm's.
    """

    def __init__(
        self,
        net: nn.Module,
        info: Info,
        in_channels: int,
        *,
        levels: int | Sequence[int] | None = None,
        norm: bool = True,
        norm_eps: float | None = None,
    ) -> None:
        found: Any = net.feature_info
        depth, patch = len(found), int(found[-1]["reduction"])
        indices = _indices(info, levels, depth)
        mean, std = (info.mean, info.std) if info.card else statistics_of(getattr(net, "pretrained_cfg", {}))
        super().__init__(
            [int(found[-1]["num_chs"])] * len(indices),
            [patch] * len(indices),
            in_channels=in_channels,
            mean=mean,
            std=std,
            mpp=info.mpp,
            patch=patch,
            divisor=patch if info.card else max(info.divisor, patch),
            minimum=info.minimum,
        )
        self.net = net
        self.norm = norm
        self.indices = indices
        for module in net.modules() if norm_eps is not None else ():
            if isinstance(module, nn.LayerNorm):
                module.eps = float(norm_eps or 0)
        forward: Any = net.forward_intermediates
        along = "return_prefix_tokens" in inspect.signature(forward).parameters  # XCiT's class token comes at the end
        prune: Any = getattr(net, "prune_intermediate_layers", None)
        if prune is not None and not info.card:  # what only a classifier needs would never get a gradient
            prune(self.indices, prune_norm=False, prune_head=True)
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 0)) if along else 0

    @property
    def depth(self) -> int:
        """Return the number of blocks."""
        found: Any = self.net.feature_info
        return len(found)

    def take(self, blocks: Sequence[int], norm: bool = True) -> Self:
        """Give a map of each of these blocks (from 0, rising), with the last norm applied to each or to none."""
        self.indices, self.norm = list(blocks), norm
        self.channels, self.strides = self.channels[:1] * len(blocks), self.strides[:1] * len(blocks)
        return self

    def extract(self, x: Tensor) -> Features:
        forward: Any = self.net.forward_intermediates
        maps: tuple[Tensor, ...]
        prefix: tuple[Tensor, ...] = ()
        if self.prefix_tokens:
            last, found = forward(x, indices=self.indices, norm=self.norm, return_prefix_tokens=True)
            maps, prefix = tuple(m for m, _ in found), tuple(p for _, p in found)
        else:
            last, found = forward(x, indices=self.indices, norm=self.norm)
            maps = tuple(found)
        grid = maps[-1].shape[-2] * maps[-1].shape[-1]
        tokens = last[:, -grid:] if last.ndim == 3 else last.flatten(2).transpose(1, 2)
        return Features(maps, tokens, prefix)

    def repatch(self, patch: int) -> Self:
        """Change the side of a patch: the kernel is resized so that tokens of resized patches stay what they were in
        the least squares (Beyer et al. 2023, FlexiViT, section 3.4), the position table follows. Raises `UserError`.
        """
        resize: Any = getattr(self.net, "set_input_size", None)
        if patch < 1 or resize is None or getattr(self.net, "pos_embed", None) is None:
            raise UserError(
                f"encoder {self.name}: patch is {patch}. Expected 1 or more, of a vision transformer with a table of "
                "positions. Leave it out."
            )
        side = [g * patch for g in self.net.patch_embed.grid_size]  # type: ignore[union-attr]
        embed: Any = self.net.patch_embed
        kernel = embed.proj.weight
        resize(img_size=tuple(side), patch_size=(patch, patch))
        with torch.no_grad():  # timm resizes bicubically
            embed.proj.weight.copy_(resize_kernel(kernel, (patch, patch)))
        self.strides = (patch,) * len(self.strides)
        self.patch, self.divisor = patch, patch
        return self


def _indices(info: Info, levels: int | Sequence[int] | None, depth: int) -> list[int]:
    """Return the blocks whose outputs are maps: 4, or all where there are fewer, unless told. Raises `UserError`."""
    if levels is None:
        levels = min(4, depth)
    if isinstance(levels, int):
        if not 1 <= levels <= depth:
            raise UserError(f"encoder {info.name}: levels is {levels}. Expected 1 to {depth}, the number of blocks.")
        return [depth * (i + 1) // levels - 1 for i in range(levels)]
    indices = [int(i) for i in levels]
    if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < depth:
        raise UserError(f"encoder {info.name}: levels are {indices}. Expected blocks from 0 to {depth - 1}, rising.")
    return indices


class TimmStages(Attentive):
    """A hierarchical transformer as a whole model, so that the last map has the last norm and names are timm's."""

    def __init__(self, net: nn.Module, info: Info, in_channels: int) -> None:
        found: Any = net.feature_info
        super().__init__(
            [int(f["num_chs"]) for f in found],
            [int(f["reduction"]) for f in found],
            in_channels=in_channels,
            mean=info.mean,
            std=info.std,
            mpp=info.mpp,
            divisor=max(info.divisor, *(int(f["reduction"]) for f in found)),
            minimum=info.minimum,
        )
        self.net = net

    def extract(self, x: Tensor) -> Features:
        forward: Any = self.net.forward_intermediates
        return Features(tuple(forward(x, norm=True, intermediates_only=True)))


class ConvStem(PatchEmbed):  # type: ignore[misc]
    """CTransPath's way from a picture to tokens of stride 4 (Wang et al. 2022, section 3.2): three convolutions."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        first: Any = getattr(self, "proj")  # noqa: B009 (its type is not known)
        inputs, width = first.in_channels, first.out_channels
        narrow, middle = width // 8, width // 4
        self.proj = nn.Sequential(
            nn.Conv2d(inputs, narrow, 3, 2, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, middle, 3, 2, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, width, 1),
        )


PARTS: dict[str, Any] = {"conv_stem": ConvStem, "swiglu_packed": SwiGLUPacked}
"""What a recipe, which holds plain values only, calls parts of a network."""
PART_KEYS = ("embed_layer", "mlp_layer")


def build(
    info: Info,
    in_channels: int,
    tag: str | None,
    tensors: Mapping[str, Tensor] | None,
    arguments: Mapping[str, Any],
) -> Encoder:
    """Return a timm encoder; `tensors` are pretrained weights, `tag` the timm tag that they belong to."""
    names, made = _OWN[info.kind]
    both = {**info.build, **arguments}
    own = {k: v for k, v in both.items() if k in names}
    known = {"in_chans": in_channels, **{k: v for k, v in both.items() if k not in own}}
    known |= {"features_only": True} if info.kind == "pyramid" else {"num_classes": 0}
    name = f"{info.model}.{tag}" if tag else info.model
    return made(_create(name, info, known, tensors), info, in_channels, **own)


_OWN: dict[str, tuple[tuple[str, ...], Callable[..., Encoder]]] = {
    "vit": (("levels", "norm", "norm_eps"), TimmViT),
    "stages": ((), TimmStages),
    "pyramid": (("stem_stride", "final_relu"), TimmPyramid),
}
"""Kind of encoder -> arguments that are ours and not timm's, and the class."""


def _create(name: str, info: Info, known: dict[str, Any], tensors: Mapping[str, Tensor] | None) -> nn.Module:
    extra: dict[str, Any] = {}
    if tensors is not None:
        extra = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(tensors), "custom_load": False}}
    if torch.empty(0).is_meta and info.architecture == "vision_transformer":
        known = {"weight_init": "skip", **known}  # drawing what is not there takes half of the time
    known = {k: PARTS.get(v, v) if k in PART_KEYS else v for k, v in known.items()}
    log = logging.getLogger("timm.models._builder")  # warns of every classifier weight that features do not need
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        net: nn.Module = timm.create_model(name, **known, **extra)
    except TypeError as error:
        raise UserError(f"encoder {info.name}: {error}. See: zoo show {info.name}") from None
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"encoder {info.name}: timm refuses {_written(known)}: {error}") from None
    finally:
        log.setLevel(level)
    for module in net.modules():  # do not keep a second copy of the weights
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict):
            config.pop("state_dict", None)
    return net


def _written(known: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in known.items() if k != "features_only")


def _config(net: nn.Module, info: Info) -> dict[str, Any]:
    """Return the pretrained configuration; wrappers that lost it get that of the list."""
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    return dict(config) if isinstance(config, dict) else {"mean": info.mean, "std": info.std}
