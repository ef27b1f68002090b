"""What lies where in a piece of tissue: glands and cavities, stroma, vessels, fat, and every nucleus. Knows no stain.

Lengths are in um and become pixels by `um`, so that a layout means the same at any resolution. Everything is a function
of (seed, place): a window of the plane knows what lies in it without its neighbours, and continues them. A field is
drawn on a canvas with a margin, so that objects are cut by the border of the picture as a camera would cut them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, Noise, mix, step, uniform, word
from zoo.data.phantom.plan import NEST, NOTHING, Plan, Traits, draw_plan
from zoo.data.phantom.stars import AROUND, Depths, Stars, depths, enlarged, scatter

BACKGROUND, STROMA, EPITHELIUM, LUMEN, VESSEL, FAT = range(6)
EPITHELIAL, LYMPHOCYTE, FIBROBLAST = 1, 2, 3
TISSUE = ("background", "stroma", "epithelium", "lumen", "vessel", "fat")
NUCLEI = ("epithelial", "lymphocyte", "fibroblast")
PATCH = ("background", "stroma", "glands", "tumour", "inflammation")

MARGIN = 16.0
"""um of canvas around the picture."""
_LUMEN = 40.0  # um2 below which a cavity is not one
_GAP = 5.0  # um of stroma between glands
_WALL = 1.6  # um of a vessel


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
    "easy": Anatomy(overlap=0.0, gap=1.2, rough=0.07, rows=0.0, lymphocytes=0.7, fibroblasts=1.6),
    "medium": Anatomy(overlap=0.1, gap=1.0, rough=0.12, rows=0.5, lymphocytes=1.4, fibroblasts=2.4),
    "hard": Anatomy(overlap=0.25, gap=1.0, rough=0.18, rows=0.75, lymphocytes=2.4, fibroblasts=3.2),
}


@dataclass(frozen=True)
class Layout:
    """A field on its canvas, (H, W) arrays of one shape; `margin` pixels on each side are not in the picture.

    `tissue` uint8 (`TISSUE`); `glands`, `lumina`, `nuclei` int32 instances; `classes`: class of nucleus i + 1,
    `keys`: bits that its draws come from, `walls`: whether it lies in the wall of a vessel; `nests`: whether gland
    i + 1 is solid; `depth`: um inside the nearest gland, negative outside; `vessel`: the same of vessels;
    `adipose`: um from the nearest wall between two fat cells; `fibres` (2, H, W): fine fibres and bundles,
    noise of deviation 1 drawn out along their direction; `chromatin`: relative amount of it.
    """

    um: float
    margin: int
    noise: Noise
    traits: Traits
    tissue: NDArray[np.uint8]
    glands: NDArray[np.int32]
    lumina: NDArray[np.int32]
    nuclei: NDArray[np.int32]
    classes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    walls: NDArray[np.bool_]
    nests: NDArray[np.bool_]
    depth: Field
    vessel: Field
    adipose: Field
    fibres: Field
    chromatin: Field

    def cut(self, field: NDArray[Any]) -> NDArray[Any]:
        """Return the part of a canvas that the picture shows."""
        m = self.margin
        return np.ascontiguousarray(field[..., m : field.shape[-2] - m, m : field.shape[-1] - m])

    def _maps(self) -> dict[str, NDArray[Any]]:
        names = ("tissue", "glands", "lumina", "nuclei", "depth", "vessel", "adipose", "fibres", "chromatin")
        return {name: getattr(self, name) for name in names}

    def flipped(self, axis: int) -> Layout:
        """Return the layout upside down (axis 0) or left to right (axis 1)."""
        maps: dict[str, Any] = {k: np.flip(m, axis - 2).copy() for k, m in self._maps().items()}
        return replace(self, noise=self.noise.flipped(axis), **maps)

    def within(self, margin: int) -> Layout:
        """Return the layout on a canvas with a smaller margin."""
        less = self.margin - margin
        if less <= 0:
            return self
        maps: dict[str, Any] = {
            k: m[..., less : m.shape[-2] - less, less : m.shape[-1] - less] for k, m in self._maps().items()
        }
        return replace(self, margin=margin, noise=self.noise.cut(less), **maps)


def patch_class(layout: Layout) -> int:
    """Return what a field shows, an index into `PATCH`.

    background: less than half of it is tissue; inflammation: lymphocytes at 1.5 or more per 1000 um2 of tissue and more
    of them than of other nuclei; tumour: solid nests on a tenth of the tissue; glands: epithelium and lumina on a
    tenth; stroma: what is left.
    """
    tissue, glands = layout.cut(layout.tissue), layout.cut(layout.glands)
    counts = np.bincount(tissue.ravel(), minlength=len(TISSUE))
    area = int(counts[1:].sum())
    if area < tissue.size / 2:
        return PATCH.index("background")
    shown = np.bincount(layout.cut(layout.nuclei).ravel(), minlength=len(layout.classes) + 1)[1:] > 0
    kinds = np.bincount(layout.classes[shown], minlength=len(NUCLEI) + 1)
    lymphocytes = kinds[LYMPHOCYTE]
    if lymphocytes >= 1.5 * area * layout.um**2 / 1000 and 2 * lymphocytes >= kinds.sum():
        return PATCH.index("inflammation")
    solid = np.count_nonzero(np.concatenate([[False], layout.nests])[glands])
    if solid >= 0.1 * area:
        return PATCH.index("tumour")
    return PATCH.index("glands" if counts[EPITHELIUM] + counts[LUMEN] >= 0.1 * area else "stroma")


def lay_out(
    seed: int, shape: tuple[int, int], um: float, anatomy: Anatomy, beyond: float = 0.0, even: bool = False
) -> Layout:
    """Return a random field of `shape` pixels of `um` um; the canvas reaches `beyond` um farther than it must.

    `even`: every field has its share of lymphocytes; otherwise some have few and some are full of them.
    """
    margin = int(np.ceil((MARGIN + beyond) / um))
    noise = Noise(seed, (shape[0] + 2 * margin, shape[1] + 2 * margin), um, (-margin, -margin))
    plan, traits = draw_plan(noise.rng("plan"), seed, (shape[0] * um, shape[1] * um), anatomy.rows)
    if even:
        traits = replace(traits, crowd=1.0, even=True)
    return window(noise, margin, plan, traits, anatomy)


def window(noise: Noise, margin: int, plan: Plan, traits: Traits, anatomy: Anatomy) -> Layout:
    """Return the layout of a window of the plane: `noise` is that of its canvas."""
    from zoo.data.phantom.nuclei import place  # it needs the classes above

    glands = _glands(noise, traits)
    kinds = plan.glands(glands.y, glands.x) if len(glands) else np.zeros(0, np.int64)
    glands, kinds = glands.take(kinds != NOTHING), kinds[kinds != NOTHING]
    around = depths(glands, noise)
    depth = np.minimum(around.first, (around.first - around.second - np.float32(_GAP)) / 2)
    solid = kinds == NEST
    vessels = _vessels(noise, glands, plan)
    vessel = depths(vessels, noise).first if len(vessels) else np.full(noise.shape, -1e3, np.float32)
    adipose = _fat(noise, plan) if plan.fatty else np.full(noise.shape, -1.0, np.float32)
    tissue = _tissue(noise, plan, traits, depth, vessel, adipose, np.concatenate([[False], solid])[around.which])
    inside = (tissue == EPITHELIUM) | (tissue == LUMEN)
    layout = Layout(
        noise.um,
        margin,
        noise,
        traits,
        tissue,
        glands=np.where(inside, around.which, 0).astype(np.int32),
        lumina=_cavities(tissue, noise.um),
        nuclei=np.zeros(noise.shape, np.int32),
        classes=np.zeros(0, np.int64),
        keys=np.zeros(0, np.uint64),
        walls=np.zeros(0, bool),
        nests=solid,
        depth=depth,
        vessel=vessel,
        adipose=adipose,
        fibres=np.zeros((2, *noise.shape), np.float32),
        chromatin=np.zeros(noise.shape, np.float32),
    )
    stream = _stream(noise, glands, around, traits)
    return place(replace(layout, fibres=_fibres(noise, *stream)), anatomy, glands, solid, vessels, stream[0])


def _glands(noise: Noise, traits: Traits) -> Stars:
    """Return gland outlines near the window."""
    pitch = 2.05 * traits.radius + 8
    reach = 1.9 * traits.radius + AROUND
    return scatter(noise, "glands", pitch, (0.72 * traits.radius, 1.18 * traits.radius), 0.2, 1.3, reach)


def _vessels(noise: Noise, glands: Stars, plan: Plan) -> Stars:
    """Return vessels near the window: few, small, away from glands and edges."""
    found = scatter(noise, "vessels", 88.0, (4.0, 15.0), 0.14, 1.9, 60.0)
    if not len(found):
        return found
    chosen = uniform(mix(found.key, 11)) < 0.3
    size = found.ring.max(1) + 4
    if len(glands):
        away = np.hypot(found.y[:, None] - glands.y, found.x[:, None] - glands.x)
        chosen &= (away > size[:, None] + glands.ring.max(1)).all(1)
    chosen &= plan.tissue(found.y, found.x) > size + 4
    return found.take(chosen & (plan.fat(found.y, found.x) < -size))


def _fat(noise: Noise, plan: Plan) -> Field:
    """Return um to the nearest wall between fat cells, inside fat; negative elsewhere."""
    stride = max(1, round(1.0 / noise.um))
    shape = tuple(-(-n // stride) for n in noise.shape)
    y, x = (
        (((np.arange(n) + 0.5) * stride + o) * noise.um).astype(np.float32)
        for n, o in zip(shape, noise.origin, strict=True)
    )
    pitch = np.float32(46)
    row, column = np.floor(y / pitch).astype(np.int64)[:, None], np.floor(x / pitch).astype(np.int64)[None]
    first, second = np.full(shape, 1e6, np.float32), np.full(shape, 1e6, np.float32)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            bits = mix(noise.seed, word("fat cells"), row + i, column + j)
            away = np.hypot(
                y[:, None] - ((row + i + uniform(bits)) * pitch).astype(np.float32),
                x[None] - ((column + j + uniform(mix(bits, 1))) * pitch).astype(np.float32),
            ).astype(np.float32)
            second = np.minimum(second, np.maximum(first, away))
            first = np.minimum(first, away)
    wall = np.where(plan.fat(y[:, None], x[None]) > 0, np.minimum((second - first) / 2, 20), -1)
    return enlarged(wall.astype(np.float32), noise.shape, stride)


def _tissue(
    noise: Noise, plan: Plan, traits: Traits, depth: Field, vessel: Field, adipose: Field, solid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    tissue = np.full(noise.shape, STROMA, np.uint8)
    tissue[vessel > 0] = VESSEL
    tissue[adipose > 0.7] = FAT
    if (depth > -2).any():
        ragged = depth + np.float32(0.5) * noise.smooth("ragged", 5.0)
        tissue[ragged > 0] = EPITHELIUM
        if not solid.all():
            thick = np.float32(traits.thick) + np.float32(1.8) * noise.smooth("thick", 9.0)
            thick += np.float32(1.6) * noise.smooth("thick'", 40.0)
            tissue[(depth > thick) & ~solid] = LUMEN
    if plan.edged:
        stride = max(1, round(4.0 / noise.um))
        y, x = (
            ((np.arange(-(-n // stride)) + 0.5) * stride + o) * noise.um
            for n, o in zip(noise.shape, noise.origin, strict=True)
        )
        edge = enlarged(plan.tissue(y[:, None], x[None]), noise.shape, stride)
        tissue[edge + noise.smooth("edge", 7.0) < 0] = BACKGROUND
    return tissue


def _cavities(tissue: NDArray[np.uint8], um: float) -> NDArray[np.int32]:
    """Return cavities; those too small are made epithelium again (in place)."""
    hollow = (tissue == LUMEN).astype(np.uint8)
    if not hollow.any():
        return np.zeros(tissue.shape, np.int32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(hollow, connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] * um * um >= _LUMEN
    keep[0] = False
    cavities = np.asarray((np.cumsum(keep) * keep)[labels], np.int32)
    tissue[(hollow > 0) & (cavities == 0)] = EPITHELIUM
    return cavities


# --- fibres -----------------------------------------------------------------------------------------------------------

_ACROSS, _ALONG = 0.55, 3.6  # um per texel of the fibres' texture
_SIDE = 1024


def _stream(noise: Noise, glands: Stars, around: Depths, traits: Traits) -> tuple[Field, Field]:
    """Return two (H, W) coordinates in um, across and along the fibres: they wave, and flow round the glands, as water
    round stones (the stream function of each stone vanishes on its outline)."""
    y, x = (
        (((np.arange(n) + 0.5) + o) * noise.um).astype(np.float32)
        for n, o in zip(noise.shape, noise.origin, strict=True)
    )
    cos, sin = np.float32(np.cos(traits.turn)), np.float32(np.sin(traits.turn))
    across = (y[:, None] * cos - x[None] * sin) + np.float32(17) * noise.smooth("stream", 85.0)
    across += np.float32(5.5) * noise.smooth("stream'", 33.0) + np.float32(1.6) * noise.smooth('stream"', 14.0)
    along = (y[:, None] * sin + x[None] * cos) + np.float32(12) * noise.smooth("stream''", 85.0)
    if len(glands):
        of_gland = np.concatenate([[0], glands.y * float(cos) - glands.x * float(sin)]).astype(np.float32)
        near = np.exp(np.minimum(around.first, 0) / np.float32(11))
        across -= near * np.float32(0.93) * (across - of_gland[around.which])
    return across, along


_TEXTURE: list[Field] = []


def _texture() -> Field:
    """Return (1024, 1024, 2) noise that repeats: fine fibres and bundles, drawn out along the second axis."""
    if not _TEXTURE:
        rng = np.random.default_rng(20)
        planes = []
        for across, length in ((0.9, 2.2), (3.6, 4.5)):
            fine = cv2.copyMakeBorder(rng.standard_normal((_SIDE, _SIDE), np.float32), 32, 32, 32, 32, cv2.BORDER_WRAP)
            plane = cv2.GaussianBlur(fine, (0, 0), length, sigmaY=across)[32:-32, 32:-32]
            planes.append(plane / plane.std())
        _TEXTURE.append(np.ascontiguousarray(np.stack(planes, -1), np.float32))
    return _TEXTURE[0]


def _fibres(noise: Noise, across: Field, along: Field) -> Field:
    """Return (2, H, W) fine fibres and bundles."""
    shift = uniform(mix(noise.seed, word("fibres"), np.arange(2))) * _SIDE
    maps = []
    for field, size, start in ((along, _ALONG, shift[0]), (across, _ACROSS, shift[1])):
        place = field * np.float32(1 / size)
        first = (float(place.min()) + start) % _SIDE - float(place.min())  # where the window begins in the texture
        place += np.float32(start + np.round((first - start) / _SIDE) * _SIDE)
        maps.append(place)
    found = cv2.remap(_texture(), maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.ascontiguousarray(np.moveaxis(found, -1, 0))


__all__ = ["ANATOMY", "NUCLEI", "PATCH", "TISSUE", "Anatomy", "Layout", "lay_out", "patch_class", "step", "window"]
