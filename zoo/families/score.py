"""From a prediction and a truth to numbers: what answers to what, and which metrics fit.

Pairs are made by kind, never by family. A semantic map is judged against a semantic truth, or against instances made
into class maps (`zoo.data.truths.as_semantic`); where the truth knows objects, or could (connected components), its
objects are judged too. Instances are judged as objects and, made into a class map, as pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.cards import DatasetCard, TruthCard
from zoo.data.truths import BACKGROUND, as_semantic, boxes_of, foreground, match_classes
from zoo.errors import DataError, UserError, suggest
from zoo.families.base import Family, Output
from zoo.families.embedding import Encoded
from zoo.families.immunostain import Immunostain, fits
from zoo.metrics import METRICS, boxes, calibration, function, instances, picture, semantic, shapes, surface, types
from zoo.metrics.calls import NUCLEAR, Cells, cells
from zoo.postprocess.labels import components
from zoo.types import (
    Boxes,
    BoxesPrediction,
    Instances,
    InstancesPrediction,
    Picture,
    PicturePrediction,
    Prediction,
    Semantic,
    SemanticPrediction,
    Truth,
)

FITS: Mapping[str, tuple[str, ...]] = {
    "semantic": ("semantic", "instances"),
    "instances": ("instances",),
    "picture": ("picture",),
    "boxes": ("boxes", "instances"),
}
"""Kind of an output -> kinds of truth that it can be judged against, best first."""

USUAL: Mapping[str, tuple[str, ...]] = {
    "semantic": ("dice", "iou", "pixel_f1", "object_f1", "hd95", "ece"),
    "instances": ("object_f1", "pq", "aji", "dice", "iou", "pixel_f1"),
    "picture": ("psnr", "ssim", "pearson"),
    "boxes": ("box_f1", "coco_ap", "coco_ap50", "box_count_error"),
    "cells": ("cell_f1", "cell_balanced_accuracy", "cell_auc", "cell_auc_called", "cell_pearson"),
}
"""Metrics of an output of each kind where the user names none; the first one orders the pictures."""

BROWN = (
    "dab_concordance",
    "positive_area_error",
    "positive_share_error",
    "positive_cell_f1",
    "positive_count_correlation",
)
"""What is added for pictures whose card says that they are stained with haematoxylin and DAB."""

TYPED = ("mpq", "type_f1")
"""What is added for objects of several classes."""

EVIDENCE: Mapping[str, tuple[str, ...]] = {
    "semantic": ("semantic", "surface", "calibration", "instances", "shapes"),
    "instances": ("instances", "shapes", "types", "semantic", "surface"),
    "picture": ("picture", "picture_features", "immunostain"),
    "boxes": ("boxes",),
    "cells": ("cells",),
}
"""Kind of an output -> kinds of metrics that can be computed for it."""


@dataclass(frozen=True)
class Task:
    """One thing that is judged: an output, the truth it answers to, the classes of both, and the metrics."""

    output: str
    kind: str
    truth: str
    classes: tuple[str, ...]
    truth_classes: tuple[str, ...]
    metrics: tuple[str, ...]
    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    note: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    positive: float | None = None
    """Of cells: from which value of the truth one is positive."""


def check_metrics(names: Sequence[str]) -> None:
    """Raise `UserError` for an unknown metric, or an argument of one that cannot be."""
    for name in names:
        try:
            METRICS[name]
        except KeyError:
            near = suggest(name, METRICS, "zoo list metrics")
            raise UserError(f'bench: metrics: no metric "{name}". {near}') from None
        except ValueError as error:
            raise UserError(f"bench: {error}.") from None
        if METRICS[name].argument == "encoder" and "@" not in name:
            raise UserError(f"bench: {name} needs an encoder (zoo list encoders). Write {name}@resnet50, for example.")


def chosen_metrics(kind: str, wanted: Sequence[str] | None, classes: int = 1) -> tuple[str, ...]:
    """Return the metrics of an output: the wanted ones that fit its kind, or the usual ones."""
    if wanted is None:
        return USUAL[kind] + (TYPED if kind == "instances" and classes > 1 else ())
    return tuple(name for name in wanted if METRICS[name].kind in EVIDENCE[kind])


def tasks(family: Family, card: DatasetCard, wanted: Sequence[str] | None = None) -> list[Task]:
    """Return what of a model can be judged on a dataset.

    An output answers to the truth of its own key; where the dataset has no such key, to the dataset's only truth of a
    kind that fits. An output that answers to none is left out. A model whose outputs of one kind answer to several
    truths is judged by its own keys alone: its glands are not the dataset's nuclei because that has nothing else.
    """
    outputs = family.spec.outputs
    found = []
    for name, output in outputs.items():
        alike = [o for o in outputs.values() if set(FITS.get(o.kind, ())) & set(FITS.get(output.kind, ()))]
        several = len({o.truth for o in alike}) > 1
        if several and output.truth not in card.truths:
            continue
        try:
            task = _task(family, card, name, output, wanted)
        except UserError:
            if not several:
                raise
            continue  # another output of the model may still be judged here
        if task is not None:
            found.append(task)
        cells = _cells_task(card, name, output, wanted) if output.kind == "picture" else None
        if cells is not None:
            found.append(cells)
    return found


def _cells_task(card: DatasetCard, name: str, output: Output, wanted: Sequence[str] | None) -> Task | None:
    """Return how a picture of markers is judged cell by cell: against the first nuclei that carry values of them."""
    for key, truth in card.truths.items():
        markers = tuple(m for m in truth.values if m in output.channels and m.lower() not in NUCLEAR)
        if truth.kind != "instances" or not markers:
            continue
        metrics = chosen_metrics("cells", wanted)
        if wanted is None and truth.positive is None:
            metrics = ("cell_pearson",)
        elif wanted is None and len(markers) > 1:
            metrics += tuple(f"cell_f1@{m}" for m in markers)
        if metrics:
            return Task(name, "cells", key, output.channels, truth.values, metrics, positive=truth.positive)
    return None


def _task(family: Family, card: DatasetCard, name: str, output: Output, wanted: Sequence[str] | None) -> Task | None:
    key = _truth_key(card, output)
    classes = len(foreground(output.classes))
    if key is None or (metrics := chosen_metrics(output.kind, wanted, classes)) == ():
        return None
    truth = card.truths[key]
    if (
        output.kind == "picture"
        and output.channels
        and truth.channels
        and not set(output.channels) & set(truth.channels)
    ):
        raise UserError(
            f"the dataset has none of the channels {', '.join(output.channels)} (it has {', '.join(truth.channels)}). "
            "Expected at least one of the model's. Choose a dataset that has them."
        )
    if wanted is None and output.kind == "picture" and truth.channels != ("red", "green", "blue"):
        metrics += tuple(f"pearson@{c}" for c in truth.channels if c in output.channels and len(truth.channels) > 1)
    if wanted is None and output.kind == "picture" and {"haematoxylin", "dab"} <= set(truth.stains):
        metrics += BROWN
    if wanted is None and output.kind == "boxes":
        metrics += _of_boxes(family, output, truth)
    truth_classes = truth.classes
    merge = dict(getattr(family.options, "merge", None) or {})
    note = ""
    if output.kind in ("semantic", "instances"):
        merge, note = _classes(output, truth_classes, merge)
    colours = {**card.truths[key].colours, **output.colours}
    return Task(
        name, output.kind, key, output.classes, truth_classes, metrics, merge, note, colours, dict(truth.attributes)
    )


def _of_boxes(family: Family, output: Output, truth: TruthCard) -> tuple[str, ...]:
    """Return what is added of boxes of several classes, and of attributes that model and truth both know."""
    merge: Mapping[str, Sequence[str]] = getattr(family.options, "merge", None) or {}
    becomes = {source: name for name, sources in merge.items() for source in sources}
    shared = [c for c in dict.fromkeys(becomes.get(c, c) for c in truth.classes) if c in output.classes]
    found: tuple[str, ...] = ()
    if len(shared) > 1:
        found = ("differential_error", *(f"{m}@{c}" for m in ("coco_ap50", "coco_ap") for c in shared))
    asked = getattr(family.options, "attributes", None)
    said = [name for name in truth.attributes if name in ((asked and asked.values) or {})]
    return found + ("attribute_f1_pooled", *(f"attribute_f1_pooled@{name}" for name in said)) * bool(said)


def _truth_key(card: DatasetCard, output: Output) -> str | None:
    fits = FITS.get(output.kind, ())
    if output.truth in card.truths and card.truths[str(output.truth)].kind in fits:
        return output.truth
    for kind in fits:
        keys = [key for key, truth in card.truths.items() if truth.kind == kind]
        if keys:
            return keys[0] if len(keys) == 1 else None
    return None


def _classes(
    output: Output, truth_classes: Sequence[str], merge: dict[str, Sequence[str]]
) -> tuple[dict[str, Sequence[str]], str]:
    """Return how the truth's classes become the model's. A model of one class is judged on all foreground there is.

    What a model says of classes is in its own terms: those of its training's `merge` that the dataset has are used.
    """
    theirs, ours = foreground(truth_classes), foreground(output.classes)
    known = {name: [s for s in sources if s in truth_classes] for name, sources in merge.items()}
    known = {name: sources for name, sources in known.items() if sources}
    covered = {name for name in ours if name in theirs or name in known}
    if covered == set(ours):
        return dict(known), ""
    if len(ours) == 1:
        note = "" if len(theirs) == 1 else f"{ours[0]} is judged on all of {', '.join(theirs)}"
        return {ours[0]: theirs}, note
    missing = ", ".join(sorted(set(ours) - covered))
    raise UserError(
        f"the dataset has nothing for the class {missing} (it has {', '.join(theirs)}). Expected the classes of the "
        "model. Choose a dataset that has them."
    )


# --- one image --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What one image says: `scores` metric -> value; `records` pooled metric -> what the image adds to it
    (`zoo.metrics.pooled`); `confusion`, of boxes: names of classes and the table of `zoo.metrics.boxes.confusion`."""

    scores: dict[str, float]
    records: dict[str, Any]
    confusion: tuple[tuple[str, ...], NDArray[np.int64]] | None = None


