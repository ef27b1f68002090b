"""What grows where: the plan of a field, or of a whole slide, asked at points of the plane (um)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.data.phantom.noise import Field, cloud, mix, uniform, word

NOTHING, GLAND, NEST = 0, 1, 2


@dataclass(frozen=True)
class Traits:
    """What all tissue of one field has in common. Lengths in um.

    `radius`: of a gland; `thick`: of its epithelium; `presence`: share of the places for glands that are taken;
    `pitch`: from nucleus to nucleus in a row; `first`: depth of the first row; `second`: depth of a second row, 0 =
    none; `mucin`, `secretion`: how much; `loose`: how far fibres lie apart; `turn`: direction of the fibres; `crowd`:
    factor on lymphocytes; `red`: red cells outside vessels; `pale`: how vesicular the nuclei of glands are;
    `fibrous`: how much of fibres one sees; `even`:
    every field has the nuclei that were asked for, none more than another.
    """

    radius: float
    thick: float
    presence: float
    pitch: float
    first: float
    second: float
    mucin: float
    secretion: float
    loose: float
    turn: float
    crowd: float
    red: float
    pale: float
    fibrous: float
    even: bool = False


class Plan(Protocol):
    """Where there is tissue and of which kind. `y`, `x`: arrays of um, broadcast."""

    @property
    def edged(self) -> bool:
        """Whether there may be a place without tissue."""

    @property
    def fatty(self) -> bool:
        """Whether there may be fat."""

    def tissue(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return how many um inside the tissue a point lies, about; negative outside."""

    def glands(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
        """Return what a gland with this centre is: NOTHING, GLAND (with a cavity) or NEST (solid)."""

    def fat(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return how many um inside fat a point lies, about; negative outside."""


@dataclass(frozen=True)
class FieldPlan:
    """A small field: one kind of tissue; in one of five the edge of the section, in one of twelve fat."""

    seed: int
    kind: int
    presence: float
    edge: tuple[float, float] | None
    adipose: float | None

    @property
    def edged(self) -> bool:
        """Whether the section ends here."""
        return self.edge is not None

    @property
    def fatty(self) -> bool:
        """Whether there is fat."""
        return self.adipose is not None

    def tissue(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return um inside the section."""
        if self.edge is None:
            return np.full(np.broadcast_shapes(y.shape, x.shape), 1e3, np.float32)
        turn, place = self.edge
        wave = cloud(self.seed, "edge", 60.0, y, x) * 6 + cloud(self.seed, "edge'", 14.0, y, x) * 1.5
        return np.asarray(place - (x * np.cos(turn) + y * np.sin(turn)) + wave, np.float32)

    def glands(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
        """Return the field's kind of gland, or nothing, by lot."""
        bits = mix(self.seed, word("presence"), np.floor(y * 16).astype(np.int64), np.floor(x * 16).astype(np.int64))
        return np.where(uniform(bits) < self.presence, self.kind, NOTHING)

    def fat(self, y: NDArray[Any], x: NDArray[Any]) -> Field:
        """Return um inside fat."""
        if self.adipose is None:
            return np.full(np.broadcast_shapes(y.shape, x.shape), -1e3, np.float32)
        return (cloud(self.seed, "fat", 120.0, y, x) - np.float32(self.adipose)) * np.float32(45)


def draw_plan(rng: np.random.Generator, seed: int, size: tuple[float, float], rows: float) -> tuple[FieldPlan, Traits]:
    """Return the plan and the traits of a field of `size` um; `rows`: the chance of a second row of nuclei."""
    nest = bool(rng.random() < 0.3)  # cells without a cavity, as in carcinoma
    presence = 0.0 if rng.random() < 0.15 else float(rng.uniform(0.5, 1.0))
    edge = None
    if rng.random() < 0.2:
        turn, place = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
        away = size[1] / 2 * np.cos(turn) + size[0] / 2 * np.sin(turn)
        edge = (float(turn), float(away + place * max(size) / 2))
    adipose = float(rng.uniform(0.1, 0.9)) if rng.random() < 0.08 else None
    traits = draw_traits(rng, rows, presence)
    return FieldPlan(seed, NEST if nest else GLAND, presence, edge, adipose), traits


def draw_traits(rng: np.random.Generator, rows: float, presence: float) -> Traits:
    """Return what the tissue of a field, or of a slide, is like."""
    first = float(rng.uniform(4.5, 6.5))
    return Traits(
        radius=float(rng.uniform(20, 52)),
        thick=float(rng.uniform(12, 18)),
        presence=presence,
        pitch=float(rng.uniform(5.6, 8.0)),
        first=first,
        second=first + float(rng.uniform(4.5, 6.5)) if rng.random() < rows else 0.0,
        mucin=float(rng.uniform(0, 0.75)),
        secretion=float(rng.uniform(0.15, 0.5)) if rng.random() < 0.35 else 0.0,
        loose=float(rng.uniform(0.5, 1.8)),
        turn=float(rng.uniform(0, np.pi)),
        crowd=float(rng.gamma(1.6, 0.62)),
        red=float(rng.uniform(0.5, 3)) if rng.random() < 0.25 else 0.0,
        pale=float(rng.beta(1.2, 1.6)),
        fibrous=float(rng.uniform(0.3, 1.25)),
    )
