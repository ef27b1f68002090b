"""Writers of predictions, one a kind, found by kind in the registry.

A writer takes a prediction in parts from top to bottom (`put`), finishes its files (`end`), and then tells the features
for GeoJSON and the layers for the overlay, of which an image has one each whatever its outputs. Its memory grows with
the width of the picture, not with its height.
"""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.io import overlay
from zoo.io.colours import brightened, colours_of, composite, from_hex, marker_colours
from zoo.io.geojson import Feature, measured, polygons_of, rectangle
from zoo.io.measure import Measures
from zoo.io.overlay import Entry, Layer, Outlines, Rectangles
from zoo.io.png import PngRows
from zoo.io.spool import IN_MEMORY, Spool
from zoo.io.tiff import TiffRows
from zoo.types import (
    BoxesPrediction,
    InstancesPrediction,
    LabelPrediction,
    PicturePrediction,
    SemanticPrediction,
)

MEASUREMENTS = {
    "perimeter_px": "Perimeter px",
    "perimeter_um": "Perimeter um",
    "eccentricity": "Eccentricity",
    "circularity": "Circularity",
    "mean_od": "Optical density mean",
    "mean_intensity": "Intensity mean",
}
"""Columns of an object table that go into the GeoJSON, and their names there."""

MOST_REGIONS = 20_000
"""Regions of a semantic map that go into its GeoJSON, the largest first."""


class Meaning(Protocol):
    """What provisional ids of a label map mean: `final` (provisional id -> id), then a class and a score an id."""

    @property
    def final(self) -> NDArray[np.int32]: ...
    @property
    def class_index(self) -> NDArray[np.int64]: ...
    @property
    def scores(self) -> NDArray[np.float32] | None: ...


@dataclass(frozen=True)
class Target:
    """Where an output of an image goes: `path("labels.tif")` names a file; `shape` (H, W) and `mpp` of the image;
    `pixels(begin, end)` its rows (h, W, C), for what is measured on objects (None: no picture is at hand)."""

    path: Callable[[str], Path]
    shape: tuple[int, int]
    mpp: float | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    pixels: Callable[[int, int], NDArray[Any]] | None = None

    @property
    def step(self) -> int:
        """Return the side of an overlay's pixel in pixels of level 0."""
        return overlay.reduction(self.shape)


class Writer:
    """Base of the writers of one output of one image."""

    def __init__(self, target: Target) -> None:
        self.target = target

    @abstractmethod
    def put(self, begin: int, prediction: Any) -> None:
        """Take the rows from `begin`; parts come from top to bottom."""

    def end(self, meaning: Meaning | None) -> None:
        """Finish the files; `meaning` is given where label maps held provisional ids."""

    def abort(self) -> None:
        """Close what is open."""

    def features(self) -> Iterator[Feature]:
        """Yield what belongs into the image's GeoJSON."""
        yield from ()

    def about_features(self) -> dict[str, Any]:
        """Return what holds for all features; asked for after the last of them."""
        return {}

    def layers(self) -> tuple[list[Layer], list[Entry]]:
        """Return what belongs onto the overlay and into its legend."""
        return [], []


