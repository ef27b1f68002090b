"""How well pairs of pictures lie on each other: local cross-correlation of what absorbs red, where both are textured.

Nuclei take red out of the light in H&E and in immunostains alike, so that the same tissue correlates although its
colours differ. A window of the image is looked for in the picture within a reach; where the best place stands out, its
offset counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.data.datasets import Dataset
from zoo.errors import DataError, UserError, counted
from zoo.stain.density import optical_density
from zoo.types import Picture

LEAST_PEAK = 0.35
"""Correlation from which the best place of a window counts as found."""
LEAST_TEXTURE = 0.02
"""Deviation of optical density below which a window has nothing to be found by."""


@dataclass(frozen=True)
class Offsets:
    """Windows of one pair: (N, 2) `moved`, by how many pixels (y, x) the picture's content lies off the image's; (N,)
    `peak` correlations; `looked`: windows that were textured enough to try."""

    moved: NDArray[np.float64]
    peak: NDArray[np.float64]
    looked: int


@dataclass
class Alignment:
    """How misaligned a set of pairs is."""

    name: str
    truth: str
    reach: int
    pairs: dict[str, Offsets] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Return the numbers of the set: median and 90th percentile of the distance, mean offset, and how many windows
        were found at all."""
        moved = np.concatenate([p.moved for p in self.pairs.values()] or [np.zeros((0, 2))])
        looked = sum(p.looked for p in self.pairs.values())
        distance = np.linalg.norm(moved, axis=1)
        numbers = np.percentile(distance, (50, 90)) if len(distance) else (np.nan, np.nan)
        mean = moved.mean(0) if len(moved) else (np.nan, np.nan)
        return {
            "dataset": self.name,
            "truth": self.truth,
            "pairs": len(self.pairs),
            "windows": looked,
            "found": len(moved),
            "median_pixels": round(float(numbers[0]), 2),
            "p90_pixels": round(float(numbers[1]), 2),
            "mean_x": round(float(mean[1]), 2),
            "mean_y": round(float(mean[0]), 2),
            "reach": self.reach,
            "worst": [
                {"id": name, "median_pixels": round(float(np.median(np.linalg.norm(p.moved, axis=1))), 2)}
                for name, p in sorted(self.pairs.items(), key=lambda item: -_middle(item[1]))[:5]
                if len(p.moved)
            ],
            "failures": self.failures,
        }

    def lines(self) -> list[str]:
        """Return what a user reads: how far off the pictures are, and how much of them could be judged."""
        values = self.values()
        share = values["found"] / values["windows"] if values["windows"] else 1.0
        lines = [
            f"{self.name}: {self.truth} against the image, {counted(len(self.pairs), 'pair')}",
            f"  {values['found']} of {values['windows']} textured windows were found again ({share:.0%})"
            if values["windows"]
            else "  nothing could be compared: no window has the texture of nuclei. Are the pictures blank?",
        ]
        if values["found"]:
            off = f"{values['median_pixels']:.1f} pixels (median), {values['p90_pixels']:.1f} (90th percentile)"
            lines.append(f"  off by {off}")
            lines.append(f"  on average x {values['mean_x']:+.1f}, y {values['mean_y']:+.1f}")
            lines += [f"  furthest off: {pair['id']} {pair['median_pixels']:.1f}" for pair in values["worst"][:3]]
        if share < 0.3:
            lines.append(f"  most were not: off by more than {self.reach} pixels, or not the same tissue")
        return lines + [f"  {failure}" for failure in self.failures]


def _middle(offsets: Offsets) -> float:
    return float(np.median(np.linalg.norm(offsets.moved, axis=1))) if len(offsets.moved) else -1.0


def structure(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Return (H, W) float32 of (3, H, W) uint8: optical density in red, a little blurred."""
    import cv2

    return np.asarray(cv2.GaussianBlur(optical_density(rgb[0]).astype(np.float32), (0, 0), 1.0))


def offsets(image: NDArray[Any], picture: NDArray[Any], window: int = 96, reach: int = 24) -> Offsets:
    """Return the offsets of (3, H, W) uint8 `picture` against `image`, over windows side by side.

    `window`: their side; `reach`: the largest offset that is looked for, in pixels; both shrink with small pictures.
    """
    import cv2

    one, other = structure(image), structure(picture)
    height, width = one.shape
    reach = min(reach, max(1, min(height, width) // 8))
    window = min(window, min(height, width) - 2 * reach)
    moved, peaks, looked = [], [], 0
    for y in range(reach, height - window - reach + 1, window):
        for x in range(reach, width - window - reach + 1, window):
            patch = one[y : y + window, x : x + window]
            area = other[y - reach : y + window + reach, x - reach : x + window + reach]
            if patch.std() < LEAST_TEXTURE or area.std() < LEAST_TEXTURE:
                continue
            looked += 1
            scores = cv2.matchTemplate(area, patch, cv2.TM_CCOEFF_NORMED)
            row, column = np.unravel_index(int(scores.argmax()), scores.shape)
            if scores[row, column] >= LEAST_PEAK:
                moved.append((_finer(scores[:, column], row) - reach, _finer(scores[row], column) - reach))
                peaks.append(float(scores[row, column]))
    return Offsets(np.asarray(moved, np.float64).reshape(-1, 2), np.asarray(peaks), looked)


def _finer(line: NDArray[Any], at: Any) -> float:
    """Return the place of a peak to a part of a pixel, by the parabola through it and its neighbours."""
    place = int(at)
    if not 0 < place < len(line) - 1:
        return float(place)
    before, here, after = (float(v) for v in line[place - 1 : place + 2])
    bend = before - 2 * here + after
    return place + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def align(
    dataset: Dataset,
    truth: str | None = None,
    *,
    window: int = 96,
    reach: int = 24,
    most: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Return how a dataset's pictures lie on its images, over at most `most` pairs spread over it.

    Raises `UserError` where the dataset has no picture in colour, or several and none is named.
    """
    pictures = [key for key, card in dataset.card.truths.items() if card.kind == "picture"]
    if truth is None and len(pictures) == 1:
        truth = pictures[0]
    if truth not in pictures:
        what = f'no picture "{truth}"' if truth else "several pictures" if pictures else "no picture of the same field"
        expected = f"one of {', '.join(pictures)}: --picture" if pictures else "paired pictures, as phantom-stains has"
        raise UserError(f"{dataset.card.name}: {what}. Expected {expected}.")
    found = Alignment(dataset.card.name, str(truth), reach)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
    for done, index in enumerate(chosen.tolist(), 1):
        try:
            sample = dataset[index]
            other = sample.truth.get(str(truth))
            if not isinstance(other, Picture) or other.data.dtype != np.uint8 or len(other.data) != 3:
                raise DataError(f"{sample.id}: {truth} is no picture of 3 channels of 8 bits.")
            found.pairs[sample.id] = offsets(sample.image, other.data, window, reach)
        except DataError as error:
            found.failures.append(str(error))
        if progress:
            progress(done, len(chosen))
    return found
