"""What is measured on objects: sizes, shapes, how dark they are.

All is gathered over bands of rows, so that the memory is that of the objects and not of the picture. Lengths are in
pixels, x to the right and y down; the pixel of column j has its centre at j + 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]


class Measures:
    """Measurements of N objects, from bands of a label map with ids 1..N and of the picture beside it."""

    def __init__(self, count: int) -> None:
        self.area = np.zeros(count, np.int64)
        self.boxes = np.zeros((4, count), np.int64)
        self.boxes[:2] = np.iinfo(np.int64).max
        self.sums = np.zeros((2, count))
        self._squares = np.zeros((3, count))  # of x, of y, of x times y
        self._crossings = np.zeros((4, count + 1))  # of the outline by lines: across, down, and the two diagonals
        self._light: NDArray[np.float64] | None = None
        self._darkness = False
        self._above: NDArray[Any] | None = None

    def put(self, begin: int, rows: NDArray[Any], pixels: NDArray[Any] | None = None) -> None:
        """Take rows (h, W) of ids 1..N, from top to bottom, and the picture's rows (h, W, C) where there are any."""
        y, x = np.nonzero(rows)
        ids = rows[y, x].astype(np.int64) - 1
        count = len(self.area)
        self.area += np.bincount(ids, minlength=count)
        along, down = x + 0.5, y + begin + 0.5
        for row, values in enumerate((along, down)):
            self.sums[row] += np.bincount(ids, values, minlength=count)
        for row, values in enumerate((along**2, down**2, along * down)):
            self._squares[row] += np.bincount(ids, values, minlength=count)
        for row, places in ((0, x), (1, y + begin)):
            np.minimum.at(self.boxes[row], ids, places)
            np.maximum.at(self.boxes[row + 2], ids, places + 1)
        self._cross(rows)
        if pixels is not None:
            self._shine(ids, pixels[y, x])

    def _cross(self, rows: NDArray[Any]) -> None:
        above = np.zeros(rows.shape[1], rows.dtype) if self._above is None else self._above
        padded = np.pad(np.concatenate([above[None], rows]), ((0, 0), (1, 1)))
        here, over = padded[1:], padded[:-1]
        for direction, (one, two) in enumerate(
            (
                (here[:, 1:], here[:, :-1]),
                (here, over),
                (here[:, 1:], over[:, :-1]),
                (here[:, :-1], over[:, 1:]),
            )
        ):
            differs = one != two
            for side in (one, two):
                self._crossings[direction] += np.bincount(side[differs], minlength=self._crossings.shape[1])
        self._above = rows[-1].copy()

    def _shine(self, ids: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Gather optical density (8-bit pictures in colour) or intensity (all others)."""
        self._darkness = values.dtype == np.uint8 and values.shape[1] == 3
        if self._darkness:
            table = -np.log10(np.maximum(np.arange(256), 1) / 255)
            light = table[values].mean(1)
        else:
            light = values.astype(np.float64).mean(1)
        if self._light is None:
            self._light = np.zeros(len(self.area))
        self._light += np.bincount(ids, light, minlength=len(self.area))

    @property
    def perimeter(self) -> NDArray[np.float64]:
        """Return the length of each outline, (N,): holes and the picture's border included.

        It follows from how often lines in four directions cross it (Crofton's formula); a disc's is right to a percent.
        """
        crossings = self._crossings.copy()
        if self._above is not None:  # the picture's last row is crossed downwards, too
            last = np.bincount(self._above, minlength=crossings.shape[1])
            crossings[1:] += last
        spacing = np.array([1, 1, np.sqrt(0.5), np.sqrt(0.5)])
        total: NDArray[np.float64] = np.pi / 8 * (spacing @ crossings)[1:]
        return total

    @property
    def axes(self) -> NDArray[np.float64]:
        """Return the full axes of the ellipse with the same second moments, (2, N), the long one first."""
        n = np.maximum(self.area, 1)
        x, y = self.sums / n
        xx, yy = self._squares[0] / n - x**2, self._squares[1] / n - y**2
        xy = self._squares[2] / n - x * y
        middle, spread = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
        return np.asarray(4 * np.sqrt(np.stack([middle + spread, np.maximum(middle - spread, 0)])))

    def columns(self, mpp: float | None = None) -> dict[str, Column]:
        """Return column -> (N,) values.

        `area_px`; `area_um2` and `perimeter_um` where um per pixel are known; `x`, `y`, the centre; the box `x0` to
        `y1`; `perimeter_px`; `major_axis_px`, `minor_axis_px`; `eccentricity`, from 0 for a disc to 1 for a line;
        `circularity`, 4 pi area / perimeter squared; `mean_od`, the mean optical density of the three channels of 8-bit
        colour, or `mean_intensity` of any other picture.
        """
        long, short = self.axes
        perimeter = self.perimeter
        with np.errstate(divide="ignore", invalid="ignore"):
            eccentricity = np.sqrt(np.clip(1 - (short / long) ** 2, 0, 1))
            circularity = np.where(perimeter > 0, 4 * np.pi * self.area / perimeter**2, 0)
        x, y = self.sums / np.maximum(self.area, 1)
        found: dict[str, Column] = {"area_px": self.area}
        if mpp:
            found["area_um2"] = self.area * mpp**2
        found |= {"x": x, "y": y}
        found |= dict(zip(("x0", "y0", "x1", "y1"), self.boxes, strict=True))
        found["perimeter_px"] = perimeter
        if mpp:
            found["perimeter_um"] = perimeter * mpp
        found |= {"major_axis_px": long, "minor_axis_px": short}
        found |= {"eccentricity": np.nan_to_num(eccentricity), "circularity": circularity}
        if self._light is not None:
            found["mean_od" if self._darkness else "mean_intensity"] = self._light / np.maximum(self.area, 1)
        return found
