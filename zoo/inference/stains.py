"""Stain tools on files: images, folders, globs and slides; one look a slide, in bands of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, UserError
from zoo.families.base import IOSpec
from zoo.inference.inputs import Item, find_images
from zoo.inference.source import Source, of_file, spread_pixels
from zoo.io.images import read_image
from zoo.io.png import PngRows
from zoo.io.tiff import TiffRows
from zoo.stain import colour, estimate
from zoo.stain.density import optical_density
from zoo.stain.normalise import Look, Normaliser

BAND = 512
"""Rows at once."""
PNG_MOST = 2**26
"""Pixels up to which a picture becomes a PNG; beyond, a tiled TIFF."""
STAINS = ("haematoxylin", "eosin", "dab")
_RGB = IOSpec(maps={}, outputs={})


@dataclass
class Report:
    """What was done: a record an image, and what failed, as {"file", "error"}."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Return the exit status: 1 where an image failed."""
        return 1 if self.failures else 0


def normalise_files(made: Normaliser, paths: Iterable[str | Path], out: Path) -> Report:
    """Write each image normalised: `STEM.png`, or `STEM.tif` (tiled) for large ones, and `stain.json` about all.

    A slide has one look, measured on a grid over all of it. Raises `UserError` before anything is written.
    """

    def one(item: Item, source: Source) -> dict[str, Any]:
        look = made.measure(spread_pixels(source))
        path = _final(out, item, source)
        _write_rgb(path, source, lambda rows: made.apply(rows, look))
        return {"output": str(path.relative_to(out)), **look.values()}

    report = _each(paths, out, one)
    told = {"normaliser": made.values(), "images": report.records}
    (out / "stain.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return report


def separate_files(made: Normaliser, paths: Iterable[str | Path], out: Path) -> Report:
    """Write the concentration of each stain, float32: `STEM.stains.ome.tif`, a channel a stain; `stain.json` about all.

    With "custom" or "ruifrok" the directions are fixed; otherwise each image's or slide's own.
    """
    if made.method == "reinhard":
        raise UserError("stain separate: reinhard knows no stains. Expected macenko, vahadane, ruifrok or custom.")

    def one(item: Item, source: Source) -> dict[str, Any]:
        look = made.measure(spread_pixels(source))
        matrix = next(m for m in (made.fixed, look.matrix, made.reference.matrix) if m is not None)
        path = out / item.stem.with_name(f"{item.stem.name}.stains.ome.tif")
        names = STAINS[: len(matrix)]
        file = TiffRows(_part(path), (len(matrix), *source.shape), np.float32, channels=names, mpp=source.mpp)

        def put(rows: NDArray[Any]) -> None:
            amounts = estimate.concentrations(optical_density(rows), matrix)
            file.put(np.moveaxis(amounts, -1, 0).astype(np.float32))

        _stream(path, source, file, put)
        said = {**seen(made, look, matrix), "matrix": np.round(matrix, 6).tolist(), "stains": list(names)}
        return {"output": str(path.relative_to(out)), **said}

    report = _each(paths, out, one)
    (out / "stain.json").write_text(json.dumps({"method": made.method, "images": report.records}, indent=1) + "\n")
    return report


def measure_files(made: Normaliser, paths: Iterable[str | Path]) -> Report:
    """Return the look of each image; nothing is written."""

    def one(_: Item, source: Source) -> dict[str, Any]:
        look = made.measure(spread_pixels(source))
        return seen(made, look, look.matrix)

    return _each(paths, None, one)


def seen(made: Normaliser, look: Look, matrix: NDArray[Any] | None) -> dict[str, Any]:
    """Return the plain values of a look where nothing is normalised, its note without what normalising would do, and
    with whether the directions `matrix` are not the picture's own."""
    values = look.values()
    del values["normalised"]
    notes = [remark.seen for remark in look.remarks if remark.seen]
    if matrix is not None and made.fixed is None and matrix is made.reference.matrix:
        notes.append("the directions are the reference's")
    return {**values, "note": "; ".join(notes)}


def statistics_of_files(paths: Iterable[str | Path], out: Path) -> tuple[Report, dict[str, Any]]:
    """Return what a set of images looks like in each colour space, for the augmentation `randstainna`.

    Images without stained tissue are left out, which their records say.
    """
    from zoo.stain.normalise import normaliser

    looks: dict[str, list[NDArray[Any]]] = {space: [] for space in colour.SPACES}
    reinhard = normaliser("reinhard")

    def one(_: Item, source: Source) -> dict[str, Any]:
        pixels = spread_pixels(source, 2**20)[None]
        look: Look = reinhard.measure(pixels)
        if look.usable:
            for space in looks:
                looks[space].append(np.stack(colour.moments(colour.to_space(pixels, space))))
        return {"counted": look.usable, "note": look.note}

    if out.is_dir():
        raise UserError(f"{out}: it is a folder. Expected a file for the statistics, {out / 'look.yaml'} say.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}). Choose another --out.") from None
    report = _each(paths, None, one)
    if not looks["lab"]:
        raise UserError(f"{out}: none of the images has stained tissue. Expected at least one. Choose other images.")
    values = {space: colour.gather(np.stack(found))._asdict() for space, found in looks.items()}
    return report, {space: {k: [round(v, 5) for v in vs] for k, vs in part.items()} for space, part in values.items()}


# --- files ------------------------------------------------------------------------------------------------------------


def _each(paths: Iterable[str | Path], out: Path | None, one: Callable[[Item, Source], dict[str, Any]]) -> Report:
    items = find_images(paths, out or Path(os.devnull))
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot write there ({error.strerror}). Choose another --out.") from None
    report = Report()
    for item in items:
        try:
            if out is not None:
                (out / item.stem).parent.mkdir(parents=True, exist_ok=True)
            with read_image(item.path) as file:
                report.records.append({"file": str(item.path), **one(item, of_file(file, _RGB))})
        except DataError as error:
            report.failures.append({"file": str(item.path), "error": str(error)})
    if out is not None:
        path = out / "failures.json"
        if report.failures:
            path.write_text(json.dumps(report.failures, indent=1) + "\n", encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    return report


def _final(out: Path, item: Item, source: Source) -> Path:
    ending = "png" if source.shape[0] * source.shape[1] <= PNG_MOST else "tif"
    return out / item.stem.with_name(f"{item.stem.name}.{ending}")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part-{os.getpid()}")


def _bands(source: Source) -> Iterator[NDArray[Any]]:
    for begin in range(0, source.shape[0], BAND):
        yield source.rows(begin, min(begin + BAND, source.shape[0]))


def _write_rgb(path: Path, source: Source, change: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> None:
    shape = (*source.shape, 3)
    file: PngRows | TiffRows
    if path.suffix == ".png":
        file = PngRows(_part(path), shape, source.mpp, level=4)
    else:
        file = TiffRows(_part(path), shape, np.uint8, rgb=True, mpp=source.mpp)
    _stream(path, source, file, lambda rows: file.put(change(rows)))


def _stream(path: Path, source: Source, file: PngRows | TiffRows, put: Callable[[NDArray[Any]], None]) -> None:
    """Put every band, then move the finished file into its place; nothing half-written stays behind."""
    try:
        for rows in _bands(source):
            put(rows)
        file.close()
        _part(path).replace(path)
    finally:
        file.abort()
        _part(path).unlink(missing_ok=True)
