"""Tiles of H&E with registered fluorescence and nuclei: ORION and IMMUcan (tables of tiles), HEMIT (folders).

Which cell carries what stands in tables of nuclei: a row a nucleus, `label`, and for each marker `MARKER_pos` (0 or 1),
where that is missing `MARKER_score` (0 to 1). A nucleus that a table does not name is not annotated.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zoo.data.readers.base import Entry, FolderReader
from zoo.data.readers.pixels import instances_of, natural, read_labels, read_rgb
from zoo.errors import DataError, UserError, suggest
from zoo.io.images import IMAGE_SUFFIXES, read_image
from zoo.schema import Schema
from zoo.types import Instances, Picture, Sample, Truth

MIF, CELLS, RESTAINED = "mif", "cells", "restained"
"""Keys of the truths."""


# --- tables -----------------------------------------------------------------------------------------------------------


def read_table(path: Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    """Return column -> values of a CSV file with a header. Raises `UserError` where it or a column is missing."""
    from pyarrow import csv, lib

    if not path.is_file():
        raise UserError(f"{path}: no such table. Expected a CSV file with the columns {', '.join(needed)}.")
    try:
        found = csv.read_csv(path)
    except lib.ArrowInvalid as error:
        raise UserError(f"{path}: cannot be read as CSV ({str(error).splitlines()[0]}). Get the file again.") from None
    for name in needed:
        if name not in found.column_names:
            near = suggest(name, found.column_names)
            raise UserError(f'{path}: no column "{name}". {near} It has {", ".join(found.column_names)}.')
    return {name: found.column(name).to_pylist() for name in found.column_names}


@dataclass(frozen=True)
class Nuclei:
    """A table of nuclei: `label` (N,) ascending, `values` (N, K) float32 of each marker, nan where a cell is empty."""

    label: NDArray[np.int64]
    values: NDArray[np.float32]

    def of(self, labels: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return label -> values of the labels that the table names."""
        wanted = np.asarray(labels, np.int64)
        if not len(self.label):
            return {}
        at = np.searchsorted(self.label, wanted).clip(0, len(self.label) - 1)
        return {int(k): self.values[i] for k, i in zip(wanted, at, strict=True) if self.label[i] == k}


@functools.lru_cache(maxsize=64)
def read_nuclei(path: Path, markers: tuple[str, ...], _changed: float) -> Nuclei:
    """Return a table of nuclei. Raises `DataError` where `label` or every marker is missing."""
    try:
        table = read_table(path, ["label"])
    except UserError as error:
        raise DataError(str(error)) from None
    columns = [next((c for c in (f"{m}_pos", f"{m}_score") if c in table), None) for m in markers]
    if markers and not any(columns):
        raise DataError(
            f"{path}: no column {markers[0]}_pos or {markers[0]}_score, nor of another marker (it has "
            f"{', '.join(table)}). Expected one a marker. Name the markers as the card does."
        )
    label = np.asarray(table["label"], np.int64)
    empty = [np.nan] * len(label)
    values = np.array([table[c] if c else empty for c in columns], np.float32).reshape(len(markers), len(label)).T
    order = np.argsort(label, kind="stable")
    return Nuclei(label[order], np.ascontiguousarray(values[order]))


