"""Readers "phantom" (H&E), "phantom-stains" and "phantom-mif": tissue, its stains, and what is where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Argument
from pydantic import PositiveFloat, field_validator

from zoo.data.phantom import immuno, markers
from zoo.data.phantom.generated import SLIDE, SPLITS, Generated, PhantomArguments, Side, pair, seed_of, site_of
from zoo.data.phantom.he import draw_stain, render
from zoo.data.phantom.layout import ANATOMY, Layout, lay_out, patch_class
from zoo.data.phantom.optics import RANGES, Draws, Site
from zoo.data.readers.base import Entry
from zoo.data.resample import present_ids
from zoo.schema import Schema
from zoo.types import Instances, Label, Picture, Sample, Semantic, Truth, Vector

RGB = ("red", "green", "blue")


class TissueArguments(PhantomArguments):
    """What a phantom of tissue may be told."""

    size: Side | tuple[Side, Side] = 256
    """Height and width of a field in pixels: one number, or two."""
    um: PositiveFloat = Argument(default=0.5, ge=0.1, le=4)
    """um per pixel."""
    lymphocytes: float | None = Argument(default=None, ge=0, le=20)
    """Lymphocytes per 1000 um2 of stroma, in every field alike; none = as the difficulty has them, few or many."""
    fibroblasts: float | None = Argument(default=None, ge=0, le=10)
    """Spindle cells per 1000 um2 of stroma; none = as the difficulty has them."""
    weaker: int = Argument(default=4, ge=2, le=16)
    """How many times weaker the objective of the low-resolution twin is, where the card has one."""


class PhantomReader(Generated):
    """Reader "phantom": H&E with nuclei, glands, lumina, tissue classes and a label for the field."""

    Arguments: ClassVar[type[Schema]] = TissueArguments
    KNOWN: ClassVar[tuple[str, ...]] = ("nuclei", "glands", "lumina", "tissue", "patch", "low")

    def read(self, entry: Entry) -> Sample:
        """Return one field: (3, H, W) uint8, with the truths that the card names."""
        image, layout = self.field(entry)
        um = self.arguments.um
        known = truths(layout)
        if "low" in self.card.truths:
            known["low"] = Picture(twin(image, self.arguments.weaker), RGB)
        return self.sample(entry, image, (um, um), known)

    def field(self, entry: Entry, beyond: float = 0.0) -> tuple[NDArray[np.uint8], Layout]:
        """Return the picture and the layout of one field."""
        arguments = self.arguments
        assert entry.split is not None
        return field(
            arguments.seed,
            entry.split,
            int(entry.extra["number"]),
            size=arguments.size,
            um=arguments.um,
            difficulty=arguments.difficulty,
            site=site_of(entry),
            beyond=beyond,
            lymphocytes=arguments.lymphocytes,
            fibroblasts=arguments.fibroblasts,
        )


def field(
    seed: int,
    split: str,
    number: int,
    *,
    size: int | tuple[int, int] = 256,
    um: float = 0.5,
    difficulty: str = "medium",
    site: Site | None = None,
    beyond: float = 0.0,
    lymphocytes: float | None = None,
    fibroblasts: float | None = None,
) -> tuple[NDArray[np.uint8], Layout]:
    """Return the picture (3, H, W) and the layout of one field: a function of the arguments alone.

    `beyond`: um of canvas beyond what the picture needs. `lymphocytes`, `fibroblasts`: per 1000 um2 of stroma; None =
    as the difficulty has them.
    """
    asked = {"lymphocytes": lymphocytes, "fibroblasts": fibroblasts}
    anatomy = replace(ANATOMY[difficulty], **{name: value for name, value in asked.items() if value is not None})
    place = seed_of(seed, SPLITS[split], number)
    layout = lay_out(place, pair(size), um, anatomy, beyond, even=(lymphocytes, fibroblasts) != (None, None))
    draws = Draws((seed, SPLITS[split], number // SLIDE), site)
    return render(layout, draw_stain(draws, difficulty)), layout


def numbered(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Return labels numbered from 1 without gaps, in their order, and what each of them was."""
    ids = present_ids(labels)
    table = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    table[ids] = np.arange(1, len(ids) + 1)
    return table[labels], ids


def objects(
    labels: NDArray[np.int32],
    kinds: NDArray[Any],
    values: NDArray[np.float32] | None = None,
    names: tuple[str, ...] = (),
) -> Instances:
    """Return the objects that a picture shows; object i of the layout has class `kinds[i - 1]`, `values[i - 1]` of what
    `names` says."""
    shown, ids = numbered(labels)
    classes = {new: int(kinds[old - 1]) for new, old in enumerate(ids, start=1)}
    measured = None if values is None else {new: values[old - 1] for new, old in enumerate(ids, start=1)}
    return Instances(shown, classes, values=measured, value_names=names)


def truths(layout: Layout) -> dict[str, Truth]:
    """Return the truths of a layout, cut to the picture."""
    return {
        "nuclei": objects(layout.cut(layout.nuclei), layout.classes),
        "glands": Instances(numbered(layout.cut(layout.glands))[0]),
        "lumina": Instances(numbered(layout.cut(layout.lumina))[0]),
        "tissue": Semantic(layout.cut(layout.tissue)),
        "patch": Label(patch_class(layout)),
    }


