"""From options to a generator and a discriminator, untrained."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.encoders import Encoder, build_encoder
from zoo.families.miphei.heads import WithForeground
from zoo.families.miphei.hemit import Hemit
from zoo.families.miphei.matte import Matte
from zoo.families.miphei.options import DiscriminatorOptions, MipheiOptions
from zoo.families.miphei.unet import Unet
from zoo.families.miphei.unetr import Unetr, block_numbers
from zoo.nn.discriminators import PatchDiscriminator
from zoo.nn.lora import LowRank

DEEPEST = 16
"""Stride of the deepest map that a CNN gives to the unetr decoder."""


def make_encoder(options: MipheiOptions, channels: int) -> Encoder:
    """Return the encoder as the network wants it. Raises `ValueError` where it cannot serve."""
    said = options.encoder
    encoder: Any = build_encoder(said.name, in_channels=channels, weights=options.encoder_weights, **said.arguments)
    if options.network == "unetr" and encoder.patch:
        if encoder.depth < 4:
            raise ValueError(f"network unetr: {said.name} has {encoder.depth} blocks. Expected 4 or more")
        encoder.take(block_numbers(encoder.depth), norm=False)
    if options.network == "matte" and encoder.patch:
        encoder.take((encoder.depth - 1,), norm=True)
    if options.network == "unet" and encoder.patch:
        raise ValueError(f"network unet: {said.name} has patches and no pyramid. Choose network matte or unetr")
    for change in encoder.modules():
        if isinstance(change, LowRank):
            nn.init.normal_(change.down, std=change.down.shape[1] ** -0.5)  # as published
    made: Encoder = encoder
    return made


def make_network(options: MipheiOptions, channels: int, markers: int) -> nn.Module:
    """Return the generator: (B, channels, H, W) -> what goes into tanh, and with `foreground_head` as many planes of
    logits behind it. Raises `ValueError`."""
    if options.network == "hemit":
        sizes: dict[str, Any] = options.hemit.model_dump()
        return Hemit(channels, markers, size=options.tile, **sizes)
    encoder = make_encoder(options, channels)
    if options.network == "matte":
        made: nn.Module = Matte(encoder, markers, options.detail, options.fusion, options.gated)
    elif options.network == "unetr":
        cnn = not encoder.patch and 2 in encoder.strides
        stream, drop = options.picture_stream, options.dropout
        made = Unetr(
            encoder, markers, cnn=cnn, stream=stream, width=options.decoder_width, dropout=drop, gated=options.gated
        )
    else:
        made = Unet(encoder, markers, widths=options.widths, dropout=options.dropout, gated=options.gated)
    if options.foreground_head:
        heads: Any = made.heads
        made.heads = WithForeground(heads, heads[0][1].in_channels)
    inside = {id(m) for m in encoder.modules()}
    begin([m for m in made.modules() if id(m) not in inside])
    return made


def begin(modules: list[nn.Module]) -> None:
    """Initialise a decoder: convolutions normal (0, 0.02), norms normal (1, 0.02), biases 0."""
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_discriminator(options: DiscriminatorOptions, channels: int) -> PatchDiscriminator:
    """Return what judges `channels` of picture and markers together."""
    return PatchDiscriminator(
        channels, options.width, options.layers, norm=options.norm, antialias=False, spectral=True
    )