class Sparse:
    """Every `step`-th pixel of a map (..., H, W) that comes in bands of rows."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._rows: list[NDArray[Any]] = []

    def put(self, begin: int, rows: NDArray[Any]) -> None:
        """Take rows (..., h, W)."""
        first = -begin % self.step
        if first < rows.shape[-2]:
            self._rows.append(rows[..., first :: self.step, :: self.step].copy())

    @property
    def map(self) -> NDArray[Any]:
        """Return what was kept, (..., ceil(H / step), ceil(W / step))."""
        self._rows = [np.concatenate(self._rows, axis=-2)]
        return self._rows[0]


class SemanticWriter(Writer):
    """`classes.png` (uint8 class indices; 0 and 1 in one file a class where pixels may have several), and
    `probability.tif` (float16, one page a class)."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._pictures: list[PngRows] = []
        self._probability: TiffRows | None = None
        self._shown = Sparse(target.step)
        pixels = target.shape[0] * target.shape[1]
        self._regions = Sparse(max(1, int(np.ceil(np.sqrt(pixels / IN_MEMORY)))))
        self._left_out: dict[str, int] = {}
        self._last: SemanticPrediction | None = None

    def put(self, begin: int, prediction: SemanticPrediction) -> None:
        if self._last is None:
            self._open(prediction)
        self._last = prediction
        planes = prediction.map if prediction.multilabel else prediction.map[None]
        for picture, plane in zip(self._pictures, planes, strict=True):
            picture.put(plane.astype(np.uint8))
        if self._probability and prediction.probability is not None:
            self._probability.put(prediction.probability)
        self._shown.put(begin, planes)
        self._regions.put(begin, planes)

    def _open(self, prediction: SemanticPrediction) -> None:
        target = self.target
        names = [f"{c}.classes.png" for c in prediction.classes] if prediction.multilabel else ["classes.png"]
        self._pictures = [PngRows(target.path(name), target.shape, target.mpp) for name in names]
        if prediction.probability is not None:
            shape = (prediction.probability.shape[0], *target.shape)
            about = json.dumps({"shape": shape, "classes": prediction.classes})
            self._probability = TiffRows(
                target.path("probability.tif"), shape, np.float16, description=about, mpp=target.mpp, level=1
            )

    def end(self, meaning: Meaning | None) -> None:
        for writer in [*self._pictures, self._probability]:
            if writer is not None:
                writer.close()

    def abort(self) -> None:
        for writer in [*self._pictures, self._probability]:
            if writer is not None:
                writer.abort()

    def _masks(self, sparse: Sparse) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield (class index, mask) of every class that is not background."""
        assert self._last is not None
        if self._last.multilabel:
            yield from enumerate(sparse.map.astype(bool))
        else:
            yield from ((index, sparse.map[0] == index) for index in range(1, len(self._last.classes)))

    def features(self) -> Iterator[Feature]:
        from scipy import ndimage

        assert self._last is not None
        step, classes = self._regions.step, self._last.classes
        colours = colours_of(classes, self.target.colours)
        for index, mask in self._masks(self._regions):
            regions, count = ndimage.label(mask)
            boxes = ndimage.find_objects(regions)
            sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
            largest = np.argsort(-sizes, kind="stable")[:MOST_REGIONS]
            if count > MOST_REGIONS:
                self._left_out[classes[index]] = count - MOST_REGIONS
            for region in np.sort(largest):
                box = boxes[region]
                polygons = polygons_of(regions[box] == region + 1, (box[0].start, box[1].start), step)
                area = float(sizes[region]) * step**2
                found = measured(area, self.target.mpp)
                yield Feature(polygons, classes[index], colours[index], kind="annotation", measurements=found)

    def about_features(self) -> dict[str, Any]:
        step = self._regions.step
        found: dict[str, Any] = {}
        if step > 1:
            found["outline_step_px"] = step
            found["note"] = f"Outlines are traced on one in {step} pixels each way; the class map beside is whole."
        if self._left_out:
            found["smallest_left_out"] = self._left_out
        return found

    def layers(self) -> tuple[list[Layer], list[Entry]]:
        assert self._last is not None
        classes = self._last.classes
        colours = colours_of(classes, self.target.colours)
        layers: list[Layer] = []
        entries = []
        for index, mask in self._masks(self._shown):
            table = np.array([(0, 0, 0), colours[index]], np.uint8)
            layers.append(Outlines(mask.astype(np.uint8), table, fill=0.2))
            entries.append(Entry(colours[index], f"{classes[index]} {100 * mask.mean():.1f} %"))
        return layers, entries


class InstancesWriter(Writer):
    """`labels.tif` (uint32, 0 background, ids 1..N), `objects.csv` and `objects.parquet` (a row an object, with what is
    measured on it: `zoo.io.measure`)."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._labels = Spool(target.shape, target.path("labels.tif").parent)
        self._shown = Sparse(target.step)
        self._last: InstancesPrediction | None = None
        self._class = np.zeros(0, np.int64)
        self._scores: NDArray[np.float32] | None = None

    def put(self, begin: int, prediction: InstancesPrediction) -> None:
        self._labels.put(prediction.map)
        self._last = prediction

    def end(self, meaning: Meaning | None) -> None:
        assert self._last is not None
        target, speaker = self.target, meaning or self._last
        self._class, self._scores = speaker.class_index, speaker.scores
        self._measures = Measures(len(self._class))
        tiff = TiffRows(target.path("labels.tif"), target.shape, np.uint32, mpp=target.mpp)
        for begin, rows in self._labels.bands():
            final = meaning.final[rows] if meaning else rows
            if meaning:
                self._labels.write(begin, final)
            tiff.put(final)
            self._shown.put(begin, final)
            pixels = target.pixels(begin, begin + len(final)) if target.pixels else None
            self._measures.put(begin, final, pixels)
        tiff.close()
        self._table()

    def abort(self) -> None:
        self._labels.close()

    def _score(self, number: int) -> float | None:
        return None if self._scores is None else float(self._scores[number])

    def _table(self) -> None:
        """Write the table twice: Parquet in full, CSV to read."""
        import pyarrow
        from pyarrow import parquet

        assert self._last is not None
        classes = self._last.classes
        names = [classes[int(index)] for index in self._class]
        self._columns = self._measures.columns(self.target.mpp)
        count = len(names)
        scores = [None] * count if self._scores is None else self._scores.astype(np.float32)
        table = {
            "label": np.arange(1, count + 1, dtype=np.int32),
            "class": pyarrow.array(names, pyarrow.string()),
            "score": pyarrow.array(scores, pyarrow.float32()),
            **self._columns,
        }
        parquet.write_table(pyarrow.table(table), self.target.path("objects.parquet"))
        with self.target.path("objects.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(table)
            for number, name in enumerate(names):
                score = self._score(number)
                shown = "" if score is None else round(score, 5)
                rows.writerow([number + 1, name, shown, *(_shown(key, v[number]) for key, v in self._columns.items())])

    def features(self) -> Iterator[Feature]:
        assert self._last is not None
        classes = self._last.classes
        colours = colours_of(classes, self.target.colours)
        x0, y0, x1, y1 = self._measures.boxes
        for number in np.argsort(y0, kind="stable"):
            if not self._measures.area[number]:
                continue
            window = self._labels.window(int(y0[number]), int(y1[number]), int(x0[number]), int(x1[number]))
            polygons = polygons_of(window == number + 1, (int(y0[number]), int(x0[number])))
            index = int(self._class[number])
            found = measured(self._measures.area[number], self.target.mpp, self._score(number), int(number) + 1)
            found |= {
                MEASUREMENTS[k]: round(float(v[number]), 4) for k, v in self._columns.items() if k in MEASUREMENTS
            }
            yield Feature(polygons, classes[index], colours[index], measurements=found)
        self._labels.close()

    def layers(self) -> tuple[list[Layer], list[Entry]]:
        assert self._last is not None
        classes = self._last.classes
        colours = colours_of(classes, self.target.colours)
        table = np.array([(0, 0, 0), *(colours[int(i)] for i in self._class)], np.uint8)
        counts = np.bincount(self._class, minlength=len(classes))
        entries = [Entry(colours[i], f"{name} {counts[i]}") for i, name in enumerate(classes)]
        return [Outlines(self._shown.map, table)], entries


def _shown(column: str, value: Any) -> Any:
    """Return a number as the CSV shows it: whole ones as they are, places to a hundredth, the rest to four digits."""
    if isinstance(value, np.integer):
        return int(value)
    return round(float(value), 2 if column in ("x", "y") else 4)


class BoxesWriter(Writer):
    """`boxes.json`: one entry a box, xyxy half-open in pixels of level 0; `boxes.csv`: the same, one line a box."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._boxes: BoxesPrediction | None = None

    def put(self, begin: int, prediction: BoxesPrediction) -> None:
        self._boxes = prediction

    def _each(self) -> Iterator[tuple[list[float], int, float, dict[str, str] | list[int] | None]]:
        """Yield corners, class, score and attributes (by name, where names are known) of each box."""
        assert self._boxes is not None
        values = self._boxes.attribute_values
        for i, box in enumerate(self._boxes.xyxy):
            said = None if self._boxes.attributes is None else self._boxes.attributes[i].tolist()
            named = said if said is None or not values else _named(values, said)
            corners = [round(float(v), 2) for v in box]
            yield corners, int(self._boxes.class_index[i]), float(self._boxes.scores[i]), named

    def end(self, meaning: Meaning | None) -> None:
        assert self._boxes is not None
        classes = self._boxes.classes
        found = []
        for xyxy, index, score, attributes in self._each():
            entry: dict[str, Any] = {"xyxy": xyxy, "class": classes[index], "score": round(score, 5)}
            found.append(entry | ({"attributes": attributes} if attributes is not None else {}))
        height, width = self.target.shape
        whole = {"height": height, "width": width, "mpp": self.target.mpp, "classes": classes, "boxes": found}
        self.target.path("boxes.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        self._table()

    def _table(self) -> None:
        assert self._boxes is not None
        names = list(self._boxes.attribute_values)
        with self.target.path("boxes.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["class", "score", "x0", "y0", "x1", "y1", *names])
            for xyxy, index, score, attributes in self._each():
                said = [attributes.get(name, "") for name in names] if isinstance(attributes, dict) else []
                rows.writerow([self._boxes.classes[index], round(score, 5), *xyxy, *said])

    def features(self) -> Iterator[Feature]:
        assert self._boxes is not None
        classes = self._boxes.classes
        colours = colours_of(classes, self.target.colours)
        for (x0, y0, x1, y1), index, score, attributes in self._each():
            found = measured((x1 - x0) * (y1 - y0), self.target.mpp, score)
            words = attributes if isinstance(attributes, dict) else {}
            box = [rectangle(x0, y0, x1, y1)]
            yield Feature(box, classes[index], colours[index], measurements=found, metadata=words)

    def layers(self) -> tuple[list[Layer], list[Entry]]:
        assert self._boxes is not None
        classes, indices = self._boxes.classes, self._boxes.class_index
        colours = colours_of(classes, self.target.colours)
        counts = np.bincount(indices, minlength=len(classes))
        entries = [Entry(colours[i], f"{name} {counts[i]}") for i, name in enumerate(classes)]
        table = np.array(colours, np.uint8).reshape(-1, 3)
        return [Rectangles(self._boxes.xyxy / self.target.step, table[indices], self._words())], entries

    def _words(self) -> tuple[str, ...]:
        """Return what is written at each box: its class and score, then its attributes, a line each."""
        assert self._boxes is not None
        found = []
        for _, index, score, attributes in self._each():
            said = [f"{n}: {v}" for n, v in attributes.items()] if isinstance(attributes, dict) else []
            found.append("\n".join([f"{self._boxes.classes[index]} {score:.2f}", *said]))
        return tuple(found)


def _named(values: Mapping[str, tuple[str, ...]], said: list[int]) -> dict[str, str]:
    """Return attribute -> name of its value; one of which nothing is said is left out."""
    return {name: names[v] for (name, names), v in zip(values.items(), said, strict=True) if 0 <= v < len(names)}


class PictureWriter(Writer):
    """`picture.png` for RGB, else `picture.ome.tif` with the channels' names and colours; of 8 bits also
    `composite.png`, all channels on black, brightened alike."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._file: PngRows | TiffRows | None = None
        self._rgb = False
        self._shown = Sparse(target.step)
        self._last: PicturePrediction | None = None

    def put(self, begin: int, prediction: PicturePrediction) -> None:
        data, target = prediction.data, self.target
        if self._file is None:
            self._rgb = prediction.encoding == "rgb8" and data.shape[0] == 3 and data.dtype == np.uint8
            if self._rgb:
                self._file = PngRows(target.path("picture.png"), (*target.shape, 3), target.mpp, level=4)
            else:
                shape = (data.shape[0], *target.shape)
                path, names = target.path("picture.ome.tif"), prediction.channels
                colours = self._colours(names)
                self._file = TiffRows(path, shape, data.dtype, channels=names, colours=colours, mpp=target.mpp)
        self._file.put(np.moveaxis(data, 0, -1) if self._rgb else data)
        if not self._rgb and data.dtype == np.uint8:
            self._shown.put(begin, data)
            self._last = prediction

    def _colours(self, names: Sequence[str]) -> list[str]:
        usual = marker_colours(names)
        return [self.target.colours.get(name, colour) for name, colour in zip(names, usual, strict=True)]

    def end(self, meaning: Meaning | None) -> None:
        from PIL import Image

        assert self._file is not None
        self._file.close()
        if self._last is None:
            return
        names = self._last.channels
        colours = [from_hex(c) for c in self._colours(names)]
        picture = composite(brightened(self._shown.map), colours)
        legend = [Entry(colour, name) for name, colour in zip(names, colours, strict=True)]
        Image.fromarray(overlay.draw(picture, [], legend)).save(self.target.path("composite.png"), compress_level=4)

    def abort(self) -> None:
        if self._file is not None:
            self._file.abort()


class LabelWriter(Writer):
    """`label.json`: the class of the whole image."""

    def put(self, begin: int, prediction: LabelPrediction) -> None:
        values = prediction.probability
        known = None if values is None else dict(zip(prediction.classes, values.tolist(), strict=True))
        found = {"class": prediction.classes[prediction.value], "probability": known}
        self.target.path("label.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self._words = found["class"]

    def layers(self) -> tuple[list[Layer], list[Entry]]:
        return [], [Entry(None, str(self._words))]
