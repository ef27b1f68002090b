"""Published metrics against ours: what `zoo verify` asks of cases of kind `metric`."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import registry
from zoo.cases import Case, CaseError

Answers = dict[str, Any]


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of kind `metric` of any system that has published one."""
    inputs = {name: value.numpy() for name, value in case.inputs.items()}
    for (system, needs), part in _PARTS.items():
        if case.system == system and set(needs) <= set(inputs):
            return part(case, inputs)
    raise case.unknown()


# --- ASP: pictures, and sets of pictures by features ------------------------------------------------------------------


def _pictures(case: Case, inputs: Answers) -> Answers:
    from zoo.metrics import picture

    found: Answers = {}
    both = picture.pair(*(np.moveaxis(inputs[name], -1, 0) for name in ("fake", "real")))
    found["psnr"] = [registry.get("metric", "psnr")(both)]
    found["ssim"] = [registry.get("metric", "ssim")(both, "uniform", sample_covariance=True)]
    if "feat_fake" in inputs:
        ours, theirs = inputs["feat_fake"], inputs["feat_true"]
        distance = registry.get("measure", "kid")(ours, theirs, size=None)
        found |= {"kid_mmd2": [distance.value], "kid_var": [distance.variance]}
        found["fid"] = [registry.get("metric", "fid")(ours, theirs)]
    if "ramp" in inputs:
        ramp = inputs["ramp"].astype(np.float32) / np.float32(255) * 2 - 1
        found["ramp_roundtrip"] = registry.get("measure", "saved_picture")(ramp)
    return {name: found[name] for name in case.wanted if name in found}


def _phv(case: Case, inputs: Answers) -> Answers:
    import torch

    from zoo.metrics import networks

    network = networks.resnet50()
    case.load(network)
    sides = {
        name: networks.stage_means(network, torch.as_tensor(inputs[name]).reshape(-1, *inputs[name].shape[-3:]))
        for name in ("fake", "real")
    }
    threshold = float(case.configuration.get("T", 0.01))
    layers = [f"layer{k}" for k in case.configuration.get("layers", (1, 2, 3, 4))]
    metric = registry.get("metric", "phv")
    found: Answers = {"phv": [metric(sides["fake"][name], sides["real"][name], threshold) for name in layers]}
    for side, means in sides.items():
        found |= {f"{side}_mean_{name}": means[name] for name in layers}
    return found


# --- MIPHEI-ViT: pixels and cells -------------------------------------------------------------------------------------


def _pixels(case: Case, inputs: Answers) -> Answers:
    from zoo.metrics import picture

    low, high = case.configuration.get("data_range", (-0.9, 0.9))
    ours = np.clip(inputs["pred"], low, high)
    pairs = [picture.pair(p, t, spread=high - low) for p, t in zip(ours, inputs["target"], strict=True)]
    whole = picture.pair(np.hstack(list(ours)), np.hstack(list(inputs["target"])), spread=high - low)
    ssim = registry.get("metric", "ssim")
    return {
        "psnr": [registry.get("metric", "psnr")(whole)],
        "ssim": [float(np.mean([ssim(both, border="reflect") for both in pairs]))],
    }


def _cells(case: Case, inputs: Answers) -> Answers:
    said = case.configuration
    found = registry.get("measure", "cell_expression")(
        inputs["pred"], inputs["nuclei"], min_area=int(said.get("min_area", 20))
    )
    left_out = {str(name).lower() for name in said.get("excluded", ())}
    kept = [i for i, name in enumerate(said["markers"]) if str(name).lower() not in left_out]
    return {"cell_id": found.ids, "area": found.area, "mean": found.mean[:, kept]}


def _gate(case: Case, inputs: Answers) -> Answers:
    said = case.configuration
    if int(said.get("components", 2)) != 2:
        raise CaseError(f"a gate has two components, not {said['components']}")
    found = registry.get("measure", "cell_gate")(
        inputs["values"], seed=int(said.get("random_state", 42)), log=bool(said.get("log_norm", False))
    )
    return {
        "means": found.means,
        "variances": found.variances,
        "threshold": [found.threshold],
        "prob_high": found.high,
    }


def _classifier(case: Case, inputs: Answers) -> Answers:
    seed = int(case.configuration.get("random_state", 42))
    fitted = registry.get("measure", "cell_classifier")(inputs["train"], inputs["train_labels"], seed=seed)
    probability = fitted(inputs["test"])
    scores = registry.get("measure", "marker_scores")(probability, inputs["test_labels"])
    return {"weight": fitted.weight, "bias": fitted.bias, "prob": probability, "metrics": scores}


# --- PathoROB ---------------------------------------------------------------------------------------------------------


