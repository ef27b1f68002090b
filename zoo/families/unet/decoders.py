"""The decoders of a semantic network: plans that say which pyramid levels they want and what is built on them.

The modules are those of segmentation_models_pytorch; what is ours is the pyramid below them (any encoder, any size),
the head above them (logits resized with pixel centres aligned, so that a tile's values do not depend on its size) and
what stands for dilated encoders. PSPNet and DeepLabV3+ were drawn on backbones whose last stages are dilated. An
encoder with `output_stride: 8` (DeepLabV3+: 8 or 16) is used as they did. For any other, a joint pyramid upsampling (Wu
et al. 2019, FastFCN, section 3.3) makes the stride-8 features that they want from the levels at strides 8, 16 and 32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from zoo import registry
from zoo.nn.blocks import Norm, norm_layer


@dataclass(frozen=True)
class Plan:
    """What a decoder wants and gives.

    `strides`: levels of the pyramid, finest first. `build(in_channels, channels)`: the module, which takes [image,
    *levels] and returns one map; `channels` are those of the levels. `channels`, `stride`: of that map. `kernel`: of
    the head's convolution.
    """

    strides: tuple[int, ...]
    build: Callable[[int, Sequence[int]], Any]
    channels: int
    stride: int
    kernel: int = 1


def _halves(depth: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(1, depth + 1))


Widths = Sequence[PositiveInt]
Share = Annotated[float, Field(ge=0, lt=1)]
Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "area"]
FourWidths = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
UNET_WIDTHS = (256, 128, 64, 32, 16)


def _check_unet(channels: Widths, attention: bool) -> None:
    if not 3 <= len(channels) <= 5:
        raise ValueError(f"the decoder has {len(channels)} widths. Write one a block, coarsest first: 3 to 5 of them")
    if attention and min(channels) < 16:
        raise ValueError(f"attention works on 16 channels or more, not {min(channels)}. Use wider channels")


def _without_idle(decoder: Any) -> Any:
    """Remove the attention over a skip that smp builds in the last block, which has none."""
    blocks = list(decoder.blocks.values()) if isinstance(decoder.blocks, nn.ModuleDict) else list(decoder.blocks)
    blocks[-1].attention1 = nn.Identity()
    return decoder


def _unet(load: Callable[[], Any], channels: Widths, attention: bool, interpolation: Interpolation) -> Plan:
    """Return the plan of a U-Net whose class `load` imports."""
    _check_unet(channels, attention)

    def build(in_channels: int, levels: Widths) -> Any:
        decoder = load()(
            (in_channels, *levels),
            tuple(channels),
            n_blocks=len(channels),
            attention_type="scse" if attention else None,
            interpolation_mode=interpolation,
        )
        return _without_idle(decoder)

    return Plan(_halves(len(channels)), build, channels[-1], 1, 3)


def unet(*, channels: Widths = UNET_WIDTHS, attention: bool = False, interpolation: Interpolation = "nearest") -> Plan:
    """U-Net (Ronneberger et al. 2015). `channels`: widths from the coarsest block; their number is the depth."""

    def load() -> Any:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        return UnetDecoder

    return _unet(load, channels, attention, interpolation)


def unetplusplus(
    *, channels: Widths = UNET_WIDTHS, attention: bool = False, interpolation: Interpolation = "nearest"
) -> Plan:
    """U-Net++ with dense skips (Zhou et al. 2018). Arguments as for `unet`."""

    def load() -> Any:
        from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

        return UnetPlusPlusDecoder

    return _unet(load, channels, attention, interpolation)


def manet(*, channels: Widths = UNET_WIDTHS, reduction: PositiveInt = 16, pab_channels: PositiveInt = 64) -> Plan:
    """MA-Net with position-wise and multi-scale attention (Fan et al. 2020)."""

    _check_unet(channels, False)

    def build(in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder

        return MAnetDecoder(
            [in_channels, *levels],
            list(channels),
            n_blocks=len(channels),
            reduction=reduction,
            pab_channels=pab_channels,
        )

    return Plan(_halves(len(channels)), build, channels[-1], 1, 3)


def linknet(*, channels: PositiveInt = 32, depth: Annotated[int, Field(ge=1, le=5)] = 5) -> Plan:
    """LinkNet, skips added and not stacked (Chaurasia and Culurciello 2017). `channels`: width of the last block."""

    def build(in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder

        return LinknetDecoder([in_channels, *levels], prefinal_channels=channels, n_blocks=depth)

    return Plan(_halves(depth), build, channels, 1, 1)


def fpn(*, pyramid_channels: PositiveInt = 256, channels: PositiveInt = 128, dropout: Share = 0.2) -> Plan:
    """Feature pyramid (Lin et al. 2017, Kirillov et al. 2019). `channels`: a multiple of 32."""

    if channels % 32:
        raise ValueError(f"decoder fpn: channels is {channels}. Its group norm has 32 groups: use a multiple of 32")

    def build(_in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

        return FPNDecoder(
            list(levels),
            encoder_depth=4,
            pyramid_channels=pyramid_channels,
            segmentation_channels=channels,
            dropout=dropout,
        )

    return Plan((4, 8, 16, 32), build, channels, 4)


def upernet(*, channels: PositiveInt = 256) -> Plan:
    """UPerNet: pyramid pooling on the coarsest level over a feature pyramid (Xiao et al. 2018)."""

    def build(in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        return UPerNetDecoder((in_channels, 0, *levels), decoder_channels=channels)

    return Plan((4, 8, 16, 32), build, channels, 4)


def segformer(*, channels: PositiveInt = 256) -> Plan:
    """SegFormer's head: levels projected, resized and fused (Xie et al. 2021)."""

    def build(in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

        return SegformerDecoder([in_channels, *levels], encoder_depth=4, segmentation_channels=channels)

    return Plan((4, 8, 16, 32), build, channels, 4)


def dpt(*, channels: PositiveInt = 256, reassembled: FourWidths = (256, 512, 1024, 1024)) -> Plan:
    """DPT's residual fusion (Ranftl et al. 2021); the pyramid does the reassembly of a plain transformer."""

    def build(_in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

        return DPTDecoder(
            tuple(levels),
            (4, 8, 16, 32),
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=tuple(reassembled),
            fusion_channels=channels,
        )

    return Plan((4, 8, 16, 32), build, channels, 2, 3)


def pspnet(*, channels: PositiveInt = 512, width: PositiveInt = 128, dropout: Share = 0.2, deepest: int = 32) -> Plan:
    """PSPNet: pyramid pooling over stride-8 features (Zhao et al. 2017). `width`: of the joint upsampling."""

    def build(_in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

        if deepest == 8:
            return PSPDecoder([levels[0]], out_channels=channels, dropout=dropout)
        decoder = PSPDecoder([4 * width], out_channels=channels, dropout=dropout)
        return _Upsampled(JointUpsampling(levels, width), decoder, 0)

    return Plan((8,) if deepest == 8 else (8, 16, 32), build, channels, 8, 3)


def deeplabv3plus(
    *,
    channels: PositiveInt = 256,
    width: PositiveInt = 128,
    rates: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None,
    dropout: Share = 0.5,
    deepest: int = 32,
) -> Plan:
    """DeepLabV3+: atrous pyramid, refined by the stride-4 level (Chen et al. 2018).

    `width`: of the joint upsampling. `rates`: dilations; None = (12, 24, 36) at stride 8 and (6, 12, 18) at stride 16.
    """
    dilated = deepest in (8, 16)
    stride = deepest if dilated else 8
    chosen = tuple(rates) if rates is not None else ((12, 24, 36) if stride == 8 else (6, 12, 18))

    def build(in_channels: int, levels: Widths) -> Any:
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

        decoder = DeepLabV3PlusDecoder(
            (in_channels, 0, levels[0], levels[1] if dilated else 4 * width),
            encoder_depth=5,
            out_channels=channels,
            atrous_rates=chosen,
            output_stride=stride,
            aspp_separable=True,
            aspp_dropout=dropout,
        )
        return decoder if dilated else _Upsampled(JointUpsampling(levels[1:], width), decoder, 1)

    return Plan((4, stride) if dilated else (4, 8, 16, 32), build, channels, 4)


class JointUpsampling(nn.Module):
    """Stride-8 features from levels at strides 8, 16 and 32: (B, 4 * width, H / 8, W / 8) (Wu et al. 2019, fig. 4)."""

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(c, width) for c in levels)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * width, 3 * width, 3, padding=d, dilation=d, groups=3 * width, bias=False),
                nn.BatchNorm2d(3 * width),
                nn.Conv2d(3 * width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for d in (1, 2, 4, 8)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        size = levels[0].shape[-2:]
        projected = [project(level) for project, level in zip(self.project, levels, strict=True)]
        together = torch.cat(
            [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in projected], dim=1
        )
        return torch.cat([branch(together) for branch in self.dilated], dim=1)


def _conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class _Upsampled(nn.Module):
    """A decoder for dilated encoders over joint upsampling; the first `kept` levels are handed on as they are."""

    def __init__(self, joint: JointUpsampling, decoder: nn.Module, kept: int) -> None:
        super().__init__()
        self.joint, self.decoder, self.kept = joint, decoder, kept

    def forward(self, features: list[Tensor]) -> Tensor:
        image, levels = features[0], features[1:]
        joint = self.joint(levels[self.kept :])
        # smp's DeepLabV3+ reads its stride-4 level at index 2, so the image stands for the missing half
        found: Tensor = self.decoder([image, image, *levels[: self.kept], joint])
        return found


def plan(name: str, arguments: Mapping[str, Any], deepest: int) -> Plan:
    """Return the plan of a decoder; `deepest`: stride of the encoder's coarsest level."""
    function = registry.get("decoder", name)
    own = {"deepest": deepest} if "deepest" in inspect.signature(function).parameters else {}
    found: Plan = function(**arguments, **own)
    return found


def run(name: str, decoder: nn.Module, image: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Return the decoder's map; smp's decoders differ in what they want beside the levels."""
    if name == "dpt":
        return decoder(list(levels), [None] * len(levels))  # type: ignore[no-any-return]
    # the image stands for the stride-2 level where a decoder counts one that it does not use
    counted = name == "upernet" or (name == "deeplabv3plus" and not isinstance(decoder, _Upsampled))
    return decoder([image, image, *levels] if counted else [image, *levels])  # type: ignore[no-any-return]


# --- norms ------------------------------------------------------------------------------------------------------------


def change_norm(module: nn.Module, norm: Norm) -> int:
    """Replace every 2-D batch norm inside a module, in place; return how many there were.

    "group": up to 32 groups; "instance": one group a channel; both with the weights of the norm that they replace. A
    timm norm that carries an activation keeps it.
    """
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            count += 1
            if norm != "batch":
                setattr(module, name, _replacement(child, norm))
        else:
            count += change_norm(child, norm)
    return count


def _replacement(old: nn.BatchNorm2d, norm: Norm) -> nn.Module:
    new = norm_layer(norm, old.num_features)
    after = [part for part in (getattr(old, "drop", None), getattr(old, "act", None)) if part is not None]
    return nn.Sequential(new, *after) if after else new


def spare_single_pixels(module: nn.Module) -> None:
    """Remove the batch norm behind a pooling to one pixel, in place: one value a channel has no variance at batch 1."""
    for child in module.modules():
        if not isinstance(child, nn.Sequential) or len(child) == 0:
            continue
        first = child[0]
        if not isinstance(first, nn.AdaptiveAvgPool2d) or first.output_size not in (1, (1, 1)):
            continue
        for inner in (child, *(c for c in child if isinstance(c, nn.Sequential))):
            for name, part in inner.named_children():
                if isinstance(part, nn.BatchNorm2d):
                    setattr(inner, name, nn.Identity())
