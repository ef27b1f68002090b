"""Nuclei: where they want to be, which of them find room, and what they look like inside.

Candidates are functions of their place. One that would lie under a candidate of higher rank gives way (the second
process of Matern, 1960); those that gave way to one that gave way itself are asked once more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.layout import (
    EPITHELIAL,
    EPITHELIUM,
    FIBROBLAST,
    LYMPHOCYTE,
    STROMA,
    Anatomy,
    Layout,
)
from zoo.data.phantom.noise import Field, Noise, mix, normal, uniform, word
from zoo.data.phantom.plan import Traits
from zoo.data.phantom.shapes import Blobs, Spots, spots
from zoo.data.phantom.stars import Stars

_WIDE = 1.12
"""Relative radius up to which a nucleus's dye is smeared."""


def place(
    layout: Layout, anatomy: Anatomy, glands: Stars, solid: NDArray[np.bool_], vessels: Stars, across: Field
) -> Layout:
    """Return the layout with its nuclei. `across`: coordinate that grows across the fibres."""
    stroma = layout.tissue == STROMA
    crowd = crowding(layout)
    if layout.traits.even and stroma.any():
        crowd /= crowd[stroma].mean()
    asked = {
        LYMPHOCYTE: crowd * np.float32(anatomy.lymphocytes * layout.traits.crowd),
        FIBROBLAST: np.full(layout.noise.shape, anatomy.fibroblasts, np.float32),
    }
    groups = (
        (EPITHELIAL, False, _epithelial(layout, anatomy, glands, solid)),
        (FIBROBLAST, True, _endothelial(layout, anatomy, vessels)),
        (LYMPHOCYTE, False, _lymphocytes(layout, anatomy, asked[LYMPHOCYTE])),
        (FIBROBLAST, False, _fibroblasts(layout, anatomy, across, asked[FIBROBLAST])),
    )
    kinds = np.concatenate([np.full(len(b), kind) for kind, _, b in groups])
    walls = np.concatenate([np.full(len(b), wall) for _, wall, b in groups])
    if not len(kinds):
        return layout
    names = Blobs.__dataclass_fields__
    blobs = Blobs(*(np.concatenate([getattr(b, n) for *_, b in groups]) for n in names))
    rank = uniform(mix(blobs.key, 99)) + np.where(walls, 2, kinds == EPITHELIAL)
    order = np.argsort(rank, kind="stable")  # the last one drawn lies on top
    blobs, kinds, walls = blobs.take(order), kinds[order], walls[order]
    where = spots(blobs, layout.noise.shape, max(_WIDE, anatomy.gap))
    chosen = _with_room(layout, anatomy, where, kinds, walls)
    for kind, density in asked.items():
        wanted = round(float(density[stroma].sum()) * layout.um**2 / 1000)
        stand = np.flatnonzero(chosen & (kinds == kind) & ~walls)
        chosen[stand[np.argsort(mix(blobs.key[stand], 98), kind="stable")[wanted:]]] = False
    return _drawn(layout, blobs, where, kinds, walls, chosen)


