"""Family translation: a picture into another, stain into stain."""

from zoo.families.translation.model import Translation

__all__ = ["Translation"]
