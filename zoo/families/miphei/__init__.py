"""Family miphei: H&E to multiplex immunofluorescence, a plane a marker."""

from zoo.families.miphei.model import Miphei

__all__ = ["Miphei"]
