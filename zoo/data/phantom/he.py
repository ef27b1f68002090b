"""Haematoxylin and eosin, and a microscope: a layout becomes an RGB picture.

Concentrations of the two stains are laid on the layout, absorb light as Beer and Lambert say, and the picture is
blurred, unevenly lit, and noisy as a camera's is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.layout import BACKGROUND, EPITHELIUM, LUMEN, STROMA, Layout
from zoo.data.phantom.noise import Field, along, fractal, smooth, step
from zoo.stain.matrices import stain_matrix

# Absorbance directions in use: Ruifrok and Johnston 2001; the reference of Macenko et al., ISBI 2009; HistomicsTK's
# target slide of TCGA-BRCA, estimated by Macenko's method.
_HAEMATOXYLIN = np.array([(0.650, 0.704, 0.286), (0.5626, 0.7201, 0.4062), (0.5808, 0.7168, 0.3859)])
_EOSIN = np.array([(0.072, 0.990, 0.105), (0.2159, 0.8012, 0.5581), (0.0831, 0.9008, 0.4262)])


@dataclass(frozen=True)
class Optics:
    """How hard a picture is to read. Ranges are drawn from uniformly.

    `contrast`: haematoxylin in nuclei; `wash`: haematoxylin elsewhere; `eosin`: eosin in cytoplasm and stroma;
    `blur`: um of the point spread; `noise`: grey levels of 255; `uneven`: relative fall of light to the border.
    """

    contrast: tuple[float, float]
    wash: tuple[float, float]
    eosin: tuple[float, float]
    blur: tuple[float, float]
    noise: tuple[float, float]
    uneven: float


OPTICS: dict[str, Optics] = {
    "easy": Optics((1.4, 1.9), (0.05, 0.15), (0.4, 0.75), (0.1, 0.3), (1.0, 2.0), 0.03),
    "medium": Optics((1.0, 1.7), (0.12, 0.4), (0.5, 1.0), (0.2, 0.5), (1.5, 4.0), 0.08),
    "hard": Optics((0.65, 1.25), (0.25, 0.75), (0.55, 1.2), (0.3, 0.8), (2.5, 6.0), 0.16),
}


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and scanned: (2, 3) `matrix`, (3,) `white`, strengths of the two stains."""

    matrix: NDArray[np.float32]
    white: NDArray[np.float32]
    haematoxylin: float
    wash: float
    eosin: float


def draw_stain(rng: np.random.Generator, optics: Optics) -> Stain:
    """Return the stain of a slide: a mix of published directions, turned a little."""
    vectors = []
    for published in (_HAEMATOXYLIN, _EOSIN):
        mix = rng.dirichlet(np.full(len(published), 0.8)) @ published
        vectors.append(np.clip(mix + rng.normal(0, 0.02, 3), 0.02, None))
    white = rng.uniform(232, 250) + rng.normal(0, 2.5, 3)
    draws = [float(rng.uniform(*r)) for r in (optics.contrast, optics.wash, optics.eosin)]
    return Stain(stain_matrix(*vectors), np.clip(white, 215, 255).astype(np.float32), *draws)


def render(rng: np.random.Generator, layout: Layout, stain: Stain, optics: Optics) -> NDArray[np.uint8]:
    """Return the (3, H, W) uint8 picture of a layout."""
    haematoxylin, eosin = _concentrations(rng, layout, stain)
    absorbed = np.tensordot(stain.matrix.T, np.stack([haematoxylin, eosin]), axes=1)
    light = np.exp(-absorbed, dtype=np.float32)
    sigma = rng.uniform(*optics.blur) / layout.um
    if sigma > 0.2:
        light = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in light])
    light = layout.cut(light)
    light *= _illumination(rng, (light.shape[1], light.shape[2]), optics.uneven)
    picture = light * stain.white[:, None, None]
    noise = np.float32(rng.uniform(*optics.noise))
    grain = rng.standard_normal(picture.shape, np.float32) * noise
    grain *= np.sqrt(0.3 + 0.7 * light)  # photons: brighter is noisier
    return np.clip(picture + grain + 0.5, 0, 255).astype(np.uint8)


