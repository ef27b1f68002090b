"""White blood cells, one at a time: type, attributes, outline, nucleus, granules. Lengths in um.

Appearance of the types: Bain, Blood Cells, 5th edition (2015), chapter 3; attributes: Rehman et al., MICCAI 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, step
from zoo.data.phantom.shapes import outline

KINDS = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "blast")
DYES = ("azure", "pink", "haemoglobin", "basophilia", "orange")
"""What light meets: dye of nuclei, pale pink cytoplasm, haemoglobin, blue cytoplasm, eosinophil granules."""
PIXELS = 12
"""An object that shows fewer pixels is none."""
SMALL, LARGE = 5.5, 7.4
"""Radii that part small, medium and large cells."""
SCANTY = 0.62
"""Share of the cell that the nucleus takes where the cytoplasm is scanty."""

_Lobes = NDArray[np.float64]  # (N, 3): x, y, radius in units of the cell's radius


@dataclass(frozen=True)
class Cell:
    """What a white cell is before it is drawn. `strength`: of its nucleus's dye; `open`: fine chromatin."""

    kind: str
    radius: float
    angle: float
    lobes: _Lobes
    notch: tuple[float, float, float] | None
    rough: float
    strength: float
    open: bool
    nucleoli: int
    basophilic: bool
    vacuoles: int


@dataclass(frozen=True)
class Drawn:
    """A white cell on its window of the canvas: masks (h, w), amounts of dye by name, the seven attributes."""

    window: tuple[slice, slice]
    cell: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]
    dyes: dict[str, Field]
    attributes: list[int]


def _round(rng: np.random.Generator, low: float, high: float) -> _Lobes:
    size = rng.uniform(low, high)
    far, turn = rng.uniform(0, 0.9 * (0.97 - size)), rng.uniform(0, 2 * np.pi)
    return np.array([(far * np.cos(turn), far * np.sin(turn), size)])


def _arc(rng: np.random.Generator, count: int, size: tuple[float, float]) -> _Lobes:
    """Return lobes along an arc round the middle: a segmented nucleus."""
    span = rng.uniform(0.55, 0.85) * 2 * np.pi if count > 2 else rng.uniform(0.7, 1.1) * np.pi
    turns = np.linspace(0, span, count) + rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.15, count)
    far = rng.uniform(0.28, 0.44, count)
    sizes = rng.uniform(*size, count)
    return np.stack([far * np.cos(turns), far * np.sin(turns), sizes], 1)


def draw_cell(rng: np.random.Generator, kind: str, strength: float) -> Cell:
    """Return a random cell of a type."""
    angle, notch, nucleoli, vacuoles = float(rng.uniform(0, 2 * np.pi)), None, 0, 0
    basophilic = bool(rng.random() < {"lymphocyte": 0.35, "blast": 0.8, "monocyte": 0.25}.get(kind, 0.03))
    is_open = bool(rng.random() < {"blast": 0.85, "monocyte": 0.6}.get(kind, 0.06))
    if kind == "neutrophil":
        radius, count = rng.normal(6.4, 0.45), int(rng.choice([1, 2, 3, 4, 5], p=[0.08, 0.17, 0.37, 0.28, 0.1]))
        if count == 1:  # a band: one bent sausage
            lobes, notch = np.array([(0.0, 0.0, 0.62)]), (0.42, 0.0, 0.5)
        else:
            lobes = _arc(rng, count, (0.28, 0.39) if count > 2 else (0.36, 0.46))
    elif kind == "lymphocyte":
        radius, lobes = rng.choice([rng.normal(4.7, 0.4), rng.normal(6.3, 0.5)], p=[0.75, 0.25]), _round(rng, 0.72, 0.9)
        if rng.random() < 0.3:
            notch = (0.95, 0.0, 0.3)
    elif kind == "monocyte":
        radius, lobes = rng.normal(8.0, 0.6), _round(rng, 0.6, 0.74)
        notch = (rng.uniform(0.55, 0.8), rng.uniform(-0.2, 0.2), rng.uniform(0.25, 0.48))
        vacuoles = int(rng.poisson(1.6)) if rng.random() < 0.5 else 0
    elif kind == "eosinophil":
        radius, lobes = rng.normal(6.8, 0.4), _arc(rng, int(rng.choice([2, 3], p=[0.85, 0.15])), (0.33, 0.42))
    elif kind == "basophil":
        radius, lobes = rng.normal(6.0, 0.4), _arc(rng, int(rng.choice([2, 3])), (0.36, 0.48))
    else:
        radius, lobes = rng.normal(7.6, 0.9), _round(rng, 0.76, 0.9)
        if rng.random() < 0.4:
            notch = (rng.uniform(0.8, 1.0), 0.0, rng.uniform(0.2, 0.4))
        nucleoli = int(rng.integers(1, 4)) if rng.random() < 0.7 else 0
        vacuoles = int(rng.integers(2, 5)) if rng.random() < 0.15 else 0
    rough = {"monocyte": 0.16, "lymphocyte": 0.06, "blast": 0.1}.get(kind, 0.08) * rng.uniform(0.5, 1.4)
    return Cell(
        kind,
        float(np.clip(radius, 3.8, 10.5)),
        angle,
        lobes,
        notch,
        float(rough),
        strength,
        is_open,
        nucleoli,
        basophilic,
        vacuoles,
    )


