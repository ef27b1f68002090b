"""From any truth to the one a model learns from or is judged by: classes matched by name, objects to class maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.errors import suggest
from zoo.types import Boxes, Instances, Semantic, Truth

IGNORE = 255
"""The index that `as_semantic` writes where nothing is annotated."""

BACKGROUND = "background"

Merge = Mapping[str, Sequence[str]]


def foreground(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that are not the background."""
    return tuple(c for c in classes if c != BACKGROUND)


def match_classes(
    truth_classes: Sequence[str], classes: Sequence[str], merge: Merge | None = None
) -> dict[str, int | None]:
    """Return dataset class -> index into the model's `classes`, None where it becomes "not annotated".

    Classes are matched by name. `merge` maps a model class (or `ignore`) to the dataset classes that become it, and
    wins over equal names. Where each side has exactly one foreground class and `merge` is silent, the two match
    whatever their names. A dataset class that the model does not know becomes the background (index 0 where `classes`
    begins with "background"; left out of the result where there is none, as in a multi-label model). Raises
    `ValueError` with one sentence where a model class has no counterpart, or `merge` names a class that the model does
    not have.
    """
    merge = dict(merge or {})
    for name in merge:
        if name != "ignore" and name not in classes:
            raise ValueError(f'merge: the model has no class "{name}". {suggest(name, classes)}')
    index = {name: position for position, name in enumerate(classes)}
    found: dict[str, int | None] = {c: index[c] for c in truth_classes if c in index}
    for name, sources in merge.items():
        found |= {s: None if name == "ignore" else index[name] for s in sources if s in truth_classes}
    ours, theirs = foreground(classes), foreground(truth_classes)
    if len(ours) == len(theirs) == 1 and not merge:
        found[theirs[0]] = index[ours[0]]
    for name in ours:
        if index[name] not in found.values():
            raise ValueError(
                f'the dataset has nothing for the class "{name}" (it has {", ".join(truth_classes)}). '
                f"Map its classes with merge, as in merge: {{{name}: [{theirs[0] if theirs else '...'}]}}"
            )
    if BACKGROUND in index:
        found |= {c: index[BACKGROUND] for c in truth_classes if c not in found}
    return found


def as_semantic(
    truth: Truth, truth_classes: Sequence[str], classes: Sequence[str], merge: Merge | None = None
) -> Semantic:
    """Return a truth as a map of class indices over `classes`, uint8, `IGNORE` where nothing is annotated.

    `truth`: semantic (`truth_classes` from index 0, with the background) or instances (`truth_classes` from index 1).
    How classes are matched: `match_classes`. A multi-label truth keeps its planes, one for each of `classes`, (K, H, W)
    bool. Raises `ValueError` for another kind of truth, for classes that do not fit and for values that are no class.
    """
    if isinstance(truth, Instances):
        found = match_classes((BACKGROUND, *truth_classes), classes, merge)
        return Semantic(_from_instances(truth, truth_classes, found), ignore=IGNORE)
    if not isinstance(truth, Semantic):
        raise ValueError(f"a truth of kind {truth.kind} has no class map. Expected semantic or instances")
    found = match_classes(truth_classes, classes, merge)
    if truth.multilabel:
        planes = np.zeros((len(classes), *truth.map.shape[1:]), bool)
        for source, name in enumerate(truth_classes):
            target = found.get(name)
            if target is not None:
                planes[target] |= truth.map[source].astype(bool)
        return Semantic(planes, multilabel=True)
    table = np.full(256, IGNORE, np.uint8)
    for source, name in enumerate(truth_classes):
        target = found.get(name)
        table[source] = IGNORE if target is None else target
    bad = (truth.map < 0) | (truth.map >= len(truth_classes))
    if truth.ignore is not None:
        bad &= truth.map != truth.ignore
    if bad.any():
        value = int(truth.map[bad].flat[0])
        raise ValueError(f"the map holds the value {value}, which is no class. Expected 0 to {len(truth_classes) - 1}")
    mapped = table[np.clip(truth.map, 0, 255).astype(np.uint8)]
    if truth.ignore is not None:
        mapped[truth.map == truth.ignore] = IGNORE
    return Semantic(mapped, ignore=IGNORE)


def _from_instances(
    truth: Instances, truth_classes: Sequence[str], found: Mapping[str, int | None]
) -> NDArray[np.uint8]:
    """Return class indices of a map of objects; a class that the model does not know is background, or ignored."""
    table = np.full(int(truth.map.max(initial=0)) + 1, IGNORE, np.uint8)
    background = found.get(BACKGROUND)
    table[0] = IGNORE if background is None else background
    for label in range(1, len(table)):
        class_index = 1 if truth.classes is None else truth.classes.get(label)
        if class_index is not None:
            target = found.get(truth_classes[class_index - 1])
            table[label] = IGNORE if target is None else target
    mapped: NDArray[np.uint8] = table[truth.map]
    if truth.ignore is not None:
        mapped[truth.ignore] = IGNORE
    return mapped


def as_planes(
    truth: Truth, truth_classes: Sequence[str], classes: Sequence[str], merge: Merge | None = None
) -> NDArray[np.uint8]:
    """Return a truth as planes of 0, 1 and `IGNORE`, (K, H, W) uint8, one for each of `classes` (no background)."""
    if isinstance(truth, Semantic) and truth.multilabel:
        return as_semantic(truth, truth_classes, classes, merge).map.astype(np.uint8)
    whole = as_semantic(truth, truth_classes, (BACKGROUND, *foreground(classes)), merge).map
    planes = np.stack([whole == 1 + k for k in range(len(foreground(classes)))]).astype(np.uint8)
    planes[:, whole == IGNORE] = IGNORE
    return planes


def instance_boundaries(
    labels: NDArray[Any], width: int = 2, where: Literal["touching", "outline"] = "touching"
) -> NDArray[np.bool_]:
    """Return the pixels of objects that lie within `width` pixels of another object ("touching") or of anything else.

    `labels`: (H, W) or (D, H, W) integer, 0 background. Only pixels of objects are marked, so that a boundary pixel
    always belongs to its object. Distances are those of a square window; beyond the border of the array nothing is
    known, and the outline does not follow it.
    """
    size = 2 * width + 1
    largest = int(labels.max(initial=0)) + 1
    highest = ndimage.maximum_filter(labels, size, mode="nearest")
    if where == "outline":
        lowest = ndimage.minimum_filter(labels, size, mode="nearest")
    else:
        lowest = ndimage.minimum_filter(np.where(labels == 0, largest, labels), size, mode="nearest")
    marked: NDArray[np.bool_] = (labels > 0) & (highest != lowest)
    return marked


def boxes_of(truth: Instances) -> Boxes:
    """Return the boxes around objects (H, W) in the order of their ids; one whose class is not known is left out.

    Boxes are half-open: an object of one pixel has a box of one by one. Objects without classes are of class 1.
    """
    labels = truth.map
    rows, kinds = [], []
    for label, found in enumerate(ndimage.find_objects(labels), 1):
        kind = 1 if truth.classes is None else truth.classes.get(label)
        if found is not None and kind is not None:
            down, across = found[-2:]
            rows.append((across.start, down.start, across.stop, down.stop))
            kinds.append(kind)
    return Boxes(np.asarray(rows, np.float32).reshape(-1, 4), np.asarray(kinds, np.int64))
