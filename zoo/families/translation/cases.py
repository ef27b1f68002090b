"""Published cases of ASP, CUT and PyramidPix2pix: networks, losses with gradients, the whole objective."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo
from zoo.cases import Case
from zoo.families.translation import generators, procedure, published
from zoo.families.translation.model import Translation
from zoo.families.translation.terms import Pass
from zoo.losses import adversarial, contrastive, pyramids

Found = dict[str, Any]


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of the system "asp"."""
    about = f"{case.source} {case.component}"
    for words, part in _PARTS.items():
        if words in about:
            return part(case)
    raise case.unknown()


# --- what the published options mean ----------------------------------------------------------------------------------


def _plain(case: Case) -> bool:
    """Return whether the code base has no blurred halvings (pix2pix, PyramidPix2pix)."""
    return "bupt-ai-cz" in case.source or "PyramidPix2pix" in case.source


def generator_of(said: Mapping[str, Any], plain: bool) -> dict[str, Any]:
    """Return our options of a published generator."""
    name = str(said.get("netG", "resnet_9blocks"))
    norm = said.get("normG", said.get("norm", "batch" if plain else "instance"))
    dropout = said.get("use_dropout", not said.get("no_dropout", True))
    found = {"width": said.get("ngf", 64), "norm": norm, "dropout": bool(dropout)}
    if name.startswith("unet"):
        return {**found, "name": "unet", "downs": said.get("num_downs", 7 if name == "unet_128" else 8)}
    blocks = re.search(r"(\d+)blocks", name)
    return {
        **found,
        "name": "resnet",
        "blocks": int(blocks.group(1)) if blocks else int(said.get("n_blocks", 9)),
        "antialias": not said.get("no_antialias", plain),
        "antialias_up": not said.get("no_antialias_up", plain),
        "spectral": said.get("weight_norm", "none") == "spectral",
        "downs": said.get("n_downsampling", 2),
    }


def discriminator_of(said: Mapping[str, Any], plain: bool) -> dict[str, Any]:
    """Return our options of a published discriminator."""
    name = str(said.get("netD", "basic"))
    layers = 3 if name == "basic" else said.get("n_layers_D", said.get("n_layers", 3))
    return {
        "name": "pixel" if name == "pixel" else "patch",
        "width": said.get("ndf", 64),
        "layers": layers,
        "norm": said.get("normD", said.get("norm", "batch" if plain else "instance")),
        "antialias": not said.get("no_antialias", plain),
        "spectral": said.get("weight_norm", "none") == "spectral",
    }


def _built(case: Case, **options: Any) -> Translation:
    with case.building():
        return cast(Translation, zoo.create("translation", **options))


def _names(channels: int) -> list[str]:
    return ["red", "green", "blue"] if channels == 3 else [f"channel {i}" for i in range(channels)]


def _of_layer(name: str, values: Callable[[str, int | None], Tensor]) -> Tensor | None:
    """Return what an output called `feat4_first8ch`, `model12`, `enc` or `logits_first2ch` means."""
    match = re.fullmatch(r"(feat|model|enc|logits|image)(\d+)?(?:_first(\d+)ch)?", name)
    if match is None:
        return None
    found = values(match.group(1), None if match.group(2) is None else int(match.group(2)))
    return found if match.group(3) is None else found[:, : int(match.group(3))]


# --- networks ---------------------------------------------------------------------------------------------------------


def _generator(case: Case) -> Found:
    said = case.configuration
    family = _built(
        case,
        generator=generator_of(said, _plain(case)),
        discriminator=None,
        objective=["l1"],
        channels=_names(said.get("input_nc", 3)),
        target_channels=_names(said.get("output_nc", 3)),
    )
    case.load(family.generator, published.convert)
    if case.layout_only:
        return {}
    image = case.inputs["image"]

    def values(kind: str, layer: int | None) -> Tensor:
        if kind == "image" and layer is None:
            return family.paint(image)
        if kind in ("feat", "model") and layer is not None:
            return family.generator.features(image, [layer])[0]
        raise case.unknown(f"the output {kind}{'' if layer is None else layer}")

    with torch.inference_mode():
        return {name: _of_layer(name, values) for name in case.wanted}