def score(task: Task, prediction: Prediction, truth: Truth) -> dict[str, float]:
    """Return metric -> value for one image. Raises `DataError` where the two cannot be compared."""
    return judge(task, prediction, truth).scores


def judge(task: Task, prediction: Prediction, truth: Truth) -> Judged:
    """Return what one image says of each metric of the task; one for which the prediction carries nothing is absent.

    Raises `DataError` where the two cannot be compared.
    """
    try:
        found = _evidence(task, prediction, truth, {METRICS[name].kind for name in task.metrics})
        judged = Judged({}, {})
        for name in task.metrics:
            about = METRICS[name]
            if about.kind not in found:
                continue
            if about.pooled:
                judged.records[name] = function(name).record(found[about.kind])  # type: ignore[attr-defined]
            else:
                judged.scores[name] = _value(name, found[about.kind])
        if "boxes" in found:
            return replace(judged, confusion=(found["boxes"].classes, boxes.confusion(found["boxes"])))
        return judged
    except ValueError as error:
        raise DataError(f"{task.output} against {task.truth}: {error}.") from None


def _value(name: str, evidence: Any) -> float:
    metric = function(name)
    if isinstance(evidence, tuple):  # a class table and which class is the background
        return float(metric(evidence[0], evidence[1]))
    return float(metric(evidence))


