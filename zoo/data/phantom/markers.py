"""Cell types, markers, and which cell carries which: the biology behind immunostains.

Where a marker sits and who carries it: Ramos-Vara, Vet. Pathol. 42 (2005); Lin et al., eLife 7 (2018), for the panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.layout import EPITHELIAL, FIBROBLAST, LYMPHOCYTE, Layout
from zoo.data.phantom.noise import Field, mix, normal, uniform, word

TYPES = (
    "epithelial",
    "T helper",
    "T cytotoxic",
    "T regulatory",
    "B",
    "macrophage",
    "fibroblast",
    "endothelial",
)
"""Cell types, class indices from 1."""
_OF_NUCLEUS = {  # class of the nucleus -> type index from 1 -> share
    EPITHELIAL: {1: 1.0},
    LYMPHOCYTE: {2: 0.36, 3: 0.28, 4: 0.08, 5: 0.28},
    FIBROBLAST: {6: 0.2, 7: 0.8},
}
Place = Literal["nucleus", "membrane", "cytoplasm"]


@dataclass(frozen=True)
class Marker:
    """Where a marker sits, and the share of each cell type that carries it (types that are not named: none)."""

    place: Place
    carriers: dict[str, float]


_T = {"T helper": 0.98, "T cytotoxic": 0.98, "T regulatory": 0.98}
MARKERS: dict[str, Marker] = {
    "Ki67": Marker("nucleus", {"epithelial": 0.3, "T helper": 0.06, "T cytotoxic": 0.06, "B": 0.15}),
    "ER": Marker("nucleus", {"epithelial": 0.6}),
    "p53": Marker("nucleus", {"epithelial": 0.35}),
    "FOXP3": Marker("nucleus", {"T regulatory": 0.97}),
    "HER2": Marker("membrane", {"epithelial": 0.5}),
    "E-cadherin": Marker("membrane", {"epithelial": 0.97}),
    "CD45": Marker("membrane", {**_T, "B": 0.98, "macrophage": 0.8}),
    "CD3e": Marker("membrane", _T),
    "CD4": Marker("membrane", {"T helper": 0.97, "T regulatory": 0.95, "macrophage": 0.15}),
    "CD8a": Marker("membrane", {"T cytotoxic": 0.97}),
    "CD20": Marker("membrane", {"B": 0.97}),
    "PD-L1": Marker("membrane", {"epithelial": 0.2, "macrophage": 0.5}),
    "Pan-CK": Marker("cytoplasm", {"epithelial": 0.98}),
    "CD68": Marker("cytoplasm", {"macrophage": 0.95}),
    "CD31": Marker("cytoplasm", {"endothelial": 0.97}),
    "SMA": Marker("cytoplasm", {"fibroblast": 0.4}),
}
PANEL = ("Hoechst", *MARKERS)
"""Channels that a multiplex picture may have."""
_REACH = {"epithelial": 7.0, "fibroblast": 2.2, "endothelial": 2.0, "macrophage": 4.0}


@dataclass(frozen=True)
class Cells:
    """The cells of a layout. `types` (N,) index from 1 of nucleus i + 1; `body` (H, W) int32: whose cell a pixel
    belongs to (nucleus ids, 0 = nobody's); `edge` (H, W) float32 in [0, 1]: how much of the pixel is membrane."""

    types: NDArray[np.int64]
    body: NDArray[np.int32]
    edge: Field


def cell_types(layout: Layout) -> NDArray[np.int64]:
    """Return a type for every nucleus, one that its class allows."""
    draws = uniform(mix(layout.keys, word("type")))
    types = np.where(layout.walls, 1 + TYPES.index("endothelial"), 0).astype(np.int64)
    for kind, shares in _OF_NUCLEUS.items():
        of_kind = (layout.classes == kind) & (types == 0)
        steps = np.cumsum(list(shares.values()))
        chosen = np.searchsorted(steps, draws[of_kind] * steps[-1], side="right").clip(0, len(steps) - 1)
        types[of_kind] = np.array(list(shares))[chosen]
    return types


def cells_of(layout: Layout) -> Cells:
    """Return types, bodies and membranes: a pixel belongs to the nearest nucleus within reach of its type, an
    epithelial cell ends with its epithelium."""
    types, turned = cell_types(layout), layout.noise.oriented
    nuclei = turned(layout.nuclei)  # as it was before any flip: ties between neighbours are decided alike
    body = _bodies(nuclei, turned(layout.depth), types, layout.um)
    edge = np.zeros(body.shape, np.float32)
    down, across = body[1:] != body[:-1], body[:, 1:] != body[:, :-1]
    edge[:, 1:][across] = edge[1:][down] = 1
    edge[:, :-1][across] = edge[:-1][down] = 1
    soft = cv2.GaussianBlur(edge, (0, 0), max(0.5, 0.35 / layout.um))
    return Cells(types, turned(body), turned(np.minimum(soft * np.float32(1.5), 1)))


def _bodies(nuclei: NDArray[np.int32], depth: Field, types: NDArray[np.int64], um: float) -> NDArray[np.int32]:
    empty = (nuclei == 0).astype(np.uint8)
    far, nearest = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    owner = np.zeros(int(nearest.max()) + 1, np.int32)
    held = nuclei > 0
    owner[nearest[held]] = nuclei[held]
    body: NDArray[np.int32] = owner[nearest]
    reach = np.array([0.0, *(_REACH.get(name, 1.6) for name in TYPES)], np.float32)
    of_type = np.concatenate([[0], types])[body]
    body[far * np.float32(um) > reach[of_type]] = 0
    body[(of_type == 1) & (depth <= 0) & ~held] = 0
    body[(of_type > 1) & (depth > 0) & ~held] = 0
    return body


def carried(
    layout: Layout, types: NDArray[np.int64], marker: str, rate: float | None = None
) -> tuple[NDArray[np.bool_], Field]:
    """Return (N,) bool which cells carry a marker and (N,) float32 how much, in [0, 1]; the others about 0.03.

    `rate`: the share of the cells of the marker's first type that carries it, as near as whole cells allow; None: as
    often as the table says, cell by cell.
    """
    bits = mix(layout.keys, word(marker))
    place = MARKERS[marker]
    shares = np.array([0.0, *(place.carriers.get(name, 0.0) for name in TYPES)])[types]
    score = uniform(bits)
    positive = score < shares
    if rate is not None:
        main = types == 1 + TYPES.index(next(iter(place.carriers)))
        shown = main & np.isin(np.arange(1, len(types) + 1), layout.cut(layout.nuclei))
        for group in (shown, main & ~shown):
            order = np.flatnonzero(group)[np.argsort(score[group], kind="stable")]
            positive[group] = False
            positive[order[: round(rate * len(order))]] = True
    grade = np.array([0.35, 0.65, 1.0])[np.searchsorted([0.25, 0.6], uniform(mix(bits, 1)))]
    amount = np.where(positive, grade, 0.03) * np.exp(0.15 * normal(mix(bits, 2)))
    return positive, np.clip(amount, 0, 1).astype(np.float32)


def laid(layout: Layout, cells: Cells, marker: str, amount: Field) -> Field:
    """Return (H, W) float32 how much of a marker lies at each pixel of the canvas."""
    table = np.concatenate([[0], amount]).astype(np.float32)
    place = MARKERS[marker].place
    noise = layout.noise
    if place == "nucleus":
        grain = np.clip(1 + 0.2 * noise.smooth(f"{marker}/grain", 1.2), 0.3, 2)
        return np.asarray(table[layout.nuclei] * grain, np.float32)
    whole = table[cells.body]
    grain = np.clip(1 + 0.18 * noise.smooth(f"{marker}/grain", 1.4), 0.3, 2)
    if place == "membrane":
        patchy = np.clip(1 + 0.35 * noise.smooth(f"{marker}/patchy", 4.0), 0.15, 2)
        return np.asarray(whole * (cells.edge * patchy + 0.1 * (layout.nuclei == 0)) * grain, np.float32)
    outside = np.where(layout.nuclei == 0, np.float32(1), np.float32(0.12))
    return np.asarray(whole * outside * grain, np.float32)


def seen(values: NDArray[Any], labels: NDArray[np.int32], count: int) -> Field:
    """Return (count,) means of (H, W) values over labels 1..count; 0 for one that shows no pixel."""
    area = np.bincount(labels.ravel(), minlength=count + 1)[1 : count + 1]
    total = np.bincount(labels.ravel(), values.ravel().astype(np.float64), minlength=count + 1)[1 : count + 1]
    return (total / np.maximum(area, 1)).astype(np.float32)
