"""Losses of generators and discriminators, on raw scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

GanMode = Literal["lsgan", "vanilla", "hinge", "wgangp", "nonsaturating"]
MODES: tuple[str, ...] = get_args(GanMode)


def gan_loss(
    scores: Tensor,
    real: bool,
    mode: str = "lsgan",
    *,
    generator: bool = False,
    real_label: float = 1.0,
    fake_label: float = 0.0,
) -> Tensor:
    """Return how far scores are from saying "real" (or "fake"): a scalar, or (B,) for "nonsaturating".

    `lsgan`: squared distance to the label (Mao et al. 2017). `vanilla`: cross-entropy (Goodfellow et al. 2014).
    `hinge`: relu(1 -+ score), and minus the score for the generator (Lim and Ye 2017). `wgangp`: -+ the score (Arjovsky
    et al. 2017). `nonsaturating`: softplus(-+ score), a number an image.
    """
    sign = -1.0 if real else 1.0
    if mode in ("lsgan", "vanilla"):
        label = torch.full_like(scores, real_label if real else fake_label)
        return F.mse_loss(scores, label) if mode == "lsgan" else F.binary_cross_entropy_with_logits(scores, label)
    if mode == "hinge":
        return (sign * scores).mean() if generator else torch.relu(1 + sign * scores).mean()
    if mode == "wgangp":
        return (sign * scores).mean()
    if mode == "nonsaturating":
        each: Tensor = F.softplus(sign * scores).flatten(1).mean(1)
        return each
    raise ValueError(f'no GAN loss "{mode}". Expected one of {", ".join(MODES)}')


def noisy_labels(scores: Tensor, label: float, noise: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of raw scores with a label to which `noise` is added, kept within [0, 1]: a scalar."""
    wanted = torch.full_like(scores, label)
    wanted = wanted if noise is None else (wanted + noise).clamp(0, 1)
    return F.binary_cross_entropy_with_logits(scores, wanted)


def judged(scores: Sequence[Tensor], real: bool, mode: str, *, generator: bool = False) -> Tensor:
    """Return the mean loss over a discriminator's maps of scores: a scalar."""
    return torch.stack([gan_loss(part, real, mode, generator=generator).mean() for part in scores]).mean()


def gradient_penalty(
    judge: Callable[[Tensor], Sequence[Tensor]], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return the mean of (|gradient| - 1)^2 between real and fake pictures (Gulrajani et al. 2017, section 4)."""
    share = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    total = torch.stack([part.sum() for part in judge(between)]).sum()
    (slope,) = torch.autograd.grad(total, between, create_graph=True)
    off: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return off


def r1_penalty(judge: Callable[[Tensor], Sequence[Tensor]], real: Tensor) -> Tensor:
    """Return half the mean squared gradient at real pictures (Mescheder et al., ICML 2018, eq. 9)."""
    at = real.detach().requires_grad_()
    total = torch.stack([part.sum() for part in judge(at)]).sum()
    (slope,) = torch.autograd.grad(total, at, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2
