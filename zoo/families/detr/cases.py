"""Published cases of MFDS-DETR and AttriDet: what their inputs and configurations mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo import registry
from zoo.cases import Case
from zoo.families import build
from zoo.families.detr import published
from zoo.families.detr.attributes import RegionHead, crop_regions
from zoo.families.detr.model import Detr
from zoo.losses.detection import Weights, asymmetric_sum, set_criterion, unpacked
from zoo.nn import boxes, positions
from zoo.nn.deformable import DeformableAttention, deformable_sample
from zoo.nn.fusion import HighLevelScreening

Answer = dict[str, Any]


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of either system."""
    for words, part in _PARTS:
        if words in f"{case.source} {case.component}":
            return part(case)
    raise case.unknown()


def _create(options: Mapping[str, Any]) -> Detr:
    made = build.create("detr", options)
    assert isinstance(made, Detr)
    return made


# --- networks ---------------------------------------------------------------------------------------------------------


def _network(case: Case) -> Answer:
    with case.building():
        model = _create(published.published_options(case.configuration))
    case.load(model, lambda state: published.convert(state, model.options)[0])
    if case.layout_only:
        return {}
    names = {"queries_last": "queries", "enc_logits": "proposal_logits", "enc_boxes": "proposal_boxes"}
    names |= {"c3": "stride8", "c4": "stride16", "c5": "stride32", "c6": "top"}
    names |= {f"p{3 + level}": f"level{level}" for level in range(model.options.levels)}
    names |= {name: name for name in ("aux_logits", "aux_boxes", "memory")}
    taps = [tap for name, tap in names.items() if name in case.wanted]
    with torch.no_grad():
        maps = model(dict(case.inputs), taps)
    found = {"pred_logits": maps["logits"], "pred_boxes": maps["boxes"]}
    for name, tap in names.items():
        if tap in taps:
            found[name] = maps[tap][-1:] if name[0] == "p" else maps[tap]
    return found


def _neck(case: Case) -> Answer:
    c = case.configuration
    backbones = {(512, 1024, 2048): "resnet50", (128, 256, 512): "resnet18"}
    channels = tuple(c.get("in_channels", (512, 1024, 2048)))
    if channels not in backbones:
        raise case.unknown(f"a neck on {channels} channels")
    plain = {"backbone": backbones[channels], "enc_layers": 0, "dec_layers": 1, "num_classes": 1}
    options = published.published_options(plain | {k: v for k, v in c.items() if k != "in_channels"})
    with case.building():
        neck = _create(options).neck
    case.load(neck)
    if case.layout_only:
        return {}
    maps = [case.inputs[name] for name in sorted(case.inputs)]
    with torch.no_grad():
        levels = neck(maps)
        found = {f"p{3 + i}": level for i, level in enumerate(levels)}
        return found | ({"c6": neck.top(maps[-1])} if isinstance(neck, HighLevelScreening) else {})


def _attention(case: Case) -> Answer:
    c = case.configuration
    width, levels = int(c.get("d_model", 256)), int(c.get("n_levels", 4))
    options = {
        "encoder": "test_resnet",
        "neck": "plain",
        "strides": [8, 16, 32][:levels],
        "levels": levels,
        "width": width,
        "heads": c.get("n_heads", 8),
        "encoder_points": c.get("n_points", 4),
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": width,
        "classes": ["object"],
    }
    with case.building():
        attention = _create(options).encoder.layers[0].self_attn
    assert isinstance(attention, DeformableAttention)
    case.load(attention)
    if case.layout_only:
        return {}
    inputs = case.inputs
    query, tokens = (inputs[name].clone().requires_grad_() for name in ("query", "value_tokens"))
    sizes = [(int(h), int(w)) for h, w in inputs["spatial_shapes"].tolist()]
    output = attention(query, inputs["reference"], tokens, sizes, inputs.get("padding_mask"))
    return {"output": output} | _gradients(output, inputs, {"query": query, "value_tokens": tokens})


