"""Objects as star-convex polygons and polyhedra (Schmidt et al. 2018, Weigert et al. 2020)."""

from zoo.families.stardist.model import StarDist
from zoo.families.stardist.options import StarDistOptions

__all__ = ["StarDist", "StarDistOptions"]
