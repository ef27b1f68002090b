"""Matching and set loss against slow, obvious twins."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.losses.detection import (
    Objects,
    assign_many,
    asymmetric_sum,
    focal_sum,
    match,
    match_cost,
    set_criterion,
    set_terms,
)


def draw(seed: int, queries: int, objects: int, classes: int = 3) -> tuple[Tensor, Tensor, Objects]:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(queries + objects, 4, generator=generator) * 0.4 + 0.2
    labels = torch.randint(0, classes, (objects,), generator=generator)
    logits = torch.randn(queries, classes, generator=generator)
    return logits, boxes[:queries], Objects(labels, boxes[queries:])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(0, 5))
def test_the_match_is_the_best_of_all(seed: int, queries: int, objects: int) -> None:
    logits, boxes, truth = draw(seed, queries, objects)
    cost = match_cost(logits, boxes, truth)
    rows, columns = match(logits[None], boxes[None], [truth])[0]
    assert len(rows) == min(queries, objects)
    assert rows.tolist() == sorted(rows.tolist())
    best = 0.0
    if rows.numel():
        small, large = sorted((queries, objects))
        sums = []
        for chosen in itertools.permutations(range(large), small):
            pairs = [(a, b) if queries <= objects else (b, a) for a, b in enumerate(chosen)]
            sums.append(sum(float(cost[q, t]) for q, t in pairs))
        best = min(sums)
    assert float(cost[rows, columns].sum()) == pytest.approx(best, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_the_order_of_truths_and_queries_does_not_matter(seed: int) -> None:
    logits, boxes, truth = draw(seed, 6, 4)
    total = set_criterion(logits[None, None], boxes[None, None], [truth])["total"]
    generator = torch.Generator().manual_seed(seed)
    q, t = torch.randperm(6, generator=generator), torch.randperm(4, generator=generator)
    turned = Objects(truth.labels[t], truth.boxes[t])
    again = set_criterion(logits[q][None, None], boxes[q][None, None], [turned])["total"]
    torch.testing.assert_close(total, again)


def test_focal_and_asymmetric_by_hand() -> None:
    logits, wanted = torch.tensor([[0.3, -1.2], [2.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    focal = asymmetric = 0.0
    for z, y in zip(logits.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        focal += -0.25 * (1 - p) ** 2 * math.log(p) if y else -0.75 * p**2 * math.log(1 - p)
        q = min(1 - p + 0.08, 1.0)
        asymmetric += -math.log(p) * (1 - p) if y else -math.log(q) * (1 - q) ** 4
    assert float(focal_sum(logits, wanted)) == pytest.approx(focal, rel=1e-5)
    assert float(asymmetric_sum(logits, wanted)) == pytest.approx(asymmetric, rel=1e-5)


def test_what_is_not_told_costs_nothing() -> None:
    logits, boxes, truth = draw(0, 5, 2)
    nothing = Objects(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    none = (torch.zeros(0, dtype=torch.int64),) * 2
    both = torch.stack([logits, logits + 3]).requires_grad_()
    matches = [match(logits[None], boxes[None], [truth])[0], none]
    terms = set_terms(both, boxes.expand(2, -1, -1), [truth, nothing], matches, 2, told=torch.tensor([True, False]))
    (gradient,) = torch.autograd.grad(terms["loss_ce"], both)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


def test_many_queries_for_a_truth() -> None:
    cost = torch.tensor([[1.0, 5.0], [2.0, 1.5], [3.0, 9.0], [0.0, 4.0]])
    allowed = torch.tensor([[True, True], [True, True], [True, True], [False, True]])
    rows, columns = assign_many(cost, allowed, 2)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 0), (1, 1), (3, 1)]
    rows, _ = assign_many(cost[:, :0], allowed[:, :0], 2)
    assert rows.tolist() == []