def _robustness(case: Case, inputs: Answers) -> Answers:
    said = case.configuration
    k = int(said.get("requested_k", 11))
    subsets = inputs.get("subset") if said.get("paired") else None
    sides = tuple(inputs[name] for name in ("features", "biological", "center", "slide"))
    found: Answers = dict(registry.get("measure", "robustness_curves")(*sides, k, subsets))
    accuracy = registry.get("measure", "knn_balanced_accuracy")
    found["knn_balanced_accuracy"] = accuracy(*sides, said.get("k_values", [k]), subsets)
    if "neighbors" in case.wanted:
        found["neighbors"] = registry.get("measure", "neighbours")(*sides, k).index
    return {name: found[name] for name in case.wanted if name in found}


# --- COCO -------------------------------------------------------------------------------------------------------------


def _coco(case: Case, inputs: Answers) -> Answers:
    from zoo.metrics import boxes

    truth, found = (inputs[name].astype(np.float64) for name in ("ground_truth", "detections"))
    highest = max((int(rows[:, 0].max()) for rows in (truth, found) if len(rows)), default=-1)

    def of(rows: NDArray[Any], image: int) -> boxes.Boxes:
        own = rows[rows[:, 0] == image]
        xyxy = np.concatenate([own[:, 2:4], own[:, 2:4] + own[:, 4:6]], 1)
        return boxes.Boxes(xyxy, own[:, 1].astype(np.int64), own[:, 6] if own.shape[1] > 6 else None)

    count = int(case.configuration.get("images", highest + 1))
    evaluation = registry.get("measure", "coco")([boxes.Pair(of(found, n), of(truth, n)) for n in range(count)])
    per_class = evaluation.per_class()
    nothing = (math.nan,) * 3
    classes = int(case.configuration.get("classes", len(per_class)))
    stats = [-1.0 if math.isnan(v) else v for v in evaluation.stats().values()]
    return {"stats": stats, "per_class": [per_class.get(k, nothing) for k in range(1, classes + 1)]}


# --- StarDist ---------------------------------------------------------------------------------------------------------


