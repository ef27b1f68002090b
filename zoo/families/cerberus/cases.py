"""What the published cases of Cerberus mean here (`zoo verify`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zoo
from zoo import registry
from zoo.cases import Case
from zoo.families.cerberus import losses, published
from zoo.families.cerberus.model import MIDDLE, Cerberus
from zoo.families.cerberus.objects import RULES, Records
from zoo.families.cerberus.targets import centre


def answer(case: Case) -> Mapping[str, Any]:
    """Answer a case: networks, inference steps, losses with gradients, targets, objects, windows."""
    configuration = case.configuration
    match case.kind:
        case "network" | "manifest" if "decoder_kwargs" in configuration:
            return _network(case)
        case "loss":
            return _losses(case)
        case "target" if "req_target_code" in configuration:
            return _targets(case)
        case "postprocess" if "tissue_mode" in configuration:
            return _objects(case)
        case "postprocess" if "input_size" in configuration:
            return _windows(case)
    raise case.unknown()


# --- networks ---------------------------------------------------------------------------------------------------------


def outputs(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return published output -> our task, in the order of the inference's outputs."""
    decoders = configuration["decoder_kwargs"]
    order = [name for name in configuration.get("considered_tasks") or decoders if name in decoders]
    found = {}
    for decoder in order:
        kind = next(iter(decoders[decoder]))
        name = decoder if kind == "OUT" else f"{decoder.partition('#')[0]}-{kind}"
        found[name] = published.task_name(decoder)
    return found


@torch.no_grad()
def _network(case: Case) -> Mapping[str, Any]:
    configuration = case.configuration
    with case.building():
        options = published.options(configuration["encoder_backbone_name"], configuration["decoder_kwargs"])
        model = zoo.create("cerberus", **options)
    assert isinstance(model, Cerberus)
    case.load(model, published.convert if model.dense else _without_decoders)
    if case.layout_only:
        return {}
    names = outputs(configuration)
    found: dict[str, Any] = {}
    for key, image in case.inputs.items():
        if "output_shape" in configuration:
            made = _step(model, names, image.movedim(-1, 1), configuration["output_shape"])
        else:
            made = _logits(model, names, image, case.wanted)
        found |= made | {f"{name}.{key}": value for name, value in made.items()}
    return found


