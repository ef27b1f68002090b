"""Which cells of a dataset are positive, by its own fluorescence: tables of nuclei, a file a slide or an image.

They are what readers of tables of nuclei (`mif-tiles`, `hemit`) look for, and what predictions are judged against.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.data.datasets import Dataset
from zoo.errors import DataError, UserError
from zoo.metrics.calls import MIN_AREA, NUCLEAR
from zoo.metrics.cells import positivity
from zoo.types import Instances, Picture


@dataclass
class _Slide:
    """Sums over tiles of the nuclei of a slide: label -> (area, sum of x, sum of y, sums of markers)."""

    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, labels: NDArray[np.int32], planes: NDArray[Any]) -> None:
        """Add one tile; a nucleus that a border cuts is added up."""
        ids, index = np.unique(labels.ravel(), return_inverse=True)
        y, x = np.indices(labels.shape)
        parts = [
            np.ones(labels.size),
            x.ravel() + 0.5,
            y.ravel() + 0.5,
            *(p.ravel().astype(np.float64) for p in planes),
        ]
        table = np.stack([np.bincount(index, part, minlength=len(ids)) for part in parts], 1)
        for label, row in zip(ids.tolist(), table, strict=True):
            if label:
                self.sums[label] = self.sums[label] + row if label in self.sums else row


def gate_dataset(
    dataset: Dataset,
    out: Path,
    *,
    by: Literal["slide", "image"] = "slide",
    how: Literal["posterior", "crossing"] = "posterior",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `NAME.csv` (label, area, x, y, MARKER_mean, MARKER_score, MARKER_pos) a slide or an image; return them.

    `by` "slide": labels are unique over a slide's tiles, and x, y are means over tiles; "image": over an image. Gates
    are fitted on all nuclei of more than 20 pixels together (`zoo.metrics.cells.positivity`). Raises `UserError` where
    the dataset has no picture of markers or no nuclei.
    """
    card = dataset.card
    pictures = [k for k, t in card.truths.items() if t.kind == "picture" and t.channels[:1] not in ((), ("red",))]
    nuclei = [k for k, t in card.truths.items() if t.kind == "instances"]
    if not pictures or not nuclei:
        lacks = "no picture with named channels" if not pictures else "no nuclei"
        raise UserError(
            f"{card.name}: {lacks}. Expected both: fluorescence, and a label map. See: zoo show {card.name}"
        )
    markers: list[str] = []
    slides: dict[str, _Slide] = {}
    for number, (entry, sample) in enumerate(zip(dataset.index, dataset, strict=True)):
        picture, objects = sample.truth.get(pictures[0]), sample.truth.get(nuclei[0])
        if not isinstance(picture, Picture) or not isinstance(objects, Instances):
            raise DataError(
                f"{card.name}: {entry.id}: no {pictures[0]} or no {nuclei[0]}. Expected both of each image."
            )
        markers = markers or [m for m in picture.channels if m.lower() not in NUCLEAR]
        if missing := [m for m in markers if m not in picture.channels]:
            raise DataError(f"{card.name}: {entry.id}: no channel {missing[0]}. Expected those of the first image.")
        chosen = picture.data[[picture.channels.index(m) for m in markers]]
        name = entry.unit if by == "slide" else entry.id
        slides.setdefault(name, _Slide()).add(objects.map, chosen)
        if progress:
            progress(number + 1, len(dataset))
    return _write(slides, markers, out, how)


def _write(slides: dict[str, _Slide], markers: list[str], out: Path, how: Any) -> list[Path]:
    rows = [(name, label, row) for name, slide in slides.items() for label, row in slide.sums.items()]
    rows = [each for each in rows if each[2][0] > MIN_AREA]
    table = np.array([row for _, _, row in rows]).reshape(len(rows), 3 + len(markers))
    means = table[:, 1:] / table[:, :1]
    score, positive = positivity(means[:, 2:], markers, how=how)
    out.mkdir(parents=True, exist_ok=True)
    head = ["label", "area", "x", "y", *(f"{m}_{word}" for m in markers for word in ("mean", "score", "pos"))]
    found = []
    for name in slides:
        path = out / f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', name)}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            for i, (slide, label, row) in enumerate(rows):
                if slide == name:
                    place = [int(row[0]), *(round(float(v), 2) for v in means[i, :2])]
                    each = zip(means[i, 2:], score[i], positive[i], strict=True)
                    said = [v for a, b, c in each for v in (round(float(a), 3), round(float(b), 4), int(c))]
                    writer.writerow([label, *place, *said])
        found.append(path)
    return found
