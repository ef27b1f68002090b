"""What one gets without a model: the floor under every table.

None of these looks at a truth. `otsu` takes the darker or the brighter side of Otsu's threshold; which of the two is
decided once a dataset, from its images alone (`objects_are_dark`). `watershed` parts that mask into objects, in volumes
too. `all-foreground` says that everything is tissue of interest; it has the best recall there is, and shows what a high
Dice is worth where the foreground is large. `darkness`, against a picture of markers, is how dark the image is, in
every channel. `random calls` alone is told something: how often each marker is positive, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.bench.results import Case, Failure
from zoo.bench.work import Judged, Level, failure
from zoo.data.datasets import Dataset
from zoo.data.truths import foreground as foreground_of
from zoo.families import score
from zoo.families.score import Task
from zoo.io.images import to_rgb8
from zoo.metrics import function
from zoo.metrics.calls import Cells
from zoo.types import (
    Instances,
    InstancesPrediction,
    Picture,
    PicturePrediction,
    Prediction,
    Sample,
    Semantic,
    SemanticPrediction,
    Truth,
)

NAMES = ("otsu", "all-foreground")
DARKNESS, RANDOM = "darkness", "random calls"
"""Baselines of pictures of markers: how dark the image is, and cells called by chance."""

DRAWS = 20
"""Draws of a cell by the latter."""

SIDES = 32
"""Images of a dataset on which the side of Otsu's threshold is decided, spread evenly."""


def grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return (H, W) uint8 brightness of a (C, H, W) image of any dtype: the mean of its channels, stretched as the zoo
    shows pictures (`zoo.io.images.to_rgb8`); of a volume (C, D, H, W), (D, H, W)."""
    if image.ndim == 4:
        mean = image.mean(0, dtype=np.float32)
        low, high = np.percentile(mean, (0.1, 99.9))
        return np.asarray(np.clip((mean - low) / max(high - low, 1e-9), 0, 1) * 255, np.uint8)
    if len(image) == 3:
        rgb, _ = to_rgb8(np.moveaxis(image, 0, -1))
        return np.asarray(rgb.mean(-1).round(), np.uint8)
    planes = [to_rgb8(plane)[0][..., 0] for plane in image]
    return np.asarray(np.mean(planes, axis=0).round(), np.uint8)


def objects_are_dark(images: Iterable[NDArray[np.uint8]]) -> bool:
    """Return whether a dataset is bright-field, so that what is stained is darker than what is not.

    `images`: brightness from `grey`. The median over images of an image's median brightness lies above the middle of
    the range in bright-field (light comes through the glass) and below it in fluorescence (most pixels do not shine).
    """
    medians = [float(np.median(image)) for image in images]
    return bool(medians) and float(np.median(medians)) > 127.5


def otsu_threshold(image: NDArray[np.uint8]) -> int:
    """Return Otsu's threshold t (IEEE TSMC 1979): values <= t are one class, > t the other; the first of equals."""
    counts = np.bincount(image.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = mass / below - (mass[-1] - mass) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return int(between.argmax())


def foreground(name: str, image: NDArray[np.uint8], dark: bool) -> NDArray[np.bool_]:
    """Return the mask that a baseline draws on one image of brightness `image`."""
    if name == "all-foreground":
        return np.ones(image.shape, bool)
    threshold = otsu_threshold(image)
    return np.asarray(image <= threshold if dark else image > threshold)


def watershed(mask: NDArray[np.bool_], spacing: tuple[float, ...] | None = None) -> NDArray[np.int32]:
    """Return the objects of a mask (H, W) or (D, H, W): the basins of its distance transform, smoothed by a pixel.

    The classical way to part touching nuclei: seeds are maxima that lie at least 5 pixels of the finest axis apart
    (Vincent and Soille 1991). `spacing`: size of a pixel along each axis, for distances.
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed as flood

    size = np.array(spacing or (1.0,) * mask.ndim)
    size = size / size.min()
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask, sampling=size), 1 / size)
    regions, _ = ndimage.label(mask)
    peaks = peak_local_max(depth, min_distance=5, labels=regions, exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(flood(-depth, seeds, mask=mask), np.int32)


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(number: int, dataset: Dataset, judged: Sequence[Task]) -> tuple[list[tuple[str, Judged]], list[Failure]]:
    """Judge what needs no model on the truths that some weights were judged on: (baseline, cases), failures."""
    tasks = tasks_of(judged)
    failures: list[Failure] = []
    if not tasks:
        return [], failures
    maps = any(task.kind in ("semantic", "instances") for _, task in tasks)
    dark = objects_are_dark(_brightness(dataset)) if maps else False
    found = [(name, Judged(number, _noted(name, task, dark), Level())) for name, task in tasks]
    chance: list[tuple[Judged, Case, Cells]] = []
    for position, entry in enumerate(dataset.index):
        try:
            sample = dataset[position]
            image = grey(sample.image) if maps else None
        except Exception as error:
            failures.append(failure("", dataset.name, entry.id, error))
            continue
        for name, one in found:
            truth = sample.truth.get(one.task.truth)
            try:
                named = one.task.truth_classes if one.task.kind == "cells" else ()
                prediction = _baseline(DARKNESS if name == RANDOM else name, sample, truth, image, dark, named)
                if prediction is None or truth is None:
                    continue
                if name == RANDOM:
                    case = Case(sample.id, entry.unit, {}, center=sample.center)
                    chance.append((one, case, score.cells_of(one.task, prediction, truth)))  # type: ignore[arg-type]
                    continue
                scored = score.judge(one.task, prediction, truth)
                records = scored.records
                one.cases.append(Case(sample.id, entry.unit, scored.scores, center=sample.center, records=records))
            except Exception as error:
                failures.append(failure(name, dataset.name, entry.id, error))
    for one in {id(j): j for j, _, _ in chance}.values():
        mine = [(case, cells) for of, case, cells in chance if of is one]
        for (case, _), cells in zip(mine, random_calls([cells for _, cells in mine]), strict=True):
            records = {name: function(name).record(cells) for name in one.task.metrics}  # type: ignore[attr-defined]
            one.cases.append(replace(case, records=records))
    return found, failures


def _noted(name: str, task: Task, dark: bool) -> Task:
    side = "the darker side is taken" if dark else "the brighter side is taken"
    note = f"{side}, decided from the images alone" if name in ("otsu", "watershed") else ""
    note = "a cell is positive by chance, as often as the marker is among all" if name == RANDOM else note
    return replace(task, note="; ".join(part for part in (note, task.note) if part))


def _brightness(dataset: Dataset) -> Iterator[NDArray[np.uint8]]:
    for position in np.unique(np.linspace(0, len(dataset) - 1, min(SIDES, len(dataset))).round().astype(int)):
        try:
            yield grey(dataset[int(position)].image)
        except Exception:
            continue


def tasks_of(judged: Sequence[Task]) -> list[tuple[str, Task]]:
    """Return (baseline, task) for each truth that was judged, with the metrics of all the outputs that answer to it."""
    found: list[tuple[str, Task]] = []
    for truth in dict.fromkeys(task.truth for task in judged):
        same = [task for task in judged if task.truth == truth]
        metrics = tuple(dict.fromkeys(name for task in same for name in task.metrics))
        if same[0].kind == "picture":
            found.append(("unchanged input", Task("picture", "picture", truth, (), (), metrics)))
            found.append((DARKNESS, Task("picture", "picture", truth, (), (), metrics)))
        elif same[0].kind == "cells":
            found += [(DARKNESS, same[0]), (RANDOM, same[0])]
        elif same[0].kind in ("semantic", "instances"):
            classes = same[0].truth_classes
            kinds = foreground_of(classes)
            note = f"foreground ({', '.join(kinds)}) against the rest" if len(kinds) > 1 else ""
            merge = {"foreground": kinds}
            task = Task("mask", "semantic", truth, ("background", "foreground"), classes, metrics, merge, note)
            found += [(name, task) for name in NAMES]
            if any(other.kind == "instances" for other in same):
                found.append(("watershed", replace(task, output="objects", kind="instances", classes=("foreground",))))
    return found


def _darkness(sample: Sample, truth: Truth | None, channels: Sequence[str]) -> Prediction | None:
    """Return how dark the image is, in every channel of a picture that is no colour picture."""
    dark = 255 - grey(sample.image)
    if isinstance(truth, Instances):
        return PicturePrediction(np.repeat(dark[None], len(channels), 0), tuple(channels), "linear")
    if not isinstance(truth, Picture) or truth.encoding == "rgb8" or truth.data.dtype.kind != "u":
        return None
    top = np.iinfo(truth.data.dtype).max
    data = (dark.astype(np.float32) * (top / 255)).astype(truth.data.dtype)
    return PicturePrediction(np.repeat(data[None], len(truth.channels), 0), truth.channels, truth.encoding)


def random_calls(evidence: Sequence[Cells]) -> list[Cells]:
    """Return cells that are called positive by chance, as often as each marker is positive among all of them.

    Each cell is drawn `DRAWS` times, so that the pooled number is that of many draws.
    """
    positive = [e.positive for e in evidence if e.positive is not None]
    if not positive:
        return list(evidence)
    share = np.concatenate(positive).mean(0) if sum(map(len, positive)) else 0.5
    rng = np.random.default_rng(0)
    found = []
    for one in evidence:
        many = {name: np.repeat(getattr(one, name), DRAWS, 0) for name in ("mean", "truth", "positive")}
        drawn = rng.random(many["mean"].shape)
        many["mean"] = drawn.astype(np.float32)
        found.append(Cells(one.markers, probability=(drawn < share).astype(np.float64), **many))
    return found


def _baseline(
    name: str,
    sample: Sample,
    truth: Truth | None,
    image: NDArray[np.uint8] | None,
    dark: bool,
    channels: Sequence[str] = (),
) -> Prediction | None:
    if name == DARKNESS:
        return _darkness(sample, truth, channels)
    if isinstance(truth, Picture):
        same = len(sample.image) == len(truth.data) and sample.image.dtype == truth.data.dtype
        return PicturePrediction(sample.image, truth.channels, truth.encoding) if same else None
    if truth is None or image is None:
        return None
    if name == "watershed":
        labels = watershed(foreground("otsu", image, dark), sample.spacing)
        return InstancesPrediction(labels, ("foreground",), np.zeros(int(labels.max(initial=0)), np.int64))
    mask = foreground(name, image, dark)
    if isinstance(truth, Semantic) and truth.multilabel:
        return SemanticPrediction(mask[None], ("foreground",), multilabel=True)
    return SemanticPrediction(mask.astype(np.uint8), ("background", "foreground"))
