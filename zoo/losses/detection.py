"""What a set of predicted boxes costs against a set of true ones (Carion et al. 2020, DETR; Zhu et al. 2021).

Predictions and truths are matched one to one at the least cost, image by image; what is matched learns its class and
its box, what is not learns that it is nothing. Boxes are (centre x, centre y, width, height) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.nn.boxes import overlaps, pairwise_overlaps, to_corners

Match = tuple[Tensor, Tensor]
"""Indices (K,) of matched queries, ascending, and of their truths."""
TERMS = ("loss_ce", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class Weights:
    """Weights of class, L1 and GIoU."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


USUAL = Weights()


@dataclass(frozen=True)
class Objects:
    """What is in one image: `labels` (T,) int64 from 0, `boxes` (T, 4) float."""

    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def repeated(self, times: int) -> Objects:
        """Return the same objects `times` in a row."""
        return Objects(self.labels.repeat(times), self.boxes.repeat(times, 1))

    def of_one_class(self) -> Objects:
        """Return the same objects, all of class 0."""
        return Objects(torch.zeros_like(self.labels), self.boxes)


def unpacked(labels: Tensor, boxes: Tensor, counts: Tensor) -> list[Objects]:
    """Return the objects of each image from those of all images in a row and their numbers."""
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [Objects(labels[i:j], boxes[i:j]) for i, j in zip(starts, ends, strict=True)]


@torch.no_grad()
def match_cost(
    logits: Tensor, boxes: Tensor, truth: Objects, *, weights: Weights = USUAL, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return (Q, T) float32 costs of pairing queries, logits (Q, C) and boxes (Q, 4), with the objects of one image.

    Class: what the focal loss of the truth's class would fall by; L1 of the four numbers; minus generalised IoU.
    """
    p = logits.float().sigmoid()
    hit = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    miss = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    by_class = (hit - miss)[:, truth.labels]
    boxes, true = boxes.float(), truth.boxes.float()
    apart = (boxes[:, None] - true[None]).abs().sum(-1)
    _, giou = pairwise_overlaps(to_corners(boxes), to_corners(true))
    return weights.classes * by_class + weights.l1 * apart - weights.giou * giou


def assign(cost: Tensor) -> Match:
    """Return the exact assignment of least total cost (Q, T), of the smaller number of both."""
    rows, columns = linear_sum_assignment(cost.detach().cpu().nan_to_num(1e6, 1e6, -1e6).numpy())
    return torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device)


def assign_many(cost: Tensor, allowed: Tensor, most: int) -> Match:
    """Return the `most` cheapest queries of each truth among those `allowed` (Q, T) bool; a query serves one truth.

    A query that several truths want goes to the cheapest of them (as Ge et al. 2021, SimOTA, do, with a fixed number).
    """
    if not cost.shape[1]:
        return (torch.zeros(0, dtype=torch.int64, device=cost.device),) * 2
    blocked = cost.masked_fill(~allowed, float("inf"))
    values, rows = blocked.topk(min(most, len(cost)), dim=0, largest=False)
    wanted = torch.full_like(cost, float("inf")).scatter(0, rows, values)
    best, truth = wanted.min(1)
    chosen = torch.nonzero(best.isfinite())[:, 0]
    return chosen, truth[chosen]


def match(logits: Tensor, boxes: Tensor, truths: Sequence[Objects], **options: object) -> list[Match]:
    """Return for each image the exact one-to-one assignment of least cost; `options` are those of `match_cost`.

    `logits` (B, Q, C), `boxes` (B, Q, 4). With more truths than queries only as many as there are queries are matched.
    """
    return [
        assign(match_cost(own, place, truth, **options))  # type: ignore[arg-type]
        for own, place, truth in zip(logits, boxes, truths, strict=True)
    ]


def focal_sum(logits: Tensor, wanted: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the sum of the sigmoid focal loss (Lin et al. 2017); `wanted` in [0, 1], of the shape of `logits`."""
    logits = logits.float()
    p = logits.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = p * (1 - wanted) + (1 - p) * wanted
    share = alpha * wanted + (1 - alpha) * (1 - wanted)
    return (share * missed**gamma * cross).sum()


def _rows(matches: Sequence[Match]) -> Match:
    """Return (image index, query index) of everything matched."""
    image = [torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)]
    return torch.cat(image), torch.cat([queries for queries, _ in matches])


