"""A blood smear: red cells, platelets, the five leukocyte types and blasts, and what lies about among them.

`lay_out` says which cell lies where and how much of which dye each pixel holds; `render` lights it. Lengths in um.
Sizes and shapes: Bain, Blood Cells, 5th edition (2015), chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.data.phantom.leukocytes import DYES, KINDS, PIXELS, Cell, Drawn, draw_cell, draw_leukocyte
from zoo.data.phantom.noise import Field, Noise, step
from zoo.data.phantom.optics import RANGES, Camera, Draws, Range, camera, expose, focus
from zoo.data.phantom.shapes import Blobs, draw

CLASSES = ("RBC", "Platelets", *KINDS)
RED, PLATELET, FIRST = 1, 2, 3
"""Class indices: red cell, platelet, the first leukocyte type (the others follow in the order of `KINDS`)."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "cell_size": ("small", "medium", "large"),
    "nuclear_chromatin": ("open", "coarse"),
    "nuclear_shape": ("regular", "irregular"),
    "nucleolus": ("inconspicuous", "prominent"),
    "cytoplasm": ("scanty", "abundant"),
    "cytoplasmic_basophilia": ("slight", "moderate"),
    "cytoplasmic_vacuoles": ("absent", "prominent"),
}
"""The seven attributes of LeukemiaAttri (Rehman et al., MICCAI 2024) and their values; red cells and platelets have
none (-1)."""
PARTS = ("background", "cytoplasm", "nucleus")
_MARGIN = 12.0
_OIL = 0.45
"""Point spread of an oil immersion lens in terms of that of a slide scanner."""


@dataclass(frozen=True)
class Crowd:
    """How crowded and how dirty a smear is. `cover`: share of the field under red cells; `overlap`: share of a red
    cell that may lie under others; `dirt`: grains of dye per 1000 um2; `smudges`: burst nuclei per 1000 um2;
    `contrast`: strength of the nuclear dye; `pallor`: how much of it is missing in a pale cell."""

    cover: tuple[float, float]
    overlap: float
    dirt: float
    smudges: float
    contrast: tuple[float, float]
    wash: float


CROWDS: dict[str, Crowd] = {
    "easy": Crowd((0.12, 0.35), 0.03, 0.0, 0.0, (0.9, 1.15), 0.0),
    "medium": Crowd((0.2, 0.55), 0.2, 2.0, 0.04, (0.7, 1.2), 0.35),
    "hard": Crowd((0.3, 0.7), 0.45, 7.0, 0.45, (0.42, 1.05), 0.6),
}


@dataclass(frozen=True)
class Smear:
    """A field on its canvas, with `margin` pixels around the picture.

    `dyes` (K, H, W) amounts in the order of `DYES`; `objects` int32 ids; `parts` uint8 (`PARTS`); `kinds` (N,) class of
    id i + 1; `attributes` (N, 7), -1 = has none.
    """

    um: float
    margin: int
    noise: Noise
    dyes: Field
    objects: NDArray[np.int32]
    parts: NDArray[np.uint8]
    kinds: NDArray[np.int64]
    attributes: NDArray[np.int64]

    def flipped(self, axis: int) -> Smear:
        """Return the smear upside down (axis 0) or left to right (axis 1)."""
        dyes, objects = np.flip(self.dyes, axis - 2).copy(), np.flip(self.objects, axis).copy()
        parts = np.flip(self.parts, axis).copy()
        return replace(self, noise=self.noise.flipped(axis), dyes=dyes, objects=objects, parts=parts)

    def cut(self, field: NDArray[Any]) -> NDArray[Any]:
        """Return the part of a canvas that the picture shows."""
        m = self.margin
        return np.ascontiguousarray(field[..., m : field.shape[-2] - m, m : field.shape[-1] - m])


