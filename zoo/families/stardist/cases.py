"""Published StarDist cases: what `zoo verify` asks of this family (see CONTRIBUTING.md)."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from zoo import paths
from zoo.cases import Case
from zoo.families import build
from zoo.families.stardist import convert, decode, losses, native, rays, targets, thresholds, tiling
from zoo.families.stardist.decode import Stars
from zoo.families.stardist.model import StarDist, pad_end
from zoo.families.stardist.rays import Rays

Answers = dict[str, Any]
Array = NDArray[Any]


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of StarDist."""
    parts = {
        "network": _network,
        "manifest": _network,
        "loss": _loss,
        "target": _target,
        "postprocess": _postprocess,
        "end_to_end": _end_to_end,
        "metric": _metric,
    }
    if case.kind not in parts:
        raise case.unknown()
    return parts[case.kind](case)


def keras_fill(key: str, shape: tuple[int, ...], _dtype: str = "float32") -> Tensor:
    """Return the value of a parameter in Keras's layout: a kernel is (k.., in, out). (A fact of these cases.)"""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    draw: Array = normal.astype(np.float32)
    last = key.rpartition(".")[2]
    if last == "kernel":
        draw = draw / np.sqrt(np.prod(shape[:-1]))
    elif last == "gamma":
        draw = 1 + 0.1 * draw
    elif last == "moving_variance":
        draw = 1 + 0.1 * np.abs(draw)
    else:
        draw = 0.1 * draw
    return torch.as_tensor(np.asarray(draw, np.float32))


def _dims(case: Case) -> int:
    """Return 2 or 3: what the published class is called, else how its configuration and inputs look."""
    if found := re.search(r"([23])D", case.component):
        return int(found.group(1))
    grid = case.configuration.get("grid")
    if grid is not None:
        return len(grid)
    labels = case.inputs.get("labels")
    return 3 if "rays" in case.configuration or (labels is not None and labels.ndim == 3) else 2


# --- networks ---------------------------------------------------------------------------------------------------------


def _model(case: Case) -> StarDist:
    """Return the published network with the case's weights."""
    config = dict(case.manifest.get("resolved_configuration") or {}) | case.configuration
    options = convert.options_of({"n_dim": _dims(case), **config}) | {"normalise": None}
    with case.building():
        model = build.create("stardist", options)
    assert isinstance(model, StarDist)
    case.load(model, lambda state: convert.state_of(model, convert.by_layer(state)), fill=keras_fill)
    return model


@torch.inference_mode()
def _network(case: Case) -> Answers:
    model = _model(case)
    if case.layout_only:
        return {}
    taps = [name.removeprefix("feat_") for name in case.wanted if name.startswith("feat_")]
    maps = model.forward({"image": case.inputs["image"]}, taps)
    found: Answers = {}
    for name, value in maps.items():
        if name in model.spec.maps:
            found[name] = model.activate({name: value})[name]
        else:
            found[f"feat_{name}"] = value
    return found


# --- losses -----------------------------------------------------------------------------------------------------------


def _loss(case: Case) -> Answers:
    given, config = case.inputs, case.configuration
    background = config.get("train_background_reg", 1e-4)
    found: Answers = {}

    def take(name: str, prediction: str, loss: Any) -> Tensor:
        value = given[prediction].clone().requires_grad_()
        made: Tensor = loss(value)
        made.backward()  # type: ignore[no-untyped-call]
        found[f"loss_{name}"], found[f"grad_{name}"] = made.detach().reshape(1), value.grad
        return made.detach()

    weights = [*config.get("train_loss_weights", (1, 0.2)), 1.0][:3]
    totals = {"prob": take("prob", "prob_pred", lambda p: losses.probability(p, given["prob_true"]))}
    kinds: tuple[losses.Kind, ...] = ("mae", "mse", "iou")
    for kind in kinds:
        reg = float(background[kind] if isinstance(background, Mapping) else background)
        totals[kind] = take(
            f"dist_{kind}",
            "dist_pred",
            lambda p, kind=kind, reg=reg: losses.distance(p, given["dist_true"], given["dist_mask"], kind, reg),
        )
    other: Any = 0.0
    if "prob_class_pred" in given:
        known = config.get("train_class_weights")
        other = take("class", "prob_class_pred", lambda p: losses.classes(p, given["prob_class_true"], known))
    for kind in kinds:
        total = weights[0] * totals["prob"] + weights[1] * totals[kind] + weights[2] * other
        found[f"loss_total_{kind}"] = total.reshape(1)
    dist = (given["dist_pred"], given["dist_true"], given["dist_mask"])
    found["metric_kld"] = losses.divergence(given["prob_pred"], given["prob_true"]).reshape(1)
    found["metric_relevant_mae"] = losses.relevant_error(*dist).reshape(1)
    found["metric_relevant_mse"] = losses.relevant_error(*dist, "mse").reshape(1)
    found["metric_dist_iou_metric"] = losses.ray_agreement(*dist).reshape(1)
    return found


