"""Metrics of sets of pictures by the features of a network: FID, KID, PHV; and of features by themselves: R.

The network is the caller's and is to be named beside the number: an FID of ImageNet's Inception and one of a pathology
encoder are two quantities. Features are (N, D) float arrays, a row an image. Sums run in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _rows(features: Any, least: int = 2) -> Floats:
    found = np.asarray(features, np.float64)
    if found.ndim != 2 or len(found) < least:
        raise ValueError(f"features {found.shape} will not do. Expected (N, D) with N of at least {least}")
    return found


def fid(prediction: Any, truth: Any) -> float:
    """Return the Frechet distance of two sets of features (Heusel et al., NeurIPS 2017, eq. 6).

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), C the sample covariance (N - 1). The trace of the root is the sum of the
    singular values of the product of the centred matrices, which is exact and stays real where C1 C2 is singular. The
    estimate is biased upwards with few images: give their number. Infinity never; negative rounding becomes 0. It
    shows whether two sets look alike to the network, never whether a picture fits its own input.
    """
    one, other = _rows(prediction), _rows(truth)
    a, b = (x - x.mean(0) for x in (one, other))
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    gap = one.mean(0) - other.mean(0)
    # tr sqrt(A'A B'B) is the sum of the singular values of A B', or of R S' where A = Q R and B = P S
    a_r, b_r = (np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x for x in (a, b))
    root = float(np.linalg.svd(a_r @ b_r.T, compute_uv=False).sum())
    return max(0.0, float(gap @ gap + (a * a).sum() + (b * b).sum() - 2 * root))


def _kernel(a: Floats, b: Floats) -> Floats:
    found: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return found


def _mmd2(x: Floats, y: Floats) -> float:
    m, n = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


@dataclass(frozen=True)
class Kid:
    """`value`: mean of MMD² over subsets; `deviation`: its standard deviation over subsets, or 0 of one subset;
    `variance`: the estimator's own variance of one subset (nan of several)."""

    value: float
    deviation: float
    variance: float = float("nan")


def kid_of(prediction: Any, truth: Any, *, subsets: int = 100, size: int | None = 1000, seed: int = 0) -> Kid:
    """Return the kernel distance of two sets of features (Binkowski et al., ICLR 2018): unbiased MMD² with the kernel
    (x.y / D + 1)³.

    `subsets` of `size` images drawn without replacement, of the smaller set's size where that is less; `size` None
    takes both sets whole, once. The estimate may be negative. What it shows: see `fid`.
    """
    one, other = _rows(prediction), _rows(truth)
    if size is None:
        return Kid(_mmd2(one, other), 0.0, _mmd2_variance(one, other) if len(one) == len(other) else float("nan"))
    count = min(size, len(one), len(other))
    rng = np.random.default_rng(seed)
    values = [
        _mmd2(one[rng.choice(len(one), count, False)], other[rng.choice(len(other), count, False)])
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)))


def _mmd2_variance(x: Floats, y: Floats) -> float:
    """Return the variance of the unbiased MMD² of two sets of one size (Bounliphone et al., ICLR 2016, appendix)."""
    m = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    dx, dy = np.diag(xx), np.diag(yy)
    kx, ky = xx.sum(1) - dx, yy.sum(1) - dy
    sx, sy = kx.sum(), ky.sum()
    x2, y2 = float((xx**2).sum() - (dx**2).sum()), float((yy**2).sum() - (dy**2).sum())
    c0, c1, total, squares = xy.sum(0), xy.sum(1), float(xy.sum()), float((xy**2).sum())
    m1, m2 = m - 1, m - 2
    zeta1 = (
        1 / (m * m1 * m2) * (kx @ kx - x2 + ky @ ky - y2)
        - 1 / (m * m1) ** 2 * (sx**2 + sy**2)
        + 1 / (m * m * m1) * (c1 @ c1 + c0 @ c0 - 2 * squares)
        - 2 / m**4 * total**2
        - 2 / (m * m * m1) * (kx @ c1 + ky @ c0)
        + 2 / (m**3 * m1) * (sx + sy) * total
    )
    zeta2 = (
        1 / (m * m1) * (x2 + y2)
        - 1 / (m * m1) ** 2 * (sx**2 + sy**2)
        + 2 / (m * m) * squares
        - 2 / m**4 * total**2
        - 4 / (m * m * m1) * (kx @ c1 + ky @ c0)
        + 4 / (m**3 * m1) * (sx + sy) * total
    )
    return float(4 * m2 / (m * m1) * zeta1 + 2 / (m * m1) * zeta2)


