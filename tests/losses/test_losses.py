"""Losses against slow twins, against the libraries that define the same, and what they promise about samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo import losses, registry
from zoo.losses import weight_maps
from zoo.schema import Component

NAMES = sorted(registry.TABLES["loss"])


def draw(mode: str, seed: int = 0, B: int = 3, K: int = 3, size: tuple[int, ...] = (7, 5)) -> tuple[Tensor, Tensor]:
    """Return logits and a target in which every class occurs somewhere."""
    rng = torch.Generator().manual_seed(seed)
    K = 1 if mode == "binary" else K
    logits = torch.randn(B, K, *size, generator=rng) * 2
    if mode == "multilabel":
        return logits, torch.randint(0, 2, (B, K, *size), generator=rng)
    return logits, torch.randint(0, max(K, 2), (B, *size), generator=rng)


def call(name: str, logits: Tensor, target: Tensor, **more: Any) -> Tensor:
    if name == "boundary_cross_entropy" and "weight" not in more:
        more["weight"] = torch.linspace(1, 4, target[:, 0].numel() if logits.shape == target.shape else target.numel())
        more["weight"] = more["weight"].reshape(len(logits), *logits.shape[2:])
    found: Tensor = registry.get("loss", name)(logits, target, **more)
    return found


# --- slow twins: one sample, one pixel at a time ----------------------------------------------------------------------


def probability(logits: np.ndarray, mode: str) -> np.ndarray:
    if mode == "multiclass":
        e = np.exp(logits - logits.max())
        return e / e.sum()
    return 1 / (1 + np.exp(-logits))


def pixels(logits: Tensor, target: Tensor, mode: str, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each valid pixel of one sample, its probabilities and its truth, one number a plane."""
    found = []
    K, H, W = logits.shape
    for i in range(H):
        for j in range(W):
            if not mask[i, j]:
                continue
            p = probability(logits[:, i, j].double().numpy(), mode)
            if mode == "multilabel":
                t = target[:, i, j].numpy().astype(float)
            elif mode == "binary":
                t = np.array([float(target[i, j])])
            else:
                t = np.eye(K)[int(target[i, j])]
            found.append((p, t))
    return found


def slow_entropy(found: list[Any], mode: str, weights: list[float], gamma: float | None) -> float:
    total, norm, count = 0.0, 0.0, 0
    for p, t in found:
        if mode == "multiclass":
            k = int(t.argmax())
            terms = [(p[k], weights[k])]
        elif mode == "binary":
            terms = [(p[0] if t[0] else 1 - p[0], weights[int(t[0])])]
        else:
            terms = [(p[k] if t[k] else 1 - p[k], weights[k]) for k in range(len(t))]
        for q, w in terms:
            factor = 1.0 if gamma is None else (1 - q) ** gamma
            total += -math.log(q) * factor * w
            norm += w
            count += 1
    return total / (norm if gamma is None else count)


def slow_overlap(found: list[Any], weights: list[float], alpha: float, beta: float, smooth: float) -> float:
    K = len(found[0][0])
    value = norm = 0.0
    for k in range(K):
        tp = sum(p[k] * t[k] for p, t in found)
        fp = sum(p[k] * (1 - t[k]) for p, t in found)
        fn = sum((1 - p[k]) * t[k] for p, t in found)
        value += weights[k] * (1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
        norm += weights[k]
    return value / norm


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "tversky"])
def test_equals_its_slow_twin(name: str, mode: Any) -> None:
    logits, target = draw(mode)
    valid = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(5)) > 0.3
    weights = [0.5, 2.0] if mode == "binary" else [0.5, 2.0, 1.0]
    expected = []
    for b in range(3):
        found = pixels(logits[b], target[b], mode, valid[b].numpy())
        own = [1.0] if mode == "binary" else weights
        expected.append(
            {
                "cross_entropy": lambda f=found: slow_entropy(f, mode, weights, None),
                "focal": lambda f=found: slow_entropy(f, mode, weights, 1.5),
                "dice": lambda f=found, o=own: slow_overlap(f, o, 0.5, 0.5, 0.5),
                "tversky": lambda f=found, o=own: slow_overlap(f, o, 0.2, 0.9, 1.0),
            }[name]()
        )
    more = {"focal": {"gamma": 1.5}, "tversky": {"alpha": 0.2, "beta": 0.9}}.get(name, {})
    got = call(name, logits, target, mode=mode, weights=weights, valid=valid, reduction="none", **more)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
    mean = call(name, logits, target, mode=mode, weights=weights, valid=valid, **more)
    assert float(mean) == pytest.approx(np.mean(expected), rel=1e-5)


