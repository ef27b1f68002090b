"""Published cases of MIPHEI-ViT: networks, discriminator, losses with gradients, schedule, layouts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo
from zoo import registry
from zoo.cases import Case
from zoo.encoders import cases as encoder_cases
from zoo.encoders import listing
from zoo.families.miphei import procedure, published
from zoo.families.miphei.model import IMAGENET, Miphei
from zoo.losses import markers

Found = dict[str, Any]


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of the system "miphei-vit"."""
    if encoder_cases.concerns(case):
        return encoder_cases.answer(case)
    about = f"{case.source} {case.component}"
    for words, part in _PARTS.items():
        if words in about:
            return part(case)
    raise case.unknown()


# --- networks ---------------------------------------------------------------------------------------------------------

_ASIDE = ("timm", "num_classes", "global_pool", "prefix_tokens", "note", "dynamic_img_size", "embed_layer")


def encoder_of(said: Any) -> dict[str, Any]:
    """Return our encoder of a published one: timm's name with arguments, smp's with a depth, or words about it."""
    if isinstance(said, str):
        inside = re.search(r"timm ([\w.]+)((?:, \w+ [^,()]+)*)", said)
        pairs = re.findall(r", (\w+) ([^,()]+)", inside[2]) if inside else []
        size = re.search(r"\bat (\d+)", said)
        words = {k: _number(v) for k, v in pairs} | ({"img_size": int(size[1])} if size else {})
        timm = inside[1] if inside else {"h-optimus-0": "vit_giant_patch14_reg4_dinov2"}.get(_plain(said))
        if timm is None:  # as smp says it, "tu-" before timm's names
            return {"name": said.removeprefix("tu-"), "arguments": {}}
        return encoder_of({"timm": timm, "init_values": 1e-5, **words})
    name = str(said.get("timm") or str(said["smp"]).removeprefix("tu-"))
    if said.get("embed_layer") == "ConvStem":
        return {"name": "ctranspath", "arguments": {"img_size": said.get("img_size", 224)}}
    if "timm" in said:
        return {"name": name, "arguments": {k: v for k, v in said.items() if k not in _ASIDE}}
    depth = int(said.get("depth", 5))
    info = listing.info(name)
    if info.source == "smp":
        return {"name": name, "arguments": {"depth": depth}}
    kept = [i for i, s in enumerate(info.strides) if s <= 2**depth]
    return {"name": name, "arguments": {} if len(kept) == len(info.strides) else {"out_indices": kept}}


def _plain(words: str) -> str:
    return words.split(" ")[0].lower()


def _number(word: str) -> Any:
    try:
        return int(word) if re.fullmatch(r"-?\d+", word) else float(word)
    except ValueError:
        return word


def options_of(case: Case) -> dict[str, Any]:
    """Return our options of a published generator."""
    said, names = case.configuration, list(case.manifest.get("state_dict") or {})
    network = published.network_of(names)
    heads = {m[1] for n in names if (m := re.search(r"segmentation_head_(\d+)\.", n))}
    count = said.get("markers", said.get("output_nc", len(heads)))
    found: Found = {"network": network, "dropout": said.get("drop_rate", said.get("dropout", 0.1))}
    found["markers"] = list(count) if isinstance(count, list) else [f"marker {i}" for i in range(int(count))]
    if network == "hemit":
        sizes = {"ngf": "width", "n_blocks": "blocks", "patch_size": "patch", "window_size": "window"}
        sizes |= {"embed_dim": "dim", "depths": "depths", "num_heads": "heads", "topk": "k"}
        return {
            **found,
            "tile": said["img_size"],
            "hemit": {new: said[old] for old, new in sizes.items() if old in said},
        }
    lora = said.get("lora") or {}
    adapted = any(".lora_q." in n for n in names)
    encoder = encoder_of(said["encoder"])
    if adapted:
        encoder["arguments"] |= {"tune": "lora", "rank": lora.get("rank", 8)}
    found |= {"encoder": encoder, "encoder_weights": "none", "gated": said.get("attention_heads", True)}
    found |= {"detail": said.get("convstream", (48, 96, 192)), "fusion": said.get("fusion", (256, 128, 64, 32))}
    found |= {"widths": said.get("decoder_channels", (256, 128, 64, 32, 16))}
    return found | {"decoder_width": said.get("decoder_out_channels", 32)}


def _built(case: Case, **options: Any) -> Miphei:
    with case.building():
        return cast(Miphei, zoo.create("miphei", **options))