def _kernel(case: Case) -> Answer:
    inputs = case.inputs
    sizes = [(int(h), int(w)) for h, w in inputs["spatial_shapes"].tolist()]
    names = ("value", "sampling_locations", "attention_weights")
    given = {name: inputs[name].clone().requires_grad_() for name in names}
    output = deformable_sample(given["value"], sizes, given["sampling_locations"], given["attention_weights"])
    return {"output": output} | _gradients(output, inputs, given)


def _gradients(output: Tensor, inputs: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Answer:
    if "grad_output" not in inputs:
        return {}
    found = torch.autograd.grad(output, list(given.values()), inputs["grad_output"])
    return {f"grad_{name}": value for name, value in zip(given, found, strict=True)}


def _attribute_network(case: Case) -> Answer:
    c, inputs = case.configuration, case.inputs
    layout = case.layout_only
    channels = [c["in_channels"] // 3, c["in_channels"] - c["in_channels"] // 3]
    if not layout:
        channels = [inputs["fine"].shape[1], inputs["coarse"].shape[1]]
    count = int(str(c.get("outputs", "6")).split()[0])
    options = {
        "encoder": "test_resnet",
        "neck": "plain",
        "encoder_layers": 0,
        "decoder_layers": 1,
        "width": 32,
        "feedforward": 32,
        "classes": ["cell"],
        "attributes": {
            "head": "regions",
            "loss": "asymmetric",
            "channels": channels,
            "dropout": c.get("dropout", 0.5),
            "values": {f"attribute {i}": ["0", "1"] for i in range(count)},
        },
    }
    with case.building():
        head = _create(options).attributes
    assert isinstance(head, RegionHead)
    case.load(head.network)
    if layout:
        return {}
    with torch.no_grad():
        maps = (inputs["fine"], inputs["coarse"])
        pooled = crop_regions(maps, [[inputs["roi_fine"]], [inputs["roi_coarse"]]])
        scores = head.network(pooled).view(-1, count, 2)
    how = {
        "gamma_negative": c.get("gamma_neg", 4),
        "gamma_positive": c.get("gamma_pos", 1),
        "clip": c.get("clip", 0.08),
    }
    whole = (inputs["labels"] < 2).all(1)  # a cell of which something is not annotated does not count
    wanted = torch.nn.functional.one_hot(inputs["labels"][whole], 2).float()
    found: Answer = {"pooled": pooled, "scores": scores}
    for name, logits, divisor in (("", scores, int(whole.sum())), ("_wide", inputs.get("logits_wide"), 1)):
        if logits is not None:
            own = logits.detach().clone().requires_grad_()
            loss = asymmetric_sum(own[whole], wanted, **how) / max(divisor, 1)
            found |= {f"loss{name}": loss, f"grad{name or '_scores'}": torch.autograd.grad(loss, own)[0]}
    return found


# --- matching, loss, decoding ----------------------------------------------------------------------------------------


def _matcher(case: Case) -> Answer:
    c, inputs = case.configuration, case.inputs
    how = {
        "weights": Weights(c.get("cost_class", 2), c.get("cost_bbox", 5), c.get("cost_giou", 2)),
        "alpha": c.get("focal_alpha", 0.25),
        "gamma": c.get("focal_gamma", 2),
    }
    cost, assign = registry.get("target", "box_cost"), registry.get("target", "box_assignment")
    truths = unpacked(inputs["labels"], inputs["boxes"], inputs["counts"])
    logits, places = inputs["pred_logits"], inputs["pred_boxes"]
    matrices = [cost(own, place, truth, **how) for own, place, truth in zip(logits, places, truths, strict=True)]
    matches = assign(logits, places, truths, **how)
    return {
        "cost": torch.cat([m.flatten() for m in matrices]),
        "query_index": torch.cat([queries for queries, _ in matches]),
        "target_index": torch.cat([found for _, found in matches]),
        "matched_counts": torch.tensor([len(queries) for queries, _ in matches]),
    }


def _criterion(case: Case) -> Answer:
    c, inputs = case.configuration, case.inputs
    names = {"logits": "logits", "boxes": "boxes_pred", "enc_logits": "enc_logits", "enc_boxes": "enc_boxes"}
    given = {own: inputs[theirs].clone().requires_grad_() for own, theirs in names.items() if theirs in inputs}
    truths = unpacked(inputs["labels"], inputs["boxes"], inputs["counts"])
    proposals = (given["enc_logits"], given["enc_boxes"]) if "enc_logits" in given else None
    terms = set_criterion(
        given["logits"],
        given["boxes"],
        truths,
        proposals=proposals,
        weights=c.get("weights"),
        cost=Weights(c.get("cost_class", 2), c.get("cost_bbox", 5), c.get("cost_giou", 2)),
        alpha=c.get("focal_alpha", 0.25),
        gamma=c.get("focal_gamma", 2),
    )
    gradients = torch.autograd.grad(terms["total"], list(given.values()), allow_unused=True)
    found = {
        f"grad_{name}": torch.zeros_like(given[name]) if value is None else value
        for name, value in zip(given, gradients, strict=True)
    }
    return {name: value.detach() for name, value in (terms | found).items()}


def _postprocess(case: Case) -> Answer:
    inputs = case.inputs
    top = registry.get("postprocess", "top_boxes")
    probability = inputs["pred_logits"].sigmoid()
    scores, labels, corners, _ = top(probability, inputs["pred_boxes"], inputs["sizes"], case.configuration["top_k"])
    return {"scores": scores, "labels": labels, "boxes": corners}


def _boxes_and_positions(case: Case) -> Answer:
    c, inputs = case.configuration, case.inputs
    found: Answer = {}
    if "boxes_a" in inputs:
        one, other = boxes.to_corners(inputs["boxes_a"]), boxes.to_corners(inputs["boxes_b"])
        iou, giou = boxes.pairwise_overlaps(one, other)
        found |= {"xyxy_a": one, "iou": iou, "giou": giou}
    if "prob" in inputs:
        found["inverse_sigmoid"] = boxes.inverse_sigmoid(inputs["prob"])
    if "mask" in inputs:
        found |= _of_mask(inputs["mask"], c)
    if "resize" in inputs:
        resize: Callable[..., tuple[int, int]] = registry.get("transform", "short_side")
        found["resized"] = torch.tensor([resize(*row) for row in inputs["resize"].tolist()])
    return found


def _of_mask(mask: Tensor, c: Mapping[str, Any]) -> Answer:
    size = int(mask.shape[-2]), int(mask.shape[-1])
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    smaller = positions.resize_padding(mask, half)
    ratios = torch.stack([positions.valid_ratio(mask), positions.valid_ratio(smaller)], 1)
    encoded = positions.sine_positions(
        mask, c.get("num_pos_feats", 128), c.get("temperature", 10000), c.get("scale", 6.283185307179586)
    )
    return {
        "mask_half": smaller,
        "valid_ratios": ratios,
        "position_embedding": encoded.masked_fill(mask[:, None], 0.0),
        "reference_points": positions.token_centres([size, half], ratios)[:, :, None] * ratios[:, None],
    }


_PARTS: tuple[tuple[str, Callable[[Case], Answer]], ...] = (
    ("pure-tensor definition of the sampling kernel", _kernel),
    ("MSDeformAttn", _attention),
    ("wbcfpn", _neck),
    ("DeformableDETR", _network),
    ("HungarianMatcher", _matcher),
    ("SetCriterion", _criterion),
    ("PostProcess", _postprocess),
    ("box_ops", _boxes_and_positions),
    ("attribute CNN", _attribute_network),
)
"""Words of a case's source or component -> what answers it."""