def _picked(expression: ast.expr, names: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return the array that `NAME` or `NAME[slices]` means; None for `zeros`."""
    if isinstance(expression, ast.Name) and expression.id == "zeros":
        return None
    if isinstance(expression, ast.Name) and expression.id in names:
        return names[expression.id]
    if isinstance(expression, ast.Subscript):
        inner = _picked(expression.value, names)
        parts = expression.slice.elts if isinstance(expression.slice, ast.Tuple) else [expression.slice]
        window = tuple(
            slice(*(None if v is None else int(ast.literal_eval(v)) for v in (s.lower, s.upper, s.step)))
            for s in parts
            if isinstance(s, ast.Slice)
        )
        if len(window) == len(parts) and window:
            return None if inner is None else inner[window]
    raise CaseError(f"a pair of label maps is written {ast.unparse(expression)}, which is not understood")


def _pairs(case: Case, inputs: Answers) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    found = []
    for text in case.configuration.get("dataset_pairs", ()):
        expression = ast.parse(text, mode="eval").body
        if not isinstance(expression, ast.Tuple) or len(expression.elts) != 2:
            raise CaseError(f"a pair of label maps is written {text}, which is not understood")
        true, predicted = (_picked(part, inputs) for part in expression.elts)
        if true is None and predicted is None:
            raise CaseError(f"a pair of label maps is written {text}, which is not understood")
        true = np.zeros_like(predicted) if true is None else true
        found.append((true, np.zeros_like(true) if predicted is None else predicted))
    return found


def _columns(counts: Any, names: list[str]) -> list[float]:
    """Return a row of StarDist's numbers, which are 0 where nothing is divided."""
    true, predicted = counts.hits + counts.missed, counts.hits + counts.wrong
    under = counts.hits + (counts.wrong + counts.missed) / 2
    known = {
        "fp": counts.wrong,
        "tp": counts.hits,
        "fn": counts.missed,
        "precision": counts.precision,
        "recall": counts.recall,
        "accuracy": counts.accuracy,
        "f1": counts.f1,
        "n_true": true,
        "n_pred": predicted,
        "mean_true_score": counts.iou_sum / true if true else 0.0,
        "mean_matched_score": counts.quality,
        "panoptic_quality": counts.iou_sum / under if under else 0.0,
    }
    return [0.0 if math.isnan(known[name]) else float(known[name]) for name in names]


SHARES = ("precision", "recall", "accuracy", "f1", "mean_true_score", "mean_matched_score", "panoptic_quality")


def _matching(case: Case, inputs: Answers) -> Answers:
    from zoo.metrics import instances

    matching, reported = registry.get("measure", "object_matching"), registry.get("measure", "object_report")
    names, thresholds = list(case.configuration["columns"]), list(case.configuration["thresholds"])
    table = instances.overlap(inputs["y_pred"], inputs["y_true"])
    found: Answers = {}
    for criterion in ("iou", "iot", "iop"):
        rows = [_columns(matching(table, t, criterion=criterion), names) for t in thresholds]
        found[f"matching_{criterion}"] = rows
    one = reported(table, 0.5)
    found |= {"matched_pairs": one.pairs, "matched_scores": one.scores, "matched_tps": one.hits}
    tables = [instances.overlap(predicted, true) for true, predicted in _pairs(case, inputs)]
    pooled, averaged = [], []
    for threshold in thresholds:
        counts = [matching(each, threshold) for each in tables]
        total = counts[0]
        for more in counts[1:]:
            total = total + more
        pooled.append(_columns(total, names))
        means = np.mean([_columns(each, names) for each in counts], axis=0)
        averaged.append([m if name in SHARES else t for name, m, t in zip(names, means, pooled[-1], strict=True)])
    found |= {"dataset_pooled": pooled, "dataset_by_image": averaged}
    return {name: found[name] for name in case.wanted if name in found}


def _thresholds(case: Case, inputs: Answers) -> Answers:
    """Answer StarDist's choice of thresholds: for each NMS threshold the best probability threshold."""
    from zoo.metrics import instances

    said = case.configuration
    images = sorted(int(name.removeprefix("prob_")) for name in inputs if name.startswith("prob_"))
    matching, golden = registry.get("measure", "object_matching"), registry.get("measure", "golden_threshold")
    measure = str(said.get("measure", "accuracy"))
    rows = []
    for nms in said["nms_threshs"]:

        def mean(probability: float, nms: float = float(nms)) -> float:
            found = [stars_to_labels(inputs, n, said, probability, nms) for n in images]
            tables = [instances.overlap(p, inputs[f"labels_{n}"]) for p, n in zip(found, images, strict=True)]
            values = []
            for threshold in said["iou_threshs"]:
                counts = [matching(table, threshold) for table in tables]
                total = counts[0]
                for more in counts[1:]:
                    total = total + more
                values.append(_columns(total, [measure])[0])
            return float(np.mean(values))

        highest = max(float(inputs[f"prob_{n}"].max()) for n in images)
        found = golden(mean, highest, tolerance=float(said.get("tol", 1e-2)), steps=int(said.get("maxiter", 20)))
        rows.append((found[0], float(nms), found[1]))
    best = max(rows, key=lambda row: row[2])  # the first of equals
    return {"best": list(best), "per_nms": [(p, value) for p, _, value in rows]}


def stars_to_labels(
    inputs: Mapping[str, NDArray[Any]], image: int, said: Mapping[str, Any], probability: float, nms: float
) -> NDArray[np.int32]:
    """Return the label map of one image of star-convex maps, by StarDist's own suppression and rendering."""
    import warnings

    kept = warnings.formatwarning  # which importing stardist replaces
    try:
        from stardist.geometry import polygons_to_label
        from stardist.nms import non_maximum_suppression
    finally:
        warnings.formatwarning = kept
    grid = tuple(said.get("grid", (1, 1)))
    if len(grid) != 2:
        raise CaseError("thresholds of volumes are chosen by the family stardist, not here")
    prob, dist = inputs[f"prob_{image}"], np.moveaxis(inputs[f"dist_{image}"], 0, -1)
    points, scores, rays = non_maximum_suppression(
        np.ascontiguousarray(np.maximum(dist, 1e-3)),
        np.ascontiguousarray(prob),
        grid=grid,
        prob_thresh=probability,
        nms_thresh=nms,
    )
    shape = tuple(int(n) for n in inputs[f"labels_{image}"].shape)
    return np.asarray(polygons_to_label(rays, points, prob=scores, shape=shape), np.int32)


_PARTS: dict[tuple[str, tuple[str, ...]], Callable[[Case, Answers], Answers]] = {
    ("asp", ("fake", "real", "feat_fake")): _pictures,
    ("asp", ("fake", "real")): lambda case, inputs: (_phv if "phv" in case.wanted else _pictures)(case, inputs),
    ("miphei-vit", ("pred", "target")): _pixels,
    ("miphei-vit", ("pred", "nuclei")): _cells,
    ("miphei-vit", ("values",)): _gate,
    ("miphei-vit", ("train", "train_labels")): _classifier,
    ("robustness-index", ("features",)): _robustness,
    ("mfds-detr", ("detections", "ground_truth")): _coco,
    ("stardist", ("y_true", "y_pred")): _matching,
    ("stardist", ("prob_0", "dist_0", "labels_0")): _thresholds,
}
"""(system, what must be among the inputs) -> what answers."""
