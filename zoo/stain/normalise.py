"""Normalising stains: what a picture's stains look like is measured, and replaced by a reference's.

`normaliser(METHOD)` gives a `Normaliser`. Measuring and applying are two steps, so that a slide has one look:
`look = normaliser.measure(sample)`, then `normaliser.apply(window, look)` for each of its windows; calling the
normaliser does both. Pictures are (H, W, 3) uint8 RGB.

Where a picture has nothing to measure, nothing is invented, and `Look.note` says so: a blank picture stays as it is, a
stain that is not there keeps its strength, a picture of one stain takes the reference's directions, pen marks are left
out of the measurement and left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError, suggest
from zoo.stain import colour, estimate
from zoo.stain.density import (
    TISSUE,
    Bytes,
    Floats,
    Mask,
    optical_density,
    pen_mask,
    stained,
    to_bytes,
)
from zoo.stain.estimate import NoTissueError, concentrations

METHODS: Mapping[str, str] = {
    "macenko": "stains from the extreme angles of optical density (numerics of TIAToolbox)",
    "macenko-torchstain": "the same with torchstain's numerics, as EXAONEPath was trained with",
    "vahadane": "stains by sparse non-negative factorisation",
    "vahadane-tiatoolbox": "stains by scikit-learn's dictionary learning, to compare with TIAToolbox; unstable",
    "ruifrok": "fixed directions of haematoxylin and eosin",
    "custom": "directions that you give (matrix)",
    "reinhard": "mean and deviation in CIELAB; knows no stains",
}
"""Method -> what it does."""

LEAST_TISSUE = 0.005
"""Share of stained pixels below which a picture counts as blank."""
LEAST_PEN = 0.005
"""Share of pen-coloured pixels from which a picture counts as marked."""
LEAST_ANGLE = 8.0
"""Degrees between two stains below which they are one."""
LEAST_RED = 0.1
"""Difference between the red entries of two unit directions below which they are one stain."""
ESTIMATED = ("macenko", "macenko-torchstain", "vahadane")
"""Methods whose directions are checked before they are believed."""
LEAST_AMOUNT = 0.15
"""Concentration below which a stain counts as absent: its strength is not changed."""
MOST_GAIN = 4.0
"""Largest factor, up or down, on a stain's concentration."""

TORCHSTAIN_MATRIX: Floats = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
TORCHSTAIN_MAXIMA: Floats = np.array([1.9705, 1.0308])
"""The reference that torchstain and EXAONEPath fall back on: directions, and 99th percentiles of concentrations."""


class Remark(NamedTuple):
    """What is out of the ordinary: what was `seen` in a picture, and what is `done` about it when it is normalised."""

    seen: str
    done: str

    def __str__(self) -> str:
        """Return both."""
        return f"{self.seen}: {self.done}" if self.seen else self.done


BLANK = Remark("no stained tissue", "left as it is")


def pen_remark(share: float) -> Remark:
    """Return the remark on a picture of which a share is pen marks."""
    return Remark(f"pen marks on {share:.0%} of the pixels", "left out of the measurement and left as they are")