def _discriminator(case: Case) -> Found:
    said = case.configuration
    name = "pair" if "pair" in case.inputs else "image"
    channels = said.get("input_nc", case.inputs[name].shape[1] if case.inputs else 3)
    family = _built(
        case,
        generator={"width": 1, "blocks": 1},
        discriminator=discriminator_of(said, _plain(case)),
        target_channels=_names(channels),
    )
    judge = cast(nn.Module, family.judge)
    case.load(judge, published.convert)
    if case.layout_only:
        return {}
    image = case.inputs[name]

    def values(kind: str, layer: int | None) -> Tensor:
        if kind == "logits":
            return cast(Tensor, judge(image)[0])
        if kind in ("enc", "model"):
            enc = cast(nn.Sequential, judge.get_submodule("enc"))
            return cast(Tensor, (enc if layer is None else enc[: layer + 1])(image))
        raise case.unknown(f"the output {kind}")

    with torch.inference_mode():
        return {name: _of_layer(name, values) for name in case.wanted}


# --- losses -----------------------------------------------------------------------------------------------------------


def _projector(case: Case) -> Found:
    """The network on features with PatchNCE over it, and the gradients of the whole."""
    said, inputs = case.configuration, case.inputs
    count = sum(bool(re.fullmatch(r"k\d+", name)) for name in inputs)
    keys = [inputs[f"k{i}"] for i in range(count)]
    queries = [inputs[f"q{i}"].clone().requires_grad_() for i in range(count)]
    places = [inputs[f"ids{i}"] for i in range(count)]
    normalise = "asp" if "AdaptiveSupervised" in case.source else "cut"
    width = said.get("netF_nc", 256)
    project = generators.PatchProjector([k.shape[1] for k in keys], width, normalise)
    case.load(project)
    q, k = project(queries, places), project(keys, places)
    found: Found = {}
    for i in range(count):
        found |= {f"q{i}": q[i], f"k{i}": k[i]}
    temperature, batch = said.get("nce_T", 0.07), len(keys[0])
    weight = said.get("lambda_NCE", 1.0)
    for name, everything in (("own", False), ("all", True)):
        each = [
            contrastive.patch_nce(a, b, batch, temperature, all_negatives=everything) for a, b in zip(q, k, strict=True)
        ]
        found |= {f"nce_{name}_{i}": loss for i, loss in enumerate(each)}
        found[f"total_{name}"] = torch.stack([weight * loss.mean() for loss in each]).mean().reshape(1)
    named = {**dict(project.named_parameters()), **{f"q{i}": x for i, x in enumerate(queries)}}
    slopes = torch.autograd.grad(found["total_own"].sum(), list(named.values()), allow_unused=True)
    found |= {f"grad_{name}": slope for name, slope in zip(named, slopes, strict=True)}
    return {name: _cut(found, name) for name in case.wanted}


def _cut(found: Mapping[str, Any], name: str) -> Any:
    """Return an output, or the part of it that `_first64`, `_first8rows` or `_first32ch` means."""
    match = re.fullmatch(r"(.+)_first(\d+)(rows|ch)?", name)
    if match is None:
        return found.get(name)
    value = found.get(match.group(1))
    if value is None:
        return None
    return value[: int(match.group(2))] if match.group(3) == "rows" else value[:, : int(match.group(2))]


def _adaptive(case: Case) -> Found:
    said = case.configuration
    keys, batch, temperature = case.inputs["k"], said["batch_size"], said["nce_T"]
    queries = case.inputs["q"].clone().requires_grad_()
    epochs = said.get("epochs", [said.get("current_epoch", 1)])
    clock = said.get("n_epochs", 30), said.get("n_epochs_decay", 10)
    plain = contrastive.patch_nce(queries, keys, batch, temperature)

    def weighted(mode: str, epoch: int) -> Tensor:
        schedule, _, weighting = mode.partition("_")
        share = contrastive.adaptive_share(schedule, epoch, *clock)
        return plain * contrastive.adaptive_weights(queries, keys, weighting, share)

    found: Found = {"none": plain, "positive_similarity": (queries * keys).sum(1)}
    for name in case.wanted:
        if name.startswith("grad_"):
            at = epochs[4] if len(epochs) > 4 else epochs[-1]
            loss = (10 * weighted(name.removeprefix("grad_"), at)).mean()
            found[name] = torch.autograd.grad(loss, queries, retain_graph=True)[0]
        elif name not in found:
            found[name] = torch.stack([weighted(name, epoch) for epoch in epochs])
    return found


