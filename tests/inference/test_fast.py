"""Prediction of many tiles runs a fused network, and says the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.families.base import Family
from zoo.inference import fast
from zoo.inference.predict import Settings, assemble, predict_source
from zoo.inference.source import of_array
from zoo.nn import fuse

TINY = {"encoder": "test_resnet", "decoder": {"name": "unet", "arguments": {"channels": [8, 8, 8, 8, 8]}}}


@pytest.fixture
def family() -> Family:
    torch.manual_seed(0)
    made = zoo.create("unet", classes=["background", "gland"], tile=64, margin=16, **TINY)
    made.train()
    made.forward({"image": torch.randn(4, 3, 64, 64)})  # statistics that are not 0 and 1
    return made


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (190, 170, 3), np.uint8)


def probability(family: Family, image: np.ndarray, fuse: bool) -> Any:
    source = of_array(image, family.spec)
    found: Any = assemble(predict_source(family, source, Settings(fuse=fuse)), source.shape)
    return found["semantic"].probability


def test_the_fused_network_says_the_same(family: Family, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = fuse.fused
    monkeypatch.setattr(fuse, "fused", lambda *a, **k: calls.append(1) or whole(*a, **k))
    before = [m.training for m in family.modules()]
    for _ in range(2):
        plain = probability(family, image, False)
        np.testing.assert_allclose(probability(family, image, True), plain, atol=1e-5)
        with torch.no_grad():  # what is remembered is what can be fused, not weights
            for parameter in family.parameters():
                parameter.data.mul_(1.1)
    assert len(calls) == 3  # one to find out, and one a picture
    assert [m.training for m in family.modules()] == before
    assert any(isinstance(m, nn.BatchNorm2d) for m in family.modules())


def test_few_tiles_are_not_worth_it(family: Family) -> None:
    family.eval()
    assert fast.fast(family, fast.LEAST - 1) is family
    assert fast.fast(family, fast.LEAST) is not family


def test_a_network_that_would_say_something_else_is_left_as_it_is(
    family: Family, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = probability(family, image, False)
    monkeypatch.setattr(fuse, "doubling_kernel", lambda w: torch.ones(w.shape[1], w.shape[0], 4, 4))
    np.testing.assert_array_equal(probability(family, image, True), plain)


def test_a_network_that_cannot_be_copied_predicts_all_the_same(make: Callable[..., Any], image: np.ndarray) -> None:
    family = make(kind="semantic")
    family.lock = threading.Lock()
    np.testing.assert_array_equal(probability(family, image, True), probability(family, image, False))


def test_a_sampler_is_never_fused(make: Callable[..., Any]) -> None:
    sampler = make("sampler")
    assert fast.fast(sampler, 100) is sampler


class Hidden(nn.Module):
    """Reaches its convolution past the module tree: the copy's norm goes, the convolution's stays."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        convolution = self.convolution
        self.reach = lambda x: convolution(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reach(x))  # type: ignore[no-any-return]


def test_what_closures_hold_is_noticed(make: Callable[..., Any], image: np.ndarray) -> None:
    family = make(kind="semantic", radius=0)
    family.layer = Hidden()
    nn.init.constant_(family.layer.norm.running_var, 9.0)
    plain = probability(family, image, False)
    np.testing.assert_array_equal(probability(family, image, True), plain)
    assert fast.fast(family, 100) is family
