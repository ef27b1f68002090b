"""DeepLIIF: one PNG holds six square tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import natural, read_rgb
from zoo.errors import DataError, UserError
from zoo.types import Picture, Sample

TILES = ("ihc", "hematoxylin", "dapi", "lap2", "marker", "segmentation")


class DeepLiifReader(FolderReader):
    """IHC as the image; haematoxylin, mpIF DAPI, Lap2, marker and segmentation as pictures of the same field."""

    def index(self) -> Sequence[Entry]:
        """Return the strips of train/, val/ and test/. Published val/ repeats train/, so it gets ids of its own."""
        entries = [
            Entry(f"{split}/{path.stem}", path.stem, None, split, {"image": path})
            for split in ("train", "val", "test")
            for path in sorted((self.folder / split).glob("*.png"), key=lambda p: natural(p.name))
        ]
        if not entries:
            raise UserError(f"{self.card.name}: {self.folder} holds no train/*.png. Unpack the sample set there.")
        return entries

    def read(self, entry: Entry) -> Sample:
        """Return the first tile as image, the others as `Picture` truths (rgb8)."""
        path = entry.files["image"]
        strip = read_rgb(path)
        height, width = strip.shape[1:]
        if width != height * len(TILES):
            raise DataError(
                f"{path}: {height} x {width} pixels. Expected {len(TILES)} square tiles side by side, "
                f"{height} x {height * len(TILES)}."
            )
        tiles = {name: np.ascontiguousarray(strip[:, :, i * height : (i + 1) * height]) for i, name in enumerate(TILES)}
        truth = {name: Picture(tiles[name], ("red", "green", "blue")) for name in TILES[1:]}
        return self.sample(entry, tiles["ihc"], truth)