@dataclass(frozen=True)
class Look:
    """What was measured of a picture or slide.

    `matrix` (S, 3) and `maxima` (S,), the 99th percentiles of concentrations, of stain methods; `moments` (2, 3), mean
    and deviation in CIELAB, of Reinhard's. `usable`: False where there is nothing to normalise. `pens`: whether pixels
    of pen colour are left as they are. `remarks`: what was out of the ordinary; `note` says it.
    """

    matrix: Floats | None = None
    maxima: Floats | None = None
    moments: Floats | None = None
    usable: bool = True
    pens: bool = False
    remarks: tuple[Remark, ...] = ()

    @property
    def note(self) -> str:
        """Return what was out of the ordinary and what is done about it, "" where nothing was."""
        return "; ".join(map(str, self.remarks))

    def values(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        parts = {"matrix": self.matrix, "maxima": self.maxima, "moments": self.moments}
        numbers = {k: np.round(v, 6).tolist() for k, v in parts.items() if v is not None}
        return {**numbers, "normalised": self.usable, "note": self.note}


@dataclass(frozen=True)
class Result:
    """A normalised picture, what was measured, and a note where something was out of the ordinary."""

    image: Bytes
    look: Look

    @property
    def note(self) -> str:
        """Return what was out of the ordinary, "" where nothing was."""
        return self.look.note


@dataclass(frozen=True)
class Normaliser:
    """A method, its settings, and the reference that it normalises to.

    `threshold`: luminosity below which a pixel is tissue; `percentile`: of the angles (macenko); `weight`: of sparsity
    (vahadane). Immutable and picklable.
    """

    method: str
    reference: Look
    threshold: float = TISSUE
    percentile: float = 99.0
    weight: float = 0.1
    matrix: Floats | None = None

    # reference

    def fit(self, target: Bytes) -> Normaliser:
        """Return this normaliser with the look of another picture as its reference.

        Raises `UserError` for a picture without tissue.
        """
        look = self.measure(target)
        if not look.usable:
            why = "; ".join(remark.seen for remark in look.remarks)
            raise UserError(f"stain: the reference picture will not do: {why}. Choose one with stained tissue.")
        return replace(self, reference=replace(look, pens=False, remarks=()))

    # measuring

    @property
    def fixed(self) -> Floats | None:
        """Return the directions that hold for every picture, (S, 3); None where each has its own."""
        return estimate.RUIFROK if self.method == "ruifrok" else self.matrix

    def measure(self, rgb: Bytes) -> Look:
        """Return the look of (H, W, 3) or (N, 3) uint8 pixels; never fails."""
        picture = rgb.reshape(1, -1, 3) if rgb.ndim == 2 else rgb
        density = optical_density(picture)
        pens = pen_mask(density)
        marked = bool(pens.mean() >= LEAST_PEN)
        kept: Mask = ~pens if marked else np.ones(pens.shape, bool)
        remarks = (pen_remark(pens.mean()),) if marked else ()
        if (stained(density) & kept).mean() < LEAST_TISSUE:
            return Look(usable=False, pens=marked, remarks=(*remarks, BLANK))
        pixels = picture if not marked else picture[kept].reshape(1, -1, 3)
        try:
            look = self._measured(pixels)
        except NoTissueError as error:
            look = Look(usable=False, remarks=(Remark(str(error), "left as it is"),))
        return replace(look, pens=marked, remarks=(*remarks, *look.remarks))

    def _measured(self, rgb: Bytes) -> Look:
        if self.method == "reinhard":
            return contrast_held(np.stack(colour.reinhard_moments(rgb)), self.reference)
        matrix = self._directions(rgb)
        wrong, coloured = flaw(matrix)
        if wrong and self.method in ESTIMATED:
            return fallen_back(wrong, coloured, self.reference)
        found = concentrations(self._density(rgb), matrix).reshape(-1, len(matrix))
        maxima = self._maxima(found)
        return Look(matrix, maxima, remarks=gains(maxima, self.reference.maxima)[1])

    def _directions(self, rgb: Bytes) -> Floats:
        if self.fixed is not None:
            return self.fixed
        if self.method == "macenko-torchstain":
            return estimate.torchstain_macenko(estimate.torchstain_density(rgb).reshape(-1, 3))
        density = estimate.tissue_density(rgb, self.threshold)
        if self.method == "macenko":
            return estimate.macenko(density, self.percentile)
        if self.method == "vahadane":
            return estimate.vahadane(density, self.weight)
        return estimate.vahadane_tiatoolbox(density, self.weight)

    def _density(self, rgb: Bytes) -> Floats:
        return estimate.torchstain_density(rgb) if self.method == "macenko-torchstain" else optical_density(rgb)

    def _maxima(self, amounts: Floats) -> Floats:
        if self.method == "macenko-torchstain":
            return estimate.nearest_rank(amounts, 99)
        return np.asarray(np.percentile(amounts, 99, axis=0))

    # applying

    def apply(self, rgb: Bytes, look: Look) -> Bytes:
        """Return (H, W, 3) uint8: a window of the picture or slide of which `look` was measured."""
        if not look.usable:
            return rgb.copy()
        found = self._applied(rgb, look)
        if look.pens:
            pens = pen_mask(optical_density(rgb))
            found[pens] = rgb[pens]
        return found

    def _applied(self, rgb: Bytes, look: Look) -> Bytes:
        if self.method == "reinhard":
            assert look.moments is not None
            assert self.reference.moments is not None
            return colour.reinhard(rgb, tuple(look.moments), tuple(self.reference.moments))
        assert look.matrix is not None
        assert look.maxima is not None
        assert self.reference.matrix is not None
        gain, _ = gains(look.maxima, self.reference.maxima)
        values = restained(self._density(rgb), look.matrix, gain, self.reference.matrix)
        return to_bytes(values * (240 / 255) if self.method == "macenko-torchstain" else values)

    def __call__(self, rgb: Bytes) -> Result:
        """Return one picture normalised by its own look."""
        look = self.measure(rgb)
        return Result(self.apply(rgb, look), look)

    def values(self) -> dict[str, Any]:
        """Return the arguments of `normaliser` that make this one anew, without files."""
        kept = {k: v for k, v in self.reference.values().items() if k in ("matrix", "maxima", "moments")}
        found: dict[str, Any] = {"method": self.method, "reference": kept, "threshold": self.threshold}
        found |= {"percentile": self.percentile, "weight": self.weight}
        return found | ({} if self.matrix is None else {"matrix": self.matrix.tolist()})


def flaw(matrix: Floats) -> tuple[str, bool]:
    """Return why two directions cannot be two stains ("" where they can), and whether there is any colour at all.

    Haematoxylin takes clearly more red than eosin or DAB do; two directions that do not differ in that are one stain
    and its noise.
    """
    if not np.isfinite(matrix).all():
        return "no pixel is tissue", False
    lengths = np.linalg.norm(matrix, axis=1)
    angle = float(np.degrees(np.arccos(np.clip(matrix[0] @ matrix[1] / (lengths[0] * lengths[1]), -1, 1))))
    if angle < 1:
        return "one colour only", False
    if (matrix < -0.05).any():
        return "the stains that were found are no colours", True
    if angle < LEAST_ANGLE or abs(matrix[0, 0] / lengths[0] - matrix[1, 0] / lengths[1]) < LEAST_RED:
        return "no two stains can be told apart", True
    return "", True


def fallen_back(wrong: str, coloured: bool, reference: Look) -> Look:
    """Return the look of a picture whose directions have a flaw: the reference's own, which changes no strength."""
    if not coloured:
        return Look(usable=False, remarks=(Remark(wrong, "left as it is"),))
    remark = Remark(wrong, "the reference's directions were used and strengths kept")
    return Look(reference.matrix, reference.maxima, remarks=(remark,))


def contrast_held(moments: Floats, reference: Look) -> Look:
    """Return Reinhard's look, its deviations raised so that no channel is stretched more than `MOST_GAIN` times."""
    assert reference.moments is not None
    least = np.maximum(reference.moments[1] / MOST_GAIN, colour.LEAST_STD)
    flat = moments[1] < least
    remarks = (Remark("hardly any contrast", f"stretched no more than {MOST_GAIN:g} times"),) if flat.any() else ()
    return Look(moments=np.stack([moments[0], np.maximum(moments[1], least)]), remarks=remarks)


def gains(maxima: Floats, target: Floats | None) -> tuple[Floats, tuple[Remark, ...]]:
    """Return the factor on each stain's concentration, and remarks where it was held back.

    The factor is target over source; 1 for a stain that is not there, and at most `MOST_GAIN` up or down.
    """
    assert target is not None
    names = ("haematoxylin", "eosin") if len(maxima) == 2 else tuple(f"stain {s + 1}" for s in range(len(maxima)))
    found, remarks = np.ones(len(maxima)), []
    for s, name in enumerate(names):
        if maxima[s] < LEAST_AMOUNT:
            remarks.append(Remark(f"hardly any {name}", "its strength is kept"))
            continue
        wanted = target[s] / maxima[s]
        found[s] = np.clip(wanted, 1 / MOST_GAIN, MOST_GAIN)
        if found[s] != wanted:
            remarks.append(Remark("", f"{name} would change {wanted:.1f} times, held at {found[s]:g}"))
    return found, tuple(remarks)


def restained(density: Floats, matrix: Floats, gain: Floats, target: Floats) -> Floats:
    """Return float64 values from 0 (dark) of (..., 3) optical density: the stains of `matrix` (S, 3), each `gain` (S,)
    times as strong, in the colours of `target` (S, 3). Bright pixels may pass 255."""
    return np.asarray(255 * np.exp(-((concentrations(density, matrix) * gain) @ target)))


# --- making one -------------------------------------------------------------------------------------------------------


def normaliser(
    method: str = "macenko",
    *,
    reference: Mapping[str, Any] | None = None,
    target: Bytes | None = None,
    matrix: Any = None,
    threshold: float = TISSUE,
    percentile: float = 99.0,
    weight: float = 0.1,
) -> Normaliser:
    """Return a normaliser of one of `METHODS`.

    `target`: a picture whose look becomes the reference. `reference`: a look as `Normaliser.values` gives it. Neither:
    torchstain's published reference for stains, and MoNuSeg's mean look for Reinhard. `matrix`: (S, 3) directions, for
    "custom" and only for it. Raises `UserError`.
    """
    if method not in METHODS:
        raise UserError(f'stain: no method "{method}". {suggest(method, METHODS, "zoo stain --help")}')
    given = None
    if method == "custom":
        given = _matrix(matrix)
    elif matrix is not None:
        raise UserError(f'stain: matrix: the method {method} finds its own. Expected method "custom" beside a matrix.')
    if not 0 < threshold <= 1 or not 50 < percentile <= 100 or not weight > 0:
        raise UserError(
            f"stain: threshold {threshold}, percentile {percentile}, weight {weight} will not do. "
            "Expected 0 < threshold <= 1, 50 < percentile <= 100, weight > 0."
        )
    first = Normaliser(method, _reference(method, reference, given), threshold, percentile, weight, given)
    return first if target is None else first.fit(target)


def _matrix(values: Any) -> Floats:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 2 or found.shape[0] not in (2, 3) or found.shape[1] != 3 or not np.isfinite(found).all():
        raise UserError('stain: matrix: method "custom" needs 2 or 3 rows of 3 numbers: the colour of each stain.')
    if np.linalg.matrix_rank(found) < len(found):
        raise UserError("stain: matrix: its rows are not independent. Expected a direction of its own for each stain.")
    return found


def _reference(method: str, values: Mapping[str, Any] | None, given: Floats | None) -> Look:
    if values is not None:
        known = {k: np.asarray(v, np.float64) for k, v in values.items() if k in ("matrix", "maxima", "moments")}
        wanted = {"moments"} if method == "reinhard" else {"matrix", "maxima"}
        if not wanted <= set(known):
            raise UserError(f"stain: reference: expected {' and '.join(sorted(wanted))} for the method {method}.")
        return Look(known.get("matrix"), known.get("maxima"), known.get("moments"))
    if method == "reinhard":
        means, stds = (np.array(colour.PUBLISHED["monuseg"]["lab"][i]) for i in (0, 2))
        return Look(moments=np.stack([means - [0, 128, 128], stds]) / [2.55, 1, 1])
    if given is not None and len(given) == 3:
        return Look(given, np.array([1.5, 1.0, 1.0]))
    return Look(given if given is not None else TORCHSTAIN_MATRIX, TORCHSTAIN_MAXIMA)


def augmented(rgb: Bytes, matrix: Floats, alpha: NDArray[Any], beta: NDArray[Any], mask: Mask | None = None) -> Bytes:
    """Return the picture with each stain's concentration c replaced by `c * alpha + beta`.

    `matrix` (S, 3); `alpha`, `beta` (S,); `mask` (H, W) bool: where to change it, None = everywhere. Source:
    TIAToolbox's StainAugmentor, after Tellez et al., IEEE TMI 37 (2018).
    """
    amounts = concentrations(optical_density(rgb), matrix)
    changed = amounts * alpha + beta
    if mask is not None:
        changed = np.where(mask[..., None], changed, amounts)
    return to_bytes(255 * np.exp(-(changed @ matrix)))
