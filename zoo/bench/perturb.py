"""What happens to images between one laboratory and the next: pure changes of a sample, each at several strengths.

Each perturbation is a list of levels with the undisturbed one among them; curves run over the levels, and the area
under a curve is the mean height over equally spaced levels (trapezoid). Truth moves with the image where the geometry
does. A change that does not fit an image's channels or dtype is left out for its dataset, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from zoo.data.resample import image as resized
from zoo.data.resample import truth_at
from zoo.stain.matrices import stain_jitter
from zoo.types import Sample


@dataclass(frozen=True)
class Perturbation:
    """`levels` in the order of the curve, `clean` the undisturbed one, `unit` what a level counts, `needs`: "colour8"
    (three channels of uint8), "eight" (uint8), or "" (anything)."""

    name: str
    summary: str
    unit: str
    levels: tuple[float, ...]
    clean: float
    apply: Callable[[Sample, float], Sample]
    needs: str = ""

    def fits(self, sample: Sample) -> bool:
        """Return whether it can be done to such images."""
        if sample.axes != "CYX":
            return False
        eight = sample.image.dtype == np.uint8
        return {"": True, "eight": eight, "colour8": eight and len(sample.image) == 3}[self.needs]

    def __call__(self, sample: Sample, level: float) -> Sample:
        """Return the sample at a level; the very sample at the undisturbed one."""
        return sample if level == self.clean else self.apply(sample, level)


def _stain(sample: Sample, level: float) -> Sample:
    """Haematoxylin times 1 + level, eosin times 1 - level."""
    changed = stain_jitter(sample.image, np.array([1 + level, 1 - level, 1.0]), np.zeros(3))
    return sample.with_(image=changed)


def _blur(sample: Sample, level: float) -> Sample:
    planes = [cv2.GaussianBlur(np.ascontiguousarray(plane), (0, 0), level) for plane in sample.image]
    return sample.with_(image=np.stack(planes))


def _jpeg(sample: Sample, level: float) -> Sample:
    flags = [cv2.IMWRITE_JPEG_QUALITY, int(level)]
    if len(sample.image) == 3:
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(np.moveaxis(sample.image, 0, -1)[..., ::-1]), flags)
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
        return sample.with_(image=np.ascontiguousarray(np.moveaxis(decoded, -1, 0)))
    planes = []
    for plane in sample.image:
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(plane), flags)
        planes.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)))
    return sample.with_(image=np.stack(planes))


def _brightness(sample: Sample, level: float) -> Sample:
    scaled = sample.image.astype(np.float32) * level
    dtype = sample.image.dtype
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        return sample.with_(image=np.clip(np.rint(scaled), bounds.min, bounds.max).astype(dtype))
    return sample.with_(image=scaled.astype(dtype))


def _magnification(sample: Sample, level: float) -> Sample:
    """The image is `level` times as large as its um per pixel say; its spacing stays what was said."""
    shape = tuple(max(8, round(n * level)) for n in sample.shape)
    truth = {key: truth_at(value, sample.shape, shape) for key, value in sample.truth.items()}
    return sample.with_(image=resized(sample.image, shape), truth=truth)


PERTURBATIONS: dict[str, Perturbation] = {
    p.name: p
    for p in (
        Perturbation(
            "stain",
            "Stain out of balance",
            "share",
            (-0.5, -0.25, 0.0, 0.25, 0.5),
            0.0,
            _stain,
            "colour8",
        ),
        Perturbation("blur", "Out of focus: Gaussian blur", "sigma, px", (0.0, 0.75, 1.5, 2.25, 3.0), 0.0, _blur),
        Perturbation("jpeg", "Compression as JPEG", "quality", (100.0, 70.0, 40.0, 20.0, 10.0), 100.0, _jpeg, "eight"),
        Perturbation("brightness", "Exposure", "factor", (0.6, 0.8, 1.0, 1.2, 1.4), 1.0, _brightness),
        Perturbation("magnification", "Wrong um per pixel", "factor", (0.67, 0.8, 1.0, 1.25, 1.5), 1.0, _magnification),
    )
}


def area(levels: Sequence[float], heights: Sequence[float]) -> float:
    """Return the mean height of a curve over equally spaced levels (trapezoid rule); nan where a height is."""
    values = np.asarray(heights, np.float64)
    if len(values) != len(levels):
        raise ValueError(f"{len(values)} heights for {len(levels)} levels")
    return float(((values[1:] + values[:-1]) / 2).mean()) if len(values) > 1 else float(values.mean())
