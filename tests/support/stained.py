"""Pictures whose stains are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

H = np.array([0.6, 0.7, 0.38])
E = np.array([0.15, 0.93, 0.33])


def mixed(seed: int, shape: tuple[int, int] = (96, 96), eosin: float = 1.0, haematoxylin: float = 1.5) -> NDArray[Any]:
    """Return (H, W, 3) uint8: nuclei of pure haematoxylin, stroma of pure eosin, glass, and what lies between."""
    rng = np.random.default_rng(seed)
    rows = np.stack([H / np.linalg.norm(H), E / np.linalg.norm(E)])
    amounts = rng.gamma(2.0, 0.25, (*shape, 2)) * [haematoxylin, eosin]
    kind = rng.random(shape)
    amounts[kind < 0.35, 1] = 0
    amounts[kind > 0.65, 0] = 0
    amounts[kind > 0.9] = 0
    return np.asarray(np.rint(255 * np.exp(-amounts @ rows)).clip(0, 255), np.uint8)


def odd_pictures() -> dict[str, NDArray[Any]]:
    """Pictures that have nothing, or too little, to normalise."""
    rng = np.random.default_rng(3)
    shape = (64, 64)
    blank = rng.integers(238, 247, (*shape, 3)).astype(np.uint8)
    noise = rng.normal(0, 2, (*shape, 3))
    eosin = np.clip(255 * np.exp(-rng.uniform(0.1, 0.6, (*shape, 1)) * E) + noise, 0, 255).astype(np.uint8)
    pen = mixed(5, shape)
    pen[20:40] = (20, 60, 200)
    return {
        "blank": blank,
        "white": np.full((*shape, 3), 255, np.uint8),
        "black": np.zeros((*shape, 3), np.uint8),
        "grey": np.full((*shape, 3), 180, np.uint8),
        "one stain": eosin,
        "pen": pen,
        "a pixel": np.full((1, 1, 3), (120, 60, 140), np.uint8),
    }