def _illumination(rng: np.random.Generator, shape: tuple[int, int], uneven: float) -> Field:
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    cx, cy = rng.uniform(-0.4, 0.4, 2)
    fall = np.float32(rng.uniform(0, uneven))
    return np.asarray(1 - fall * ((x - cx) ** 2 + (y - cy) ** 2) / 2, np.float32)


def _concentrations(rng: np.random.Generator, layout: Layout, stain: Stain) -> tuple[Field, Field]:
    """Return how much haematoxylin and eosin lies at each pixel of the canvas."""
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    fine, coarse = smooth(rng, shape, 0.9 / um), fractal(rng, shape, 22 / um)
    soft = [cv2.GaussianBlur((layout.tissue == t).astype(np.float32), (0, 0), max(0.6, 0.45 / um)) for t in range(4)]
    stroma, stroma_wash = _stroma(rng, layout, coarse)
    gland, gland_wash = _epithelium(rng, layout, fine, coarse)
    cavity = np.float32(0.03) + _secretion(rng, layout, fine)
    eosin = soft[STROMA] * stroma + soft[EPITHELIUM] * gland + soft[LUMEN] * cavity
    eosin += soft[BACKGROUND] * np.float32(0.012)
    wash = soft[STROMA] * stroma_wash + soft[EPITHELIUM] * gland_wash + soft[LUMEN] * np.float32(0.02)
    clumps = 1 + 0.2 * smooth(rng, shape, 1.5 / um) + 0.13 * fine
    nuclei = layout.chromatin * np.clip(clumps, 0.35, 1.9)
    cover = np.clip(layout.chromatin * 1.4, 0, 1)
    eosin = eosin * (1 - 0.45 * cover) * np.float32(stain.eosin)
    return (nuclei * np.float32(stain.haematoxylin) + wash * np.float32(stain.wash)).astype(np.float32), eosin


def _stroma(rng: np.random.Generator, layout: Layout, coarse: Field) -> tuple[Field, Field]:
    """Return eosin and haematoxylin of connective tissue: fibres, clefts between them, a denser rim round glands."""
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    fibres = along(smooth(rng, shape, 1.1 / um), layout.angle, 22 / um)
    bundles = along(smooth(rng, shape, 4.5 / um), layout.angle, 40 / um)
    loose = rng.uniform(0.6, 1.9)  # how far the fibres lie apart
    cleft = step(-bundles - 0.35 * fibres + 0.25 * coarse, loose, loose + 0.55)
    rim = np.exp(-layout.outside / np.float32(1.6))
    eosin = (0.72 + 0.13 * fibres + 0.14 * bundles + 0.1 * coarse + 0.2 * rim).clip(0.12, 1.7)
    eosin *= 1 - np.float32(0.92) * cleft
    wash = (0.55 + 0.12 * fibres + 0.2 * coarse).clip(0.05, 1.5) * (1 - 0.9 * cleft)
    return eosin.astype(np.float32), wash.astype(np.float32)


def _epithelium(rng: np.random.Generator, layout: Layout, fine: Field, coarse: Field) -> tuple[Field, Field]:
    """Return eosin and haematoxylin of cytoplasm: granular, often paler towards the lumen, where mucin lies."""
    mucin = np.float32(rng.uniform(0, 0.75))
    apical = step(layout.depth, 8.5, 13.5)
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    vacuoles = step(smooth(rng, shape, 4.2 / um), 0.25, 0.75) * apical
    eosin = (0.82 + 0.07 * fine + 0.1 * coarse) * (1 - mucin * (0.3 * apical + 0.65 * vacuoles))
    wash = (1.6 + 0.12 * fine + 0.15 * coarse) * (1 - mucin * (0.3 * apical + 0.6 * vacuoles))
    return eosin.astype(np.float32), wash.astype(np.float32)


def _secretion(rng: np.random.Generator, layout: Layout, fine: Field) -> Field:
    """Return eosin in cavities: empty in most fields, pink and grainy in some."""
    um, shape = layout.um, (layout.tissue.shape[0], layout.tissue.shape[1])
    amount = np.float32(rng.uniform(0.15, 0.5)) if rng.random() < 0.35 else np.float32(0.0)
    return amount * step(smooth(rng, shape, 14 / um) + 0.25 * fine, -0.4, 0.8)
