"""A slide: several sections on glass, with glands, tumour, fat, and what people draw on it, read window by window.

Nothing larger than a block is ever held. Every block is a function of (seed, place), so that windows agree where they
meet, and an overview shows what the finest level shows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.he import concentrations, draw_stain, reach
from zoo.data.phantom.layout import ANATOMY, BACKGROUND, EPITHELIUM, FAT, LUMEN, MARGIN, Layout, window
from zoo.data.phantom.noise import Field, Noise, cloud, mix, uniform, word
from zoo.data.phantom.optics import Draws, expose, focus, mixed
from zoo.data.phantom.plan import GLAND, NEST, NOTHING, Traits, draw_traits

REGIONS = ("background", "stroma", "glands", "tumour", "fat", "pen")
DIAGNOSES = ("benign", "tumour")
BLOCK = 512
"""Side of the blocks that a slide is computed in, in pixels of the level that is computed."""
FINEST = 2.0
"""um per pixel above which a block is computed finer and reduced: nuclei must not fall between the pixels."""
_INKS = np.array([(1.6, 1.1, 0.25), (1.5, 0.45, 1.1), (2.2, 2.2, 2.2)], np.float32)  # blue, green, black


@dataclass(frozen=True)
class SlidePlan:
    """What lies where on a slide of `size` um: `sections` (N, 4) centre y, x and half axes; `lesions` (M, 3) centre and
    radius of tumours; `share` of the tissue that has glands, of fat."""

    seed: int
    size: tuple[float, float]
    sections: NDArray[np.float64]
    lesions: NDArray[np.float64]
    glandular: float
    adipose: float
    edged: bool = field(default=True, init=False)
    fatty: bool = field(default=True, init=False)

    def sections_at(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return (N, ...) um inside each section, about."""
        ragged = cloud(self.seed, "outline", 0.11 * min(self.size), y, x) * np.float32(0.045 * min(self.size))
        ragged = ragged + cloud(self.seed, "outline'", 90.0, y, x) * np.float32(18)
        found = []
        for cy, cx, ry, rx in self.sections:
            radius = np.hypot((y - cy) / ry, (x - cx) / rx)
            found.append((1 - radius) * min(ry, rx) + ragged)
        return np.stack(found).astype(np.float32)

    def tissue(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return um inside a section; tears let the glass shine through."""
        inside = self.sections_at(y, x).max(0)
        tear = cloud(self.seed, "tears", 260.0, y, x) + 0.4 * cloud(self.seed, "tears'", 45.0, y, x)
        return np.asarray(np.minimum(inside, (2.35 - tear) * np.float32(60)), np.float32)

    def lesion(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return um inside a tumour."""
        depth = np.full(np.broadcast_shapes(y.shape, x.shape), -1e4, np.float32)
        ragged = cloud(self.seed, "lesion", 150.0, y, x)
        for cy, cx, radius in self.lesions:
            depth = np.maximum(depth, radius - np.hypot(y - cy, x - cx) + np.float32(0.3 * radius) * ragged)
        return np.asarray(depth, np.float32)

    def glands(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
        """Return nests in tumours, glands in the mucosa, few elsewhere."""
        lot = uniform(
            mix(self.seed, word("presence"), np.floor(y * 16).astype(np.int64), np.floor(x * 16).astype(np.int64))
        )
        mucosa = cloud(self.seed, "mucosa", 700.0, y, x) < self.glandular
        kind = np.where(mucosa & (lot < 0.92), GLAND, NOTHING)
        return np.where((self.lesion(y, x) > 0) & (lot < 0.88), NEST, kind)

    def fat(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return um inside fat: outside the mucosa and away from tumours."""
        depth = (cloud(self.seed, "fat", 620.0, y, x) - np.float32(self.adipose)) * np.float32(240)
        mucosa = (cloud(self.seed, "mucosa", 700.0, y, x) - np.float32(self.glandular)) * np.float32(260) - 40
        return np.asarray(np.minimum(np.minimum(depth, mucosa), -self.lesion(y, x) - 60), np.float32)


def draw_slide(rng: np.random.Generator, seed: int, size: tuple[float, float], tumour: bool) -> SlidePlan:
    """Return the plan of a slide of `size` um: one to three sections in a row, of one to three tumours where asked."""
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3])) if size[1] >= 0.8 * size[0] else 1
    pitch = size[1] / count
    shape = rng.uniform(0.75, 1.0, 2)
    sections = np.array(
        [
            (
                size[0] * rng.uniform(0.46, 0.54),
                pitch * (k + rng.uniform(0.47, 0.53)),
                0.40 * size[0] * shape[0] * rng.uniform(0.92, 1.05),
                0.43 * pitch * shape[1] * rng.uniform(0.92, 1.05),
            )
            for k in range(count)
        ]
    )
    lesions = []
    if tumour:
        turns, fars = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, 0.55, 3)
        for k in range(int(rng.integers(1, 4))):  # the sections are neighbours: a tumour is seen in each
            for cy, cx, ry, rx in sections:
                radius = max(120.0, float(rng.uniform(0.16, 0.4)) * min(ry, rx))
                lesions.append((cy + fars[k] * ry * np.sin(turns[k]), cx + fars[k] * rx * np.cos(turns[k]), radius))
    return SlidePlan(
        seed,
        size,
        sections,
        np.array(lesions).reshape(-1, 3),
        float(rng.uniform(-0.4, 0.5)),
        float(rng.uniform(0.1, 0.8)),
    )


class Slide:
    """One slide. `size`: um; `um`: um per pixel of the level that windows are read from; `diagnosis`: what it shows."""

    def __init__(self, seed: int, size: tuple[float, float], um: float, difficulty: str, draws: Draws) -> None:
        rng = np.random.default_rng([seed, 5])
        self.um, self.seed = um, seed
        self.shape = (max(1, round(size[0] / um)), max(1, round(size[1] / um)))
        self.diagnosis = int(rng.random() < 0.5)
        self.plan = draw_slide(rng, seed, size, bool(self.diagnosis))
        self.traits: Traits = draw_traits(rng, ANATOMY[difficulty].rows, 1.0)
        self.strokes = _strokes(rng, size) if rng.random() < 0.4 else []
        self._anatomy, self._stain = ANATOMY[difficulty], draw_stain(draws, difficulty)
        self._finer = max(1, int(np.ceil(um / FINEST)))
        self.block = max(16, BLOCK // self._finer)
        self._block = functools.lru_cache(maxsize=32)(self._compute)

    def read(self, row: int, column: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the picture (3, height, width) and the regions (height, width) of a window that begins at a pixel of
        the slide; beyond the slide there is empty glass."""
        picture = np.empty((3, height, width), np.uint8)
        regions = np.empty((height, width), np.uint8)
        side = self.block
        for i in range(row // side, (row + height - 1) // side + 1):
            for j in range(column // side, (column + width - 1) // side + 1):
                part, kinds = self._block(i, j)
                y0, x0 = max(row, i * side), max(column, j * side)
                y1, x1 = min(row + height, (i + 1) * side), min(column + width, (j + 1) * side)
                there = (slice(y0 - row, y1 - row), slice(x0 - column, x1 - column))
                here = (slice(y0 - i * side, y1 - i * side), slice(x0 - j * side, x1 - j * side))
                picture[:, there[0], there[1]] = part[:, here[0], here[1]]
                regions[there] = kinds[here]
        return picture, regions

    def _compute(self, i: int, j: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        um, side = self.um / self._finer, self.block * self._finer
        margin = int(np.ceil(MARGIN / um))
        noise = Noise(self.seed, (side + 2 * margin, side + 2 * margin), um, (i * side - margin, j * side - margin))
        layout = window(noise, margin, self.plan, self.traits, self._anatomy)
        view = layout.within(reach(layout))
        light = mixed(self._stain.matrix, concentrations(view, self._stain))
        light = view.cut(focus(light, self._stain.camera.blur / um))
        ink = self._ink(noise.cut(margin))
        if ink is not None:
            light *= np.exp(-ink)
        regions = _regions(layout)
        if ink is not None:
            regions[ink[0] > 0.1] = REGIONS.index("pen")
        if self._finer > 1:
            light = np.stack([cv2.resize(p, (self.block, self.block), interpolation=cv2.INTER_AREA) for p in light])
            regions = _commonest(regions, self._finer)
        corner = Noise(self.seed, (self.block, self.block), self.um, (i * self.block, j * self.block))
        shot = replace(self._stain.camera, fall=0.0)
        return expose(light, shot, corner), regions

    def _ink(self, noise: Noise) -> Field | None:
        """Return (3, H, W) absorbance of pen marks; None where there are none."""
        if not self.strokes:
            return None
        y, x = (
            ((np.arange(n) + 0.5 + o) * noise.um).astype(np.float32)
            for n, o in zip(noise.shape, noise.origin, strict=True)
        )
        total = np.zeros((3, *noise.shape), np.float32)
        met = False
        for points, width, ink in self.strokes:
            low, high = points.min(0) - 2 * width, points.max(0) + 2 * width
            if low[0] > y[-1] or low[1] > x[-1] or high[0] < y[0] or high[1] < x[0]:
                continue
            met = True
            away = np.full(noise.shape, 1e6, np.float32)
            for (y0, x0), (y1, x1) in pairwise(points):
                dy, dx = np.float32(y1 - y0), np.float32(x1 - x0)
                t = np.clip(((y[:, None] - y0) * dy + (x[None] - x0) * dx) / max(float(dy**2 + dx**2), 1e-3), 0, 1)
                np.minimum(away, np.hypot(y[:, None] - y0 - t * dy, x[None] - x0 - t * dx), out=away)
            away += np.float32(0.06 * width) * noise.smooth("pen", 30.0)
            dense = np.clip((width - away) * np.float32(0.05) + np.float32(0.5), 0, 1)
            dense *= np.clip(1 + np.float32(0.18) * noise.smooth("ink", 60.0), 0.4, 1.5)
            total += _INKS[ink][:, None, None] * dense
        return total if met else None


def _strokes(rng: np.random.Generator, size: tuple[float, float]) -> list[tuple[NDArray[np.float64], float, int]]:
    """Return pen marks: lines round or beside the tissue; points (N, 2) y, x, half width in um, ink."""
    found = []
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.5:  # a ring round something
            turn = np.linspace(0, rng.uniform(1.2, 2) * np.pi, 24) + rng.uniform(0, 2 * np.pi)
            centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.12, 0.3) * min(size)
            radii = radius * (1 + rng.normal(0, 0.04, 24))
            points = centre + np.stack([radii * np.sin(turn), radii * np.cos(turn)], 1)
        else:
            ends = rng.uniform(0.02, 0.98, (2, 2)) * size
            t = np.linspace(0, 1, 12)[:, None]
            points = ends[0] * (1 - t) + ends[1] * t + rng.normal(0, 0.01 * min(size), (12, 2))
        found.append((points, float(rng.uniform(0.008, 0.02) * min(size)), int(rng.integers(0, len(_INKS)))))
    return found


def _regions(layout: Layout) -> NDArray[np.uint8]:
    """Return the regions of a picture, indices into `REGIONS`."""
    tissue, glands = layout.cut(layout.tissue), layout.cut(layout.glands)
    regions = np.full(tissue.shape, REGIONS.index("stroma"), np.uint8)
    regions[tissue == BACKGROUND] = REGIONS.index("background")
    regions[tissue == FAT] = REGIONS.index("fat")
    epithelium = (tissue == EPITHELIUM) | (tissue == LUMEN)
    nests = np.concatenate([[False], layout.nests])[glands]
    regions[epithelium] = REGIONS.index("glands")
    regions[epithelium & nests] = REGIONS.index("tumour")
    return regions


def _commonest(regions: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the region that most of each factor x factor pixels show."""
    size = (regions.shape[1] // factor, regions.shape[0] // factor)
    shares = [
        cv2.resize((regions == k).astype(np.float32), size, interpolation=cv2.INTER_AREA) for k in range(len(REGIONS))
    ]
    return np.asarray(np.argmax(np.stack(shares), 0), np.uint8)
