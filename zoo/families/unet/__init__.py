"""Semantic segmentation: any encoder, ten decoders, objects by a boundary class."""

from zoo.families.unet.model import UNet
from zoo.families.unet.options import UNetOptions

__all__ = ["UNet", "UNetOptions"]