def _gan(case: Case) -> Found:
    said, scores, found = case.configuration, case.inputs["pred"], {}
    labels = {"real_label": said.get("real_label", 1.0), "fake_label": said.get("fake_label", 0.0)}
    for name in case.wanted:
        mode, _, side = name.rpartition("_")
        value = adversarial.gan_loss(scores, side == "real", mode, **labels)
        found[name] = value if value.ndim else value.reshape(1)
    return found


def _pyramid(case: Case) -> Found:
    said, real = case.configuration, case.inputs["real"]
    fake = case.inputs["fake"].clone().requires_grad_()
    depth, factor = said.get("num_high", 5), said.get("lambda_gp", 1.0)
    ours, theirs = pyramids.gaussian_pyramid(fake, depth), pyramids.gaussian_pyramid(real, depth)
    found: Found = {f"fake_level{i}": level for i, level in enumerate(ours)}
    found |= {f"real_level{i}": level for i, level in enumerate(theirs)}
    found["level_l1"] = pyramids.level_l1(ours, theirs)
    for name, weights in (("weighted", said["weights"]), ("uniform", [1.0] * (depth + 1))):
        loss = factor * pyramids.gaussian_pyramid_l1(fake, real, weights)
        found[f"loss_{name}"] = loss.reshape(1)
        found[f"grad_fake_{name}"] = torch.autograd.grad(loss, fake)[0]
    return {name: found.get(name) for name in case.wanted}


def _octaves(case: Case) -> Found:
    said, real = case.configuration, case.inputs["real"]
    fake = case.inputs["fake"].clone().requires_grad_()
    weights = [said.get("lambda_L1", 25.0)]
    while f"weight_L{len(weights) + 1}" in said:
        weights.append(said[f"weight_L{len(weights) + 1}"])
    more = {
        "blurs": said.get("blurs_per_octave", 4),
        "sigma": said.get("sigma", 1.0),
        "size": said.get("blur_kernel", 3),
    }
    ours, theirs = (pyramids.octaves(x, len(weights), **more) for x in (fake, real))
    each = pyramids.level_l1(ours, theirs) * torch.tensor(weights)
    found: Found = {f"L{i + 1}": value.reshape(1) for i, value in enumerate(each)}
    found |= {f"fake_octave{i + 1}": x for i, x in enumerate(ours)}
    found["total"] = each.sum().reshape(1)
    found["grad_fake"] = torch.autograd.grad(each.sum(), fake)[0]
    return {name: found.get(name) for name in case.wanted}


# --- the objective ----------------------------------------------------------------------------------------------------


