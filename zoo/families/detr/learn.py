"""What a detector learns from a batch: the terms of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.families.base import Maps
from zoo.families.detr.attributes import attribute_loss
from zoo.families.detr.options import DetrOptions
from zoo.families.detr.queries import noisy_matches
from zoo.losses.detection import (
    Match,
    Objects,
    Weights,
    assign_many,
    match,
    match_cost,
    set_terms,
    total_objects,
)
from zoo.nn.boxes import to_centres, to_corners
from zoo.types import Batch


def extents(valid: Tensor) -> list[tuple[int, int]]:
    """Return (height, width) of each image without the padding at its far sides, from (B, H, W) bool.

    What is not valid within (the corners of a turned image) counts as image. At least one pixel each.
    """
    # As bytes: torch's `any` of bools reads one at a time.
    bytes_ = valid.view(torch.uint8)
    found = []
    for rows, columns in zip(bytes_.amax(2).cpu(), bytes_.amax(1).cpu(), strict=True):
        high, wide = torch.nonzero(rows), torch.nonzero(columns)
        found.append((int(high[-1]) + 1 if len(high) else 1, int(wide[-1]) + 1 if len(wide) else 1))
    return found


@dataclass(frozen=True)
class Truths:
    """What is known of a batch: `objects` of each image, `told` (B,) bool, and `attributes` (N, A) of each image."""

    objects: list[Objects]
    told: Tensor
    attributes: list[Tensor] | None


def truths(batch: Batch, first: int = 0) -> Truths:
    """Return the objects of each image, boxes as centre and size in [0, 1] of the image without padding.

    An image whose boxes are not annotated has none, and `told` False. `first`: label of class 0.
    """
    boxes, classes = batch.targets["boxes"], batch.targets["classes"]
    device, count = batch.inputs["image"].device, len(batch)
    has = batch.has.get("boxes")
    told = torch.ones(count, dtype=torch.bool, device=device) if has is None else has.bool()
    shape = batch.inputs["image"].shape[-2:]
    sizes = [(int(shape[0]), int(shape[1]))] * count if batch.valid is None else extents(batch.valid)
    attributes = batch.targets.get("attributes")
    found, said = [], []
    for i, (known, (height, width)) in enumerate(zip(told.tolist(), sizes, strict=True)):
        rows = slice(None) if known else slice(0, 0)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
        corners = (boxes[i][rows].float() / scale).clamp(0, 1)
        seen = (corners[:, 2:] > corners[:, :2]).all(1)
        found.append(Objects(classes[i][rows][seen].long() + first, to_centres(corners[seen])))
        if attributes is not None:
            said.append(attributes[i][rows][seen].long())
    return Truths(found, told, said if attributes is not None else None)


def padded_truths(batch: Batch, first: int = 0) -> dict[str, Tensor]:
    """Return `truth_labels` (B, N) and `truth_boxes` (B, N, 4) for the forward pass, padded with boxes of no truth."""
    known = truths(batch, first).objects
    most = max(1, *(len(own) for own in known))
    device = batch.inputs["image"].device
    labels = torch.zeros(len(known), most, dtype=torch.int64, device=device)
    boxes = torch.full((len(known), most, 4), 0.5, device=device)
    for i, own in enumerate(known):
        labels[i, : len(own)], boxes[i, : len(own)] = own.labels, own.boxes
    return {"truth_labels": labels, "truth_boxes": boxes}


def loss(maps: Maps, batch: Batch, options: DetrOptions, values: Sequence[int]) -> dict[str, Tensor]:
    """Return weighted terms: `class`, `l1`, `giou` of the prediction; `layers`, `proposals`, `many`, `denoising` and
    `attributes` where there are such."""
    known = truths(batch, options.unused)
    count = total_objects(known.objects)
    chosen = Weights(options.weights.classes, options.weights.l1, options.weights.giou)
    terms_of = partial(
        set_terms, truths=known.objects, count=count, told=known.told, alpha=options.alpha, gamma=options.gamma
    )
    weighed = partial(_weighed, chosen)
    cost: dict[str, Any] = {"weights": chosen, "alpha": options.alpha, "gamma": options.gamma}
    last = match(maps["logits"], maps["boxes"], known.objects, **cost)
    own = terms_of(maps["logits"], maps["boxes"], matches=last)
    found = {
        "class": chosen.classes * own["loss_ce"],
        "l1": chosen.l1 * own["loss_bbox"],
        "giou": chosen.giou * own["loss_giou"],
    }
    if "all_logits" in maps:
        found |= _further(maps, known, options, cost, terms_of, weighed)
    if "proposal_logits" in maps:
        found["proposals"] = weighed(_proposals(maps, known, options, cost, count))
    if values and known.attributes is not None and options.attributes is not None:
        found["attributes"] = options.attributes.weight * _attributes(
            maps, known, last, values, options.attributes.loss
        )
    return found


def _weighed(weights: Weights, terms: dict[str, Tensor]) -> Tensor:
    return weights.classes * terms["loss_ce"] + weights.l1 * terms["loss_bbox"] + weights.giou * terms["loss_giou"]


def _further(
    maps: Maps, known: Truths, options: DetrOptions, cost: dict[str, Any], terms_of: Any, weighed: Any
) -> dict[str, Tensor]:
    """Return the terms of earlier layers and of further queries, which only training has."""
    logits, boxes = maps["all_logits"], maps["all_boxes"]
    first, second = options.queries, options.queries + options.one_to_many
    found: dict[str, Tensor] = {}
    if options.auxiliary and len(logits) > 1:
        layers = []
        for own, place in zip(logits[:-1, :, :first], boxes[:-1, :, :first], strict=True):
            layers.append(weighed(terms_of(own, place, matches=match(own, place, known.objects, **cost))))
        found["layers"] = torch.stack(layers).sum()
    depth = slice(None) if options.auxiliary else slice(-1, None)
    if options.one_to_many:
        many = [objects.repeated(options.repeats) for objects in known.objects]
        found["many"] = torch.stack(
            [
                weighed(terms_of(own, place, truths=many, matches=match(own, place, many, **cost))) / options.repeats
                for own, place in zip(logits[depth, :, first:second], boxes[depth, :, first:second], strict=True)
            ]
        ).sum()
    if options.denoising and logits.shape[2] > second:
        found["denoising"] = _denoising(logits[depth, :, second:], boxes[depth, :, second:], known, options, weighed)
    return found


def _denoising(logits: Tensor, boxes: Tensor, known: Truths, options: DetrOptions, weighed: Any) -> Tensor:
    groups = options.denoising
    matches, told = noisy_matches(known.objects, groups, logits.shape[2] // groups)
    terms_of = partial(
        set_terms, told=told, alpha=options.alpha, gamma=options.gamma, count=total_objects(known.objects) * groups
    )
    return torch.stack(
        [weighed(terms_of(own, place, known.objects, matches)) for own, place in zip(logits, boxes, strict=True)]
    ).sum()


def _proposals(
    maps: Maps, known: Truths, options: DetrOptions, cost: dict[str, Any], count: float
) -> dict[str, Tensor]:
    """Return the terms of the tokens' boxes: matched one to one, or `dense` tokens a truth."""
    logits, boxes, good = maps["proposal_logits"], maps["proposal_boxes"], maps["proposal_good"]
    objects = known.objects
    if options.selection == "two-stage":
        objects = [own.of_one_class() for own in objects]
    told = known.told[:, None] & good if options.selection == "mixed" else known.told
    matches: Sequence[Match]
    if not options.dense:
        matches = match(logits, boxes, objects, **cost)
    else:
        matches = [
            assign_many(match_cost(own, place, truth, **cost), may[:, None] & _inside(place, truth), options.dense)
            for own, place, may, truth in zip(logits, boxes, good, objects, strict=True)
        ]
        count = float(max(sum(len(q) for q, _ in matches), 1))
    return set_terms(logits, boxes, objects, matches, count, told=told, alpha=options.alpha, gamma=options.gamma)


@torch.no_grad()
def _inside(boxes: Tensor, truth: Objects) -> Tensor:
    """Return (S, T) bool, whether the centre of a token's box lies within a truth."""
    corners = to_corners(truth.boxes)
    centre = boxes[:, None, :2]
    return ((centre > corners[None, :, :2]) & (centre < corners[None, :, 2:])).all(-1)


def _attributes(maps: Maps, known: Truths, matches: Sequence[Match], values: Sequence[int], kind: str) -> Tensor:
    """Return the loss of what is said of matched boxes, or, of regions in training, of the true ones."""
    assert known.attributes is not None
    if "truth_attributes" in maps:
        logits = [own[: len(objects)] for own, objects in zip(maps["truth_attributes"], known.objects, strict=True)]
        return attribute_loss(torch.cat(logits), torch.cat(known.attributes), values, kind)
    pairs = list(zip(maps["attributes"], known.attributes, matches, strict=True))
    logits = [own[queries] for own, _, (queries, _) in pairs]
    labels = [own[found] for _, own, (_, found) in pairs]
    return attribute_loss(torch.cat(logits), torch.cat(labels), values, kind)