# --- targets and rays -------------------------------------------------------------------------------------------------


def rays_of(words: Any, anisotropy: Any = None) -> Rays:
    """Return rays from how cases write them: "GoldenSpiral n=16 anisotropy=(2,1,1)", a number, or rays_json."""
    if isinstance(words, Mapping):
        return rays.make({v: k for k, v in rays.KINDS.items()}[words["name"]], dict(words.get("kwargs", {})))
    if not isinstance(words, str):
        return rays.golden_spiral(int(words), anisotropy)
    found = re.search(r"anisotropy=\(?([\d., ]+)\)?", words)
    number = re.search(r"n=(\d+)", words)
    stretch = tuple(float(v) for v in found.group(1).split(",")) if found else None
    return rays.golden_spiral(int(number.group(1)) if number else 96, stretch)


def _classes(config: Mapping[str, Any]) -> targets.Classes | None:
    known = config.get("class_dict")
    return None if known is None else {int(k): v for k, v in known.items()}


def _target(case: Case) -> Answers:
    config = case.configuration
    if "labels" not in case.inputs:
        return _rays(case)
    labels = case.inputs["labels"].numpy()
    if not case.component.startswith("StarDistData"):
        return _functions(case, labels)
    three = labels.ndim == 3
    crop = int(config.get("train_completion_crop", 32)) if config.get("shape_completion") else 0
    made = targets.make(
        labels,
        rays_of(config["rays"], config.get("anisotropy")) if three else int(config.get("n_rays", 32)),
        tuple(config.get("grid") or (1,) * labels.ndim),
        anisotropy=config.get("anisotropy"),
        classes=_classes(config),
        count=config.get("n_classes"),
        crop=crop,
    )
    names = {"mask": "dist_mask"}
    image = case.inputs["image"][None]
    inner: Any = (..., *(slice(crop, n - crop) for n in labels.shape))
    return {names.get(k, k): v[None] for k, v in made.items()} | {"image": image[inner]}


def _functions(case: Case, labels: Array) -> Answers:
    """Answer single functions by the names of the wanted outputs, which say their arguments."""
    config = case.configuration
    small, _ = targets.compact(np.maximum(labels, 0))
    found: Answers = {}
    for name in case.wanted:
        numbers = [int(v) for v in re.findall(r"\d+", name.partition("grid")[2])]
        if len(numbers) == 1:
            digits = [int(v) for v in str(numbers[0])]
            numbers = digits if len(digits) == labels.ndim else [numbers[0]] * labels.ndim
        grid = numbers or [1] * labels.ndim
        if name == "mask_to_categorical":
            found[name] = targets.categories(labels, int(config["n_classes"]), _classes(config) or {})
        elif name.startswith("edt_prob"):
            stretch = [float(v) for v in re.findall(r"\d+", name)]
            known = config.get("anisotropy") if "aniso" in name else None
            found[name] = targets.probability(labels, stretch or known)
        elif name.startswith("star_dist3d"):
            found[name] = targets.distances(small, rays_of(config["rays"]), grid)
        elif name.startswith("star_dist"):
            count = re.search(r"rays(\d+)", name)
            found[name] = targets.distances(small, int(count.group(1)) if count else 32, grid)
    return found


_PLAIN: dict[str, tuple[str, dict[str, int]]] = {
    "cartesian": ("cartesian", {"n_rays_x": 7, "n_rays_z": 5}),
    "octo": ("octo", {}),
    "tetra": ("tetra", {}),
}