def lay_out(
    seed: int,
    shape: tuple[int, int],
    um: float,
    crowd: Crowd,
    leukocytes: float,
    draws: Draws,
    kinds: tuple[float, ...],
) -> Smear:
    """Return a field of `shape` pixels of `um` um with about `leukocytes` white cells (Poisson), of the kinds in the
    proportions `kinds`."""
    margin = int(np.ceil(_MARGIN / um))
    canvas = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    noise = Noise(seed, canvas, um)
    rng = noise.rng("cells")
    smear = Smear(
        um,
        margin,
        noise,
        np.zeros((len(DYES), *canvas), np.float32),
        np.zeros(canvas, np.int32),
        np.zeros(canvas, np.uint8),
        np.zeros(0, np.int64),
        np.zeros((0, len(ATTRIBUTES)), np.int64),
    )
    found: list[tuple[int, list[int]]] = []
    _leukocytes(rng, smear, crowd, leukocytes, kinds, shape, found)
    _red_cells(rng, smear, crowd, draws, found)
    _platelets(rng, smear, crowd, found)
    _dirt(rng, smear, crowd)
    classes, attributes = zip(*found, strict=True) if found else ((), ())
    return replace(
        smear,
        kinds=np.asarray(classes, np.int64),
        attributes=np.asarray(attributes, np.int64).reshape(-1, len(ATTRIBUTES)),
    )


def _leukocytes(
    rng: np.random.Generator,
    smear: Smear,
    crowd: Crowd,
    mean: float,
    kinds: tuple[float, ...],
    shape: tuple[int, int],
    found: list[tuple[int, list[int]]],
) -> None:
    """Draw white cells."""
    height, width = smear.objects.shape
    count = int(rng.poisson(mean * height * width / (shape[0] * shape[1])))
    shares = np.asarray(kinds, float) / sum(kinds)
    fields = tuple(smear.noise.smooth(f"white cells/{i}", s) for i, s in enumerate((0.3, 0.7, 1.6)))
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        kind = int(rng.choice(len(KINDS), p=shares))
        cell = draw_cell(rng, KINDS[kind], float(rng.uniform(1 - crowd.wash, 1)))
        radius = cell.radius / smear.um
        for _ in range(12):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            near = 1.05 if crowd.overlap < 0.1 or rng.random() < 0.7 else 0.92
            if all(np.hypot(x - a, y - b) > near * (radius + r) for a, b, r in taken):
                break
        else:
            continue
        taken.append((x, y, radius))
        drawn = draw_leukocyte(rng, cell, smear.um, (x, y), (height, width), fields)
        _lay(smear, drawn, len(found) + 1)
        found.append((FIRST + kind, drawn.attributes))


def _lay(smear: Smear, drawn: Drawn, label: int) -> None:
    """Put a white cell onto the canvas; it lies over what is there."""
    window = drawn.window
    free = (smear.objects[window] == 0) & drawn.cell
    smear.objects[window][free] = label
    smear.parts[window][free] = np.where(drawn.nucleus[free], 2, 1)
    for plane, amount in drawn.dyes.items():
        smear.dyes[DYES.index(plane)][window] += amount


def _red_cells(
    rng: np.random.Generator,
    smear: Smear,
    crowd: Crowd,
    draws: Draws,
    found: list[tuple[int, list[int]]],
) -> None:
    um, (height, width) = smear.um, smear.objects.shape
    size = draws("red cell", 3.4, 4.0)
    wanted = rng.uniform(*crowd.cover) * height * width * um * um / (np.pi * size**2)
    n = int(wanted * 2.2)
    radius = rng.normal(size, 0.25, n).clip(2.6, 4.8) / um
    aspect = 1 + np.abs(rng.normal(0, 0.13, n))
    x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
    if crowd.overlap > 0.1:  # coins: some lie half over the one before
        coins = np.flatnonzero(rng.random(n) < 0.35)[1:]
        for i in coins:
            way, far = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 1.9) * radius[i]
            x[i], y[i] = x[i - 1] + far * np.cos(way), y[i - 1] + far * np.sin(way)
    stretch, turn, rough = np.sqrt(aspect), rng.uniform(0, np.pi, n), rng.uniform(0.02, 0.12, n)
    relative, top, left = draw(Blobs(x, y, radius * stretch, radius / stretch, turn, rough, _keys(rng, n)))
    side = relative.shape[1]
    pallor, width_of_pallor = draws("pallor", 0.05, 0.75), draws("pallor's width", 0.3, 0.55)
    pits = np.clip(pallor * rng.normal(1, 0.3, n), 0, 0.85)
    amounts = rng.normal(1, 0.1, n).clip(0.6, 1.4)
    blocked = smear.objects > 0
    placed = 0
    for i in range(n):
        if placed >= wanted:
            break
        window = _window(int(top[i]), int(left[i]), side, (height, width))
        if window is None:
            continue
        canvas, patch = window
        rel = relative[i][patch]
        inside = rel < 1
        area = int(inside.sum())
        here = smear.objects[canvas]
        hit = int((inside & (here > 0)).sum())
        if area == 0 or hit > crowd.overlap * area or (inside & blocked[canvas]).sum() > 0.04 * area:
            continue
        placed += 1
        found.append((RED, [-1] * len(ATTRIBUTES)))
        here[inside & (here == 0)] = len(found)
        dent = step(rel, width_of_pallor * 0.35, width_of_pallor * 1.7)
        soft = np.clip((1 - rel) * np.float32(radius[i]) * np.float32(0.9) + np.float32(0.5), 0, 1)
        rim = 1 + 0.15 * step(rel, 0.75, 0.95)
        thickness = amounts[i] * (1 - pits[i] * (1 - dent)) * rim * soft * (rel < 1.3)
        smear.dyes[DYES.index("haemoglobin")][canvas] += (thickness * ~blocked[canvas]).astype(np.float32)