def slow_lovasz(errors: np.ndarray, truth: np.ndarray) -> float:
    """The Lovász extension by its definition: sum of sorted errors times the growth of the Jaccard loss."""
    order = np.argsort(-errors, kind="stable")
    value, before, wrong = 0.0, 0.0, set()
    for pixel in order:
        wrong.add(int(pixel))
        predicted = {i for i in range(len(truth)) if (truth[i] == 1) != (i in wrong)}
        true = {i for i in range(len(truth)) if truth[i] == 1}
        union = len(predicted | true)
        loss = 1 - len(predicted & true) / union if union else 0.0
        value += errors[pixel] * (loss - before)
        before = loss
    return value


def test_lovasz_equals_its_definition() -> None:
    logits, target = draw("multiclass", B=2, size=(4, 4))
    got = losses.lovasz(logits, target, reduction="none")
    p = logits.double().softmax(1).numpy()
    for b in range(2):
        terms = []
        for k in range(3):
            truth = (target[b].numpy().ravel() == k).astype(float)
            if truth.any():
                terms.append(slow_lovasz(np.abs(truth - p[b, k].ravel()), truth))
        assert float(got[b]) == pytest.approx(np.mean(terms), rel=1e-5)
    logits, target = draw("binary", B=2, size=(4, 4))
    got = losses.lovasz(logits, target, mode="binary", reduction="none")
    for b in range(2):
        truth = target[b].numpy().ravel().astype(float)
        errors = 1 - logits[b].double().numpy().ravel() * (2 * truth - 1)
        # the hinge is taken of the sorted errors, so that only positive ones count
        order = np.argsort(-errors)
        slopes = np.diff(
            [0.0, *(slow_lovasz(np.isin(np.arange(16), order[:n]).astype(float), truth) for n in range(1, 17))]
        )
        assert float(got[b]) == pytest.approx(float((np.maximum(errors[order], 0) * slopes).sum()), rel=1e-5)


# --- libraries that define the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
def test_agrees_with_smp(mode: Any) -> None:
    from segmentation_models_pytorch import losses as smp

    logits, target = draw(mode)
    pooled = {"mode": mode, "reduction": "batch"}
    given = target.unsqueeze(1) if mode == "binary" else target
    for ours, theirs in (
        (losses.dice(logits, target, smooth=0.0, **pooled), smp.DiceLoss(mode, smooth=0.0)),
        (
            losses.tversky(logits, target, alpha=0.3, beta=0.7, smooth=0.0, **pooled),
            smp.TverskyLoss(mode, alpha=0.3, beta=0.7, smooth=0.0),
        ),
    ):
        assert float(ours) == pytest.approx(float(theirs(logits, given)), rel=1e-5)
    if mode != "multiclass":  # smp's multi-class focal loss is one against the rest
        theirs = smp.FocalLoss(mode, gamma=2.0)(logits, given)
        assert float(losses.focal(logits, target, **pooled)) == pytest.approx(float(theirs), rel=1e-5)
    if mode != "multilabel":
        theirs = smp.LovaszLoss(mode, per_image=True)(logits, target)
        assert float(losses.lovasz(logits, target, mode=mode)) == pytest.approx(float(theirs), rel=1e-5)