def _generator(case: Case) -> Found:
    family = _built(case, **options_of(case))
    alpha = float((case.configuration.get("lora") or {}).get("alpha", 1.0))

    def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.on_top(family.state_dict(), published.convert(published.split(state)[0], alpha))

    whole = any(".patch_embed." in n or ".stem_0." in n or ".conv1." in n for n in case.manifest["state_dict"])
    case.load(family, functools.partial(published.convert, alpha=alpha) if whole else converted)
    if case.layout_only:
        return {}
    image = case.inputs["image"] if "image" in case.inputs else _normalised(case)
    inner = [name for name in case.wanted if not name.startswith("image")]
    with torch.inference_mode():
        maps = family.forward({"image": image}, inner)
        found: Found = {name: maps[name] for name in inner}
        for name in case.wanted:
            every = re.fullmatch(r"image(?:\.every(\d+))?", name)
            if every:
                step = int(every[1] or 1)
                found[name] = family.values(maps)[..., ::step, ::step]
    if "resnet" in found:
        found["resnet"] = found["resnet"][:, :64]
    return found


def _normalised(case: Case) -> Tensor:
    """Return the uint8 picture as the case's preprocessing says: (x - 127.5) / 127.5, or mean and deviation."""
    words = str(case.manifest.get("preprocessing", ""))
    x = case.inputs["image8"].float()
    both = re.search(r"\(x ?- ?([\d.]+)\) ?/ ?([\d.]+)", words)
    if both:
        return (x - float(both[1])) / float(both[2])
    named = re.search(r"mean ([\d. ]+\d),? std ([\d. ]+\d)", words)
    if named or "ImageNet" in words:
        sides = [[float(v) for v in side.split()] for side in named.groups()] if named else IMAGENET
        scale = 1.0 if max(sides[0]) > 1 else 255.0
        mean, std = (torch.tensor(side).view(1, 3, 1, 1) * scale for side in sides)
        return (x - mean) / std
    raise case.unknown(f'the preprocessing "{words}"')


def _discriminator(case: Case) -> Found:
    said = case.configuration
    norm = {None: "none", "batch": "batch", "instance": "instance"}.get(said.get("norm_layer_type"))
    if norm is None:
        raise case.unknown(f"a discriminator with the norm {said['norm_layer_type']}")
    chosen = said.get("selected_channels")
    count = len(chosen) if chosen else said["input_nc"] - 3
    options = {"width": said.get("ndf", 64), "layers": said.get("n_layers", 3), "norm": norm}
    markers_of = [f"marker {i}" for i in range(count)]
    family = _built(case, **{**Miphei.tiny(), "markers": markers_of, "discriminator": options})
    judge = cast(nn.Module, family.judge)
    case.load(judge, published.convert_discriminator)
    target = case.inputs["target"][:, chosen] if chosen else case.inputs["target"]
    pair = torch.cat([case.inputs["image"], target], 1)
    found: Found = {}
    enc = cast(nn.Sequential, judge.get_submodule("enc"))
    ends = [i for i, part in enumerate(enc) if isinstance(part, nn.LeakyReLU)]
    with torch.inference_mode():
        for name in case.wanted:
            layer = re.fullmatch(r"layer(\d+)", name)
            if layer:
                found[name] = enc[: ends[int(layer[1])] + 1](pair)[:, :8]
            elif name == "logits":
                found[name] = family.judged(case.inputs["image"], target)
    return found


# --- losses -----------------------------------------------------------------------------------------------------------


def _with_gradient(case: Case, loss: Tensor, at: Tensor, **more: Any) -> Found:
    found: Found = {"loss": loss.reshape(1), **more}
    if "grad" in case.wanted:
        found["grad"] = torch.autograd.grad(loss, at)[0]
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in found.items()}


def _picture_loss(name: str, usual: float) -> Callable[[Case], Found]:
    def part(case: Case) -> Found:
        picture, target = case.inputs["pred"].clone().requires_grad_(), case.inputs["target"]
        given: Found = {}
        more: Found = {}
        if "std" in case.inputs:
            given["weights"] = more["weights"] = markers.contrast_weights(case.inputs["std"])
        if "foreground_weight" in case.inputs:
            given["foreground"] = case.inputs["foreground_weight"].flatten()
        if name == "weighted_mae":
            given["threshold"] = case.configuration.get("foreground_threshold", -0.9)
        loss = case.configuration.get("lambda_factor", usual) * markers.LOSSES[name](picture, target, **given)
        return {k: v for k, v in _with_gradient(case, loss, picture, **more).items() if k in case.wanted}

    return part


