"""Immunostains of a layout: brown on blue (IHC), and fluorescence in named channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.he import chromatin
from zoo.data.phantom.layout import BACKGROUND, EPITHELIUM, STROMA, Layout
from zoo.data.phantom.markers import Cells, laid
from zoo.data.phantom.noise import Field
from zoo.data.phantom.optics import Camera, Draws, Range, camera, expose, focus
from zoo.stain.matrices import DAB, HAEMATOXYLIN, stain_matrix


@dataclass(frozen=True)
class Brown:
    """How an IHC slide was stained: (2, 3) absorbances of haematoxylin and DAB, their strengths, the camera."""

    matrix: NDArray[np.float32]
    haematoxylin: float
    dab: float
    ground: float
    camera: Camera


def draw_brown(draws: Draws, limits: Range) -> Brown:
    """Return the stain of an IHC slide: Ruifrok and Johnston's directions, a little turned."""
    turned = np.array([HAEMATOXYLIN, DAB]) + draws.spread("ihc turn", 6, 0.025).reshape(2, 3)
    return Brown(
        stain_matrix(*np.clip(turned, 0.02, None)),
        draws("ihc haematoxylin", 0.55, 1.0),
        draws("dab", 1.5, 2.6),
        draws("ihc ground", 0.03, 0.12),
        camera(draws, limits),
    )


def immunohistochemistry(
    layout: Layout, cells: Cells, marker: str, amount: Field, brown: Brown, shift: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """Return the (3, H, W) uint8 picture of a layout stained brown for a marker on haematoxylin.

    `shift`: (2, H, W) rows and columns by which the section lies elsewhere than the layout: the pixel (i, j) of the
    picture shows what lies at (i + shift[0], j + shift[1]).
    """
    noise, um = layout.noise, layout.um
    soft = [cv2.GaussianBlur((layout.tissue == t).astype(np.float32), (0, 0), 0.8) for t in (STROMA, EPITHELIUM)]
    blue = chromatin(layout) * np.float32(brown.haematoxylin)
    blue += (0.07 * soft[0] + 0.13 * soft[1]) * (1 + 0.25 * noise.smooth("ihc wash", 9.0))
    dab = laid(layout, cells, marker, amount) * np.float32(brown.dab)
    dab += np.float32(brown.ground) * (soft[0] + 0.8 * soft[1]) * (1 + 0.3 * noise.smooth("ihc ground", 14.0))
    absorbed = np.tensordot(brown.matrix.T, np.stack([blue, np.maximum(dab, 0)]).astype(np.float32), axes=1)
    light = focus(np.exp(-absorbed), brown.camera.blur / um)
    if shift is not None:
        light = moved(light, shift)
    return expose(layout.cut(light), brown.camera, noise.cut(layout.margin))


def fluorescence(
    layout: Layout, cells: Cells, amounts: dict[str, Field], channels: tuple[str, ...], draws: Draws, limits: Range
) -> NDArray[np.uint8]:
    """Return the (C, H, W) uint8 picture of a layout in fluorescence, one channel a name; "Hoechst" is DNA.

    Brightness is linear in the amount of a marker; beside it there is what tissue shines of itself, spread by the lens,
    and the noise of few photons.
    """
    noise = layout.noise.cut(layout.margin)
    tissue = (layout.tissue != BACKGROUND).astype(np.float32)
    glow = tissue * (1 + 0.35 * layout.noise.smooth("autofluorescence", 5.0))
    planes = []
    for name in channels:
        if name == "Hoechst":
            signal = np.minimum(chromatin(layout), 1.6) * np.float32(0.62)
        else:
            signal = laid(layout, cells, name, amounts[name])
        peak = np.float32(draws(f"exposure {name}", 130, 215))
        light = signal * peak + glow * np.float32(draws(f"glow {name}", 1, 3 + 60 * limits.uneven))
        light = focus(light[None], limits.blur[1] / layout.um)[0]
        light = np.maximum(layout.cut(light), 0)
        gain = np.float32(draws(f"gain {name}", 0.15, 0.25 * limits.noise[1]))
        light += noise.white(f"photons {name}") * np.sqrt(light * gain + np.float32(limits.noise[0]))
        planes.append(np.clip(light + np.float32(0.5), 0, 255).astype(np.uint8))
    return np.stack(planes)


def moved(planes: NDArray[Any], shift: NDArray[Any], nearest: bool = False) -> NDArray[Any]:
    """Return (C, H, W) canvases of which the pixel (i, j) shows what lay at (i + shift[0], j + shift[1])."""
    rows, columns = np.indices(planes.shape[1:], dtype=np.float32)
    rows, columns = rows + shift[0], columns + shift[1]
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    found = [cv2.remap(p, columns, rows, how, borderMode=cv2.BORDER_REFLECT_101) for p in planes]
    return np.clip(np.stack(found), 0, 1) if not nearest else np.stack(found)


def displacement(layout: Layout, offset: float, kind: str) -> Field:
    """Return (2, H, W) float32 rows and columns in pixels: how another section lies.

    "shift": `offset` pixels in a random direction everywhere. "elastic": a smooth field of mean 0 whose root mean
    square is `offset` pixels.
    """
    noise = layout.noise
    if kind == "shift":
        turn = float(noise.rng("shift").uniform(0, 2 * np.pi))
        vector = np.array([np.sin(turn), np.cos(turn)], np.float32) * np.float32(offset)
        vector *= np.where(noise.flips, -1, 1).astype(np.float32)
        return np.broadcast_to(vector[:, None, None], (2, *noise.shape)).copy()
    field = np.stack([noise.smooth(f"elastic {axis}", 60.0) for axis in "yx"])
    field *= np.where(noise.flips, -1, 1).astype(np.float32)[:, None, None]
    size = float(np.sqrt((layout.cut(field) ** 2).sum(0).mean()))
    return np.asarray(field * np.float32(offset / max(size, 1e-6)), np.float32)
