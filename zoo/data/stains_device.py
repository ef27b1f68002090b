"""The stain augmentations of `zoo.data.stains` for whole batches on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.stain import batched, estimate
from zoo.stain.normalise import flaw


def _bytes(picture: Tensor) -> Tensor:
    return (picture * 255).round().clamp(0, 255).to(torch.uint8)


def _rng() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))


def refuse(step: Any) -> None:
    """Raise `UserError` for settings that cannot be batched."""
    said = {"randstainna": ("space", ("lab",)), "stain-augment": ("method", ("macenko", "ruifrok"))}.get(step.name)
    if said is not None and (value := getattr(step, said[0])) not in said[1]:
        raise UserError(
            f"augment: {step.name}: the {said[0]} {value} works in the workers. Set `augment_on: workers`, or "
            f"{said[0]}: {said[1][0]}."
        )


def randstainna(step: Any, picture: Tensor) -> Tensor:
    """Return (B, 3, H, W) pictures in [0, 1] with random moments in Lab."""
    rng = _rng()
    templates = torch.from_numpy(np.stack([step.draw(rng) for _ in picture])).to(picture)
    return batched.retemplated(_bytes(picture), templates).float() / 255


def stain_augment(step: Any, picture: Tensor) -> Tensor:
    """Return (B, 3, H, W) pictures in [0, 1] with random amounts of their own two stains."""
    rng = _rng()
    pixels = _bytes(picture).flatten(2).contiguous()
    seen = batched.looked_up(batched.density_table(picture.device), pixels)
    fixed = [estimate.RUIFROK] * len(pixels)
    found = fixed if step.method == "ruifrok" else list(batched.macenko(seen, batched.dark(pixels, 0.8)))
    matrices = [estimate.RUIFROK if flaw(m)[0] else m for m in found]
    rows = torch.from_numpy(np.stack(matrices)).to(seen)
    draws = [step.draw(rng) for _ in matrices]
    alpha, beta = (torch.from_numpy(np.stack(part)).to(seen)[..., None] for part in zip(*draws, strict=True))
    amounts = torch.linalg.pinv(rows).transpose(1, 2) @ seen
    changed = amounts * alpha + beta
    if not step.background:
        tissue = batched.dark(pixels, 0.85) & (seen.mean(1) > 0.1)
        changed = torch.where(tissue[:, None], changed, amounts)
    return torch.exp(-(rows.transpose(1, 2) @ changed)).clamp(0, 1).view(picture.shape)