def _evidence(task: Task, prediction: Prediction, truth: Truth, wanted: set[str]) -> dict[str, Any]:
    match prediction, truth:
        case SemanticPrediction() | InstancesPrediction(), Semantic() | Instances():
            return _maps(task, prediction, truth, wanted)
        case PicturePrediction(), Instances() if task.kind == "cells":
            return {"cells": cells_of(task, prediction, truth)}
        case PicturePrediction(), Picture():
            both = pictures(prediction, truth)
            brown = {"immunostain": Immunostain(both)} if fits(both) and truth.encoding == "rgb8" else {}
            return {"picture": both, "picture_features": Encoded(both), **brown}
        case BoxesPrediction(), Boxes() | Instances():
            return {"boxes": _boxes(task, prediction, truth)}
    raise ValueError(f"a prediction of kind {prediction.kind} cannot be judged against {truth.kind}")


def _maps(
    task: Task, prediction: SemanticPrediction | InstancesPrediction, truth: Semantic | Instances, wanted: set[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    classes = class_names(prediction)
    true = as_semantic(truth, task.truth_classes, classes, task.merge or None)
    predicted = class_map(prediction)
    if predicted.shape != true.map.shape:
        raise ValueError(f"the prediction has shape {predicted.shape} and the truth {true.map.shape}")
    left_out = None if true.multilabel or true.ignore is None else true.map == true.ignore
    background = classes.index(BACKGROUND) if BACKGROUND in classes else None
    if "semantic" in wanted:
        if true.multilabel:
            found["semantic"] = (semantic.confusion_multilabel(predicted, true.map), None)
        else:
            found["semantic"] = (semantic.confusion(predicted, true.map, len(classes), true.ignore), background)
    if "surface" in wanted:
        chosen = [k for k in range(len(classes)) if k != background]
        found["surface"] = surface.surfaces(predicted, true.map, chosen, left_out)
    probability = getattr(prediction, "probability", None)
    if "calibration" in wanted and probability is not None:
        found["calibration"] = calibration.reliability(probability, true.map, left_out)
    if wanted & {"instances", "shapes", "types"}:
        found |= _objects(task, prediction, truth, (predicted, true, left_out), wanted)
    return found


def _objects(
    task: Task,
    prediction: SemanticPrediction | InstancesPrediction,
    truth: Semantic | Instances,
    maps: tuple[NDArray[Any], Semantic, NDArray[np.bool_] | None],
    wanted: set[str],
) -> dict[str, Any]:
    """Return the evidence of metrics of objects."""
    predicted, true, left_out = maps
    classes = class_names(prediction)
    ours = objects(prediction, predicted, classes, truth)
    theirs = truth.map if isinstance(truth, Instances) else _components(true.map, classes, true.multilabel)
    if left_out is not None and ours.ndim > left_out.ndim:
        left_out = np.broadcast_to(left_out, ours.shape)
    table = instances.overlap(ours, theirs, left_out)
    found: dict[str, Any] = {"instances": table}
    if "shapes" in wanted:
        flat = ours.ndim == 3 and isinstance(prediction, SemanticPrediction) and not isinstance(truth, Instances)
        if flat:  # a plane a class: side by side, so that no distance leads from one class to another unnoticed
            ours, theirs = np.hstack(list(ours)), np.hstack(list(theirs))
            left_out = None if left_out is None else np.hstack(list(left_out))
        found["shapes"] = shapes.shapes(ours, theirs, left_out, table)
    if "types" in wanted and isinstance(prediction, InstancesPrediction) and isinstance(truth, Instances):
        found["types"] = _typed(task, prediction, truth, table)
    return found


def _typed(task: Task, prediction: InstancesPrediction, truth: Instances, table: instances.Overlap) -> types.Typed:
    """Return objects with their classes, over the model's foreground classes; what is not annotated is -1."""
    names = class_names(prediction)
    known = match_classes((BACKGROUND, *task.truth_classes), names, task.merge or None)

    def of_truth(label: int) -> int:
        index = 1 if truth.classes is None else truth.classes.get(label)
        target = None if index is None else known.get(task.truth_classes[index - 1])
        return -1 if target is None else target - 1

    true = [of_truth(label) for label in table.truth_ids.tolist()]
    of = [names.index(prediction.classes[i]) - 1 for i in prediction.class_index]
    predicted = [of[label - 1] for label in table.prediction_ids.tolist()]
    return types.typed(table, true, predicted, len(names) - 1)


def class_names(prediction: SemanticPrediction | InstancesPrediction) -> tuple[str, ...]:
    """Return the classes of `class_map`: with the background first unless the prediction is multi-label."""
    if isinstance(prediction, InstancesPrediction):
        return (BACKGROUND, *foreground(prediction.classes))
    return prediction.classes


def class_map(prediction: SemanticPrediction | InstancesPrediction) -> NDArray[Any]:
    """Return (H, W) class indices over `class_names`, or the (K, H, W) planes of a multi-label map."""
    if isinstance(prediction, SemanticPrediction):
        return prediction.map
    names = class_names(prediction)
    of = [names.index(prediction.classes[i]) for i in prediction.class_index]
    table = np.array([0, *of], np.uint8)
    return table[prediction.map]


def objects(
    prediction: SemanticPrediction | InstancesPrediction,
    predicted: NDArray[Any],
    classes: Sequence[str],
    truth: Semantic | Instances,
) -> NDArray[Any]:
    """Return the label map that is judged as objects.

    Instances are themselves. Of a semantic map, objects are connected components (pixels that share a side): of all
    foreground where the truth has objects of its own, of each class apart where the truth is semantic too.
    """
    if isinstance(prediction, InstancesPrediction):
        return prediction.map
    if isinstance(truth, Instances):
        return components(np.any(predicted, axis=0) if prediction.multilabel else _any_foreground(predicted, classes))
    return _components(predicted, classes, prediction.multilabel)


def _any_foreground(predicted: NDArray[Any], classes: Sequence[str]) -> NDArray[np.bool_]:
    background = classes.index(BACKGROUND) if BACKGROUND in classes else None
    return np.ones(predicted.shape, bool) if background is None else predicted != background


def _components(class_indices: NDArray[Any], classes: Sequence[str], multilabel: bool) -> NDArray[Any]:
    """Return (K, H, W) label maps, a plane a foreground class, ids distinct over planes."""
    chosen = [k for k, name in enumerate(classes) if name != BACKGROUND]
    planes = [class_indices[k] if multilabel else class_indices == k for k in chosen]
    labelled, highest = [], 0
    for plane in planes:
        labels = components(plane)
        labelled.append(np.where(labels > 0, labels + highest, 0))
        highest += int(labels.max(initial=0))
    return np.stack(labelled)


def pictures(prediction: PicturePrediction, truth: Picture) -> picture.Pair:
    """Return the channels that both pictures have. Raises `ValueError` where they cannot be compared."""
    if prediction.encoding != truth.encoding:
        raise ValueError(f'the prediction is encoded as "{prediction.encoding}" and the truth as "{truth.encoding}"')
    shared = [c for c in truth.channels if c in prediction.channels]
    if not shared:
        raise ValueError(f"the prediction has no channel of {', '.join(truth.channels)}")
    ours = prediction.data[[prediction.channels.index(c) for c in shared]]
    theirs = truth.data[[truth.channels.index(c) for c in shared]]
    return picture.pair(ours, theirs, truth.valid, channels=shared)


def cells_of(task: Task, prediction: PicturePrediction, truth: Instances) -> Cells:
    """Return what a picture says of each nucleus, and what is true of it."""
    picture, values = (
        (prediction.data, prediction.channels),
        (truth.values or {}, truth.value_names or task.truth_classes),
    )
    return cells(*picture, truth.map, *values, positive=task.positive, calling=prediction.calling)


def _boxes(task: Task, prediction: BoxesPrediction, truth: Boxes | Instances) -> boxes.Pair:
    """Return both sets of boxes; classes and attributes are compared by name.

    Boxes of a class that only one of the two sides names are neither right nor wrong, and left out; what the model was
    told to ignore (`merge`) is a crowd of every class. Objects are judged
    by the boxes around them; classes of the truth become the model's as in its training (`merge`).
    """
    there = boxes_of(truth) if isinstance(truth, Instances) else truth
    becomes = {source: name for name, sources in task.merge.items() for source in sources}
    names = [becomes.get(name, name) for name in task.truth_classes]
    theirs = [name for name in dict.fromkeys(names) if name in prediction.classes]
    every = list(range(1, len(theirs) + 1))
    numbers = [every if n == "ignore" else [theirs.index(n) + 1] if n in theirs else [] for n in names]
    rows = [(i, k) for i, c in enumerate(there.classes) for k in numbers[int(c) - 1]]  # a box that is ignored, in each
    place, classes = np.array(rows, np.int64).reshape(-1, 2).T
    left_out = np.array([names[int(c) - 1] == "ignore" for c in there.classes], bool)
    crowd = (left_out if there.crowd is None else left_out | there.crowd)[place]
    said = None if there.attributes is None else there.attributes[place]
    true = boxes.Boxes(there.xyxy[place], classes, None, crowd if crowd.any() else None, said)
    ours = _predicted(prediction, theirs, task.attributes)
    weaker = None if prediction.weaker is None else _predicted(prediction.weaker, theirs, task.attributes)
    return boxes.Pair(ours, true, weaker, tuple(theirs), tuple(task.attributes))


def _predicted(
    prediction: BoxesPrediction, theirs: Sequence[str], attributes: Mapping[str, Sequence[str]]
) -> boxes.Boxes:
    """Return predicted boxes with the truth's numbers of classes and of attributes' values (-1 = says nothing)."""
    named = np.array([theirs.index(n) + 1 if n in theirs else -1 for n in prediction.classes], np.int64)
    of = named[prediction.class_index]
    said = prediction.attributes
    if said is not None and prediction.attribute_values:
        own = list(prediction.attribute_values)
        columns = [np.full(len(of), -1, np.int64) for _ in attributes]
        for place, (name, values) in enumerate(attributes.items()):
            if name in own:
                known = [values.index(v) if v in values else -1 for v in prediction.attribute_values[name]]
                columns[place] = np.asarray(known, np.int64)[said[:, own.index(name)]]
        said = np.stack(columns, 1) if columns else None
    keep = of > 0
    return boxes.Boxes(
        prediction.xyxy[keep], of[keep], prediction.scores[keep], attributes=None if said is None else said[keep]
    )
