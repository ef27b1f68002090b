"""H&E turned into a picture as a fluorescence microscope might give it, so that one model can learn both."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zoo.data.steps import Range, Step, in_range, number, rgb_bytes
from zoo.stain.matrices import HED, absorbance
from zoo.types import Sample


class Fluorescence(Step):
    """Let haematoxylin shine: nuclei bright on a dark ground, grey in three channels.

    The haematoxylin of each pixel (Ruifrok and Johnston 2001), above what the ground has, becomes light. `level`: how
    bright the brightest nuclei are, a share of the range, each doubling as likely; dim ones are what a few dead and
    dividing cells leave when a picture is stretched between percentiles. `uneven`: how much dimmer some regions may be.
    `ground`: light of the ground. `debris`: most such bright cells a picture.
    """

    colour = True

    def __init__(
        self,
        level: Range = (0.15, 1.0),
        uneven: float = 0.5,
        ground: Range = (0.0, 0.12),
        debris: float = 4,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.level = in_range(level, 0.01, 1, "level")
        self.uneven = number(uneven, 0, 1, "uneven")
        self.ground = in_range(ground, 0, 1, "ground")
        self.debris = int(number(debris, 0, 1000, "debris"))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with another image; truths stay."""
        light = _haematoxylin(rgb_bytes(self, sample))
        low, high = np.percentile(light, (rng.uniform(40, 75), 99.5))
        light = np.clip((light - low) / max(float(high - low), 1e-3), 0, 1.3)
        light = light ** np.float32(rng.uniform(0.5, 1.1))
        ground = rng.uniform(*self.ground)
        light *= _field(rng, (light.shape[0], light.shape[1]), self.uneven)
        level = max(float(np.exp(rng.uniform(*np.log(self.level)))), ground + 0.08)
        picture = ground + (level - ground) * light
        for _ in range(int(rng.integers(0, self.debris + 1))):
            picture = np.maximum(picture, _spark(rng, (picture.shape[0], picture.shape[1])))
        grey = np.clip(255 * picture + 0.5, 0, 255).astype(np.uint8)
        return sample.with_(image=np.repeat(grey[None], 3, axis=0))


def _haematoxylin(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (H, W) concentration, in units of the stain's direction."""
    flat = absorbance(rgb).reshape(3, -1)
    found: NDArray[np.float32] = np.linalg.inv(HED.T)[0].astype(np.float32) @ flat
    return found.reshape(rgb.shape[1:])


def _field(rng: np.random.Generator, shape: tuple[int, int], depth: float) -> NDArray[np.float32]:
    """Return (H, W) factors in [1 - depth, 1] that change slowly: nuclei of one picture differ in DNA and focus."""
    coarse = rng.random((5, 5), np.float32)
    smooth = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(1 - np.float32(depth) * smooth, np.float32)


def _spark(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return (H, W) light of one small, very bright thing."""
    spot = np.zeros(shape, np.float32)
    centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
    axes = (int(rng.integers(2, 8)), int(rng.integers(1, 5)))
    cv2.ellipse(spot, centre, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.8, 1.3)), -1)
    return np.asarray(cv2.GaussianBlur(spot, (0, 0), float(rng.uniform(0.5, 1.5))))