def _rays(case: Case) -> Answers:
    found: Answers = {}
    for name in case.wanted:
        what, _, key = name.partition("_")
        made = _named_rays(case, key)
        if made is None:
            raise case.unknown(f"rays {key}")
        if what == "volume":
            found[name] = rays.volume(np.ones(len(made), np.float32), made).reshape(1).astype(np.float32)
        else:
            found[name] = (made.vertices if what == "vertices" else made.faces).copy()
    return found


def _named_rays(case: Case, key: str) -> Rays | None:
    config = case.configuration.get(key)
    if config is not None:
        return rays.golden_spiral(int(config["n"]), config.get("anisotropy"))
    for word, (kind, arguments) in _PLAIN.items():
        if key.startswith(word):
            level = re.search(r"(\d+)$", key)
            return rays.make(kind, arguments or {"n_level": int(level.group(1)) if level else 4})
    return None


# --- postprocessing ---------------------------------------------------------------------------------------------------


def _postprocess(case: Case) -> Answers:
    if any(key.startswith(("tiling_", "blocks_")) for key in case.configuration):
        return _geometry(case)
    config, given = case.configuration, {k: v.numpy() for k, v in case.inputs.items()}
    shape = tuple(config["shape"])
    spread = None
    if len(shape) == 3:
        spread = rays_of(config.get("rays", config.get("n_rays", 96)), config.get("anisotropy"))
    found: Answers = {}
    if "points" in given:
        order = np.argsort(given["prob"])[::-1]
        dist = np.maximum(given["dist"][order], decode.NEAREST)
        stars = Stars(given["points"][order].astype(np.int64), given["prob"][order], dist)
        return _instances(case, stars, shape, spread, "")
    for prefix, border in (("", 2), ("sparse_", 0)):
        if prefix and not any(name.startswith(prefix) for name in case.wanted):
            continue
        stars = decode.candidates(
            given["prob"], given["dist"], config["grid"], config["prob_thresh"], border, given.get("prob_class")
        )
        found |= _instances(case, stars, shape, spread, prefix)
    return found


def _instances(case: Case, stars: Stars, shape: tuple[int, ...], spread: Rays | None, prefix: str) -> Answers:
    kept = decode.survivors(stars, case.configuration["nms_thresh"], spread)
    found: Answers = {"points": kept.points, "prob": kept.prob, "dist": kept.dist}
    if kept.classes is not None:
        found |= {"class_prob": kept.classes, "class_id": kept.classes.argmax(1)}
    if spread is None:
        found["labels"] = decode.draw_polygons(kept, shape)
        steps = rays.circle(kept.dist.shape[1]).T
        found["coord"] = (kept.points[:, :, None] + kept.dist[:, None] * steps[None]).astype(np.float32)
    else:
        found["labels"] = decode.sequential(decode.draw_polyhedra(kept, spread, shape), kept)[0]
        overlap = case.configuration.get("overlap_label")
        if overlap is not None:
            drawn = decode.draw_polyhedra(kept, spread, shape, overlap=int(overlap))
            found["labels_overlap"] = decode.sequential(drawn, kept)[0]
    return {prefix + name: value for name, value in found.items()}


def _geometry(case: Case) -> Answers:
    found: Answers = {}
    for key, config in case.configuration.items():
        if key.startswith("tiling_"):
            made = list(
                tiling.tiles(config["shape"], config["n_tiles"], config["block_sizes"], config["n_block_overlaps"])
            )
            for part, name in (("read", "read"), ("inner", "src"), ("write", "dst")):
                ranges = np.array([getattr(tile, part) for tile in made])
                found[f"{key}_{name}"] = ranges
        elif key.startswith("blocks_"):
            axes = len(config["shape"])
            sizes = [_each(config[name], axes) for name in ("block_size", "min_overlap", "context", "grid")]
            blocks = tiling.cover(config["shape"], *sizes)
            for name in ("read", "write", "crop"):
                found[f"{key}_{name}"] = np.array([[getattr(b, name) for b in block] for block in blocks])
    return found