def _without_decoders(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a network that says patches' classes only; the published one has what its decoders would begin with."""
    return {key: value for key, value in published.convert(state).items() if key != "neck.weight"}


def _logits(model: Cerberus, names: Mapping[str, str], image: Tensor, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the raw logits of a (B, 3, H, W) picture, and what the encoder saw."""
    patches = [name for name in names.values() if model.tasks[name].kind == "patch"]
    features = ["neck", *(f"level{i}" for i in range(len(model.pyramid.strides)))]
    taps = [MIDDLE + name for name in patches] + (features if any("feature" in name for name in wanted) else [])
    maps = model.forward(model.prepare({"image": image}), taps)
    found = {name: maps[MIDDLE + task] if task in patches else maps[task] for name, task in names.items()}
    if "neck" in maps:
        found["feature.conv_map"] = maps["neck"]
        found |= {f"feature.stage{i}": maps[f"level{i}"] for i in range(len(model.pyramid.strides))}
    return found


def _step(model: Cerberus, names: Mapping[str, str], image: Tensor, shape: int | Sequence[int]) -> dict[str, Any]:
    """Return the published inference step: of the middle of each picture, inside and contour or the likeliest class."""
    size = (shape, shape) if isinstance(shape, int) else (int(shape[0]), int(shape[1]))
    patches = [name for name in names.values() if model.tasks[name].kind == "patch"]
    maps = model.infer(model.prepare({"image": image}))
    middle = model.forward(model.prepare({"image": image}), [MIDDLE + name for name in patches]) if patches else {}
    window = centre(tuple(image.shape[-2:]), size)
    found: dict[str, Any] = {}
    for name, planes in model.activate(maps).items():
        published_name = next(key for key, task in names.items() if task == name)
        cut = planes[(..., *window)]
        if model.tasks[name].kind == "objects":
            found[published_name] = cut[:, 1:].movedim(1, -1)
        elif model.tasks[name].kind == "classes":
            found[published_name] = cut.argmax(1)
        else:
            best = middle[MIDDLE + name].argmax(1)
            found[published_name] = best.expand(-1, *size)
    return found


# --- losses -----------------------------------------------------------------------------------------------------------


def _losses(case: Case) -> Mapping[str, Any]:
    configuration = case.configuration
    told = configuration.get("loss_kwargs", configuration)
    heads = {name.removeprefix("pred."): value for name, value in case.inputs.items() if name.startswith("pred.")}
    about: Mapping[str, Any] = told.get("loss_info") or dict.fromkeys(heads, told)
    weights: Mapping[str, Mapping[str, float]] = told.get("class_weight") or {}
    found: dict[str, Any] = {}
    logits = {name: value.float().requires_grad_() for name, value in heads.items()}
    terms = {}
    for name, value in logits.items():
        target = case.inputs.get(f"true.{name}")
        if target is None or name not in about or not _same_size(value, target):
            continue  # as published: a head whose target has another size is passed over
        weight = weights.get(name)
        class_weights = [float(weight[str(c)]) for c in range(1, value.shape[1])] if weight else None
        terms[name] = about[name]["weight"] * _head(case, name, value, target, about[name]["loss"], class_weights)
    total = torch.stack(list(terms.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    found |= {f"loss.{name}": value for name, value in terms.items()} | {"loss.overall": total}
    return found | {f"grad.{name}": value.grad for name, value in logits.items() if value.grad is not None}


def _same_size(logits: Tensor, target: Tensor) -> bool:
    size = tuple(target.shape[1:]) or (1, 1)
    return tuple(logits.shape[2:]) == size


def _head(
    case: Case,
    name: str,
    logits: Tensor,
    target: Tensor,
    parts: Mapping[str, float],
    class_weights: Sequence[float] | None,
) -> Tensor:
    has = _has(case, name)
    target = target.long()
    if name.endswith("-INST") and set(parts) == {"ce"}:
        weight = case.inputs.get(f"weight.{name}", torch.ones(target.shape))
        return parts["ce"] * losses.objects_loss(logits, target, weight.float(), has=has)
    if name.endswith("-TYPE"):
        return losses.classes_loss(
            logits,
            target,
            class_weights=class_weights,
            has=has,
            entropy=parts.get("ce", 0.0),
            overlap=parts.get("dice", 0.0),
        )
    if set(parts) == {"ce"}:
        return parts["ce"] * losses.patch_loss(logits.flatten(1), target.flatten(), has=has)
    raise case.unknown(f"a loss of {', '.join(parts)} for head {name}")


def _has(case: Case, head: str) -> Tensor | None:
    """Return which samples are annotated for a head: those of the dataset that the head is named after."""
    owners, owner = case.manifest.get("owner_names") or case.configuration.get("owner_names"), case.inputs.get("owner")
    if owners is None or owner is None:
        return None
    return torch.tensor([head.partition("-")[0] == owners[int(i)] or head == owners[int(i)] for i in owner])


# --- targets, objects, windows ----------------------------------------------------------------------------------------


def _targets(case: Case) -> Mapping[str, Any]:
    configuration = case.configuration
    shape = [int(n) for n in configuration["crop_shape"]]
    make = registry.get("target", "cerberus_objects")
    found: dict[str, Any] = {}
    for code, recipe in configuration["req_target_code"].items():
        tissue, _, kind = code.partition("-")
        annotation = case.inputs.get(f"{tissue.lower()}.ann")
        if annotation is None:
            continue
        maps = annotation.numpy()
        size = re.fullmatch(r"IP-ERODED-CONTOUR-(\d+)", recipe)
        if size:
            w0 = 10.0 if configuration.get("gen_unet_weight_map") else 0.0
            target, weight = make(maps[..., 0], int(size[1]), shape, w0)
            found |= {f"{tissue.lower()}.{kind.lower()}": target, f"{tissue.lower()}.weight": weight}
        elif recipe == "TP" and maps.shape[-1] > 1:
            found[f"{tissue.lower()}.{kind.lower()}"] = np.ascontiguousarray(
                maps[..., 1][centre(maps.shape[:2], shape)]
            )
        elif recipe not in ("PC", "TP"):  # an annotation without classes has no map of them
            raise case.unknown(f"targets of code {recipe}")
    return found


def _objects(case: Case) -> Mapping[str, Any]:
    make, tell = (registry.get("postprocess", f"cerberus_{name}") for name in ("instances", "records"))
    mode = str(case.configuration["tissue_mode"]).lower()
    if mode not in RULES:
        raise case.unknown(f"post-processing of {mode}")
    maps, kinds = case.inputs["prob"].numpy(), case.inputs.get("type")
    factors = case.configuration.get("ds_factor", 1.0)
    found: dict[str, Any] = {}
    for factor in factors if isinstance(factors, list) else [factors]:
        labels = make(np.ascontiguousarray(maps[..., 0]), np.ascontiguousarray(maps[..., 1]), RULES[mode], factor)
        told = tell(labels, None if kinds is None else kinds.numpy())
        found[f"inst.ds{factor:g}"] = labels
        found |= {f"info.ds{factor:g}.{key}": value for key, value in _told(told).items()}
    return found


def _told(told: Records) -> dict[str, Any]:
    joined = np.concatenate(told.contours) if told.contours else np.zeros((0, 2), np.int32)
    return {
        "ids": told.ids,
        "box": told.boxes,
        "centroid": told.centroids,
        "contour": joined,
        "contour_length": np.array([len(c) for c in told.contours], np.int32),
        "type": told.types,
        "type_prob": told.shares,
    }


def _windows(case: Case) -> Mapping[str, Any]:
    lay, about = registry.get("postprocess", "cerberus_windows"), case.configuration
    found: dict[str, Any] = {}
    for name, size in case.inputs.items():
        height, width = (int(n) for n in size)
        laid = lay((height, width), about["input_size"], about["output_size"], about.get("output_overlap_size", 0))
        found[f"{name}.boxes"] = laid.boxes
        found[f"{name}.padded_shape"] = np.array(laid.padded)
        found[f"{name}.top_left_pad"] = np.array(laid.before)
    return found