def test_agrees_with_torch_and_monai() -> None:
    from monai.losses import DiceLoss, FocalLoss

    logits, target = draw("multiclass")
    target[0, :2] = 255
    weights = torch.tensor([0.2, 1.0, 3.0])
    theirs = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=255, label_smoothing=0.0)
    ours = losses.cross_entropy(logits, target, weights=weights, ignore=255, reduction="batch")
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    smoothed = torch.nn.functional.cross_entropy(logits, target, ignore_index=255, label_smoothing=0.1)
    ours = losses.cross_entropy(logits, target, smoothing=0.1, ignore=255, reduction="batch")
    assert float(ours) == pytest.approx(float(smoothed), rel=1e-5)

    logits, target = draw("multiclass")
    planes = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    theirs = DiceLoss(softmax=True, smooth_nr=1.0, smooth_dr=1.0)(logits, planes)
    assert float(losses.dice(logits, target)) == pytest.approx(float(theirs), rel=1e-5)
    theirs = DiceLoss(softmax=True, smooth_nr=1.0, smooth_dr=1.0, squared_pred=True, include_background=False)(
        logits, planes
    )
    assert float(losses.dice(logits, target, squared=True, background=False)) == pytest.approx(float(theirs), rel=1e-5)
    theirs = (
        FocalLoss(use_softmax=True, gamma=2.0)(logits, planes) * 3
    )  # monai averages over the planes, two of them zero
    assert float(losses.focal(logits, target)) == pytest.approx(float(theirs), rel=1e-5)


# --- what every loss promises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_mean_of_its_halves(name: str, mode: Any) -> None:
    torch.manual_seed(1)
    logits, target = draw(mode, B=4)
    logits.requires_grad_()
    weight = torch.rand(4, 7, 5) + 1
    masks = {"valid": torch.rand(4, 7, 5) > 0.2, "has": torch.tensor([True, True, False, True])}
    masks["valid"][1] = False  # a sample without a valid pixel

    def part(chosen: slice) -> Tensor:
        own = {"weight": weight[chosen]} if name == "boundary_cross_entropy" else {}
        some = {key: value[chosen] for key, value in masks.items()}
        return call(name, logits[chosen], target[chosen], mode=mode, ignore=None, **some, **own)

    whole, halves = part(slice(None)), (part(slice(0, 2)) + part(slice(2, 4))) / 2
    assert whole.item() == pytest.approx(halves.item(), rel=1e-6)
    one, two = (torch.autograd.grad(value, logits)[0] for value in (whole, halves))
    torch.testing.assert_close(one, two)
    assert float(one[0].abs().sum()) > 0
    assert float(one[1:3].abs().sum()) == 0


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_annotated_does_not_count(name: str, mode: Any) -> None:
    logits, target = draw(mode, B=2)
    hidden = torch.zeros(2, 7, 5, dtype=torch.bool)
    hidden[:, 3:] = True
    ignored = target.clone()
    ignored[hidden.unsqueeze(1).expand_as(target) if mode == "multilabel" else hidden] = 255
    other = torch.where(hidden.unsqueeze(1), logits.flip(0) * 9, logits)
    by_index = call(name, other, ignored, mode=mode, ignore=255)
    by_mask = call(name, logits, target, mode=mode, valid=~hidden)
    torch.testing.assert_close(by_index, by_mask)
    nothing = call(name, logits.requires_grad_(), target, mode=mode, has=torch.tensor([False, False]))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0  # a gradient of zeros, not none: every rank takes part


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
def test_the_truth_is_better_than_its_opposite(name: str, mode: Any) -> None:
    _, target = draw(mode)
    if mode == "multiclass":
        right = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 16.0 - 8
    else:
        right = (target if mode == "multilabel" else target.unsqueeze(1)) * 16.0 - 8
    good, bad = (float(call(name, logits, target, mode=mode)) for logits in (right, -right))
    assert 0 <= good < 0.02 < 0.3 < bad


@given(st.integers(0, 10_000), st.sampled_from(NAMES), st.sampled_from(["multiclass", "binary", "multilabel"]))
def test_flips_and_order_of_samples_change_nothing(seed: int, name: str, mode: Any) -> None:
    logits, target = draw(mode, seed)
    weight = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(seed)) + 1
    own = {"weight": weight} if name == "boundary_cross_entropy" else {}
    moved = {key: value.flip(0, -1) for key, value in own.items()}
    one = call(name, logits, target, mode=mode, **own)
    two = call(name, logits.flip(0, -1), target.flip(0, -1), mode=mode, **moved)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_judged_in_full() -> None:
    logits, target = draw("multiclass")
    for name in NAMES:
        value = call(name, logits.bfloat16(), target)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(call(name, logits.bfloat16().float(), target)))


