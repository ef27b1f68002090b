"""Noise schedules, what a network predicts, and losses: pure functions over a table.

Sources: Ho et al. 2020 (DDPM, sections 2 and 3.2); Nichol and Dhariwal 2021 (improved DDPM, sections 3.1 and 3.2:
learned variance, cosine schedule); Salimans and Ho 2022 (v prediction, appendix D); Hang et al. 2023 (min-SNR, section
3.4); Lipman et al. 2023, Esser et al. 2024 (flow matching along straight lines).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Betas = Literal["linear", "scaled-linear", "cosine"]
Prediction = Literal["epsilon", "v", "sample", "flow"]
Weighting = Literal["plain", "min-snr"]


@dataclass(frozen=True)
class Schedule:
    """How much noise there is at time t in 0..steps-1: tables in float64 on the CPU.

    `betas`: "linear" (Ho et al.), "scaled-linear" (linear in the root: latent diffusion; ends are as published, not
    scaled by steps) or "cosine" (Nichol and Dhariwal; `start` and `end` mean nothing). For the prediction "flow" only
    `steps` counts: noise has the share t / steps.
    """

    betas_name: Betas = "linear"
    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02

    @cached_property
    def betas(self) -> Tensor:
        """Return (steps,) variances of one step."""
        if self.betas_name == "linear":
            return torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)
        if self.betas_name == "scaled-linear":
            return torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2
        share = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        bar = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp_max(0.999)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Return (steps,) shares of signal variance that are left after steps 0..t."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alphas_cumprod_before(self) -> Tensor:
        """Return (steps,) the same one step earlier, 1 at the start."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Return (steps,) variances of x_{t-1} where x_t and x_0 are known (Ho et al., equation 7)."""
        return self.betas * (1 - self.alphas_cumprod_before) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """Return (steps,) their logarithms; the first one, of zero, is that of the second."""
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def snr(self) -> Tensor:
        """Return (steps,) signal to noise, as a ratio of variances."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """Return a table's values at whole times (B,) as `like`'s dtype and device, with ones for its other axes."""
        values = table.to(like.device)[t.to(like.device).long()].to(like.dtype)
        return values.view(-1, *[1] * (like.ndim - 1))

    def signal_and_noise(self, t: Tensor, like: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Return factors (B, 1, ..) of clean and of noise: x_t = signal * clean + noise_share * noise."""
        if prediction == "flow":
            share = (t.to(like.device, torch.float64) / self.steps).to(like.dtype).view(-1, *[1] * (like.ndim - 1))
            return 1 - share, share
        return self.at(self.alphas_cumprod.sqrt(), t, like), self.at((1 - self.alphas_cumprod).sqrt(), t, like)


def draw_times(schedule: Schedule, count: int, prediction: Prediction, generator: torch.Generator) -> Tensor:
    """Return (count,) times to train at: whole ones, or for "flow" any in (0, steps)."""
    if prediction == "flow":
        return (torch.rand(count, generator=generator).clamp_min(1e-5)) * schedule.steps
    return torch.randint(schedule.steps, (count,), generator=generator)


def add_noise(
    schedule: Schedule, clean: Tensor, noise: Tensor, t: Tensor, prediction: Prediction = "epsilon"
) -> Tensor:
    """Return x_t, (B, ...)."""
    signal, share = schedule.signal_and_noise(t, clean, prediction)
    return signal * clean + share * noise


def target_of(
    schedule: Schedule, clean: Tensor, noise: Tensor, t: Tensor, prediction: Prediction = "epsilon"
) -> Tensor:
    """Return what the network is to predict."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    if prediction == "flow":
        return noise - clean
    signal, share = schedule.signal_and_noise(t, clean, prediction)
    return signal * noise - share * clean


def clean_of(schedule: Schedule, output: Tensor, x: Tensor, t: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the clean picture that an output at x_t means."""
    signal, share = schedule.signal_and_noise(t, x, prediction)
    if prediction == "epsilon":
        return (x - share * output) / signal
    if prediction == "sample":
        return output
    return x - share * output if prediction == "flow" else signal * x - share * output


