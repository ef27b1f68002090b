"""Images that come with an installed package: found without importing it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydantic import Field

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import instances_of, read_rgb
from zoo.errors import DataError, UserError
from zoo.io.images import read_array
from zoo.schema import Schema
from zoo.types import Instances, Sample, Truth


class PackageArguments(Schema):
    """What the reader is told."""

    package: str
    """Package, by import name."""
    image: str
    """Image file inside the package."""
    instances: dict[str, str] = Field(default_factory=dict)
    """Truth -> file of object ids inside the package."""


class PackageReader(FolderReader):
    """One image and its label images out of a package's files. The package itself is not imported."""

    Arguments = PackageArguments
    needs_folder = False
    arguments: PackageArguments

    def _home(self) -> Path:
        spec = find_spec(self.arguments.package)
        if spec is None or spec.origin is None:
            raise UserError(
                f'{self.card.name}: the package "{self.arguments.package}" is not installed. '
                f"Install it with: pip install {self.arguments.package}"
            )
        return Path(spec.origin).parent

    def index(self) -> Sequence[Entry]:
        """Return the one image; its split is "test"."""
        home = self._home()
        files = {"image": home / self.arguments.image}
        files |= {key: home / file for key, file in self.arguments.instances.items()}
        absent = [file for file in files.values() if not file.is_file()]
        if absent:
            raise UserError(
                f"{self.card.name}: {absent[0]} is not there; this version of {self.arguments.package} came without "
                "it. Install another version."
            )
        return [Entry(files["image"].stem, None, None, "test", files)]

    def read(self, entry: Entry) -> Sample:
        """Return image (RGB uint8, or the stored planes where the card has other channels) and truths."""
        path = entry.files["image"]
        colour = self.card.channels == ("red", "green", "blue")
        image = read_rgb(path) if colour else read_array(path)[None]
        if image.ndim != len(self.card.axes):
            raise DataError(f"{path}: the image has shape {image.shape}. Expected the axes {self.card.axes}.")
        truth: dict[str, Truth] = {}
        for key in self.arguments.instances:
            labels = read_array(entry.files[key])
            if labels.shape != image.shape[1:]:
                raise DataError(f"{entry.files[key]}: the labels have shape {labels.shape}, not {image.shape[1:]}.")
            truth[key] = Instances(instances_of(labels, entry.files[key]))
        return self.sample(entry, np.ascontiguousarray(image), truth)
