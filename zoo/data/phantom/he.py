"""Haematoxylin and eosin: a layout becomes an RGB picture.

Amounts of the two stains are laid on the layout and absorb light as Beer and Lambert say; lens and camera do the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.layout import BACKGROUND, EPITHELIUM, FAT, LUMEN, STROMA, VESSEL, Layout
from zoo.data.phantom.noise import Field, step
from zoo.data.phantom.optics import RANGES, Camera, Draws, camera, expose, focus, mixed
from zoo.stain.matrices import stain_matrix

# Absorbance directions in use: Ruifrok and Johnston 2001; the reference of Macenko et al., ISBI 2009; HistomicsTK's
# target slide of TCGA-BRCA, estimated by Macenko's method; of haematoxylin also the mean absorbance of the nuclei in
# DSB2018's H&E images.
_HAEMATOXYLIN = np.array(
    [(0.650, 0.704, 0.286), (0.5626, 0.7201, 0.4062), (0.5808, 0.7168, 0.3859), (0.50, 0.84, 0.22)]
)
_EOSIN = np.array([(0.072, 0.990, 0.105), (0.2159, 0.8012, 0.5581), (0.0831, 0.9008, 0.4262)])
_VIOLET = np.array([0.44, 0.86, 0.20])  # the ground of slides that hardly took eosin


@dataclass(frozen=True)
class Strengths:
    """Ranges of a slide's stain: `contrast`: haematoxylin in nuclei; `wash`: haematoxylin elsewhere; `eosin`; `ghosts`:
    nuclei below the plane of focus, which nobody outlines."""

    contrast: tuple[float, float]
    wash: tuple[float, float]
    eosin: tuple[float, float]
    ghosts: tuple[float, float]


STRENGTHS: dict[str, Strengths] = {
    "easy": Strengths((1.4, 1.9), (0.05, 0.15), (0.3, 0.7), (0.0, 0.0)),
    "medium": Strengths((1.0, 1.75), (0.1, 0.4), (0.25, 0.95), (0.0, 0.35)),
    "hard": Strengths((0.6, 1.25), (0.25, 0.75), (0.25, 1.15), (0.2, 0.8)),
}


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and scanned: (2, 3) `matrix`, strengths of the two stains, the camera."""

    matrix: NDArray[np.float32]
    haematoxylin: float
    wash: float
    eosin: float
    ghosts: float
    camera: Camera


def draw_stain(draws: Draws, difficulty: str) -> Stain:
    """Return the stain of a slide: a mix of published directions, turned a little."""
    strengths = STRENGTHS[difficulty]
    vectors = []
    for name, published in (("haematoxylin", _HAEMATOXYLIN), ("eosin", _EOSIN)):
        weights = np.array([draws.unit(f"{name} {i}") ** 3 for i in range(len(published))]) + 0.02
        vectors.append(weights / weights.sum() @ published + draws.spread(f"{name} turn", 3, 0.03))
    violet = max(0.0, draws.unit("violet") - 0.7) / 0.3
    vectors[1] = vectors[1] * (1 - violet) + _VIOLET * violet
    vectors[0] = vectors[0] * (1 - violet) + _HAEMATOXYLIN[3] * violet
    faint = 1 - 0.85 * max(0.0, draws.unit("faint") - 0.75) / 0.25  # some slides hardly took anything but nuclei
    return Stain(
        stain_matrix(*np.clip(vectors, 0.02, None)),
        draws("contrast", *strengths.contrast),
        draws("wash", *strengths.wash) * faint,
        draws("eosin", *strengths.eosin) * faint,
        draws("ghosts", *strengths.ghosts) * faint,
        camera(draws, RANGES[difficulty]),
    )


def reach(layout: Layout) -> int:
    """Return how many pixels round the picture a rendering needs."""
    return min(layout.margin, int(np.ceil(2.6 / layout.um)) + 2)


def render(layout: Layout, stain: Stain) -> NDArray[np.uint8]:
    """Return the (3, H, W) uint8 picture of a layout."""
    view = layout.within(reach(layout))
    light = mixed(stain.matrix, concentrations(view, stain))
    light = focus(light, stain.camera.blur / view.um)
    return expose(view.cut(light), stain.camera, view.noise.cut(view.margin))


def concentrations(layout: Layout, stain: Stain) -> list[Field]:
    """Return how much haematoxylin and eosin lies at each pixel of the canvas, (H, W) float32 each."""
    um, noise, tissue = layout.um, layout.noise, layout.tissue
    coarse, fine = noise.fractal("coarse", 22.0), noise.smooth("fine", 0.9)
    eosin, wash = _stroma(layout, coarse)
    _epithelium(layout, coarse, eosin, wash)
    for kind, pink, blue in ((LUMEN, 0.03, 0.02), (BACKGROUND, 0.012, 0.0), (VESSEL, 0.04, 0.02), (FAT, 0.015, 0.0)):
        eosin[tissue == kind], wash[tissue == kind] = pink, blue
    if layout.traits.secretion:
        _secretion(layout, eosin)
    _red_cells(layout, eosin)
    sigma = max(0.5, 0.42 / um)
    eosin, wash = (cv2.GaussianBlur(a, (0, 0), sigma) for a in (eosin, wash))
    grain = 1 + np.float32(0.07) * fine
    clumps = chromatin(layout)
    eosin *= grain
    eosin *= np.float32(stain.eosin) * (1 - np.float32(0.45) * np.minimum(layout.chromatin * np.float32(1.4), 1))
    wash *= np.float32(stain.wash)
    if stain.ghosts:
        shape = step(noise.smooth("ghosts", 4.6), 1.1, 2.0)
        wash += shape * np.float32(stain.ghosts) * ((tissue == STROMA) | (tissue == EPITHELIUM))
    wash *= grain
    wash += clumps * np.float32(stain.haematoxylin)
    return [wash, eosin]