def draw_leukocyte(
    rng: np.random.Generator,
    cell: Cell,
    um: float,
    at: tuple[float, float],
    canvas: tuple[int, int],
    fields: tuple[Field, ...],
) -> Drawn:
    """Return a cell drawn at x, y (pixels). `fields`: noise of the canvas, bumps of 0.3, 0.7 and 1.6 um."""
    reach = int(np.ceil(1.4 * cell.radius / um))
    y0, x0 = max(int(at[1]) - reach, 0), max(int(at[0]) - reach, 0)
    y1, x1 = min(int(at[1]) + reach + 1, canvas[0]), min(int(at[0]) + reach + 1, canvas[1])
    window = (slice(y0, y1), slice(x0, x1))
    dx = ((np.arange(x0, x1) + 0.5 - at[0]) * um / cell.radius).astype(np.float32)[None]
    dy = ((np.arange(y0, y1) + 0.5 - at[1]) * um / cell.radius).astype(np.float32)[:, None]
    cos, sin = np.float32(np.cos(cell.angle)), np.float32(np.sin(cell.angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    ring = outline(rng.integers(0, 2**63, 1, np.uint64), np.array([cell.rough]), 2, 9)[0]
    turn = np.rint(np.arctan2(v, u) * np.float32(len(ring) / (2 * np.pi))).astype(np.intp) % len(ring)
    body = (1 - np.hypot(u, v) / ring[turn]) * np.float32(cell.radius)  # um inside the outline
    fine, middle, coarse = (f[window] for f in fields)
    nucleus = np.minimum(_nucleus(rng, cell, u, v, ring[turn]) + 0.12 * coarse, body - 0.15)
    inside, core = body > 0, (nucleus > 0) & (body > 0)
    share = float(core.sum()) / max(1, int(inside.sum()))
    dyes = _dyes(rng, cell, body, nucleus, (u, v), (fine, middle, coarse))
    return Drawn(window, inside, core, dyes, _attributes(cell, share))


def _nucleus(rng: np.random.Generator, cell: Cell, u: Field, v: Field, ring: Field) -> Field:
    """Return um inside the nucleus: lobes, the bridges between them, less the notch."""
    shape = np.full(u.shape, -9.0, np.float32)
    lobes = cell.lobes
    for x, y, size in lobes:
        stretch = rng.uniform(0.85, 1.18)
        turn = rng.uniform(0, np.pi)
        a, b = u - np.float32(x), v - np.float32(y)
        p, q = a * np.cos(turn) + b * np.sin(turn), b * np.cos(turn) - a * np.sin(turn)
        shape = np.maximum(shape, np.float32(size) - np.hypot(p * np.float32(stretch), q / np.float32(stretch)) / ring)
    for (x, y, _), (x1, y1, _) in pairwise(lobes):
        length = max(float(np.hypot(x1 - x, y1 - y)), 1e-3)
        along = np.clip(((u - x) * (x1 - x) + (v - y) * (y1 - y)) / length**2, 0, 1)
        away = np.hypot(u - x - along * (x1 - x), v - y - along * (y1 - y))
        shape = np.maximum(shape, np.float32(0.06 + 0.1 * (cell.kind == "basophil")) - away)
    if cell.notch is not None:
        x, y, size = cell.notch
        shape = np.minimum(shape, np.hypot(u - np.float32(x), v - np.float32(y)) - np.float32(size))
    return np.asarray(shape * np.float32(cell.radius), np.float32)


def _dyes(
    rng: np.random.Generator,
    cell: Cell,
    body: Field,
    nucleus: Field,
    place: tuple[Field, Field],
    fields: tuple[Field, Field, Field],
) -> dict[str, Field]:
    """Return how much of each dye the cell holds, by pixel."""
    u, v = place
    fine, middle, coarse = fields
    whole, core = step(body, -0.12, 0.25), step(nucleus, -0.12, 0.2)
    clumps = (0.08 if cell.open else 0.2) * middle + (0.09 if cell.open else 0.06) * fine + 0.1 * coarse
    chromatin = (0.8 if cell.open else 1.02) + clumps + 0.22 * np.exp(-np.abs(nucleus) / np.float32(0.3))
    for _ in range(cell.nucleoli):
        x, y, _size = cell.lobes[0]
        turn, far, size = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5), rng.uniform(0.08, 0.15)
        gone = step(-np.hypot(u - x - far * np.cos(turn), v - y - far * np.sin(turn)), -size - 0.04, -size + 0.04)
        chromatin = chromatin * (1 - 0.4 * gone)
    azure = core * np.clip(chromatin, 0.25, 1.6) * np.float32(cell.strength)
    plasma = whole * (1 - 0.85 * core)
    dyes: dict[str, NDArray[Any]] = {}
    grains = _grains(cell.kind, fine, middle)
    if cell.kind in ("neutrophil", "eosinophil", "basophil"):
        dyes["pink"] = plasma * (0.5 + 0.08 * middle)
        dyes["basophilia"] = plasma * np.float32(0.12)
    else:
        amount = {"lymphocyte": 0.55, "monocyte": 0.6}.get(cell.kind, 0.75) * (1.5 if cell.basophilic else 0.8)
        rim = 1 + 0.3 * np.exp(-np.abs(body) / np.float32(0.5))
        dyes["basophilia"] = plasma * np.float32(amount) * (1 + 0.14 * middle + 0.1 * coarse) * rim
        dyes["pink"] = plasma * np.float32(0.2 if cell.kind == "monocyte" else 0.08)
    if cell.kind == "neutrophil":
        dyes["pink"] = dyes["pink"] + plasma * 0.9 * grains
    elif cell.kind == "eosinophil":
        dyes["orange"] = whole * (1 - 0.7 * core) * (0.25 + 0.75 * grains)
    elif cell.kind == "basophil":
        azure = azure * 0.75 + whole * 0.75 * grains * step(body, 0.1, 0.5)
    elif cell.kind == "monocyte":
        dyes["pink"] = dyes["pink"] + plasma * 0.5 * grains
    for _ in range(cell.vacuoles):
        turn, far, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.85), rng.uniform(0.07, 0.13)
        hole = step(-np.hypot(u - far * np.cos(turn), v - far * np.sin(turn)), -size - 0.03, -size + 0.03)
        dyes = {k: d * (1 - 0.85 * hole * (1 - core)) for k, d in dyes.items()}
    dyes["azure"] = azure
    return {k: np.asarray(d, np.float32) for k, d in dyes.items()}


_GRAINS = {  # weight of the middle noise, of the fine noise, where granules begin and are full, strength
    "neutrophil": (0.0, 1.0, 0.7, 1.6, 0.7),
    "lymphocyte": (0.0, 1.0, 3.0, 4.0, 1.0),
    "monocyte": (0.0, 1.0, 1.1, 2.0, 0.5),
    "eosinophil": (1.0, 0.3, -0.2, 0.6, 1.0),
    "basophil": (1.0, 0.35, 0.55, 0.95, 1.0),
    "blast": (0.0, 1.0, 3.0, 4.0, 1.0),
}


def _grains(kind: str, fine: Field, middle: Field) -> Field:
    a, b, low, high, strength = _GRAINS[kind]
    return step(np.float32(a) * middle + np.float32(b) * fine, low, high) * np.float32(strength)


def _attributes(cell: Cell, share: float) -> list[int]:
    size = 0 if cell.radius < SMALL else 1 if cell.radius < LARGE else 2
    values: list[Any] = [
        size,
        not cell.open,
        len(cell.lobes) > 1 or cell.notch is not None,
        cell.nucleoli > 0,
        share < SCANTY,
        cell.basophilic,
        cell.vacuoles > 0,
    ]
    return [int(value) for value in values]