def _masked(case: Case, usual: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions, logits and mask: the notes say `logits are 4*in.pred` and `in.target > -0.5`."""
    notes = str(case.manifest.get("notes", ""))
    factor = re.search(r"logits are ([\d.]+) ?\* ?in\.pred", notes)
    above = re.search(r"in\.target ?> ?(-?[\d.]+\d)", notes)
    picture = case.inputs["pred"].clone().requires_grad_()
    logits = picture * (float(factor[1]) if factor else 1.0)
    return picture, logits, case.inputs["target"] > (float(above[1]) if above else usual)


def _focal(case: Case) -> Found:
    said = case.configuration
    picture, logits, mask = _masked(case, -0.9)
    loss = markers.foreground_focal(logits, mask, alpha=said.get("alpha", 0.75), gamma=said.get("gamma", 2.0))
    return _with_gradient(case, loss, picture)


def _bce_dice(case: Case) -> Found:
    picture, logits, mask = _masked(case, -0.5)
    loss = markers.bce_dice(logits, mask, positive_weight=case.configuration.get("foreground_weight", 1.0))
    return _with_gradient(case, loss, picture)


def _cells(case: Case) -> Found:
    said = case.configuration
    if said.get("use_clustering"):
        raise case.unknown("a loss of cells with clusters")
    picture, target, nuclei = case.inputs["pred"].clone().requires_grad_(), case.inputs["target"], case.inputs["nuclei"]
    ours, ids = markers.cell_means(picture, nuclei)
    theirs, _ = markers.cell_means(target, nuclei)
    loss = said.get("lambda_factor", 50) * markers.cell_mse(picture, target, nuclei=nuclei)
    return _with_gradient(case, loss, picture, pred_means=ours, target_means=theirs, ids=ids)


def _clusters(case: Case) -> Found:
    said = case.configuration
    criterion = re.search(r"alpha ([\d.]+) gamma ([\d.]+)", str(said.get("criterion", "")))
    layers, hidden = int(said.get("layers", 3)), int(said.get("hidden", 64))
    network = markers.CellClusters(
        said["n_channels"], case.state_dict()[f"mlp.{2 * layers - 1}.bias"].shape[0], hidden, layers
    )

    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {n: re.sub(r"mlp\.(\d+)\.", lambda m: f"layers.{(int(m[1]) - 1) // 2}.", n) for n in state}
        names |= {n: n.removeprefix("mlp.0.") for n in state if n.startswith("mlp.0.")}
        return {names[n]: v for n, v in state.items()}

    case.load(network, renamed)
    ours = case.inputs["pred_means"].clone().requires_grad_()
    alpha, gamma = (float(criterion[1]), float(criterion[2])) if criterion else (0.5, 2.0)
    loss, probability = markers.cell_clusters(
        ours, case.inputs["target_means"], network, alpha=alpha, gamma=gamma, eps=said.get("eps", 1e-6)
    )
    return _with_gradient(case, loss, ours, pred_prob=probability)


def _adversarial(case: Case) -> Found:
    inputs, said = case.inputs, case.configuration
    if (said.get("real_label", 0), said.get("fake_label", 1)) != (0, 1):
        raise case.unknown("labels other than real 0 and fake 1")
    noise = inputs["noise_fake"], inputs["noise_real"]
    against = procedure.discriminator_term(
        inputs["fake_logits"], inputs["real_logits"], said.get("label_noise", 0.05), noise
    )
    return {
        "generator": procedure.generator_term(inputs["fake_logits"]).reshape(1),
        "discriminator": against.reshape(1),
    }


def _schedule(case: Case) -> Found:
    schedule = registry.get("schedule", "warm-hold")(case.configuration.get("warmup_iters", 400))
    total = int(case.inputs["total"][0])
    return {"factor": [schedule.factor(int(step), total) for step in case.inputs["steps"]]}


_PARTS: dict[str, Callable[[Case], Found]] = {
    "ViTMatte": _generator,
    "get_vitmatte": _generator,
    "generators.unet.Unet": _generator,
    "Unet with": _generator,
    "UnetMultiHeads": _generator,
    "ResnetGeneratorSwinT": _generator,
    "DiscriminatorPatch": _discriminator,
    "get_mae_loss": _picture_loss("mae", 50),
    "get_mse_loss": _picture_loss("mse", 50),
    "L1_L2_Loss": _picture_loss("l1_l2", 50),
    "WeightedMSELoss": _picture_loss("weighted_mse", 50),
    "get_focal-l1": _picture_loss("focal_l1", 50),
    "get_shrinkage": _picture_loss("shrinkage", 50),
    "get_weighted-mae": _picture_loss("weighted_mae", 50),
    "structural_loss": _picture_loss("edge", 1),
    "total_variation_loss": _picture_loss("total_variation", 1),
    "FocalLoss": _focal,
    "CombinedBCEAndDiceLoss": _bce_dice,
    "CellClusterLoss": _clusters,
    "CellLoss": _cells,
    "ModelModule.training_step": _adversarial,
    "pix2pix_lr_scheduler": _schedule,
}
"""Words in a manifest's source or component -> what answers."""