def _terms_of(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return our objective of the published weights and modes."""
    found: list[dict[str, Any]] = []
    nce = float(said.get("lambda_NCE", 1.0))
    if said.get("lambda_GAN", 1.0) > 0:
        found.append({"name": "gan", "weight": said.get("lambda_GAN", 1.0)})
    if nce > 0:
        found.append({"name": "patch_nce", "weight": nce})
        found += [{"name": "identity_nce", "weight": nce}] if said.get("nce_idt") else []
    if said.get("lambda_asp", 0) > 0:
        schedule, _, weighting = str(said.get("asp_loss_mode", "none")).partition("_")
        clock = {"constant": said.get("n_epochs", 30), "decay": said.get("n_epochs_decay", 10)}
        arguments = {"schedule": schedule, **({"weighting": weighting} if weighting else {}), **clock}
        found.append({"name": "supervised_nce", "weight": said["lambda_asp"], "arguments": arguments})
    if said.get("lambda_gp", 0) > 0:
        weights = said.get("gp_weights", [1.0] * 6)
        weights = json.loads(weights) if isinstance(weights, str) and weights.startswith("[") else weights
        weights = [1.0] * 6 if isinstance(weights, str) else list(weights)
        found.append({"name": "gaussian_pyramid", "weight": said["lambda_gp"], "arguments": {"weights": weights}})
    return found


def _objective(case: Case) -> Found:
    said, inputs = case.configuration, case.inputs
    layers = [int(n) for n in str(said.get("nce_layers", "0,4,8,12,16")).split(",")]
    family = _built(
        case,
        generator=generator_of(said, False),
        discriminator={**discriminator_of(said, False), "mode": said.get("gan_mode", "lsgan")},
        objective=_terms_of(said),
        features={
            "layers": layers,
            "width": said.get("netF_nc", 256),
            "patches": said.get("num_patches", 256),
            "temperature": said.get("nce_T", 0.07),
            "normalise": "asp",
            "all_negatives": said.get("nce_includes_all_negatives_from_minibatch", False),
        },
        target_channels=_names(said.get("output_nc", 3)),
    )
    parts = {"netG": family.generator, "netD": family.judge, "netF": family.projector}
    for name, part in parts.items():
        if part is not None:
            case.load(part, published.convert, prefix=f"{name}.")
    if case.layout_only:
        return {}
    named = {"patch_nce": "nce", "supervised_nce": "asp", "identity_nce": "idt"}

    def positions(term: str, sizes: Sequence[int]) -> list[Tensor]:
        return [inputs[f"ids_{named[term]}_{i}"] for i in range(len(sizes))]

    epochs = said.get("n_epochs", 30) + said.get("n_epochs_decay", 10)
    progress = (said.get("current_epoch", 1) - 1) / epochs
    step = Pass(family, inputs["real_A"], inputs["real_B"], progress, positions=positions)
    against = procedure.discriminator_terms(step)
    terms = procedure.generator_terms(step)
    share = family.options.discriminator.share if family.options.discriminator else 1.0
    found: Found = {"fake_B": step.fake, "loss_D": procedure.total(against), "loss_G": procedure.total(terms)}
    found |= {"loss_D_fake": against["fake"] / share, "loss_D_real": against["real"] / share}
    ours = {
        "gan": "G_GAN",
        "patch_nce": "NCE",
        "supervised_nce": "ASP",
        "gaussian_pyramid": "GP",
        "identity_nce": "NCE_Y",
    }
    found |= {f"loss_{ours[name]}": value for name, value in terms.items()}
    nce = [terms[n] for n in ("patch_nce", "identity_nce", "supervised_nce") if n in terms]
    found["loss_NCE_plus_ASP"] = torch.stack(nce).sum() if nce else torch.zeros(())
    found = {name: value.reshape(1) if value.ndim == 0 else value for name, value in found.items()}
    return {**found, **_gradients(case, parts, procedure.total(terms))}


def _gradients(case: Case, parts: Mapping[str, nn.Module | None], loss: Tensor) -> Found:
    """Return the gradients that are wanted, called `grad.NET.NAME` by the published names."""
    wanted = [name for name in case.wanted if name.startswith("grad.")]
    found: Found = {}
    for name in wanted:
        _, net, rest = name.split(".", 2)
        ours = next(iter(published.convert({rest: torch.zeros(())})))
        parameter = dict(cast(nn.Module, parts[net]).named_parameters())[ours]
        found[name] = torch.autograd.grad(loss, parameter, retain_graph=True)[0]
    return found


_PARTS: dict[str, Callable[[Case], Found]] = {
    "CPTModel": _objective,
    "PatchSampleF": _projector,
    "AdaptiveSupervisedPatchNCELoss": _adaptive,
    "GANLoss": _gan,
    "Gauss_Pyramid": _pyramid,
    "pix2pix_model.py": _octaves,
    "Generator": _generator,
    "define_G": _generator,
    "Discriminator": _discriminator,
    "define_D": _discriminator,
}
"""Words of a case's source or component -> what answers it; the first that fits."""