def test_volumes_are_judged_too() -> None:
    logits, target = draw("multiclass", size=(3, 4, 5))
    flat = (logits.flatten(3), target.flatten(2))
    for name in set(NAMES) - {"boundary_cross_entropy"}:
        torch.testing.assert_close(call(name, logits, target), call(name, *flat))


def test_classes_that_are_absent() -> None:
    logits, _ = draw("multiclass")
    target = torch.zeros(3, 7, 5, dtype=torch.long)
    counted, skipped = losses.dice(logits, target), losses.dice(logits, target, absent="skip")
    assert float(counted) > float(skipped)
    only = losses.dice(logits, target, weights=[1.0, 0.0, 0.0])
    torch.testing.assert_close(skipped, only)


def test_wrong_shapes_are_named() -> None:
    logits, target = draw("multiclass")
    with pytest.raises(ValueError, match=r"Expected \(3, 7, 5\)"):
        losses.dice(logits, target.unsqueeze(1))
    with pytest.raises(ValueError, match=r"3 channels\. Expected 1"):
        losses.dice(logits, target, mode="binary")
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        losses.cross_entropy(logits, target, weights=[1.0, 2.0])


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_sum_of_components() -> None:
    logits, target = draw("multiclass")
    parts = [
        Component(name="dice", weight=2.0),
        Component(name="dice", arguments={"background": False}),
        Component(name="focal", arguments={"gamma": 0.0}, weight=0.5),
    ]
    terms = losses.weighted_sum(parts, logits, target, {"mode": "multiclass"}, None)
    assert list(terms) == ["dice", "dice_2", "focal"]
    torch.testing.assert_close(terms["dice"], 2 * losses.dice(logits, target))
    torch.testing.assert_close(terms["dice_2"], losses.dice(logits, target, background=False))
    torch.testing.assert_close(terms["focal"], 0.5 * losses.cross_entropy(logits, target))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_one_plane_of_many_has_one_weight(name: str) -> None:
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4))
    loss = getattr(losses, name)
    one = loss(logits, target, mode="multilabel", weights=[3.0])
    factor = 1.0 if name == "cross_entropy" else 3.0  # whose mean is divided by the weights
    torch.testing.assert_close(one, factor * loss(logits, target, mode="multilabel"))


def test_a_misspelt_loss_or_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r'no loss "dise". Did you mean dice'):
        losses.check(Component(name="dise"))
    with pytest.raises(ValueError, match=r'loss focal has no argument "gama". Did you mean gamma'):
        losses.check(Component(name="focal", arguments={"gama": 1}))
    with pytest.raises(ValueError, match='no argument "valid"'):
        losses.check(Component(name="dice", arguments={"valid": 1}))
    for name in NAMES:
        losses.check(Component(name=name, arguments={"reduction": "batch"}))


# --- weight maps ------------------------------------------------------------------------------------------------------


def slow_unet_weights(labels: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    out = np.ones(labels.shape)
    ids = [k for k in np.unique(labels) if k]
    for i, j in np.argwhere(labels == 0):
        d = sorted(min(np.hypot(i - a, j - b) for a, b in np.argwhere(labels == k)) for k in ids)
        if len(d) > 1:
            out[i, j] += w0 * np.exp(-((d[0] + d[1]) ** 2) / (2 * sigma**2))
    return out


@given(st.integers(0, 1000))
def test_the_unet_paper_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((12, 14), np.int32)
    for k in range(1, rng.integers(1, 5)):
        i, j = rng.integers(0, 10, 2)
        labels[i : i + 3, j : j + 2] = k * 2  # ids with gaps
    got = weight_maps.unet_weights(labels, 7.0, 2.0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_unet_weights(labels, 7.0, 2.0), atol=5e-3)


def test_border_weights() -> None:
    classes = np.zeros((9, 9), np.uint8)
    classes[3:6, 3:6] = 1
    got = weight_maps.border_weights(classes, 4.0, 2.0)
    assert got[4, 4] == pytest.approx(1 + 4 * np.exp(-4 / 8))  # two steps from the background
    assert got[4, 5] == pytest.approx(1 + 4 * np.exp(-1 / 8))
    assert got[4, 6] == got[4, 5]
    assert got[0, 0] < got[1, 1] < got[2, 2]
    assert (weight_maps.border_weights(np.ones((4, 4), int)) == 1).all()
