"""Metrics of immunostains: whether a picture says the same about the biology as the true one of the same field.

What they take is made by `zoo.families.immunostain`: the optical density of DAB in each pixel (Ruifrok's directions,
natural logarithm), and nuclei that are segmented in each of the two pictures by the same classical rule, positive where
their mean density of DAB is at least `POSITIVE`.

They can show whether the brown is in the right amount, in the right places and on the right cells, which PSNR, SSIM and
FID cannot: a picture that is brown everywhere can have a good SSIM. They cannot show that a cell expresses a protein:
both sides are read off pictures by a rule that errs, in the same way on both where they look alike. Directions and the
threshold are fixed, so that a scanner with other colours shifts them on both sides; where pictures are of different
sections, no number here has 1 as its ceiling (`zoo data align` says by how much they are off). Positive cells mean
something for markers of nuclei (Ki67, ER, PR), little for those of membranes (HER2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.metrics.shapes import centroid_pairs

POSITIVE = 0.3
"""Optical density of DAB (natural logarithm; 0.13 in base 10) from which a pixel or a nucleus counts as positive."""


@dataclass(frozen=True)
class Amounts:
    """One picture: `brown` (H, W) float, optical density of DAB; `centres` (N, 2) row and column of its nuclei, and
    `positive` (N,) bool which of them are brown."""

    brown: NDArray[np.float32]
    centres: NDArray[np.float64]
    positive: NDArray[np.bool_]


class Evidence(Protocol):
    """Both pictures of a field, and (H, W) bool: where they count."""

    @property
    def prediction(self) -> Amounts: ...

    @property
    def truth(self) -> Amounts: ...

    @property
    def valid(self) -> NDArray[np.bool_]: ...


def _blocks(values: NDArray[np.float32], valid: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """Return the means of square blocks over their valid pixels; blocks of which less than half is valid are left
    out, and so is what a last block lacks."""
    side = max(1, min(side, *values.shape))
    height, width = (n // side * side for n in values.shape)
    shape = (height // side, side, width // side, side)
    weight = valid[:height, :width].astype(np.float64)
    total = (values[:height, :width] * weight).reshape(shape).sum((1, 3))
    count = weight.reshape(shape).sum((1, 3))
    told = count >= side * side / 2
    return np.asarray(total[told] / count[told])


def dab_concordance(evidence: Evidence, block: float = 8) -> float:
    """Return Lin's concordance of the optical density of DAB, means over squares of `block` pixels, in [-1, 1].

    2 cov / (var + var + (mean - mean)²) (Lin, Biometrics 45, 1989): 1 where the amounts agree, not only their ranks as
    in a correlation. nan where neither picture varies. It shows whether amounts agree place by place; it cannot tell a
    picture that is off by a cell from one that is wrong: for such pairs take larger squares (`dab_concordance@64`).
    """
    ours, theirs = (_blocks(side.brown, evidence.valid, round(block)) for side in (evidence.prediction, evidence.truth))
    if len(ours) < 2:
        return float("nan")
    under = ours.var() + theirs.var() + (ours.mean() - theirs.mean()) ** 2
    if under < 1e-12:
        return float("nan")
    return float(2 * ((ours - ours.mean()) * (theirs - theirs.mean())).mean() / under)


def positive_area(amounts: Amounts, valid: NDArray[np.bool_]) -> float:
    """Return the share of valid pixels that are brown; nan where none is valid."""
    return float((amounts.brown[valid] >= POSITIVE).mean()) if valid.any() else float("nan")


def positive_area_error(evidence: Evidence) -> float:
    """Return |predicted - true| share of the field's area that is brown.

    It shows whether there is as much stain as there should be, whatever its place: robust to sections that lie off each
    other, blind to a picture that puts the stain on the wrong cells.
    """
    return abs(positive_area(evidence.prediction, evidence.valid) - positive_area(evidence.truth, evidence.valid))


def _positive(amounts: Amounts, valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Return the centres of positive nuclei that lie where pictures count, and the number of all nuclei there."""
    if not len(amounts.centres):
        return np.zeros((0, 2)), 0
    at = np.clip(amounts.centres.round().astype(int), 0, np.array(valid.shape) - 1)
    inside = valid[at[:, 0], at[:, 1]]
    return amounts.centres[inside & amounts.positive], int(inside.sum())


def positive_cell_f1(evidence: Evidence, radius: float = 8.0) -> float:
    """Return 2 TP / (2 TP + FP + FN) of positive nuclei, matched one to one by centres at most `radius` pixels apart;
    nan where neither picture has one.

    It shows whether the same cells are brown. Pictures of different sections cannot reach 1: the cells are others.
    """
    ours, theirs = (_positive(side, evidence.valid)[0] for side in (evidence.prediction, evidence.truth))
    if not len(ours) + len(theirs):
        return float("nan")
    return 2 * len(centroid_pairs(ours, theirs, radius)) / (len(ours) + len(theirs))


def positive_share_error(evidence: Evidence) -> float:
    """Return |predicted - true| share of positive nuclei among all (a labelling index); nan where a picture has none.

    It shows what a pathologist would count; errors that cancel (as many false as missed) do not show.
    """
    counts = [_positive(side, evidence.valid) for side in (evidence.prediction, evidence.truth)]
    if not all(total for _, total in counts):
        return float("nan")
    one, other = (len(found) / total for found, total in counts)
    return abs(one - other)


def positive_counts(evidence: Evidence) -> tuple[float, float]:
    """Return how many positive nuclei both pictures have, predicted and true."""
    ours, theirs = (_positive(side, evidence.valid)[0] for side in (evidence.prediction, evidence.truth))
    return float(len(ours)), float(len(theirs))


def count_correlation(counts: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation over fields of the numbers of positive nuclei, predicted and true; nan with fewer
    than three fields, or where one side does not vary.

    It shows whether fields with more positive cells are painted with more; a model that paints twice as many everywhere
    has 1 too.
    """
    ours, theirs = np.asarray(counts, np.float64).reshape(-1, 2).T
    if len(ours) < 3 or not ours.std() or not theirs.std():
        return float("nan")
    return float(np.corrcoef(ours, theirs)[0, 1])