class MarkerReader(FolderReader):
    """What readers of such tiles share."""

    def truths(self, entry: Entry, image: NDArray[Any]) -> dict[str, Truth]:
        """Return the picture of markers, and the nuclei with what the table says of them. Raises `DataError`."""
        found: dict[str, Truth] = {}
        if "target" in entry.files:
            planes = self._planes(entry.files["target"], image, entry.files["image"])
            found[MIF] = Picture(planes, self.card.truths[MIF].channels, encoding=self.encoding())
        if "nuclei" in entry.files and CELLS in self.card.truths:
            labels = read_labels(entry.files["nuclei"], image.shape[1:], entry.files["image"])
            found[CELLS] = self._cells(entry, instances_of(labels, entry.files["nuclei"]))
        return found

    def encoding(self) -> str:
        """Return what the numbers of the picture are."""
        return "linear"

    def _planes(self, path: Path, image: NDArray[Any], of: Path) -> NDArray[Any]:
        """Return the picture's planes (C, H, W), whichever axis the file has them on. Raises `DataError`."""
        with read_image(path) as file:
            array = file.read()
        channels = self.card.truths[MIF].channels
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        if planes.shape[1:] != image.shape[1:] and array.ndim == 3 and array.shape[1:] == image.shape[1:]:
            planes = array  # the published tile writer hands planes to a writer of pixels
        if len(planes) != len(channels):
            raise DataError(
                f"{path}: the picture has {len(planes)} channels. Expected {len(channels)}, as the card of "
                f"{self.card.name} names them: {', '.join(channels)}. Mend the channels of the card."
            )
        if planes.shape[1:] != image.shape[1:]:
            raise DataError(
                f"{path}: {planes.shape[1]} x {planes.shape[2]} pixels, but its image {of.name} has {image.shape[1]} x "
                f"{image.shape[2]}. Expected one size. Export both at the same level."
            )
        return np.ascontiguousarray(planes)

    def _cells(self, entry: Entry, labels: NDArray[np.int32]) -> Instances:
        names = self.card.truths[CELLS].values
        table = entry.files.get("table")
        if table is None or not names:
            return Instances(labels)
        nuclei = read_nuclei(table, names, table.stat().st_mtime if table.is_file() else 0.0)
        ids = np.unique(labels)
        return Instances(labels, values=nuclei.of(ids[ids > 0].tolist()), value_names=names)


# --- tables of tiles: ORION, IMMUcan ----------------------------------------------------------------------------------


class TilesArguments(Schema):
    """What the reader of tables of tiles is told."""

    tables: dict[str, str] = Field(default_factory=lambda: {s: f"{s}_dataframe.csv" for s in ("train", "val", "test")})
    """Split -> table of its tiles: in_slide_name, image_path, target_path, nuclei_path."""
    slides: str | None = "slide_dataframe.csv"
    """Table of slides: in_slide_name, nuclei_csv_path; none = nothing is known of single cells."""
    encoding: str = "log1p"
    """What the numbers of the pictures are."""
    restained: str | None = None
    """Folder of copies of the H&E tiles in other stains, under the same file names; none = there are no such copies."""