def twin(image: NDArray[np.uint8], weaker: int) -> NDArray[np.uint8]:
    """Return (3, H, W) uint8: the picture as an objective `weaker` times weaker shows it, laid out as large as it was.

    Light is averaged over squares of `weaker` pixels and enlarged by cubic interpolation, so that the two are aligned
    to the pixel. A side that is no multiple of `weaker` is continued by its mirror image first.
    """
    planes = []
    height, width = image.shape[1:]
    for plane in image:
        below, right = -height % weaker, -width % weaker
        whole = cv2.copyMakeBorder(plane, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        small = cv2.resize(whole, (whole.shape[1] // weaker, whole.shape[0] // weaker), interpolation=cv2.INTER_AREA)
        large = cv2.resize(small, (whole.shape[1], whole.shape[0]), interpolation=cv2.INTER_CUBIC)
        planes.append(large[:height, :width])
    return np.asarray(np.stack(planes), np.uint8)


# --- immunostains -----------------------------------------------------------------------------------------------------


class StainsArguments(TissueArguments):
    """What the phantom of paired stains may be told."""

    marker: str = "HER2"
    """Marker of the immunostain: HER2, E-cadherin, CD8a, ... (membrane), Ki67, ER, ... (nucleus), Pan-CK, CD68, ...
    (cytoplasm)."""
    positive: float | None = Argument(default=None, ge=0, le=1)
    """Share of the cells that can carry the marker which do; none = each slide has its own."""
    offset: float = Argument(default=0, ge=0, le=64)
    """How far the immunostain lies off the H&E, in pixels (shift: everywhere; elastic: root mean square)."""
    kind: Literal["shift", "elastic"] = "shift"
    """How it lies off: shift | elastic."""

    @field_validator("marker")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in markers.MARKERS:
            raise ValueError(f'no marker "{value}". Expected one of {", ".join(markers.MARKERS)}')
        return value


class StainsReader(PhantomReader):
    """Reader "phantom-stains": H&E, and the same field stained brown for one marker.

    Truths: `ihc` the immunostain, `cells` its nuclei as negative or positive (both where the immunostain shows them),
    `nuclei` those of the H&E with their classes, `misalignment` the mean shift in x and y and its root mean square, in
    pixels.
    """

    Arguments: ClassVar[type[Schema]] = StainsArguments
    KNOWN: ClassVar[tuple[str, ...]] = (*PhantomReader.KNOWN, "ihc", "cells", "misalignment")

    def read(self, entry: Entry) -> Sample:
        """Return one pair."""
        arguments, draws = self.arguments, self.draws(entry)
        image, layout = self.field(entry, beyond=arguments.offset * arguments.um * 2)
        cells = markers.cells_of(layout)
        rate = draws("positive", 0.02, 0.95) if arguments.positive is None else arguments.positive
        positive, amount = markers.carried(layout, cells.types, arguments.marker, rate)
        shift = immuno.displacement(layout, arguments.offset, arguments.kind) if arguments.offset else None
        brown = immuno.draw_brown(draws, RANGES[arguments.difficulty])
        ihc = immuno.immunohistochemistry(layout, cells, arguments.marker, amount, brown, shift)
        nuclei = layout.nuclei
        if shift is not None:
            nuclei = immuno.moved(nuclei[None].astype(np.float32), shift, nearest=True)[0].astype(np.int32)
        nuclei = layout.cut(nuclei)
        known = truths(layout) | {
            "ihc": Picture(ihc, RGB),
            "cells": objects(nuclei, 1 + positive.astype(np.int64)),
            "misalignment": Vector(_summary(layout, shift)),
        }
        return self.sample(entry, image, (arguments.um, arguments.um), known)


def _summary(layout: Layout, shift: NDArray[Any] | None) -> NDArray[np.float32]:
    if shift is None:
        return np.zeros(3, np.float32)
    dy, dx = layout.cut(shift)
    return np.array([dx.mean(), dy.mean(), np.sqrt((dx**2 + dy**2).mean())], np.float32)


class MifArguments(TissueArguments):
    """What the phantom of multiplex fluorescence may be told."""

    channels: tuple[str, ...] = ()
    """Channels of the picture; none = those of the card. Hoechst and the names of markers."""

    @field_validator("channels")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in markers.PANEL:
                raise ValueError(f'no channel "{value}". Expected some of {", ".join(markers.PANEL)}')
        return values


class MifReader(PhantomReader):
    """Reader "phantom-mif": H&E, and the same field in multiplex fluorescence.

    Truths: `mif` the fluorescence (uint8, linear), `cells` the nuclei with cell types and, a nucleus, how much of each
    channel's marker the cell truly carries (0 to 1), `expression` the same objects as boxes with attributes: whether
    the cell carries each marker.
    """

    Arguments: ClassVar[type[Schema]] = MifArguments
    KNOWN: ClassVar[tuple[str, ...]] = (*PhantomReader.KNOWN, "mif", "cells")

    def read(self, entry: Entry) -> Sample:
        """Return one field with its channels."""
        arguments, draws = self.arguments, self.draws(entry)
        image, layout = self.field(entry)
        cells = markers.cells_of(layout)
        channels = arguments.channels or self.card.truths["mif"].channels
        amounts = {c: markers.carried(layout, cells.types, c)[1] for c in channels if c != "Hoechst"}
        mif = immuno.fluorescence(layout, cells, amounts, channels, draws, RANGES[arguments.difficulty])
        nuclei = layout.cut(layout.nuclei)
        dna = markers.seen(layout.chromatin, layout.nuclei, len(cells.types))
        table = np.stack([amounts.get(c, dna) for c in channels], 1).astype(np.float32)
        known = truths(layout) | {
            "mif": Picture(mif, tuple(channels), encoding="linear"),
            "cells": objects(nuclei, cells.types, table, tuple(channels)),
        }
        return self.sample(entry, image, (arguments.um, arguments.um), known)
