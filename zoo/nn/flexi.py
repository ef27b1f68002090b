"""Patch embeddings of any patch size (Beyer et al. 2023, FlexiViT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a patch kernel (D, C, h, w) for patches of another size, (D, C, *size), float as it came.

    The tokens of patches that are resized bilinearly stay what they were: exactly for larger patches, in the least
    squares over white patches for smaller ones (section 3.4: the pseudo-inverse of the resizing's transpose).
    """
    old = int(kernel.shape[-2]), int(kernel.shape[-1])
    if old == size:
        return kernel
    unit = torch.eye(old[0] * old[1], dtype=torch.float64, device=kernel.device).view(-1, 1, *old)
    resizing = F.interpolate(unit, size=size, mode="bilinear", align_corners=False).flatten(1)  # (old, new)
    found = kernel.detach().double().flatten(2) @ torch.linalg.pinv(resizing).T
    resized: Tensor = found.view(*kernel.shape[:2], *size).to(kernel.dtype)
    return resized
