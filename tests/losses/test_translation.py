"""Losses of translation against slow, obvious twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zoo.losses import adversarial, contrastive, pyramids


def test_patch_nce_patch_by_patch() -> None:
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(12, 5), dim=1) for _ in range(2))
    for everything in (False, True):
        found = contrastive.patch_nce(q, k, 3, 0.1, all_negatives=everything)
        for i in range(12):
            others = [j for j in range(12) if j != i and (everything or j // 4 == i // 4)]
            scores = [float(q[i] @ k[i]) / 0.1] + [float(q[i] @ k[j]) / 0.1 for j in others]
            expected = -scores[0] + math.log(sum(math.exp(s) for s in scores))
            assert float(found[i]) == pytest.approx(expected, abs=1e-4)


def test_keys_carry_no_gradient() -> None:
    q, k = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    contrastive.patch_nce(q, k, 1).sum().backward()
    assert q.grad is not None
    assert k.grad is None


@pytest.mark.parametrize("weighting", contrastive.WEIGHTINGS)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_adaptive_weights_have_mean_one(weighting: str, share: float) -> None:
    torch.manual_seed(1)
    q, k = (F.normalize(torch.randn(50, 4), dim=1) for _ in range(2))
    weights = contrastive.adaptive_weights(q, k, weighting, share)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
    assert (weights >= 0).all()
    if share == 1.0 or weighting == "uniform":
        torch.testing.assert_close(weights, torch.ones(50))


def test_schedules() -> None:
    """The table of the published recipe, 30 + 10 epochs."""
    table = {
        "sigmoid": {1: 0.9933, 11: 0.9241, 21: 0.5, 36: 0.0230},
        "linear": {1: 1, 21: 0.5, 40: 0.025},
        "lambda": {1: 1, 30: 1, 31: 1, 32: 0.9, 40: 0.1},
        "zero": {1: 1, 40: 1},
    }
    for schedule, values in table.items():
        for epoch, expected in values.items():
            assert contrastive.adaptive_share(schedule, epoch, 30, 10) == pytest.approx(expected, abs=1e-4)


def test_gaussian_pyramid_pixel_by_pixel() -> None:
    x = torch.rand(1, 1, 12, 10)
    taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    padded = np.pad(x[0, 0].numpy(), 2, mode="reflect")
    blurred = [[float((padded[i : i + 5, j : j + 5] * taps).sum()) for j in range(10)] for i in range(12)]
    found = pyramids.gaussian_pyramid(x, 2)
    np.testing.assert_allclose(found[0][0, 0].numpy(), blurred, rtol=1e-5)
    assert [tuple(level.shape[2:]) for level in found] == [(12, 10), (6, 5), (3, 3)]
    torch.testing.assert_close(found[2], found[1][:, :, ::2, ::2])


def test_equal_pictures_cost_nothing() -> None:
    x = torch.rand(1, 3, 64, 64)
    assert float(pyramids.gaussian_pyramid_l1(x, x, [1.0] * 6)) == 0
    assert float(pyramids.level_l1(pyramids.octaves(x), pyramids.octaves(x)).sum()) == 0


@pytest.mark.parametrize("mode", adversarial.MODES)
def test_right_scores_cost_less(mode: str) -> None:
    high, low = torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -2.0)
    target = torch.ones_like(high)
    right = (target if mode == "lsgan" else high).clone()
    assert adversarial.gan_loss(right, True, mode).mean() < adversarial.gan_loss(low, True, mode).mean()
    zero = torch.zeros_like(low) if mode == "lsgan" else low
    assert adversarial.gan_loss(zero, False, mode).mean() < adversarial.gan_loss(high, False, mode).mean()
    fooled = adversarial.gan_loss(right, True, mode, generator=True).mean()
    assert fooled < adversarial.gan_loss(low, True, mode, generator=True).mean()


def test_gradient_penalties_of_a_linear_judge() -> None:
    """A judge that sums 0.5 times each of 12 values has the gradient 0.5 everywhere."""

    def judge(x: torch.Tensor) -> list[torch.Tensor]:
        return [0.5 * x.flatten(1).sum(1)]

    real, fake = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 2, 2)
    length = 0.5 * math.sqrt(12)
    assert float(adversarial.r1_penalty(judge, real)) == pytest.approx(length**2 / 2)
    assert float(adversarial.gradient_penalty(judge, real, fake)) == pytest.approx((length - 1) ** 2, abs=1e-5)
