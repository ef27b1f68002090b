"""The one module that knows timm: its pyramids and its plain vision transformers as encoders."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Self

import timm
from torch import Tensor, nn

from zoo.encoders.base import Encoder, Features, statistics_of, walk
from zoo.encoders.listing import Info
from zoo.errors import UserError
from zoo.nn.lora import add_low_rank


class TimmPyramid(Encoder):
    """A timm model under `features_only`; maps that come as NHWC (Swin) are turned.

    `stem_stride` 1: the first convolution keeps the picture's size, so that every level is twice as fine (and costs
    four times as much). `final_relu` False: a DenseNet's last map as its last norm leaves it.
    """

    def __init__(
        self, net: nn.Module, info: Info, in_channels: int, *, stem_stride: int = 2, final_relu: bool = True
    ) -> None:
        found: Any = net.feature_info
        mean, std = statistics_of(_config(net, info))
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
            divisor=max(divisor, *strides),
            minimum=info.minimum,
        )
        self.net = net
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


class TimmViT(Encoder):
    """A plain vision transformer: `levels` maps from evenly spaced blocks, all with the patch as stride.

    `norm`: whether the last norm is applied to every map (as DINOv2's intermediate layers do).
    """

    def __init__(self, net: nn.Module, info: Info, in_channels: int, *, levels: int = 4, norm: bool = True) -> None:
        found: Any = net.feature_info
        depth, patch = len(found), int(found[-1]["reduction"])
        if not 1 <= levels <= depth:
            raise UserError(f"encoder {info.name}: levels is {levels}. Expected 1 to {depth}, the number of blocks.")
        mean, std = statistics_of(getattr(net, "pretrained_cfg", {}))
        super().__init__(
            [int(found[-1]["num_chs"])] * levels,
            [patch] * levels,
            in_channels=in_channels,
            mean=mean,
            std=std,
            patch=patch,
            divisor=max(info.divisor, patch),
            minimum=info.minimum,
        )
        self.net = net
        self.norm = norm
        self.indices = [depth * (i + 1) // levels - 1 for i in range(levels)]
        forward: Any = net.forward_intermediates
        along = "return_prefix_tokens" in inspect.signature(forward).parameters  # XCiT's class token comes at the end
        prune: Any = getattr(net, "prune_intermediate_layers", None)
        if prune is not None:  # what only a classifier needs would never get a gradient
            prune(self.indices, prune_norm=False, prune_head=True)
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 0)) if along else 0

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

    def layers(self) -> Iterator[nn.Module]:
        return walk(self.net)

    def adapt(self, rank: int) -> Self:
        """Freeze the encoder and let low-rank changes of the queries and values of every block learn."""
        self.freeze()
        found = 0
        for attention in [m for m in self.net.modules() if type(m).__name__.endswith("Attention")]:
            fused = getattr(attention, "qkv", None)
            if isinstance(fused, nn.Linear):
                add_low_rank(fused, rank, blocks=3, adapted=(0, 2))
                found += 1
                continue
            apart = [getattr(attention, n, None) for n in ("q_proj", "v_proj")]
            for layer in apart:
                if isinstance(layer, nn.Linear):
                    add_low_rank(layer, rank)
                    found += 1
        return self if found else super().adapt(rank)


def build(
    info: Info,
    in_channels: int,
    tag: str | None,
    tensors: Mapping[str, Tensor] | None,
    arguments: Mapping[str, Any],
) -> Encoder:
    """Return a timm encoder; `tensors` are pretrained weights, `tag` the timm tag that they belong to."""
    names = ("levels", "norm") if info.kind == "vit" else ("stem_stride", "final_relu")
    own = {k: v for k, v in arguments.items() if k in names}
    given = {k: v for k, v in arguments.items() if k not in own}
    known = {**info.build, "in_chans": in_channels, **given}
    known |= {"features_only": True} if info.kind == "pyramid" else {"num_classes": 0}
    name = f"{info.model}.{tag}" if tag else info.model
    net = _create(name, info, known, tensors)
    made = TimmPyramid if info.kind == "pyramid" else TimmViT
    return made(net, info, in_channels, **own)


def _create(name: str, info: Info, known: dict[str, Any], tensors: Mapping[str, Tensor] | None) -> nn.Module:
    extra: dict[str, Any] = {}
    if tensors is not None:
        extra = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(tensors), "custom_load": False}}
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
