"""What is where in a field of tissue: glands, lumina, stroma, nuclei. No stain and no light: renderers add those.

Lengths are in um here and in pixels only where an array is drawn. The field is laid out on a canvas with a margin, so
that objects are cut by the border of the picture as a camera would cut them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, Noise, fractal, smooth
from zoo.data.phantom.shapes import Blobs, draw, outline

BACKGROUND, STROMA, EPITHELIUM, LUMEN = range(4)
EPITHELIAL, LYMPHOCYTE, FIBROBLAST = 1, 2, 3
TISSUE = ("background", "stroma", "epithelium", "lumen")
NUCLEI = ("epithelial", "lymphocyte", "fibroblast")

_MARGIN = 16.0  # um of canvas around the picture
_LUMEN = 40.0  # um2 below which a cavity is not one


@dataclass(frozen=True)
class Anatomy:
    """How crowded and how irregular a field is.

    `overlap`: share of a nucleus that may lie under others. `gap`: relative radius that is kept free around a nucleus
    (1 = none). `rough`: roughness of outlines. `rows`: chance of a second row of nuclei in an epithelium.
    `lymphocytes`, `fibroblasts`: nuclei per 1000 um2 of stroma.
    """

    overlap: float
    gap: float
    rough: float
    rows: float
    lymphocytes: float
    fibroblasts: float


ANATOMY: dict[str, Anatomy] = {
    "easy": Anatomy(overlap=0.0, gap=1.25, rough=0.05, rows=0.0, lymphocytes=0.7, fibroblasts=1.6),
    "medium": Anatomy(overlap=0.04, gap=1.0, rough=0.09, rows=0.4, lymphocytes=1.4, fibroblasts=2.4),
    "hard": Anatomy(overlap=0.22, gap=1.0, rough=0.14, rows=0.7, lymphocytes=2.4, fibroblasts=3.2),
}
PATCH = ("background", "stroma", "glands", "tumour", "inflammation")


@dataclass
class Layout:
    """A field on its canvas, (H, W) arrays of one shape; `margin` pixels on each side are not in the picture.

    `tissue` uint8 (`TISSUE`); `glands`, `lumina`, `nuclei` int32 instances; `classes`: class of nucleus i + 1; `depth`:
    um from the gland's outline, inside; `outside`: um to the nearest gland; `angle`: direction of the fibres;
    `nuclear`: relative radius in the nucleus that a pixel shows; `chromatin`: relative amount of chromatin.
    """

    um: float
    margin: int
    tissue: NDArray[np.uint8]
    glands: NDArray[np.int32]
    lumina: NDArray[np.int32]
    nuclei: NDArray[np.int32]
    classes: NDArray[np.int64]
    depth: Field
    outside: Field
    angle: Field
    chromatin: Field
    noise: Noise
    solid: bool

    def cut(self, field: NDArray[Any]) -> NDArray[Any]:
        """Return the part of a canvas that the picture shows."""
        m = self.margin
        return np.ascontiguousarray(field[..., m : field.shape[-2] - m, m : field.shape[-1] - m])


def patch_class(layout: Layout) -> int:
    """Return what a field shows, an index into `PATCH`.

    background: less than half of it is tissue; inflammation: lymphocytes at 1.5 or more per 1000 um2 of tissue and more
    of them than of other nuclei; tumour: solid nests on a tenth of the tissue; glands: epithelium and lumina on a
    tenth; stroma: what is left.
    """
    tissue = layout.cut(layout.tissue)
    counts = np.bincount(tissue.ravel(), minlength=len(TISSUE))
    area = int(counts[1:].sum())
    if area < tissue.size / 2:
        return PATCH.index("background")
    shown = np.bincount(layout.cut(layout.nuclei).ravel(), minlength=len(layout.classes) + 1)[1:] > 0
    kinds = np.bincount(layout.classes[shown], minlength=len(NUCLEI) + 1)
    lymphocytes = kinds[LYMPHOCYTE]
    if lymphocytes >= 1.5 * area * layout.um**2 / 1000 and 2 * lymphocytes >= kinds.sum():
        return PATCH.index("inflammation")
    if counts[EPITHELIUM] + counts[LUMEN] >= 0.1 * area:
        return PATCH.index("tumour" if layout.solid else "glands")
    return PATCH.index("stroma")


def lay_out(rng: np.random.Generator, shape: tuple[int, int], um: float, anatomy: Anatomy) -> Layout:
    """Return a random field of `shape` pixels of `um` um."""
    margin = int(np.ceil(_MARGIN / um))
    canvas = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    bare = _bare(rng, canvas, um)
    glands = _glands(rng, canvas, um, bare)
    inside = (glands > 0).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5).astype(np.float32) * np.float32(um)
    if inside.any():
        outside = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5).astype(np.float32) * np.float32(um)
    else:
        outside = np.full(canvas, 1e3, np.float32)
    solid = bool(rng.random() < 0.3)  # nests of cells without a cavity, as in carcinoma
    lumina = np.zeros_like(glands) if solid else _lumina(rng, depth, glands, um)
    tissue = np.full(canvas, STROMA, np.uint8)
    tissue[bare] = BACKGROUND
    tissue[glands > 0] = EPITHELIUM
    tissue[lumina > 0] = LUMEN
    layout = Layout(
        um,
        margin,
        tissue,
        glands,
        lumina,
        nuclei=np.zeros(canvas, np.int32),
        classes=np.zeros(0, np.int64),
        depth=depth,
        outside=outside,
        angle=_fibres(rng, outside, um),
        chromatin=np.zeros(canvas, np.float32),
        noise=Noise(int(rng.spawn(1)[0].integers(2**31)), canvas, um),
        solid=solid,
    )
    _place_nuclei(rng, layout, anatomy, solid)
    return layout


def _bare(rng: np.random.Generator, canvas: tuple[int, int], um: float) -> NDArray[np.bool_]:
    """Return where there is no tissue: beyond the edge of the section, in one field of five."""
    if rng.random() > 0.2:
        return np.zeros(canvas, bool)
    angle, place = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
    rows, columns = np.indices(canvas, dtype=np.float32)
    extent = np.float32(max(canvas) / 2)
    along_edge = (columns / extent - 1) * np.cos(angle) + (rows / extent - 1) * np.sin(angle)
    wavy = along_edge + 0.09 * fractal(rng, canvas, 60 / um)
    return np.asarray(wavy > place, bool)


def _glands(rng: np.random.Generator, canvas: tuple[int, int], um: float, bare: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return gland instances: rough ellipses that keep a strip of stroma between them."""
    glands = np.zeros(canvas, np.int32)
    height, width = canvas[0] * um, canvas[1] * um
    wanted = int(rng.poisson(height * width / 5500)) if rng.random() > 0.15 else 0
    kind = rng.uniform(20, 52)  # um: glands of one field are alike
    taken: list[tuple[float, float, float]] = []
    for _ in range(6 * wanted):
        if len(taken) >= wanted:
            break
        radius = float(kind * rng.uniform(0.75, 1.3))
        x, y = rng.uniform(-0.1 * width, 1.1 * width), rng.uniform(-0.1 * height, 1.1 * height)
        if all(np.hypot(x - a, y - b) > 0.92 * (radius + r) + 5 for a, b, r in taken):
            taken.append((x, y, radius))
    blocked = bare.astype(np.uint8)
    gap = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(3.5 / um) + 1,) * 2)
    for x, y, radius in taken:
        ring = outline(rng, np.array([0.16]), 2, 7)[0] * radius / um
        turn = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)
        stretch, tilt = rng.uniform(1, 1.35), rng.uniform(0, np.pi)
        u, v = ring * np.cos(turn) * stretch, ring * np.sin(turn) / stretch
        points = np.stack([x / um + u * np.cos(tilt) - v * np.sin(tilt), y / um + u * np.sin(tilt) + v * np.cos(tilt)])
        mask = np.zeros(canvas, np.uint8)
        cv2.fillPoly(mask, [np.rint(points.T).astype(np.int32)], 1)
        mask[blocked > 0] = 0
        mask = _largest(mask)
        if mask.sum() * um * um > 300:
            glands[mask > 0] = glands.max() + 1
            blocked |= cv2.dilate(mask, gap)
    return glands


