"""Deformable DETR with a choice of necks: boxes with classes and attributes."""

from zoo.families.detr.model import Detr

__all__ = ["Detr"]