def _each(value: Any, axes: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * axes


# --- the operating point ----------------------------------------------------------------------------------------------


def _metric(case: Case) -> Answers:
    """Answer the search for thresholds; matching is the affair of `zoo.metrics.cases`."""
    given, config = {k: v.numpy() for k, v in case.inputs.items()}, case.configuration
    count = sum(name.startswith("prob_") for name in given)
    if not count:
        raise case.unknown()
    three = given["labels_0"].ndim == 3
    spread = rays_of(config.get("rays", config.get("n_rays", 96)), config.get("anisotropy")) if three else None

    def score(prob: float, nms: float) -> float:
        pairs = []
        for i in range(count):
            stars = decode.candidates(given[f"prob_{i}"], given[f"dist_{i}"], config["grid"], prob)
            kept, shape = decode.survivors(stars, nms, spread), given[f"labels_{i}"].shape
            drawn = decode.draw_polygons(kept, shape) if spread is None else decode.draw_polyhedra(kept, spread, shape)
            pairs.append((given[f"labels_{i}"], drawn))
        return thresholds.accuracy(pairs, config.get("iou_threshs", thresholds.IOU))

    highest = max(float(given[f"prob_{i}"].max()) for i in range(count))
    prob, nms, best, each = thresholds.optimise(
        score, highest, config.get("nms_threshs", thresholds.NMS), config.get("tol", 1e-2), config.get("maxiter", 20)
    )
    return {"best": np.array([prob, nms, best]), "per_nms": np.array(each)}


# --- image to labels --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _end_to_end(case: Case) -> Answers:
    source = case if "image" in case.inputs else _sibling(case)
    model = _model(source)
    case.taken.update(source.taken)
    said = dict(case.manifest.get("prediction") or {})
    image = case.inputs["image"] if "image" in case.inputs else _packaged(model.options.dims)
    prob, nms = float(said.get("prob_thresh", 0.5)), float(said.get("nms_thresh", 0.4))
    padded = pad_end(image, model.divisor)

    def run(x: Tensor) -> dict[str, Tensor]:
        return model.activate(model.forward({"image": x}))

    maps = {name: value[0].numpy() for name, value in model.activate(model.forward({"image": image})).items()}
    maps["dist"] = np.maximum(maps["dist"], decode.NEAREST)
    shape = tuple(image.shape[2:])
    found: Answers = {"prob": maps["prob"][0], "dist": maps["dist"]}
    if "n_tiles" in said:
        pieces = tiling.tiled(run, padded, model.grid, model.divisor, said["n_tiles"], said["tile_overlap"])
        window: Any = (..., *(slice(0, n) for n in maps["prob"].shape[1:]))
        found["prob_tiled"] = pieces["prob"][window][0, 0]
        found["dist_tiled"] = pieces["dist"][window][0].clamp_min(decode.NEAREST)
    spread = None if model.options.dims == 2 else model.options.directions
    for suffix, border in (("", model.sides(maps["prob"].shape[1:])), ("_dense", 2)):
        stars = decode.candidates(maps["prob"][0], maps["dist"], model.grid, prob, border, maps.get("prob_class"))
        kept = decode.survivors(stars, nms, spread)
        drawn = decode.draw_polygons(kept, shape) if spread is None else decode.draw_polyhedra(kept, spread, shape)
        labels = drawn if spread is None else decode.sequential(drawn, kept)[0]
        found |= {f"labels{suffix}": labels, f"points{suffix}": kept.points, f"probs{suffix}": kept.prob}
        if kept.classes is not None:
            found[f"class_id{suffix}"] = kept.classes.argmax(1)
    return found


def _sibling(case: Case) -> Case:
    """Return the published case that carries the weights of the same network, which this one does not repeat."""
    root = paths.parity_root()
    for manifest in sorted((root / case.system).rglob("*.json")) if root else []:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        alike = all(values.get(key) == case.manifest.get(key) for key in ("kind", "component", "configuration"))
        if alike and values.get("state_dict"):
            tensors = load_file(str(manifest.with_suffix(".safetensors")))
            stored = {k.removeprefix("const."): v for k, v in tensors.items() if k.startswith("const.")}
            return Case(case.name, values, constants=stored)
    raise case.unknown("weights that another case carries (set ZOO_PARITY to the folder of published cases)")


def _packaged(dims: int) -> Tensor:
    """Return the package's image, percentiles 1 and 99.8 at 0 and 1, (1, 1, *S)."""
    data = native.module("data")
    image = data.test_image_nuclei_2d() if dims == 2 else data.test_image_nuclei_3d()
    low, high = np.percentile(image, (1, 99.8))
    scaled = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low + 1e-20)
    return torch.from_numpy(np.ascontiguousarray(scaled, np.float32))[None, None]
