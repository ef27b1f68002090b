"""Picture metrics against torchmetrics, by hand and by their invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zoo.metrics import picture


def noisy(seed: int = 0, shape: tuple[int, ...] = (3, 40, 33)) -> picture.Pair:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, shape).astype(np.uint8)
    prediction = np.clip(truth + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)
    return picture.pair(prediction, truth)


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    from torchmetrics.functional.regression import pearson_corrcoef

    both = noisy()
    one, other = torch.tensor(both.prediction)[None], torch.tensor(both.truth)[None]
    assert picture.psnr(both) == pytest.approx(float(peak_signal_noise_ratio(one, other, data_range=255.0)), abs=1e-6)
    # torchmetrics reflects the picture at its border and averages over all of it; Wang's definition stays inside
    _, full = structural_similarity_index_measure(one, other, data_range=255.0, return_full_image=True)
    assert picture.ssim(both) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    flat = pearson_corrcoef(one[0].reshape(3, -1).T, other[0].reshape(3, -1).T).numpy()
    np.testing.assert_allclose(picture.pearson_per_channel(both), flat, atol=1e-6)


def test_psnr_by_hand() -> None:
    truth = np.zeros((1, 2, 2), np.uint8)
    prediction = np.full((1, 2, 2), 51, np.uint8)
    assert picture.psnr(picture.pair(prediction, truth)) == pytest.approx(20 * math.log10(5))
    assert picture.psnr(picture.pair(truth, truth)) == math.inf


def test_only_valid_pixels_count() -> None:
    both = noisy()
    half = np.zeros(both.valid.shape, bool)
    half[:, :16] = True
    spoiled = both.prediction.copy()
    spoiled[:, ~half] = 0
    cut = picture.pair(both.prediction[..., :16], both.truth[..., :16], spread=255)
    masked = picture.pair(spoiled, both.truth, half, spread=255)
    assert picture.psnr(masked) == pytest.approx(picture.psnr(cut))
    assert picture.pearson(masked) == pytest.approx(picture.pearson(cut))
    nothing = picture.pair(spoiled, both.truth, np.zeros_like(half))
    assert all(math.isnan(f(nothing)) for f in (picture.psnr, picture.ssim, picture.pearson))


def test_symmetric_and_indifferent_to_flips_and_channel_order() -> None:
    both = noisy(1)
    for other in (
        picture.pair(both.truth, both.prediction, spread=255),
        picture.pair(both.prediction[:, ::-1, ::-1], both.truth[:, ::-1, ::-1], spread=255),
        picture.pair(both.prediction[::-1], both.truth[::-1], spread=255),
    ):
        for metric in (picture.psnr, picture.ssim, picture.pearson):
            assert metric(other) == pytest.approx(metric(both))


def test_what_cannot_be_measured_is_nan() -> None:
    flat = picture.pair(np.full((1, 12, 12), 3.0), np.full((1, 12, 12), 3.0))
    assert math.isnan(picture.pearson(flat))
    assert math.isnan(picture.ssim(flat))
    assert math.isnan(picture.ssim(noisy(shape=(1, 8, 8))))
    with pytest.raises(ValueError, match="one shape"):
        picture.pair(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
