"""From maps to objects: label maps, outlines, grids. Pure functions on arrays and tensors."""

from zoo.postprocess.contours import Polygon, label_polygons, mask_polygons, outer_rings, ring_area
from zoo.postprocess.labels import (
    Block,
    components,
    fill_holes,
    majority,
    means,
    merge_blocks,
    regrow,
    relabel,
    remove_small,
    remove_small_mask,
    separate,
)
from zoo.postprocess.place import to_source

__all__ = [
    "Block",
    "Polygon",
    "components",
    "fill_holes",
    "label_polygons",
    "majority",
    "mask_polygons",
    "means",
    "merge_blocks",
    "outer_rings",
    "regrow",
    "relabel",
    "remove_small",
    "remove_small_mask",
    "ring_area",
    "separate",
    "to_source",
]