def _keys(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 2**63, count, np.uint64)


def _window(top: int, left: int, side: int, canvas: tuple[int, int]) -> tuple[Any, Any] | None:
    """Return the slices of a patch on the canvas and in itself; None where it lies outside."""
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, canvas[0]), min(left + side, canvas[1])
    if y0 >= y1 or x0 >= x1:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _platelets(rng: np.random.Generator, smear: Smear, crowd: Crowd, found: list[tuple[int, list[int]]]) -> None:
    um, (height, width) = smear.um, smear.objects.shape
    n = int(rng.poisson(1.6 * height * width * um * um / 1000))
    if n == 0:
        return
    x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
    for i in range(1, n):  # some lie in heaps
        if rng.random() < (0.15 if crowd.dirt < 4 else 0.4):
            x[i], y[i] = x[i - 1] + rng.normal(0, 2.2) / um, y[i - 1] + rng.normal(0, 2.2) / um
    radius = rng.normal(1.25, 0.3, n).clip(0.7, 2.2) / um
    rough = rng.uniform(0.1, 0.3, n)
    turn = rng.uniform(0, np.pi, n)
    relative, top, left = draw(Blobs(x, y, radius * 1.12, radius / 1.12, turn, rough, _keys(rng, n)))
    amounts = rng.uniform(0.28, 0.75, n)
    grain = smear.noise.smooth("platelets", 0.4)
    for i in range(n):
        window = _window(int(top[i]), int(left[i]), relative.shape[1], (height, width))
        if window is None:
            continue
        canvas, patch = window
        rel = relative[i][patch]
        inside = rel < 1
        if inside.sum() < 4 or (inside & (smear.objects[canvas] > 0) & (smear.parts[canvas] > 0)).any():
            continue
        found.append((PLATELET, [-1] * len(ATTRIBUTES)))
        smear.objects[canvas][inside] = len(found)
        soft = step(-rel, -1.25, -0.45)
        speckle = np.clip(1 + 0.45 * grain[canvas], 0.2, 2)
        smear.dyes[DYES.index("azure")][canvas] += (amounts[i] * 0.55 * soft * speckle).astype(np.float32)
        smear.dyes[DYES.index("basophilia")][canvas] += (0.35 * amounts[i] * soft).astype(np.float32)


def _dirt(rng: np.random.Generator, smear: Smear, crowd: Crowd) -> None:
    """Draw what is nobody's object: grains of dye, burst nuclei."""
    um, (height, width) = smear.um, smear.objects.shape
    area = height * width * um * um / 1000
    azure = smear.dyes[DYES.index("azure")]
    for density, sizes, amounts, rough in (
        (crowd.dirt, (0.15, 0.75), (0.4, 1.6), 0.3),
        (crowd.smudges, (2.2, 5.0), (0.35, 0.8), 0.34),
    ):
        n = int(rng.poisson(density * area))
        if not n:
            continue
        radius = rng.uniform(*sizes, n) / um
        x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
        turn = rng.uniform(0, np.pi, n)
        blobs = Blobs(x, y, radius * 1.3, radius / 1.3, turn, np.full(n, rough), _keys(rng, n))
        relative, top, left = draw(blobs)
        texture = smear.noise.smooth(f"dirt {sizes}", 0.8)
        strengths = rng.uniform(*amounts, n)
        for i in range(n):
            window = _window(int(top[i]), int(left[i]), relative.shape[1], (height, width))
            if window is None:
                continue
            canvas, patch = window
            soft = step(-relative[i][patch], -1.2, -0.6) * (smear.parts[canvas] == 0)
            azure[canvas] += (strengths[i] * soft * np.clip(1 + 0.5 * texture[canvas], 0.1, 2)).astype(np.float32)