def _largest(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), np.uint8)


def _lumina(rng: np.random.Generator, depth: Field, glands: NDArray[np.int32], um: float) -> NDArray[np.int32]:
    """Return cavities: what lies deeper in a gland than its epithelium is thick."""
    thick = rng.normal(15, 2, int(glands.max()) + 1).clip(10.5, 21).astype(np.float32)
    wavy = np.float32(1.6) * smooth(rng, (depth.shape[0], depth.shape[1]), 9 / um)
    hollow = ((depth > thick[glands] + wavy) & (glands > 0)).astype(np.uint8)
    hollow = cv2.morphologyEx(hollow, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(hollow, connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] * um * um >= _LUMEN
    keep[0] = False
    return np.asarray((np.cumsum(keep) * keep)[labels], np.int32)


def _fibres(rng: np.random.Generator, outside: Field, um: float) -> Field:
    """Return the direction of the fibres: slowly turning, and round the glands near them."""
    shape = (outside.shape[0], outside.shape[1])
    free = rng.uniform(0, np.pi) + 0.7 * smooth(rng, shape, 70 / um)
    soft = cv2.GaussianBlur(outside, (0, 0), max(1.0, 4 / um))
    gy, gx = np.gradient(soft)
    tangent = np.arctan2(gx, -gy)
    near = np.exp(-outside / np.float32(14))
    x = near * np.cos(2 * tangent) + (1 - near) * np.cos(2 * free)
    y = near * np.sin(2 * tangent) + (1 - near) * np.sin(2 * free)
    return np.asarray(np.arctan2(y, x) / 2, np.float32)


# --- nuclei -----------------------------------------------------------------------------------------------------------


def _place_nuclei(rng: np.random.Generator, layout: Layout, anatomy: Anatomy, solid: bool) -> None:
    classes: list[int] = []
    for kind, home, blobs in (
        (EPITHELIAL, EPITHELIUM, _epithelial(rng, layout, anatomy, solid)),
        (LYMPHOCYTE, STROMA, _lymphocytes(rng, layout, anatomy)),
        (FIBROBLAST, STROMA, _fibroblasts(rng, layout, anatomy)),
    ):
        if len(blobs):
            classes += [kind] * _paste(rng, layout, anatomy, blobs, home, kind, len(classes))
    layout.classes = np.asarray(classes, np.int64)


def _epithelial(rng: np.random.Generator, layout: Layout, anatomy: Anatomy, solid: bool) -> Blobs:
    """Return nuclei in rows along the outlines of glands, their long axes across the epithelium; rows up to the middle
    in a solid nest, in any direction there."""
    um = layout.um
    soft = cv2.GaussianBlur(layout.depth, (0, 0), max(1.0, 2 / um))
    gy, gx = np.gradient(soft)
    rows = [(rng.uniform(4.5, 6.5), 1.0)]
    if solid:
        rows += [(level, 0.9) for level in np.arange(rows[0][0] + 8.5, float(layout.depth.max()), 8.5)]
    elif rng.random() < anatomy.rows:
        rows += [(rows[0][0] + rng.uniform(4.5, 6.5), 0.75)]
    found: list[NDArray[Any]] = []
    pitch = rng.uniform(6.2, 8.2) / um
    for level, share in rows:
        level_set = (layout.depth > level).astype(np.uint8)
        contours, _ = cv2.findContours(level_set, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            points = contour[:, 0].astype(np.float64)
            arc = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
            count = int(arc[-1] / pitch)
            if count < 3:
                continue
            at = (np.arange(count) + rng.uniform(0, 1) + rng.normal(0, 0.14, count)) * pitch
            chosen = points[np.searchsorted(arc, at % arc[-1]).clip(0, len(points) - 1)]
            found.append(chosen[rng.random(count) < share])
    centres = np.concatenate(found) if found else np.zeros((0, 2))
    n = len(centres)
    columns, rows_at = centres[:, 0].astype(int), centres[:, 1].astype(int)
    normal = np.arctan2(gy[rows_at, columns], gx[rows_at, columns])
    push = rng.normal(0, 0.9, n) / um
    tilt = rng.normal(0, np.where(solid & (layout.depth[rows_at, columns] > 9), 1.5, 0.2), n)
    long, short = rng.normal(4.9, 0.6, n).clip(3.4, 7) / um, rng.normal(3.1, 0.35, n).clip(2.2, 4.2) / um
    return Blobs(
        centres[:, 0] + 0.5 + push * np.cos(normal),
        centres[:, 1] + 0.5 + push * np.sin(normal),
        long,
        short,
        normal + tilt,
        rng.uniform(0.5, 1.5, n) * anatomy.rough,
    )


def _scatter(rng: np.random.Generator, layout: Layout, density: Field) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x and y of points with `density` points per 1000 um2 in stroma."""
    area = layout.um**2 / 1000
    expected = np.where(layout.tissue == STROMA, density, 0).ravel() * area
    total = float(expected.sum())
    count = int(rng.poisson(total)) if total > 0 else 0
    if not count:
        return np.zeros(0), np.zeros(0)
    places = np.searchsorted(np.cumsum(expected), rng.uniform(0, total, count)).clip(0, expected.size - 1)
    y, x = np.unravel_index(places, layout.tissue.shape)
    return x + rng.uniform(0, 1, count), y + rng.uniform(0, 1, count)


def _lymphocytes(rng: np.random.Generator, layout: Layout, anatomy: Anatomy) -> Blobs:
    """Return small round nuclei, in crowds."""
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    crowd = np.exp(1.3 * smooth(rng, shape, 38 / um)) * np.float32(rng.gamma(1.2, 0.8))
    x, y = _scatter(rng, layout, (crowd * np.float32(anatomy.lymphocytes)).clip(0, 14))
    radius = rng.normal(2.9, 0.3, len(x)).clip(2.1, 3.8) / um
    squeeze = rng.uniform(0.82, 1.0, len(x))
    turn = rng.uniform(0, np.pi, len(x))
    return Blobs(x, y, radius, radius * squeeze, turn, rng.uniform(0.4, 1.1, len(x)) * anatomy.rough)


def _fibroblasts(rng: np.random.Generator, layout: Layout, anatomy: Anatomy) -> Blobs:
    """Return spindles along the fibres."""
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    density = np.exp(0.5 * smooth(rng, shape, 45 / um)) * np.float32(anatomy.fibroblasts)
    x, y = _scatter(rng, layout, density)
    n = len(x)
    angle = layout.angle[y.astype(int), x.astype(int)] + rng.normal(0, 0.14, n)
    plump = rng.random(n) < 0.3
    long = np.where(plump, rng.normal(5.5, 0.8, n), rng.normal(7.5, 1.6, n)).clip(4, 11) / um
    short = np.where(plump, rng.normal(2.6, 0.4, n), rng.normal(1.5, 0.3, n)).clip(0.9, 3.4) / um
    return Blobs(x, y, long, short, angle, rng.uniform(0.6, 1.6, n) * anatomy.rough)


_CHROMATIN = {  # class: mean amount, dark rim, nucleoli a nucleus
    EPITHELIAL: (0.78, 0.34, 1.2),
    LYMPHOCYTE: (1.22, 0.12, 0.0),
    FIBROBLAST: (0.98, 0.14, 0.2),
}


def _profiles(rng: np.random.Generator, radius: Field, kind: int, um: float, long: NDArray[Any]) -> Field:
    """Return how much chromatin lies at each pixel of the patches: a dark rim, nucleoli, soft borders."""
    mean, rim, nucleoli = _CHROMATIN[kind]
    amount = rng.lognormal(np.log(mean), 0.2, len(radius)).astype(np.float32)[:, None, None]
    edge = np.clip((1 - radius) * long.astype(np.float32)[:, None, None] * np.float32(0.8) + 0.5, 0, 1)
    ring = np.clip((radius - 0.6) / 0.3, 0, 1)
    profile = amount * (1 - rim / 2 + rim * ring)
    spots = rng.poisson(nucleoli, len(radius))
    reach = radius.shape[1] // 2
    for place in np.flatnonzero(spots):
        for _ in range(min(int(spots[place]), 3)):
            turn, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.8) / um
            y, x = int(reach + away * np.sin(turn)), int(reach + away * np.cos(turn))
            size = max(1, round(rng.uniform(0.5, 0.9) / um))
            profile[place, max(0, y - size + 1) : y + size, max(0, x - size + 1) : x + size] += rng.uniform(0.25, 0.55)
    return np.asarray(profile * edge * (radius < 1.2), np.float32)


def _paste(
    rng: np.random.Generator, layout: Layout, anatomy: Anatomy, blobs: Blobs, home: int, kind: int, before: int
) -> int:
    """Draw nuclei onto the layout, each where it fits; return how many did."""
    radius, top, left = draw(rng, blobs)
    profile = _profiles(rng, radius, kind, layout.um, blobs.short)
    height, width = layout.tissue.shape
    side = radius.shape[1]
    ok = (top >= 0) & (left >= 0) & (top + side <= height) & (left + side <= width)
    placed = 0
    for i in np.flatnonzero(ok):
        window = (slice(top[i], top[i] + side), slice(left[i], left[i] + side))
        inside = radius[i] < 1
        area = int(np.count_nonzero(inside))
        here = layout.nuclei[window]
        taken = here > 0
        hit = np.count_nonzero(taken & (radius[i] < anatomy.gap))
        if area < 4 or hit > anatomy.overlap * area:
            continue
        if np.count_nonzero(inside & (layout.tissue[window] == home)) < 0.9 * area:
            continue
        shown = inside & ~taken if hit else inside
        if hit:
            shown = _largest(shown.astype(np.uint8)) > 0
        placed += 1
        here[shown] = before + placed
        layout.chromatin[window] += profile[i]
    return placed