def set_terms(
    logits: Tensor,
    boxes: Tensor,
    truths: Sequence[Objects],
    matches: Sequence[Match],
    count: float,
    *,
    told: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> dict[str, Tensor]:
    """Return `loss_ce`, `loss_bbox` and `loss_giou` of matched queries, each a sum divided by `count`.

    `logits` (B, Q, C), `boxes` (B, Q, 4). `told`: (B,) bool or (B, Q) bool, False where nothing is known of an image,
    or a query does not take part.
    """
    image, query = _rows(matches)
    labels = torch.cat([truth.labels[t] for truth, (_, t) in zip(truths, matches, strict=True)])
    true = torch.cat([truth.boxes[t] for truth, (_, t) in zip(truths, matches, strict=True)]).float()
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    wanted[image, query, labels] = 1.0
    seen = logits
    if told is not None:
        known = told if told.ndim == 2 else told[:, None].expand(-1, logits.shape[1])
        seen, wanted = logits[known], wanted[known]
    found = boxes[image, query].float()
    _, giou = overlaps(to_corners(found), to_corners(true))
    return {
        "loss_ce": focal_sum(seen, wanted, alpha=alpha, gamma=gamma) / count,
        "loss_bbox": (found - true).abs().sum() / count,
        "loss_giou": (1 - giou).sum() / count,
    }


@torch.no_grad()
def class_error(logits: Tensor, truths: Sequence[Objects], matches: Sequence[Match]) -> Tensor:
    """Return 100 minus the percentage of matched queries whose strongest class is right; 100 where none is matched."""
    image, query = _rows(matches)
    if not len(image):
        return logits.new_tensor(100.0)
    labels = torch.cat([truth.labels[t] for truth, (_, t) in zip(truths, matches, strict=True)])
    return 100 - 100 * (logits[image, query].argmax(-1) == labels).float().mean()


@torch.no_grad()
def cardinality_error(logits: Tensor, truths: Sequence[Objects]) -> Tensor:
    """Return the mean over images of |queries whose strongest class is not the last one - objects|.

    Logged by the published code, where the last class is a real one; it says little.
    """
    objects = torch.tensor([len(truth) for truth in truths], dtype=torch.float32, device=logits.device)
    said = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1).float()
    return (said - objects).abs().mean()


def total_objects(truths: Sequence[Objects]) -> float:
    """Return the number of objects of a batch, at least 1."""
    return float(max(sum(len(truth) for truth in truths), 1))


def set_criterion(
    logits: Tensor,
    boxes: Tensor,
    truths: Sequence[Objects],
    *,
    proposals: tuple[Tensor, Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
    cost: Weights = USUAL,
    alpha: float = 0.25,
    gamma: float = 2.0,
    logged: bool = True,
) -> dict[str, Tensor]:
    """Return the unweighted terms of every decoder layer, and `total`, their weighted sum (Zhu et al. 2021).

    `logits` (N, B, Q, C) and `boxes` (N, B, Q, 4) of N decoder layers, the last one being the prediction; each layer is
    matched anew. Terms of the earlier layers end in _0, _1, ...; those of two-stage `proposals` (logits (B, S, C) and
    boxes (B, S, 4)), in which every object counts as class 0, in _enc. `weights`: of the three terms.
    `logged`: also give class_error and cardinality_error, which are no part of the total.
    """
    factors = weights or {"loss_ce": USUAL.classes, "loss_bbox": USUAL.l1, "loss_giou": USUAL.giou}
    count = total_objects(truths)
    parts = [("", logits[-1], boxes[-1], truths)]
    parts += [(f"_{i}", logits[i], boxes[i], truths) for i in range(len(logits) - 1)]
    if proposals is not None:
        parts.append(("_enc", *proposals, [truth.of_one_class() for truth in truths]))
    terms: dict[str, Tensor] = {}
    total = logits.new_zeros(())
    for suffix, own, place, objects in parts:
        matches = match(own, place, objects, weights=cost, alpha=alpha, gamma=gamma)
        found = set_terms(own, place, objects, matches, count, alpha=alpha, gamma=gamma)
        terms |= {name + suffix: value for name, value in found.items()}
        total = total + torch.stack([factors.get(name, 0.0) * value for name, value in found.items()]).sum()
        if logged:
            terms[f"cardinality_error{suffix}"] = cardinality_error(own, objects)
            if not suffix:
                terms["class_error"] = class_error(own, objects, matches)
    return {**terms, "total": total}


def asymmetric_sum(
    logits: Tensor, wanted: Tensor, *, gamma_negative: float = 4.0, gamma_positive: float = 1.0, clip: float = 0.08
) -> Tensor:
    """Return the sum of the asymmetric loss on independent sigmoids (Ridnik et al. 2021).

    `wanted`: 0 or 1, of the shape of `logits`. The probability of a negative is shifted by `clip`; no gradient goes
    through the focusing weights.
    """
    p = logits.float().sigmoid()
    q = (1 - p + clip).clamp_max(1.0)
    plain = wanted * p.clamp_min(1e-8).log() + (1 - wanted) * q.clamp_min(1e-8).log()
    with torch.no_grad():
        right = p * wanted + q * (1 - wanted)
        focus = (1 - right) ** (gamma_positive * wanted + gamma_negative * (1 - wanted))
    return -(plain * focus).sum()