def kid(prediction: Any, truth: Any, **options: Any) -> float:
    """Return the kernel distance (see `kid_of`)."""
    return kid_of(prediction, truth, **options).value


def phv(prediction: Any, truth: Any, threshold: float = 0.01) -> float:
    """Return the perceptual hash value: the share of channels whose spatial means differ by more than `threshold` (>).

    `prediction`, `truth`: (N, D) or (D,) spatial means of one layer of a network, a channel each (Li et al., MICCAI
    2023, the measure called PHV, over layers 1 to 4 of ImageNet's ResNet-50); the mean over the N images. It shows
    whether pairs look alike to the network on the whole, wherever in the field; it cannot show whether a cell is right.
    """
    one, other = np.atleast_2d(np.asarray(prediction)), np.atleast_2d(np.asarray(truth))
    if one.shape != other.shape:
        raise ValueError(f"features {one.shape} and {other.shape} differ in shape")
    return float((np.abs(one - other) > threshold).mean())


# --- pictures -> features ---------------------------------------------------------------------------------------------


def collect(pictures: Iterable[Any], network: Callable[[Any], Any], batch: int = 8) -> NDArray[np.float32]:
    """Return (N, D) float32 features of pictures (C, H, W) of one shape; `network` takes (B, C, H, W), gives (B, D)."""
    found: list[Any] = []
    waiting: list[Any] = []

    def flush() -> None:
        if waiting:
            found.append(np.asarray(network(np.stack(waiting)), np.float32))
            waiting.clear()

    for picture in pictures:
        if waiting and np.shape(waiting[0]) != np.shape(picture):
            flush()
        waiting.append(np.asarray(picture))
        if len(waiting) == batch:
            flush()
    flush()
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


