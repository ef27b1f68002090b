"""Metrics of pictures: how near a predicted picture is to the true one of the same field.

Conventions, for every function here: channels weigh the same, whatever their spread; only valid pixels count; nothing
valid, or nothing that varies where variation is what is measured, gives nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_SIGMA = 1.5
_SIDES = {"gaussian": 11, "uniform": 7}  # of SSIM's windows; the Gaussian is cut at 3.5 sigma


@dataclass(frozen=True)
class Pair:
    """Two pictures of one field: `prediction`, `truth` (C, H, W) float64; `valid` (H, W) bool; `spread`: the largest
    difference that two values can have (255 for 8-bit pictures); `channels`: their names, where they have any."""

    prediction: NDArray[np.float64]
    truth: NDArray[np.float64]
    valid: NDArray[np.bool_]
    spread: float
    channels: tuple[str, ...] = ()


def pair(
    prediction: Any, truth: Any, valid: Any = None, spread: float | None = None, channels: Sequence[str] = ()
) -> Pair:
    """Return two pictures made ready for the metrics.

    `prediction`, `truth`: (C, H, W) of one shape, in the same encoding; `valid`: (H, W) bool, None for everywhere;
    `spread`: None takes the range of an integer dtype, or the truth's maximum minus minimum for floats. Raises
    `ValueError` for differing shapes.
    """
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape or true.ndim != 3:
        raise ValueError(f"prediction {predicted.shape} and truth {true.shape} are not two (C, H, W) of one shape")
    if spread is None:
        if np.issubdtype(true.dtype, np.integer):
            spread = float(np.iinfo(true.dtype).max)
        else:
            spread = float(np.ptp(true)) if true.size else 0.0
    mask = np.ones(true.shape[1:], bool) if valid is None else np.asarray(valid, bool)
    return Pair(predicted.astype(np.float64), true.astype(np.float64), mask, spread, tuple(channels))


def saved(picture: Any) -> NDArray[np.uint8]:
    """Return what the translators of the pix2pix lineage write to disk: [-1, 1] clipped, (x + 1) / 2 * 255, truncated.

    Truncation costs a level where a value lies a rounding error below it: an 8-bit picture that is scaled to [-1, 1]
    and saved is not the same picture. Published PSNR and SSIM are measured on such files.
    """
    unit = (np.clip(np.asarray(picture, np.float32), -1, 1) + 1) / np.float32(2)
    return np.asarray(unit * np.float32(255)).astype(np.uint8)


def psnr(both: Pair) -> float:
    """Return the peak signal-to-noise ratio in dB, 10 log10(spread² / MSE), over channels and pixels.

    Equal pictures give infinity. It shows how near the pixels are. It cannot show whether a picture is right where it
    lies off the true one by some pixels, and a blurred picture wins over a sharp one.
    """
    if not both.valid.any():
        return float("nan")
    error = float(np.mean((both.prediction[:, both.valid] - both.truth[:, both.valid]) ** 2))
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(both.spread**2) / error)) if error else float("inf")


def ssim(
    both: Pair,
    window: Literal["gaussian", "uniform"] = "gaussian",
    *,
    sample_covariance: bool = False,
    border: Literal["inside", "reflect"] = "inside",
) -> float:
    """Return the structural similarity, in [-1, 1] (Wang et al., IEEE TIP 2004).

    Gaussian window of sigma 1.5 (11 pixels), K1 0.01, K2 0.03, population covariance, a channel at a time, averaged
    over pixels whose window lies inside the picture and whose centre is valid. Pictures under 11 pixels give nan.

    It shows whether structures of some pixels lie in the same places. It cannot show whether colours or cells are
    right, nor anything where the pictures lie off each other.

    Others count otherwise: scikit-image's default, which image-translation papers report, is `window="uniform"` (7
    pixels) with `sample_covariance`; `border="reflect"` averages over every pixel of the mirrored picture, as
    torchmetrics does.
    """
    from skimage.metrics import structural_similarity

    side = _SIDES[window]
    cut = 0 if border == "reflect" else side // 2
    inner = slice(cut, -cut or None)
    counted = both.valid[inner, inner]
    if min(both.truth.shape[1:]) < side or not counted.any() or not both.spread:
        return float("nan")
    values = []
    for predicted, true in zip(both.prediction, both.truth, strict=True):
        x, y = (np.pad(p, side // 2, mode="reflect") if border == "reflect" else p for p in (predicted, true))
        _, each = structural_similarity(
            x,
            y,
            win_size=side,
            data_range=both.spread,
            gaussian_weights=window == "gaussian",
            sigma=_SIGMA,
            use_sample_covariance=sample_covariance,
            full=True,
        )
        half = side // 2
        values.append(float(each[half:-half, half:-half][counted].mean()))
    return float(np.mean(values))


def pearson_per_channel(both: Pair) -> NDArray[np.float64]:
    """Return Pearson's correlation over pixels, a channel: (C,) float64, nan where a picture is constant."""
    found = np.full(len(both.truth), np.nan)
    if not both.valid.any():
        return found
    for c, (predicted, true) in enumerate(zip(both.prediction, both.truth, strict=True)):
        x, y = (plane[both.valid] - plane[both.valid].mean() for plane in (predicted, true))
        under = float(np.sqrt((x @ x) * (y @ y)))
        if under > 1e-12 * max(1.0, both.spread**2):
            found[c] = float(x @ y) / under
    return found


def pearson(both: Pair, channel: str | None = None) -> float:
    """Return Pearson's correlation averaged over the channels that vary, or that of one channel by its name; nan where
    none varies or the pair has no such channel."""
    values = pearson_per_channel(both)
    if channel is not None:
        return float(values[both.channels.index(channel)]) if channel in both.channels else float("nan")
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
