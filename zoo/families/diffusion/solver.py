"""DPM-Solver++ (2M) in continuous time, as PixCell's training code samples.

Source: Lu et al. 2022 (DPM-Solver++, algorithm 2). diffusers' scheduler of that name takes the times of training steps
and ends at no noise; this one takes times evenly from 1 to 1 / steps of training, between them, and ends there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoo.families.diffusion.sampling import Predict
from zoo.families.diffusion.schedule import Schedule


def continuous_dpm(predict: Predict, noise: Tensor, schedule: Schedule, steps: int = 20) -> Tensor:
    """Return what is denoised from `noise` (B, C, h, w) in `steps` steps of second order, but the first and the last.

    `predict` gives noise at times (B,) on the training scale, between whole ones: steps of training * time - 1.
    """
    count = schedule.steps
    known = np.arange(1, count + 1) / count
    logs = 0.5 * np.log(schedule.alphas_cumprod.numpy())  # of the signal's share, linear between known times
    times = np.linspace(1.0, 1.0 / count, steps + 1)
    signal = np.exp(np.interp(times, known, logs))
    deviation = np.sqrt(1 - signal**2)
    half = np.log(signal / deviation)
    x, before = noise, None
    for i in range(steps):
        at = torch.full((len(x),), times[i] * count - 1, dtype=x.dtype, device=x.device)
        clean = (x - deviation[i] * predict(x, at)) / signal[i]
        lead = half[i + 1] - half[i]
        towards = clean
        if before is not None and i < steps - 1:
            ratio = (half[i] - half[i - 1]) / lead
            towards = clean + (clean - before) / (2 * ratio)
        x = deviation[i + 1] / deviation[i] * x - signal[i + 1] * np.expm1(-lead) * towards
        before = clean
    return x