def chromatin(layout: Layout) -> Field:
    """Return how much DNA lies at each pixel, with its clumps: the same in every stain of the layout."""
    noise = layout.noise
    clumps = np.float32(0.24) * noise.smooth("chromatin", 1.5) + np.float32(0.12) * noise.smooth("chromatin'", 0.7)
    if layout.um < 0.35:
        clumps += np.float32(0.1) * noise.smooth('chromatin"', 0.35)
    clumps += 1
    np.clip(clumps, 0.3, 1.9, out=clumps)
    clumps *= layout.chromatin
    return clumps


def _stroma(layout: Layout, coarse: Field) -> tuple[Field, Field]:
    """Return eosin and haematoxylin of connective tissue: fibres, clefts between them, a denser rim round glands and
    the walls of vessels."""
    fibres, bundles = layout.fibres
    cleft = np.float32(0.25) * coarse - bundles - np.float32(0.35) * fibres
    cleft = step(cleft, layout.traits.loose, layout.traits.loose + 0.6)
    cleft *= np.float32(0.92)
    np.subtract(1, cleft, out=cleft)
    rim = np.exp(np.minimum(layout.depth, 0) * np.float32(1 / 1.6))
    wall = np.exp(-np.abs(layout.vessel + np.float32(1.2)) * np.float32(1 / 1.3))
    fibrous = np.float32(layout.traits.fibrous)
    eosin = (np.float32(0.11) * fibres + np.float32(0.13) * bundles) * fibrous + np.float32(0.16) * coarse
    eosin += np.float32(0.1) * layout.noise.smooth("mottled", 3.2)
    eosin += np.float32(0.2) * rim
    eosin += np.float32(0.45) * wall
    eosin += np.float32(0.7)
    np.clip(eosin, 0.1, 1.7, out=eosin)
    eosin *= np.maximum(cleft, np.maximum(wall, layout.adipose >= 0))
    wash = np.float32(0.12) * fibres - np.float32(0.24) * coarse
    wash += np.float32(0.55)
    np.clip(wash, 0.05, 1.5, out=wash)
    wash *= cleft
    return eosin, wash


def _epithelium(layout: Layout, coarse: Field, eosin: Field, wash: Field) -> None:
    """Lay cytoplasm: often paler towards the cavity, where mucin lies in vacuoles."""
    inside = layout.tissue == EPITHELIUM
    if not inside.any():
        return
    mucin = np.float32(layout.traits.mucin)
    apical = step(layout.depth[inside], 8.5, 13.5)
    vacuoles = step(layout.noise.smooth("vacuoles", 4.2)[inside], 0.25, 0.75) * apical
    rough = coarse[inside]
    border = 1 - np.float32(0.3) * np.exp(-np.abs(layout.depth[inside] - np.float32(0.4)) / np.float32(0.5))
    eosin[inside] = (0.82 + 0.12 * rough) * (1 - mucin * (0.3 * apical + 0.65 * vacuoles)) * border
    wash[inside] = (1.5 + 0.2 * rough) * (1 - mucin * (0.3 * apical + 0.6 * vacuoles))


def _secretion(layout: Layout, eosin: Field) -> None:
    """Lay what fills cavities: pink and grainy, in some fields."""
    hollow = layout.tissue == LUMEN
    if hollow.any():
        grainy = layout.noise.smooth("secretion", 14.0) + np.float32(0.3) * layout.noise.smooth("fine", 0.9)
        full = step(grainy[hollow], -0.4, 0.8)
        eosin[hollow] += np.float32(layout.traits.secretion) * full


def _red_cells(layout: Layout, eosin: Field) -> None:
    """Lay red cells: close together in vessels, a few between fibres where blood has leaked."""
    inside = layout.vessel > 0
    leaked = layout.traits.red
    if not leaked and not inside.any():
        return
    cells = layout.noise.smooth("red cells", 3.4)
    if inside.any():
        eosin[inside] += step(cells[inside], -0.35, 0.1) * np.float32(1.35)
    if leaked:
        where = step(layout.noise.smooth("bleeding", 45.0), 1.4 - 0.4 * leaked, 2.2 - 0.4 * leaked)
        place = step(cells, 0.9, 1.25) * where
        free = layout.tissue == STROMA
        eosin[free] += (place * np.float32(1.2))[free]