# --- robustness index -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Of each sample (rows) and rank (columns): is the neighbour of the same biological class, of the same centre; and
    its index."""

    biological: NDArray[np.bool_]
    centre: NDArray[np.bool_]
    index: NDArray[np.int64]


def neighbours(features: Any, biological: Any, centre: Any, slide: Any, k: int) -> Neighbours:
    """Return the nearest neighbours of every sample by the angle of their features, those of its own slide left out.

    PathoROB (Koemen et al., 2025): rows are L2-normalised; k + m neighbours are looked at, m the most samples that one
    slide has, at most all; those of the query's slide go, the query among them; every list is cut to the shortest.
    """
    x = _rows(features)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(norm > 0, norm, 1)
    slides = np.unique(np.asarray(slide), return_inverse=True)[1]
    count = min(len(x), k + int(np.bincount(slides).max()))
    distance = 2 - 2 * (x @ x.T)
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    kept = [row[slides[row] != slides[i]] for i, row in enumerate(order)]
    shortest = min(len(row) for row in kept)
    index = np.stack([row[:shortest] for row in kept]).astype(np.int64)
    b, c = np.asarray(biological), np.asarray(centre)
    return Neighbours(b[index] == b[:, None], c[index] == c[:, None], index)


def robustness_curves(
    features: Any, biological: Any, centre: Any, slide: Any, k: int, subsets: Any = None
) -> dict[str, Floats]:
    """Return name -> (K,) curves over k = 1..K of what neighbours share.

    Neighbours are SS, SO, OS or OO: same or other biological class, same or other centre, counted over all samples and
    the first k neighbours. `robustness_index` SO / (SO + OS) (PathoROB); `bio_vs_confounding` (SS + SO) / (SS + OS) (de
    Jong et al., 2025); `fraction_*`; `prediction_performance` SS + SO; `ID_performance` SS / (SS + OS);
    `OOD_performance` SO / (SO + OO); `confounder_insensitivity` (SO + OO) / (SS + OS); `generalization_index` (SS SO +
    SO OS) / (SS SO + SS OO), all of fractions. `subsets` (N,): the paired design, neighbours being looked for within
    each subset and the lists cut to the length that all have. K may exceed k. nan where nothing is divided.
    """
    groups = [np.arange(len(np.asarray(biological)))]
    if subsets is not None:
        values = np.asarray(subsets)
        groups = [np.flatnonzero(values == s) for s in np.unique(values)]
    x, b, c, s = (np.asarray(v) for v in (features, biological, centre, slide))
    parts = [neighbours(x[g], b[g], c[g], s[g], k) for g in groups]
    columns = min(part.index.shape[1] for part in parts)
    same_b = np.concatenate([part.biological[:, :columns] for part in parts])
    same_c = np.concatenate([part.centre[:, :columns] for part in parts])
    cells = {"SS": same_b & same_c, "SO": same_b & ~same_c, "OS": ~same_b & same_c, "OO": ~same_b & ~same_c}
    total = len(same_b) * np.arange(1, columns + 1)
    f = {name: np.cumsum(cell.sum(0)) / total for name, cell in cells.items()}
    ss, so, os_, oo = f["SS"], f["SO"], f["OS"], f["OO"]
    return {
        "robustness_index": _ratio(so, so + os_),
        "bio_vs_confounding": _ratio(ss + so, ss + os_),
        **{f"fraction_{name}": value for name, value in f.items()},
        "prediction_performance": ss + so,
        "ID_performance": _ratio(ss, ss + os_),
        "OOD_performance": _ratio(so, so + oo),
        "confounder_insensitivity": _ratio(so + oo, ss + os_),
        "generalization_index": _ratio(ss * so + so * os_, ss * so + ss * oo),
    }


def _ratio(top: Floats, bottom: Floats) -> Floats:
    found: Floats = np.full(np.shape(bottom), np.nan)
    np.divide(top, bottom, out=found, where=bottom > 0)
    return found


def robustness_index(
    features: Any, biological: Any, centre: Any, slide: Any, k: int = 11, subsets: Any = None
) -> float:
    """Return PathoROB's robustness index at `k` neighbours (or the most that there are), in [0, 1].

    Of the neighbours that share exactly one of class and centre with the query, the share that share the class.
    """
    curve = robustness_curves(features, biological, centre, slide, k, subsets)["robustness_index"]
    return float(curve[min(k, len(curve)) - 1])


def knn_balanced_accuracy(
    features: Any, biological: Any, centre: Any, slide: Any, ks: Sequence[int], subsets: Any = None
) -> Floats:
    """Return the balanced accuracy of the majority of k neighbours (ties: the smallest label), a value a k.

    Neighbours as in `robustness_curves`; with `subsets` the mean over subsets.
    """
    x, b, c, s = (np.asarray(v) for v in (features, biological, centre, slide))
    groups = [np.arange(len(b))]
    if subsets is not None:
        values = np.asarray(subsets)
        groups = [np.flatnonzero(values == v) for v in np.unique(values)]
    found = []
    for g in groups:
        labels, index = b[g], neighbours(x[g], b[g], c[g], s[g], max(ks)).index
        kinds = np.unique(labels)
        votes = np.stack([labels[index] == kind for kind in kinds], -1)  # sample, rank, class
        counted = np.cumsum(votes, 1)
        found.append(
            [
                float(
                    np.mean(
                        [
                            (kinds[counted[:, min(k, index.shape[1]) - 1].argmax(1)] == labels)[labels == kind].mean()
                            for kind in kinds
                        ]
                    )
                )
                for k in ks
            ]
        )
    return np.asarray(np.mean(found, axis=0), np.float64)
