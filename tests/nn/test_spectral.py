"""Spectral norm: torch's own with numbers, the same entries and no work without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from zoo.nn.spectral import spectral_norm

LAYERS = [lambda: nn.Conv2d(6, 4, 3), lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1)]


@pytest.mark.parametrize("make", LAYERS)
def test_with_numbers_it_is_torch_s(make: Callable[[], nn.Module]) -> None:
    found = []
    for norm in (spectral_norm, parametrizations.spectral_norm):
        torch.manual_seed(0)
        layer = norm(make())
        x = torch.rand(2, 6, 9, 9)
        found.append([layer(x), layer.eval()(x), *layer.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("make", LAYERS)
def test_without_numbers_it_has_the_same_entries_and_no_work(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {k: v.shape for k, v in parametrizations.spectral_norm(make()).state_dict().items()}
    monkeypatch.setattr(torch, "mv", None)  # a power iteration would call it
    with torch.device("meta"):
        layer = spectral_norm(make())
    assert {k: v.shape for k, v in layer.state_dict().items()} == wanted
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="Build the module anew"):
        layer(torch.rand(1, 6, 9, 9))