def _with_room(
    layout: Layout, anatomy: Anatomy, where: Spots, kinds: NDArray[Any], walls: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return (N,) which of the candidates, in ascending rank, stand."""
    count = len(kinds)
    inside = where.radius < 1
    area = np.bincount(where.blob[inside], minlength=count)
    tissue = layout.tissue.ravel()[where.pixel[inside]]
    home = np.where(kinds == EPITHELIAL, EPITHELIUM, STROMA)[where.blob[inside]]
    at_home = np.bincount(where.blob[inside][tissue == home], minlength=count)
    whole = (area >= 4) & (at_home >= np.where(walls, 0.5, 0.9) * area)
    close = where.radius < anatomy.gap
    blob, pixel = where.blob[close], where.pixel[close]
    keep = whole[blob]
    blob, pixel = blob[keep], pixel[keep]
    order = np.argsort(blob, kind="stable")
    blob, pixel = blob[order], pixel[order]
    allowed = anatomy.overlap * area
    owner = np.empty(layout.tissue.size, np.int64)
    owner[pixel] = blob  # of equal indices the last one stays
    stands = whole & (np.bincount(blob[owner[pixel] != blob], minlength=count) <= allowed)
    again = stands[blob]
    owner[pixel[~again]] = blob[~again]
    owner[pixel[again]] = blob[again]
    lost = np.bincount(blob[owner[pixel] != blob], minlength=count) <= allowed
    return np.asarray(stands | (whole & lost))


_CHROMATIN = {  # class: mean amount, dark rim, nucleoli a nucleus, deviation of the amount
    EPITHELIAL: (0.78, 0.34, 1.2, 0.2),
    LYMPHOCYTE: (1.2, 0.14, 0.0, 0.12),
    FIBROBLAST: (0.96, 0.16, 0.2, 0.24),
}


def _drawn(
    layout: Layout,
    blobs: Blobs,
    where: Spots,
    kinds: NDArray[Any],
    walls: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
) -> Layout:
    """Return the layout with the chosen nuclei on it: ids in the order of their drawing, chromatin added up."""
    ids = np.where(chosen, np.cumsum(chosen), 0).astype(np.int32)
    where = where.take(chosen[where.blob])
    order = np.argsort(where.blob, kind="stable")
    where = where.take(order)
    nuclei = np.zeros(layout.tissue.size, np.int32)
    inside = where.radius < 1
    nuclei[where.pixel[inside]] = ids[where.blob[inside]]
    amount = np.bincount(where.pixel, _profile(layout, blobs, where, kinds), minlength=nuclei.size)
    return replace(
        layout,
        nuclei=nuclei.reshape(layout.tissue.shape),
        classes=kinds[chosen].astype(np.int64),
        keys=blobs.key[chosen],
        walls=walls[chosen],
        chromatin=amount.reshape(layout.tissue.shape).astype(np.float32),
    )


def _profile(layout: Layout, blobs: Blobs, where: Spots, kinds: NDArray[Any]) -> Field:
    """Return how much chromatin lies at each spot: pale within and dark at the rim, nucleoli, soft borders."""
    mean, rim, nucleoli, spread = (np.array([0.0, *(_CHROMATIN[k][i] for k in (1, 2, 3))]) for i in range(4))
    key = blobs.key
    amount = mean[kinds] * np.exp(spread[kinds] * normal(mix(key, 21)))
    pale = np.where(kinds == EPITHELIAL, layout.traits.pale, 0.0)  # vesicular nuclei: most of it lies at the rim
    amount = amount * (1 - 0.35 * pale)
    dark = rim[kinds] + 0.75 * pale * (0.6 + 0.8 * uniform(mix(key, 22)))
    blob, radius = where.blob, where.radius
    ring = np.clip((radius - np.float32(0.55)) * np.float32(1 / 0.35), 0, 1)
    soft = np.clip((1 - radius) * (blobs.short * 0.8).astype(np.float32)[blob] + np.float32(0.5), 0, 1)
    inner, outer = (amount * (1 - dark / 2)).astype(np.float32), (amount * dark).astype(np.float32)
    profile = inner[blob] + outer[blob] * ring
    um = np.float32(layout.um)
    for k in range(2):
        has = uniform(mix(key, 30 + k)) < np.minimum(nucleoli[kinds] / 2, 1)
        at = has[blob]
        turn, far = uniform(mix(key, 40 + k)) * 2 * np.pi, uniform(mix(key, 50 + k)) * 1.9 / layout.um
        size = (0.45 + 0.55 * uniform(mix(key, 60 + k))).astype(np.float32)
        own = blob[at]
        away = np.hypot(
            where.dy[at] - (far * np.sin(turn)).astype(np.float32)[own],
            where.dx[at] - (far * np.cos(turn)).astype(np.float32)[own],
        )
        profile[at] += np.clip((size[own] - away * um) * np.float32(2.2) + np.float32(0.5), 0, 1) * np.float32(0.5)
    return np.asarray(profile * soft, np.float32)


# --- candidates -------------------------------------------------------------------------------------------------------


def _pixels(noise: Noise, y: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where points of the plane (um) lie on the canvas, in pixels."""
    return y / noise.um - noise.origin[0], x / noise.um - noise.origin[1]


def _no_blobs() -> Blobs:
    none = np.zeros(0)
    return Blobs(none, none, none, none, none, none, none.astype(np.uint64))


def _epithelial(layout: Layout, anatomy: Anatomy, glands: Stars, solid: NDArray[np.bool_]) -> Blobs:
    """Return nuclei in rows along the outlines of glands, their long axes across the epithelium; rows up to the middle
    in a solid nest, in any direction there."""
    traits, um = layout.traits, layout.um
    curves = _rows(traits, glands, solid)
    if curves is None:
        return _no_blobs()
    star, number, share, ys, xs = curves
    arc = np.concatenate([np.zeros((len(star), 1)), np.cumsum(np.hypot(np.diff(ys), np.diff(xs)), 1)], 1)
    counts = (arc[:, -1] / traits.pitch).astype(np.intp)
    counts[counts < 3] = 0
    row = np.repeat(np.arange(len(star)), counts)
    k = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = mix(glands.key[star[row]], 70 + number[row], k)
    total = arc[row, -1]
    at = ((k + 0.5 + 0.1 * normal(key)) * total / counts[row]) % total
    ends = np.cumsum(arc[:, -1] + 1)  # rows one after the other on one line
    line = (arc + (ends - arc[:, -1])[:, None]).ravel()
    after = np.searchsorted(line, at + (ends - arc[:, -1])[row], side="right") - row * arc.shape[1]
    after = after.clip(1, arc.shape[1] - 1)
    t = (at - arc[row, after - 1]) / np.maximum(arc[row, after] - arc[row, after - 1], 1e-6)
    dy, dx = ys[row, after] - ys[row, after - 1], xs[row, after] - xs[row, after - 1]
    y, x = ys[row, after - 1] + t * dy, xs[row, after - 1] + t * dx
    tilt = np.where(solid[star[row]] & (number[row] > 0), 1.5, 0.22) * normal(mix(key, 1))
    angle = np.arctan2(-dx, dy) + tilt
    rows, columns = _pixels(layout.noise, y, x)
    taken = (uniform(mix(key, 2)) < share[row]) & (rows > 0) & (rows < layout.noise.shape[0])
    taken &= (columns > 0) & (columns < layout.noise.shape[1])
    y, x, angle, key = y[taken], x[taken], angle[taken], key[taken]
    push = 0.9 * normal(mix(key, 3))
    size = 1 + 0.18 * layout.traits.pale
    long = (4.7 + 0.65 * normal(mix(key, 4))).clip(3.4, 7) / um * size
    short = (0.39 * traits.pitch + 0.4 * normal(mix(key, 5))).clip(2.0, 4.2) / um * size
    y, x = _pixels(layout.noise, y + push * np.sin(angle), x + push * np.cos(angle))
    return Blobs(x, y, long, short, angle, (0.5 + uniform(mix(key, 6))) * anatomy.rough, key)


def _rows(traits: Traits, glands: Stars, solid: NDArray[np.bool_]) -> tuple[Any, ...] | None:
    """Return the rows that nuclei stand in: star, number of the row in it, share of its places that are taken, and the
    closed lines y and x, (R, 97) um."""
    if not len(glands):
        return None
    middle = np.where(solid, (glands.ring * glands.slope).min(1), 0.0)
    deep = max(0, int((float(middle.max()) - traits.first) / 8.2))
    levels = traits.first + 8.2 * np.arange(deep + 1)
    star, number = (a.ravel() for a in np.meshgrid(np.arange(len(glands)), np.arange(deep + 1), indexing="ij"))
    level, share = levels[number], np.where(number == 0, 1.0, 0.92)
    wanted = (number == 0) | (level < middle[star])
    if traits.second:
        extra = np.flatnonzero(~solid)
        star, number = np.append(star, extra), np.append(number, np.full(len(extra), 60))
        level, share = np.append(level, np.full(len(extra), traits.second)), np.append(share, np.full(len(extra), 0.75))
        wanted = np.append(wanted, np.ones(len(extra), bool))
    radius = glands.ring[star] - level[:, None] / glands.slope[star]
    wanted &= (radius > 1).all(1)
    star, number, share, radius = star[wanted], number[wanted], share[wanted], radius[wanted]
    if not len(star):
        return None
    turn = np.linspace(0, 2 * np.pi, radius.shape[1] + 1)
    radius = np.concatenate([radius, radius[:, :1]], 1)
    y = glands.y[star][:, None] + radius * np.sin(turn)
    return star, number, share, y, glands.x[star][:, None] + radius * np.cos(turn)


def _endothelial(layout: Layout, anatomy: Anatomy, vessels: Stars) -> Blobs:
    """Return flat nuclei along the walls of vessels."""
    found: list[tuple[Any, ...]] = []
    for i in range(len(vessels)):
        y, x = vessels.curve(i, -0.7)
        arc = np.hypot(np.diff(y, append=y[:1]), np.diff(x, append=x[:1]))
        count = max(2, int(arc.sum() / 15))
        key = mix(vessels.key[i], 80, np.arange(count))
        at = ((np.arange(count) + uniform(key)) / count * len(y)).astype(int) % len(y)
        after = (at + 1) % len(y)
        found.append((y[at], x[at], np.arctan2(y[after] - y[at], x[after] - x[at]), key))
    if not found:
        return _no_blobs()
    y, x, angle, key = (np.concatenate(parts) for parts in zip(*found, strict=True))
    y, x = _pixels(layout.noise, y, x)
    long = (4.2 + 0.8 * normal(mix(key, 4))).clip(2.5, 6) / layout.um
    short = (1.35 + 0.25 * normal(mix(key, 5))).clip(0.8, 2) / layout.um
    return Blobs(x, y, long, short, angle, (0.5 + uniform(mix(key, 6))) * anatomy.rough, key)


_CELL = 12.0  # um: side of the cells of the plane that points are drawn in
_SLOTS = 8
_SURPLUS = {LYMPHOCYTE: 1.8, FIBROBLAST: 1.5}
"""Candidates for a nucleus that is asked for: many find no room."""


def _scatter(
    layout: Layout, key: str, density: Field, clear: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint64]]:
    """Return y, x (pixels) and keys of random points of the stroma, `density` points per 1000 um2,
    `clear` um off glands and vessels."""
    noise = layout.noise
    ranges = [
        np.arange(int(o * noise.um // _CELL), int(((o + n) * noise.um) // _CELL) + 1)
        for o, n in zip(noise.origin, noise.shape, strict=True)
    ]
    row, column, slot = np.meshgrid(*ranges, np.arange(_SLOTS), indexing="ij")
    bits = mix(noise.seed, word(key), row.ravel(), column.ravel(), slot.ravel())
    y, x = _pixels(noise, (row.ravel() + uniform(bits)) * _CELL, (column.ravel() + uniform(mix(bits, 1))) * _CELL)
    inside = (y >= 0) & (x >= 0) & (y < noise.shape[0]) & (x < noise.shape[1])
    y, x, bits = y[inside], x[inside], bits[inside]
    at = (y.astype(np.intp), x.astype(np.intp))
    chance = density[at] * (_CELL**2 / 1000 / _SLOTS)
    taken = (uniform(mix(bits, 2)) < chance) & (layout.tissue[at] == STROMA)
    taken &= (layout.depth[at] < -clear) & (layout.vessel[at] < -clear)
    return y[taken], x[taken], bits[taken]


def _surplus(layout: Layout, kind: int) -> float:
    return _SURPLUS[kind] * (1.6 if layout.traits.even else 1.0)


def crowding(layout: Layout) -> Field:
    """Return (H, W) the factor on the density of lymphocytes: they come in crowds. Its mean over a plane is 1."""
    spread = np.float32(0.85)
    return np.asarray(np.exp(spread * layout.noise.smooth("crowd", 38.0) - spread**2 / 2), np.float32)


def _lymphocytes(layout: Layout, anatomy: Anatomy, density: Field) -> Blobs:
    """Return small round nuclei, in crowds."""
    um = layout.um
    y, x, key = _scatter(layout, "lymphocytes", density * np.float32(_surplus(layout, LYMPHOCYTE)), 1.6)
    radius = (2.9 + 0.3 * normal(key)).clip(2.1, 3.8) / um
    turn = np.pi * uniform(mix(key, 3))
    squeeze = 0.84 + 0.16 * uniform(mix(key, 4))
    return Blobs(x, y, radius, radius * squeeze, turn, (0.4 + 0.7 * uniform(mix(key, 5))) * anatomy.rough, key)


def _fibroblasts(layout: Layout, anatomy: Anatomy, across: Field, density: Field) -> Blobs:
    """Return spindles along the fibres."""
    um = layout.um
    y, x, key = _scatter(layout, "fibroblasts", density * np.float32(_surplus(layout, FIBROBLAST)), 0.9)
    soft = cv2.GaussianBlur(across, (0, 0), max(1.0, 2.5 / um))
    rows, columns = (a.astype(np.intp).clip(1, n - 2) for a, n in zip((y, x), layout.noise.shape, strict=True))
    gy = soft[rows + 1, columns] - soft[rows - 1, columns]
    gx = soft[rows, columns + 1] - soft[rows, columns - 1]
    angle = np.arctan2(gx, -gy) + 0.14 * normal(key)
    plump = uniform(mix(key, 3)) < 0.3
    long = np.where(plump, 5.3 + 0.8 * normal(mix(key, 4)), 7.0 + 1.6 * normal(mix(key, 4))).clip(3.6, 10.5) / um
    short = np.where(plump, 2.5 + 0.4 * normal(mix(key, 5)), 1.5 + 0.3 * normal(mix(key, 5))).clip(0.9, 3.4) / um
    return Blobs(x, y, long, short, angle, (0.6 + uniform(mix(key, 6))) * anatomy.rough, key)
