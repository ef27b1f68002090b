"""Finding the stains of a picture: Macenko, Vahadane, and the variants that published pipelines use.

A stain matrix is (S, 3): rows are stains, haematoxylin first, columns the optical density in red, green and blue.
Functions raise `NoTissueError` where a picture has nothing to estimate from; what to do then is the affair of
`zoo.stain.normalise`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.stain.density import TISSUE, Bytes, Floats, optical_density, tissue_mask

RUIFROK: Floats = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Haematoxylin and eosin (Ruifrok and Johnston 2001), rounded and not of unit length, as TIAToolbox has them."""
RUIFROK_HED: Floats = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Haematoxylin, eosin and DAB, as scikit-image has them."""
MOST = 50_000
"""Pixels that the slow decompositions look at, evenly spaced."""


class NoTissueError(ValueError):
    """A picture in which there is nothing to estimate stains from."""


def tissue_density(rgb: Bytes, threshold: float = TISSUE) -> Floats:
    """Return (N, 3) optical density of the tissue pixels of (H, W, 3) uint8. Raises `NoTissueError`."""
    mask = tissue_mask(rgb, threshold)
    if mask.sum() < 3:
        raise NoTissueError("no pixel is tissue")
    return optical_density(rgb[mask])


def concentrations(density: Floats, matrix: NDArray[Any]) -> Floats:
    """Return (..., S): least squares of `concentrations @ matrix = density`, without a sign constraint."""
    return np.asarray(density.reshape(-1, 3) @ np.linalg.pinv(matrix)).reshape(*density.shape[:-1], -1)


def unit(matrix: NDArray[Any]) -> Floats:
    """Return the matrix with rows of length 1."""
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float64)


def macenko(density: Floats, percentile: float = 99) -> Floats:
    """Return (2, 3) unit rows from (N, 3) optical density of tissue.

    The two largest principal directions span the plane; its extreme angles (`percentile` and 100 - `percentile`) are
    the stains, and the one that takes more red is haematoxylin. Source: Macenko et al., ISBI 2009, section 2; numerics
    of TIAToolbox.
    """
    _, vectors = np.linalg.eigh(np.cov(density, rowvar=False))
    basis = vectors[:, [2, 1]] * np.where(vectors[0, [2, 1]] < 0, -1, 1)
    along = density @ basis
    angles = np.arctan2(along[:, 1], along[:, 0])
    extremes = np.percentile(angles, (100 - percentile, percentile))
    return haematoxylin_first(unit(np.stack([np.cos(extremes), np.sin(extremes)], 1) @ basis.T))


def haematoxylin_first(matrix: Floats) -> Floats:
    """Return (2, 3) with the row that takes more red first."""
    return matrix if matrix[0, 0] > matrix[1, 0] else matrix[::-1].copy()


def gathered(density: Floats, pixels: Bytes, bits: int = 6) -> tuple[Floats, Floats]:
    """Return (K, 3) mean optical densities of pixels of nearly one colour, and (K,) how many each stands for.

    `density`, `pixels`: (N, 3). Colours are one where their first `bits` bits are; a tile has a few thousand of them,
    which say to `vahadane` what all of its pixels say.
    """
    first = (pixels >> (8 - bits)).astype(np.int64)
    key = (first[:, 0] << 2 * bits) | (first[:, 1] << bits) | first[:, 2]
    counts = np.bincount(key, minlength=1 << 3 * bits)
    used = np.flatnonzero(counts)
    sums = np.stack([np.bincount(key, density[:, c], minlength=len(counts))[used] for c in range(3)], 1)
    return sums / counts[used, None], counts[used].astype(np.float64)


def vahadane(density: Floats, weight: float = 0.1, rounds: int = 60, counts: Floats | None = None) -> Floats:
    """Return (2, 3) unit rows from (N, 3) optical density of tissue: sparse non-negative factorisation.

    Minimises `|density - C W|^2 / 2 + weight * |C|_1` over C >= 0 and W >= 0 with unit rows, by turns, from Ruifrok's
    directions; a function of the pixels alone. `counts`: (N,) how many pixels each row stands for. Source: Vahadane et
    al., IEEE TMI 35 (2016), section III.A (sparse NMF, lambda 0.1).
    """
    step = max(1, -(-len(density) // MOST)) if counts is None else 1
    data = np.asarray(density[::step], np.float64)
    stains = unit(RUIFROK)
    amounts = np.maximum(concentrations(data, stains), 0)
    for _ in range(rounds):
        before = stains
        gram, seen = stains @ stains.T, data @ stains.T - weight
        for _ in range(4):
            for s in range(2):
                rest = seen[:, s] - amounts[:, 1 - s] * gram[s, 1 - s]
                amounts[:, s] = np.maximum(rest / gram[s, s], 0)
        weighed = amounts.T if counts is None else amounts.T * counts
        inner, outer = weighed @ amounts, weighed @ data
        for s in range(2):
            if inner[s, s] <= 0:
                continue
            row = np.maximum(outer[s] - inner[s, 1 - s] * stains[1 - s], 0)
            if row.any():
                stains = stains.copy()
                stains[s] = row / np.linalg.norm(row)
        if np.abs(stains - before).max() < 1e-6:
            break
    return haematoxylin_first(stains)


def vahadane_tiatoolbox(density: Floats, weight: float = 0.1) -> Floats:
    """Return (2, 3) unit rows by scikit-learn's dictionary learning, as TIAToolbox calls it.

    Kept to compare with its numbers: the stain vectors may have negative entries ("eosin" is then a difference), and
    they depend on scikit-learn's version. `vahadane` is what the paper describes.
    """
    from sklearn.decomposition import DictionaryLearning

    learner = DictionaryLearning(
        n_components=2,
        alpha=weight,
        transform_alpha=weight,
        fit_algorithm="lars",
        transform_algorithm="lasso_lars",
        positive_dict=True,
        max_iter=3,
        transform_max_iter=1000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three rounds do not converge, which is how it was published
        found = learner.fit_transform(density.T).T
    rows = found if found[0, 0] >= found[1, 0] else found[[1, 0]]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or (length == 0).any():
        raise NoTissueError("dictionary learning found no two stains")
    return np.asarray(rows / length)


# --- torchstain's Macenko, of EXAONEPath ------------------------------------------------------------------------------


def nearest_rank(values: Floats, percentile: float) -> Floats:
    """Return the value of rank `1 + round(0.01 percentile (n - 1))` along the first axis."""
    place = round(0.01 * percentile * (len(values) - 1))
    return np.asarray(np.partition(values, place, axis=0)[place])


def torchstain_density(rgb: Bytes, white: float = 240) -> Floats:
    """Return `-ln((v + 1) / white)` of uint8 values, float64; negative where it is brighter than `white`."""
    return np.asarray(np.take(-np.log((np.arange(256) + 1.0) / white), rgb))


def torchstain_macenko(density: Floats, faint: float = 0.15, percentile: float = 1) -> Floats:
    """Return (2, 3) rows from (N, 3) `torchstain_density` of all pixels. Raises `NoTissueError`.

    Tissue is where no channel is below `faint`; percentiles are of nearest rank. Source: torchstain 1.4, as EXAONEPath
    (arXiv 2408.00380) uses it.
    """
    tissue = density[(density >= faint).all(-1)]
    if len(tissue) < 3:
        raise NoTissueError("no pixel is tissue")
    _, vectors = np.linalg.eigh(np.cov(tissue, rowvar=False))
    basis = vectors[:, [1, 2]]
    along = tissue @ basis
    angles = np.arctan2(along[:, 1], along[:, 0])
    extremes = np.stack([nearest_rank(angles, percentile), nearest_rank(angles, 100 - percentile)])
    rows = np.stack([np.cos(extremes), np.sin(extremes)], 1) @ basis.T
    return haematoxylin_first(np.asarray(rows))
