"""Which arithmetic a device can do at a profit."""

from __future__ import annotations

import torch

Precision = str
"""32, bf16 or 16, as recipes say it."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 itself.

    A CPU that does not (no AVX-512 or AMX on x86, no BF16 on ARM) emulates it, and convolutions then take about ten
    times as long as in 32 bits. Other devices are taken to know best.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def low_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the half type that a precision means on a device, None for 32 bits.

    Half floats (16) need CUDA, elsewhere they are bfloat16; where a CPU has no bfloat16 either, it is 32 bits.
    """
    if precision == "32" or not has_bfloat16(device):
        return None
    return torch.float16 if precision == "16" and device.type == "cuda" else torch.bfloat16


def slow(precision: Precision, device: torch.device) -> bool:
    """Whether a half precision is asked for that the device would have to emulate."""
    return precision != "32" and not has_bfloat16(device)