class TilesReader(MarkerReader):
    """Reader "mif-tiles": tables of tiles and slides, as MIPHEI-ViT's preparation writes them.

    Paths in tables may be those of another machine: the longest end of a path that is found below the folder counts.
    """

    Arguments = TilesArguments
    arguments: TilesArguments

    def index(self) -> Sequence[Entry]:
        """Return the tiles of the tables that are here. Raises `UserError` where none is, or a column is missing."""
        tables = self._tables()
        entries: list[Entry] = []
        for split, name in self.arguments.tables.items():
            path = self.folder / name
            if not path.is_file():
                continue
            rows = read_table(path, ["in_slide_name", "image_path", "target_path", "nuclei_path"])
            for slide, image, target, nuclei in zip(
                *(rows[c] for c in ("in_slide_name", "image_path", "target_path", "nuclei_path")), strict=True
            ):
                said = {"image": image, "target": target, "nuclei": nuclei, "table": tables.get(str(slide))}
                files = {role: self.place(str(value)) for role, value in said.items() if value}
                copy = self._copy(files["image"].name)
                files |= {} if copy is None else {RESTAINED: copy}
                entries.append(Entry(Path(str(image)).stem, str(slide), None, split, files))
        if not entries:
            names = ", ".join(self.arguments.tables.values())
            raise UserError(f"{self.card.name}: {self.folder} holds none of the tables {names}. {self.card.layout}")
        return entries

    def _tables(self) -> Mapping[str, str]:
        """Return slide -> its table of nuclei."""
        name = self.arguments.slides
        if name is None or not (self.folder / name).is_file():
            return {}
        rows = read_table(self.folder / name, ["in_slide_name", "nuclei_csv_path"])
        return {str(s): str(p) for s, p in zip(rows["in_slide_name"], rows["nuclei_csv_path"], strict=True) if p}

    def _copy(self, name: str) -> Path | None:
        """Return the restained copy of a tile; None where there are none. Raises `UserError` for one that lacks."""
        folder = self.arguments.restained
        if folder is None:
            return None
        path = self.folder / folder / name
        if not path.is_file():
            raise UserError(
                f"{self.card.name}: restained: {path} is not there. Expected a copy of each tile, named as it is. "
                "Restain all of them, or leave the argument out."
            )
        return path

    def place(self, path: str) -> Path:
        """Return the file that a path of a table means: itself, or the longest end of it below the folder."""
        given = Path(path)
        if given.is_absolute() and given.is_file():
            return given
        parts = given.parts[1:] if given.is_absolute() else given.parts
        for start in range(len(parts)):
            found = self.folder.joinpath(*parts[start:])
            if found.is_file():
                return found
        return self.folder.joinpath(*parts)

    def encoding(self) -> str:
        """Return what the numbers of the picture are."""
        return self.arguments.encoding

    def read(self, entry: Entry) -> Sample:
        """Return one tile with its fluorescence and nuclei. Raises `DataError`."""
        image = read_rgb(entry.files["image"])
        truths = self.truths(entry, image)
        if RESTAINED in entry.files:
            truths[RESTAINED] = Picture(read_rgb(entry.files[RESTAINED]), ("red", "green", "blue"))
        return self.sample(entry, image, truths)


# --- folders: HEMIT ---------------------------------------------------------------------------------------------------


class HemitReader(MarkerReader):
    """Reader "hemit": {train,val,test}/{input,label,mask,csv}/NAME; three markers stored as the colours of a picture.

    Truths: `mihc` the picture as it is stored, `mif` the same as named channels, `cells` the nuclei of mask/, with what
    csv/ says of them.
    """

    def index(self) -> Sequence[Entry]:
        """Return the fields. Raises `UserError` where there is none, or one lacks its label."""
        entries = []
        for split in ("train", "val", "test"):
            sides = {role: self._files(split, role) for role in ("input", "label", "mask", "csv")}
            lonely = [name for name in sides["input"] if name not in sides["label"]]
            if lonely:
                raise UserError(
                    f"{self.card.name}: {lonely[0]} has no partner in {self.folder / split / 'label'}. Expected one "
                    "file of the same name in input and label. Remove it or get the other."
                )
            for name, path in sides["input"].items():
                files = {"image": path, "target": sides["label"][name]}
                more = {"nuclei": sides["mask"].get(name), "table": sides["csv"].get(name)}
                files |= {role: file for role, file in more.items() if file is not None}
                entries.append(Entry(f"{split}/{name}", name, None, split, files))
        if not entries:
            raise UserError(f"{self.card.name}: {self.folder} holds no train/input. {self.card.layout}")
        return entries

    def _files(self, split: str, role: str) -> dict[str, Path]:
        folder = self.folder / split / role
        endings = (".csv",) if role == "csv" else IMAGE_SUFFIXES
        found = [p for p in folder.glob("*") if p.suffix.lower() in endings and not p.name.startswith(".")]
        return {p.stem: p for p in sorted(found, key=lambda p: natural(p.name))}

    def read(self, entry: Entry) -> Sample:
        """Return one field. Raises `DataError`."""
        image = read_rgb(entry.files["image"])
        truths = self.truths(entry, image)
        picture = truths[MIF]
        if isinstance(picture, Picture) and "mihc" in self.card.truths:
            truths["mihc"] = Picture(picture.data, ("red", "green", "blue"))
        return self.sample(entry, image, truths)
