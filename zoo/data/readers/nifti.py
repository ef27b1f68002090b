"""Medical volumes in NIfTI files, with label maps: turned to one orientation, spacing in um from the header.

Label maps made by Connectome Workbench or TotalSegmentator name their ids in a table inside the file (a header
extension, XML); ids are then matched to the card's classes by name, so that files with different tables agree.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.truths import IGNORE
from zoo.errors import DataError, UserError
from zoo.schema import Schema
from zoo.types import Sample, Semantic

UM = {"meter": 1e6, "mm": 1e3, "micron": 1.0, "unknown": 1e3}
"""um of each unit that a header may name; one that names none means mm, as everywhere."""


class Pair(Schema):
    """One volume."""

    image: str
    """Volume, below the dataset's folder."""
    labels: str
    """Its label map: class ids voxel by voxel."""
    center: str | None = None
    """Scanner or modality."""


class NiftiArguments(Schema):
    """What the reader is told."""

    volumes: dict[str, Pair] = Field(min_length=1)
    """Id -> files."""
    truth: str = "organs"
    """Key of the truth."""


class NiftiReader(FolderReader):
    """Volumes as (1, D, H, W), axes from feet to head, from the front to the back and from the patient's right to the
    left, in their stored type; a class a voxel."""

    Arguments = NiftiArguments
    arguments: NiftiArguments

    def index(self) -> Sequence[Entry]:
        """Return the volumes that are here; each is a group of its own."""
        entries = []
        for name, pair in self.arguments.volumes.items():
            files = {"image": self.folder / pair.image, "labels": self.folder / pair.labels}
            if all(file.is_file() for file in files.values()):
                entries.append(Entry(name, None, pair.center, None, files))
        if not entries:
            expected = ", ".join(pair.image for pair in self.arguments.volumes.values())
            raise UserError(f"{self.card.name}: {self.folder} holds none of {expected}. Put the files there.")
        return entries

    def read(self, entry: Entry) -> Sample:
        """Return the volume, its spacing and its classes; an id without a class of the card is not annotated."""
        image, spacing = _volume(entry.files["image"])
        labels, _ = _volume(entry.files["labels"])
        if labels.shape != image.shape:
            raise DataError(f"{entry.files['labels']}: shape {labels.shape}, that of the volume is {image.shape}.")
        classes = self.card.truths[self.arguments.truth].classes
        semantic = Semantic(_by_name(labels, entry.files["labels"], classes), IGNORE)
        return self.sample(entry, image[None], {self.arguments.truth: semantic}, spacing=spacing)


def _volume(path: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Return (D, H, W) and um of each axis. Raises `DataError`, `UserError` where nibabel is not installed."""
    nib = _nibabel()
    try:
        found = nib.as_closest_canonical(nib.load(path))  # axes to the patient's right, to the front, to the head
        stored = np.asanyarray(found.dataobj)
        unit = found.header.get_xyzt_units()[0]
        zooms = found.header.get_zooms()
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({error}). Copy the file again.") from None
    if stored.ndim != 3:
        raise DataError(f"{path}: {stored.ndim} axes. Expected a volume of three.")
    turned = np.ascontiguousarray(stored.transpose(2, 1, 0)[:, ::-1, ::-1])
    scale = UM.get(unit, 1e3)
    return turned, (float(zooms[2]) * scale, float(zooms[1]) * scale, float(zooms[0]) * scale)


def _by_name(labels: NDArray[Any], path: Path, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return class indices: by the names that the file gives its ids, or ids as they are where it names none."""
    ids = np.unique(labels)
    names = _table(path)
    index = {name: i for i, name in enumerate(classes)}
    known: Mapping[int, int] = (
        {0: 0, **{i: index[name] for i, name in names.items() if name in index}}
        if names
        else {i: i for i in range(len(classes))}
    )
    values = [known.get(int(i), IGNORE) for i in ids]
    return np.asarray(values, np.uint8)[np.searchsorted(ids, labels)]


def _table(path: Path) -> dict[int, str]:
    """Return id -> name from a label table in the header, {} where there is none."""
    for extension in _nibabel().load(path).header.extensions:
        text = extension.get_content()
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        if "<LabelTable" not in text:
            continue
        start, end = text.index("<LabelTable"), text.rindex("</LabelTable>") + len("</LabelTable>")
        try:
            found = ET.fromstring(text[start:end])  # no entities can be declared inside an element
        except ET.ParseError as error:
            raise DataError(f"{path}: its table of labels cannot be read ({error}). Copy the file again.") from None
        return {int(label.attrib["Key"]): str(label.text) for label in found.iter("Label")}
    return {}


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise UserError("NIfTI files need nibabel. Install it with: pip install 'histozoo[volumes]'") from None
    return nibabel
