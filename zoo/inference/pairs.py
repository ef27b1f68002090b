"""Drawn pictures and what they were drawn from, as a dataset to train on: images, masks, and a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from zoo.errors import UserError
from zoo.families.diffusion.family import Diffusion
from zoo.inference.wishes import Wish
from zoo.io.colours import colours_of
from zoo.io.geojson import Feature, polygons_of, write_features
from zoo.paths import replacing
from zoo.postprocess.labels import components

IMAGES, MASKS, CARD = "images", "masks", "zoo-dataset.yaml"


def check(family: Diffusion, told: bool) -> None:
    """Raise `UserError` where there is no pair to write."""
    if family.options.mask is None or not told:
        raise UserError("--pairs: there are pairs where pictures are drawn from masks. Give --mask, or leave it out.")


def write_mask(out: Path, name: str, wish: Wish, family: Diffusion) -> None:
    """Write what one picture was drawn from: objects as numbers, or as GeoJSON of several classes; else class indices.

    `name`: of the picture, without folder.
    """
    options = family.options.mask
    assert options is not None
    classes = (options.classes or ())[1:]
    path = (out / MASKS / name).with_suffix(_ending(family))
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = wish.told["mask"]
    if path.suffix == ".png":
        from PIL import Image

        with replacing(path) as file:
            Image.fromarray(mask).save(file, "PNG")
        return
    objects = wish.objects if wish.objects is not None else objects_of(mask)
    part = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".tif":
            import tifffile

            with part.open("wb") as file:
                tifffile.imwrite(file, objects.astype(np.uint32), compression="zlib")
        else:
            write_features(part, _features(objects, mask, classes))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def objects_of(mask: NDArray[Any]) -> NDArray[np.int32]:
    """Return the connected parts of each class as ids from 1; 0 and 255 (nothing is told) are no objects."""
    found = np.zeros(mask.shape, np.int32)
    for value in np.unique(mask):
        if value not in (0, 255):
            parts = components(mask == value)
            found[parts > 0] = parts[parts > 0] + found.max()
    return found


def _features(objects: NDArray[Any], mask: NDArray[Any], classes: tuple[str, ...]) -> Iterator[Feature]:
    from scipy import ndimage

    colours = colours_of(classes)
    for label, window in enumerate(ndimage.find_objects(objects), 1):
        if window is None:
            continue
        inside = objects[window] == label
        kind = int(np.bincount(mask[window][inside]).argmax())
        if 0 < kind <= len(classes):
            corner = (window[0].start, window[1].start)
            yield Feature(polygons_of(inside, corner), classes[kind - 1], colours[kind - 1])


def _ending(family: Diffusion) -> str:
    options = family.options.mask
    assert options is not None
    if not options.boundary:
        return ".png"
    return ".tif" if len(options.classes or ()) == 2 else ".geojson"


def write_card(out: Path, family: Diffusion) -> None:
    """Write the card of the folder: what was drawn by which weights, and that none of it is a patient's tissue."""
    options = family.options.mask
    assert options is not None
    key, classes = options.truth or "objects", list(options.classes or ())
    semantic = not options.boundary
    slug = re.sub(r"[^a-z0-9._-]+", "-", f"drawn-{family.weights_name or family.name}".lower()).strip("-._")
    truth: dict[str, Any] = {"kind": "semantic" if semantic else "instances"}
    truth |= {"classes": classes if semantic else classes[1:]} | ({"ignore": 255} if semantic else {})
    um = family.options.mpp
    values = {
        "zoo": 1,
        "name": slug,
        "summary": f"Synthetic pictures drawn by {family.weights_name or family.name}, with the masks they follow.",
        "reader": {"name": "folder", "arguments": {"images": IMAGES, "masks": {key: {"folder": MASKS}}}},
        "licence": {"name": "not stated", "allows": [], "note": "That of the weights, and of the masks."},
        "spacing": {"um": um, "provenance": "assumed", "note": "what the generator was trained at"} if um else {},
        "truths": {key: truth},
        "notes": "Synthetic. How each picture was made stands in its metadata.",
    }
    with replacing(out / CARD) as file:
        file.write(yaml.safe_dump(values, sort_keys=False, width=120).encode())