def noise_of(schedule: Schedule, output: Tensor, x: Tensor, t: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the noise that an output at x_t means."""
    if prediction == "epsilon":
        return output
    signal, share = schedule.signal_and_noise(t, x, prediction)
    if prediction == "sample":
        return (x - signal * output) / share
    return x + (1 - share) * output if prediction == "flow" else signal * output + share * x


def weight_of(
    schedule: Schedule,
    t: Tensor,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "plain",
    gamma: float = 5.0,
) -> Tensor:
    """Return (B,) float32 factors on each sample's squared error; "min-snr" caps its weight on the clean picture.

    min(SNR, gamma) on the error of the clean picture (Hang et al.), expressed on the error of what is predicted.
    """
    if weighting == "plain":
        return torch.ones(len(t), device=t.device)
    if prediction == "flow":
        share = t.double() / schedule.steps
        return ((((1 - share) / share) ** 2).clamp_max(gamma) * share**2).float()
    snr = schedule.snr.to(t.device)[t.long()]
    capped = snr.clamp_max(gamma)
    factor = {"epsilon": capped / snr, "v": capped / (snr + 1), "sample": capped}[prediction]
    return factor.float()


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return (B,) means of the squared difference."""
    return (output - target).square().flatten(1).mean(1)


def denoising_loss(
    schedule: Schedule,
    output: Tensor,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    prediction: Prediction = "epsilon",
    weighting: Weighting = "plain",
    gamma: float = 5.0,
    bound: bool = True,
) -> dict[str, Tensor]:
    """Return named losses (B,), whose sum is minimised: "error" and, where the variance is learned, "bound".

    `output`: (B, C, ...) or, with a learned variance in its second half, (B, 2C, ...); `bound` False leaves that half
    untrained, as adapters and ControlNets of published models do.
    """
    channels = clean.shape[1]
    mean = output[:, :channels]
    error = squared_error(mean, target_of(schedule, clean, noise, t, prediction))
    terms = {"error": weight_of(schedule, t, prediction, weighting, gamma).to(error.device) * error}
    if bound and output.shape[1] == 2 * channels:
        x = add_noise(schedule, clean, noise, t, prediction)
        terms["bound"] = variance_bound(schedule, mean.detach(), output[:, channels:], clean, x, t, prediction)
    return terms


def variance_bound(
    schedule: Schedule,
    mean: Tensor,
    variance: Tensor,
    clean: Tensor,
    x: Tensor,
    t: Tensor,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """Return (B,) terms of the variational bound in bits a number (Nichol and Dhariwal, section 3.1).

    `variance`: -1..1 stands for the posterior's log-variance .. that of beta. At t = 0 the likelihood of `clean` in
    bins of 1/255, else the divergence from the true posterior. Not for "flow".
    """
    guess = clean_of(schedule, mean, x, t, prediction)
    low, high = schedule.at(schedule.posterior_log_variance, t, x), schedule.at(schedule.betas.log(), t, x)
    share = (variance + 1) / 2
    log_variance = share * high + (1 - share) * low
    before = schedule.alphas_cumprod_before
    from_clean = schedule.at(schedule.betas * before.sqrt() / (1 - schedule.alphas_cumprod), t, x)
    from_x = schedule.at((1 - before) * (1 - schedule.betas).sqrt() / (1 - schedule.alphas_cumprod), t, x)
    true, ours = from_clean * clean + from_x * x, from_clean * guess + from_x * x
    apart = (-1 + log_variance - low + (low - log_variance).exp() + (true - ours).square() * (-log_variance).exp()) / 2
    first = -_log_likelihood(clean, ours, log_variance / 2)
    bits = (torch.where((t == 0).view(-1, *[1] * (x.ndim - 1)), first, apart) / math.log(2)).flatten(1).mean(1)
    return bits


def _log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return log of a Gaussian's mass in the bin of width 2/255 around x; the bins at -1 and 1 are open."""

    def below(value: Tensor) -> Tensor:  # the usual approximation of the normal distribution function
        return 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (value + 0.044715 * value**3)))

    scale = (-log_deviation).exp()
    upper, lower = below(scale * (x - mean + 1 / 255)), below(scale * (x - mean - 1 / 255))
    inside = (upper - lower).clamp_min(1e-12).log()
    last = (1 - lower).clamp_min(1e-12).log()
    return torch.where(x < -0.999, upper.clamp_min(1e-12).log(), torch.where(x > 0.999, last, inside))
