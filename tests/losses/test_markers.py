"""Losses of marker pictures against twins that loop over pixels, markers and cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.losses import markers

B, C, H, W = 2, 3, 5, 7


def pictures(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return tuple(torch.tensor(rng.uniform(-0.9, 0.9, (B, C, H, W)), dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def each(picture: Tensor, target: Tensor):  # type: ignore[no-untyped-def]
    for b in range(B):
        for c in range(C):
            for i in range(H):
                for j in range(W):
                    yield c, float(picture[b, c, i, j]), float(target[b, c, i, j])


def test_means_of_differences() -> None:
    p, y = pictures()
    count = B * C * H * W
    first = sum(abs(a - b) for _, a, b in each(p, y)) / count
    second = sum((a - b) ** 2 for _, a, b in each(p, y)) / count
    assert float(markers.mae(p, y)) == pytest.approx(first)
    assert float(markers.mse(p, y)) == pytest.approx(second)
    assert float(markers.l1_l2(p, y)) == pytest.approx((first + second) / 2)


def test_weights_of_markers() -> None:
    std = torch.tensor([38.3, 5.5, 26.1])
    expected = [(1 / s) / min(1 / t for t in (38.3, 5.5, 26.1)) for s in (38.3, 5.5, 26.1)]
    torch.testing.assert_close(markers.contrast_weights(std), torch.tensor(expected))
    torch.testing.assert_close(markers.foreground_weights(torch.tensor([0.1, 0.8])), torch.tensor([9.0, 1.0]))


def test_weighted_terms() -> None:
    p, y = pictures()
    w = [1.0, 4.0, 2.5]
    weights = torch.tensor(w, dtype=torch.float64)
    area = B * H * W
    mse = sum(w[c] * (a - b) ** 2 for c, a, b in each(p, y)) / area / C
    focal = sum(abs(a - b) ** 3 * w[c] / sum(w) for c, a, b in each(p, y)) / area
    shrunk = (
        sum((a - b) ** 2 / (1 + math.exp(10 * (0.2 - abs(a - b)))) * w[c] / sum(w) for c, a, b in each(p, y)) / area
    )
    mae = 2 * sum(abs(a - b) * (w[c] if b > 0.1 else 1) for c, a, b in each(p, y)) / area / C
    assert float(markers.weighted_mse(p, y, weights=weights)) == pytest.approx(mse)
    assert float(markers.focal_l1(p, y, foreground=weights)) == pytest.approx(focal)
    assert float(markers.shrinkage(p, y, foreground=weights)) == pytest.approx(shrunk)
    assert float(markers.weighted_mae(p, y, foreground=weights, threshold=0.1)) == pytest.approx(mae)


def test_edges_and_total_variation() -> None:
    p, y = pictures()
    off = np.pad((p - y).numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = 0.0
    for b in range(B):
        for c in range(C):
            for i in range(1, H + 1):
                for j in range(1, W + 1):
                    n = off[b, c, i - 1 : i + 2, j - 1 : j + 2]
                    across = n[0, 2] + 2 * n[1, 2] + n[2, 2] - n[0, 0] - 2 * n[1, 0] - n[2, 0]
                    down = n[2, 0] + 2 * n[2, 1] + n[2, 2] - n[0, 0] - 2 * n[0, 1] - n[0, 2]
                    total += abs(across) + abs(down)
    assert float(markers.edge(p, y)) == pytest.approx(total / (B * C * H * W))
    x = p.numpy()
    steps = np.abs(np.diff(x, axis=2)).mean() + np.abs(np.diff(x, axis=3)).mean()
    assert float(markers.total_variation(p)) == pytest.approx(float(steps))


def test_cells_are_taken_one_by_one() -> None:
    p, y = pictures()
    nuclei = torch.zeros(B, H, W, dtype=torch.int64)
    nuclei[0, 0:2, 0:3], nuclei[0, 3:, 4:], nuclei[1, 1:4, 2:5] = 7, 2, 7
    means, ids = markers.cell_means(p, nuclei)
    assert ids.tolist() == [2, 7, 7]
    expected = [p[b][:, nuclei[b] == k].mean(1) for b, k in ((0, 2), (0, 7), (1, 7))]
    torch.testing.assert_close(means, torch.stack(expected))
    theirs = torch.stack([y[b][:, nuclei[b] == k].mean(1) for b, k in ((0, 2), (0, 7), (1, 7))])
    assert float(markers.cell_mse(p, y, nuclei=nuclei)) == pytest.approx(float(((means - theirs) ** 2).mean()))
    assert float(markers.cell_mse(p, y, nuclei=torch.zeros_like(nuclei))) == 0


def test_focal_and_dice() -> None:
    p, y = pictures()
    mask = y > 0
    b = torch.nn.functional.binary_cross_entropy_with_logits(p, mask.double(), reduction="none")
    expected = (0.75 * (1 - torch.exp(-b)) ** 2 * b).mean()
    torch.testing.assert_close(markers.foreground_focal(p, mask), expected)
    s = p.sigmoid()
    dice = (2 * (s * mask).sum() + 1e-5) / (s.sum() + mask.sum() + 1e-5)
    entropy = (-3 * mask * s.log() - ~mask * (1 - s).log()).mean()
    torch.testing.assert_close(markers.bce_dice(p, mask, positive_weight=3.0), entropy + 1 - dice)


def given_besides(nuclei: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(3)
    network = markers.CellClusters(C, 2, hidden=8).double()
    network.mean, network.std = torch.full((C,), 127.0), torch.full((C,), 60.0)
    return {
        "weights": torch.tensor([1.0, 3.0, 2.0]),
        "foreground": torch.tensor([2.0, 1.0, 5.0]),
        "nuclei": nuclei,
        "network": network,
        "limit": 0.9,
        "foreground_logits": torch.randn(B, C, H, W, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", sorted(markers.LOSSES))
def test_what_is_not_known_does_not_count(name: str) -> None:
    """A marker that one sample lacks changes nothing there, has no gradient, and no number is nan."""
    p, y = pictures()
    known = torch.ones(B, C, 1, 1, dtype=torch.bool)
    known[1, 2] = False
    nuclei = torch.zeros(B, H, W, dtype=torch.int64)
    nuclei[:, 1:4, 1:4] = 1
    everything = given_besides(nuclei)
    given = {key: everything[key] for key in markers.NEEDS[name]}
    q, z = p.clone(), y.clone()
    q[1, 2], z[1, 2] = 0.5, -0.7
    q.requires_grad_()
    logits = given.get("foreground_logits")
    if logits is not None:  # it judges these, and not the picture
        q = logits.requires_grad_()
    first = markers.LOSSES[name](p, y, known=known, **given)
    second = markers.LOSSES[name](p if logits is not None else q, z, known=known, **given)
    torch.testing.assert_close(first, second.detach())
    second.backward()
    assert q.grad is not None
    assert bool((q.grad[1, 2] == 0).all())
    assert bool((q.grad[0, 2] != 0).any())
    nothing = markers.LOSSES[name](p, y, known=torch.zeros_like(known), **given)
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("name", sorted(markers.LOSSES))
def test_all_known_is_no_mask(name: str) -> None:
    p, y = pictures()
    nuclei = torch.zeros(B, H, W, dtype=torch.int64)
    nuclei[:, 1:4, 1:4] = 1
    everything = given_besides(nuclei)
    given = {key: everything[key] for key in markers.NEEDS[name]}
    ones = torch.ones(B, C, H, W, dtype=torch.bool)
    torch.testing.assert_close(markers.LOSSES[name](p, y, **given), markers.LOSSES[name](p, y, known=ones, **given))


def test_clusters() -> None:
    network = markers.CellClusters(3, 2, hidden=4)
    torch.manual_seed(0)
    ours, theirs = 255 * torch.rand(6, 3), 255 * torch.rand(6, 3)
    network.mean, network.std = torch.full((3,), 20.0), torch.full((3,), 30.0)
    loss, probability = markers.cell_clusters(ours, theirs, network)
    x = (ours - 20) / 30
    for number, layer in enumerate(network.layers):
        x = torch.nn.functional.linear(x.clamp_min(0) if number else x, layer.weight, layer.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(probability, x.sigmoid())
    wanted = network(theirs).sigmoid() > 0.5
    torch.testing.assert_close(loss, markers.foreground_focal(probability, wanted, alpha=0.5))
    assert not any(p.requires_grad for p in network.parameters())


def test_the_term_of_clusters_takes_nuclei_that_carry_every_marker() -> None:
    """By hand: means of each nucleus of the first image alone, brought from +-0.9 to 0 ... 255."""
    p, y = pictures()
    nuclei = torch.zeros(B, H, W, dtype=torch.int64)
    nuclei[:, 1:4, 1:4], nuclei[:, 0:2, 5:7] = 7, 2
    torch.manual_seed(1)
    network = markers.CellClusters(C, 2, hidden=8).double()
    network.mean, network.std = torch.full((C,), 127.0), torch.full((C,), 60.0)
    known = torch.ones(B, C, 1, 1, dtype=torch.bool)
    known[1, 2] = False
    loss = markers.cell_cluster(p, y, nuclei=nuclei, network=network, known=known)

    def means(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[0, :, 0:2, 5:7].mean((1, 2)), x[0, :, 1:4, 1:4].mean((1, 2))])

    ours, theirs = ((means(x) + 0.9) / 1.8 * 255 for x in (p, y))
    torch.testing.assert_close(loss, markers.cell_clusters(ours, theirs, network)[0])


def test_the_term_of_foreground() -> None:
    _, y = pictures()
    y = torch.where(y > 0.3, y, -0.9)
    logits = torch.randn(B, C, H, W, dtype=torch.float64)
    expected = markers.foreground_focal(logits, y > -0.9)
    torch.testing.assert_close(markers.foreground_term(y, y, foreground_logits=logits), expected)
