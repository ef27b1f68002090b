"""What half precision means on a device, and what is done where a processor has none."""

from __future__ import annotations

import pytest
import torch

from zoo.nn import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bfloat16_computes_in_32_bits(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has or device.type != "cpu")
    half = torch.bfloat16 if has else None
    assert [precision.low_dtype(p, CPU) for p in ("32", "bf16", "16")] == [None, half, half]
    assert [precision.slow(p, CPU) for p in ("32", "bf16", "16")] == [False, not has, not has]
    assert precision.low_dtype("16", CUDA) == torch.float16
    assert precision.low_dtype("bf16", CUDA) == torch.bfloat16
    assert not precision.slow("bf16", CUDA)


def test_the_processor_is_asked() -> None:
    assert precision.has_bfloat16(CPU) == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert precision.has_bfloat16(CUDA)