# --- truth ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Census:
    """What the picture shows: `objects` ids 1..N without gaps, `parts`, and of each object box, class, attributes."""

    objects: NDArray[np.int32]
    parts: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    kinds: NDArray[np.int64]
    attributes: NDArray[np.int64]


def census(smear: Smear) -> Census:
    """Return the objects in the picture that show at least `PIXELS` pixels; others are background."""
    objects, parts = smear.cut(smear.objects), smear.cut(smear.parts)
    counts = np.bincount(objects.ravel(), minlength=len(smear.kinds) + 1)
    keep = counts >= PIXELS
    keep[0] = False
    table = (np.cumsum(keep) * keep).astype(np.int32)
    objects = table[objects]
    boxes = np.array(
        [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(objects)], np.float32
    ).reshape(-1, 4)
    chosen = keep[1:]
    return Census(objects, parts * (objects > 0), boxes, smear.kinds[chosen], smear.attributes[chosen])


# --- picture ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and shot: (K, 3) absorbance of a unit of each dye, and the camera."""

    matrix: NDArray[np.float32]
    camera: Camera


def draw_stain(draws: Draws, crowd: Crowd, limits: Range) -> Stain:
    """Return the stain of a slide: between the two looks of May-Gruenwald-Giemsa and Wright (absorbances measured on
    pictures of BCCD and of CellaVision's analyser), a little turned."""
    warm = draws.unit("warm")
    nuclear = draws("contrast", *crowd.contrast)
    first = np.array([(0.55, 1.15, 0.22), (0.08, 0.30, 0.02), (0.17, 0.40, 0.42), (0.24, 0.15, 0.0), (0.1, 0.5, 0.6)])
    other = np.array([(1.2, 1.75, 0.6), (0.06, 0.17, 0.1), (0.16, 0.45, 0.45), (0.32, 0.22, 0.02), (0.17, 0.62, 0.75)])
    matrix = first * (1 - warm) + other * warm
    matrix = matrix * (1 + draws.spread("turn", matrix.size, 0.08).reshape(matrix.shape))
    strengths = [nuclear, *(draws(f"strength {i}", 0.65, 1.25) for i in range(1, len(DYES)))]
    shot = camera(draws, limits)
    tint = np.array([-24.0, -14.0, -20.0]) * (1 - warm) + np.array([4.0, -18.0, -38.0]) * warm
    tint *= draws("tint", 0.3, 1.1)
    white = np.clip(shot.white + tint, 150, 255).astype(np.float32)
    return Stain((matrix * np.array(strengths)[:, None]).astype(np.float32), replace(shot, white=white))


def render(smear: Smear, stain: Stain) -> NDArray[np.uint8]:
    """Return the (3, H, W) uint8 picture of a smear."""
    reach = min(smear.margin, int(4 * _OIL * stain.camera.blur / smear.um) + 2)
    edge = smear.margin - reach
    dyes = smear.dyes[:, edge : smear.dyes.shape[1] - edge, edge : smear.dyes.shape[2] - edge]
    dyes = dyes.copy()
    red = dyes[DYES.index("haemoglobin")]
    np.minimum(red, np.float32(0.6) + np.float32(0.4) * red, out=red)  # cells that lie over each other are flattened
    absorbed = np.tensordot(stain.matrix.T, dyes, axes=1)
    absorbed += np.float32(0.02) * smear.noise.cut(edge).smooth("plasma", 6.0)
    light = focus(np.exp(-absorbed), _OIL * stain.camera.blur / smear.um)
    light = np.ascontiguousarray(light[:, reach : light.shape[1] - reach, reach : light.shape[2] - reach])
    return expose(light, stain.camera, smear.noise.cut(smear.margin))


def smear_field(
    seed: int,
    draws: Draws,
    shape: tuple[int, int],
    um: float,
    difficulty: str,
    leukocytes: float,
    kinds: tuple[float, ...],
) -> tuple[NDArray[np.uint8], Census]:
    """Return one picture and what it shows."""
    crowd = CROWDS[difficulty]
    smear = lay_out(seed, shape, um, crowd, leukocytes, draws, kinds)
    return render(smear, draw_stain(draws, crowd, RANGES[difficulty])), census(smear)


__all__ = ["ATTRIBUTES", "CLASSES", "CROWDS", "PARTS", "Cell", "Census", "Crowd", "Smear", "census", "smear_field"]
