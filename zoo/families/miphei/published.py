"""Published weights of MIPHEI-ViT and of what it was compared with, in the layout of this family.

The published file of MIPHEI-ViT leaves the encoder's own weights out (378 entries are there: adapters and decoder);
they are taken from the encoder as its publishers serve it, and both become one file that loads by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.families.miphei.options import Calling, MipheiOptions
from zoo.metrics.calls import NUCLEAR
from zoo.nn.discriminators import SPECTRAL
from zoo.weights.convert import Converted, Files

if TYPE_CHECKING:
    from zoo.families.miphei.model import Miphei

State = dict[str, Tensor]

SOURCE = "MIPHEI-ViT: https://github.com/Sanofi-Public/MIPHEI-ViT (non-commercial research only)"

_RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "matte": (
        (r"encoder\.vit\.", "network.encoder.net."),
        (r"decoder\.convstream\.convs\.", "network.detail."),
        (r"decoder\.fusion_blks\.", "network.fusion."),
        (r"decoder\.segmentation_head_(\d+)\.", r"network.heads.\1."),
    ),
    "unetr": (
        (r"encoder\.feature_upsampler\.", "network.steps."),
        (r"encoder\.model\.", "network.encoder.net."),
        (r"encoder\.", "network.encoder.net."),
        (r"segmentation_head_(\d+)\.", r"network.heads.\1."),
        (r"", "network."),
    ),
    "unet": (
        (r"encoder\.model\.", "network.encoder.net."),
        (r"decoder\.blocks\.", "network.blocks."),
        (r"segmentation_head_(\d+)\.", r"network.heads.\1."),
    ),
    "hemit": ((r"", "network."),),
}
_UNUSED: dict[str, tuple[str, ...]] = {
    "unetr": (r"encoder\.layer4\.",),
    "hemit": (r"patch_projector\.", r"swinT\.norm\.", r"swinT\.layers\.3\.blocks\."),
}
"""Entries that the published networks carry and never use."""
_ADAPTER = re.compile(r"(.+)\.qkv\.lora_([qv])\.([AB])")


def network_of(names: Iterable[str]) -> str:
    """Return which network a published state dict belongs to. Raises `UserError`."""
    known = list(names)
    for words, network in (
        (("decoder.fusion_blks.",), "matte"),
        (("decoder.decoder0_header.",), "unetr"),
        (("decoder.blocks.",), "unet"),
        (("swinT.", "initial_layers."), "hemit"),
    ):
        if all(any(name.startswith(word) for name in known) for word in words):
            return network
    raise UserError(
        "the file holds no generator of MIPHEI-ViT's code. Expected model.safetensors or a checkpoint of it."
    )


def split(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Return the generator's entries and the others (`discriminator.*`, `logreg_layer.*`) of a checkpoint."""
    if not any(name.startswith("generator.") for name in state):
        return dict(state), {}
    mine = {n.removeprefix("generator."): v for n, v in state.items() if n.startswith("generator.")}
    return mine, {n: v for n, v in state.items() if not n.startswith("generator.")}


def convert(state: State, alpha: float = 1.0) -> State:
    """Return a published generator's state dict under our names; `alpha` is the published factor on adapters."""
    network = network_of(state)
    shift = network == "unetr" and not any(re.match(r"encoder\.feature_upsampler\.upsampler\d\.0\.", n) for n in state)
    found: State = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if any(re.match(pattern, name) for pattern in _UNUSED.get(network, ())):
            continue
        adapter = _ADAPTER.fullmatch(name)
        if adapter:
            adapters.setdefault(_renamed(f"{adapter[1]}.qkv", network), {})[adapter[2] + adapter[3]] = value
            continue
        new = _renamed(name, network)
        if shift:
            new = re.sub(r"(steps\.upsampler\d)\.(\d+)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}.", new)
        found[new] = value
    for layer in adapters:  # an adapted layer is a layer with a changed weight here
        for old, new in (
            (f"{layer}.qkv.weight", f"{layer}.parametrizations.weight.original"),
            (f"{layer}.qkv.bias", f"{layer}.bias"),
        ):
            if old in found:
                found[new] = found.pop(old)
    for layer, parts in adapters.items():
        found[f"{layer}.parametrizations.weight.0.down"] = torch.stack([parts["qA"].T, parts["vA"].T])
        found[f"{layer}.parametrizations.weight.0.up"] = alpha * torch.stack([parts["qB"].T, parts["vB"].T])
    return found


def _renamed(name: str, network: str) -> str:
    for pattern, replacement in _RENAMED[network]:
        new, count = re.subn("^" + pattern, replacement, name)
        if count:
            return new
    return name


def on_top(own: Mapping[str, Tensor], found: State) -> State:
    """Return the converted entries together with the encoder's own, of which a pruned file has none.

    `own`: the state dict of the module, its encoder filled. Raises `UserError` where something else is missing.
    """
    missing = [name for name in own if name not in found]
    strange = [name for name in missing if not _of_encoder(name)]
    if strange:
        raise UserError(
            f"the file lacks {strange[0]}{f' and {len(strange) - 1} more entries' if len(strange) > 1 else ''}. "
            "Expected all but the encoder's own weights. Get the file again, or mend the options on the card."
        )
    return {**{name: own[name] for name in missing}, **found}


def _of_encoder(name: str) -> bool:
    return name.startswith("network.encoder.") and ".parametrizations.weight.0." not in name


def convert_discriminator(state: State) -> State:
    """Return a published discriminator's state dict under our names: its layers are numbered through, with a dropout
    in each that is none here."""
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("model.")})
    last = max((n for n in numbers if n == 0 or (n - 2) % 4 == 0), default=0)
    found: State = {}
    for name, value in state.items():
        _, number, word = name.split(".", 2)
        place = int(number)
        block, part = divmod(place - 2, 4)
        stem = "final_conv" if place == last else f"enc.{place if place < 2 else 2 + 3 * block + part}"
        found[f"{stem}.{SPECTRAL.get(word, word)}"] = value
    return found


def calling_of(weight: Tensor, bias: Tensor, markers: Sequence[str]) -> Calling:
    """Return what calls cells from the layer of a published checkpoint, or of its logreg.pth. Raises `UserError`."""
    channels = tuple(name for name in markers if name.lower() not in NUCLEAR)
    if tuple(weight.shape) != (len(channels), len(channels)) or tuple(bias.shape) != (len(channels),):
        raise UserError(
            f"the layer that calls cells has shape {tuple(weight.shape)}. Expected {len(channels)} markers on both "
            "sides: all but the nuclear stain. Mend the markers on the card."
        )
    rows = tuple(tuple(float(v) for v in row) for row in weight)
    return Calling(channels=channels, markers=channels, weight=rows, bias=tuple(map(float, bias)))


def from_files(
    files: Files,
    *,
    markers: Sequence[str],
    encoder: str | Mapping[str, Any] | None = None,
    encoder_weights: str = "none",
    file: str | None = None,
    calls: str | None = None,
    **options: Any,
) -> Converted:
    """Return a published generator as a model that predicts.

    `encoder`: a name, or a name with arguments; `encoder_weights`: what fills it where the file is pruned; `file`: its
    name where several were pulled; `calls`: name of the file with the layer that calls cells, if any; `options`: of
    the family. Raises `UserError`.
    """
    from zoo.families import build

    state, others = split(files.state_dict(file))
    network = network_of(state)
    said: dict[str, Any] = {"network": network, "markers": list(markers)}
    said |= {"full_scale": [255.0] * len(markers), "dtype": "uint8", **options}
    if encoder is not None:
        rank = next((v.shape[1] for n, v in state.items() if n.endswith(".lora_q.A")), None)
        named: dict[str, Any] = {"name": encoder} if isinstance(encoder, str) else dict(encoder)
        tuned = {} if rank is None else {"tune": "lora", "rank": rank}
        said["encoder"] = {**named, "arguments": {**named.get("arguments", {}), **tuned}}
    layer = files.state_dict(calls) if calls else others
    weights = {n.rpartition(".")[2]: v for n, v in layer.items() if n.endswith(("weight", "bias"))}
    if (calls or any(n.startswith("logreg_layer") for n in others)) and set(weights) >= {"weight", "bias"}:
        chosen = weights if calls else {w: others[f"logreg_layer.{w}"] for w in ("weight", "bias")}
        said["calling"] = calling_of(chosen["weight"], chosen["bias"], markers).model_dump()
    converted = convert(state)
    pruned = network != "hemit" and not any(_of_encoder(name) for name in converted)
    if pruned:
        if encoder_weights == "none":
            raise UserError(
                "the file holds no weights of the encoder. Expected the name of the encoder's own weights "
                "(encoder_weights) among the arguments on the card."
            )
        family = cast("Miphei", build.create("miphei", {**said, "encoder_weights": encoder_weights}))
        converted = on_top(family.state_dict(), converted)
    checked = MipheiOptions.model_validate(said)
    return Converted("miphei", checked.model_dump(mode="json"), converted, {"source": SOURCE})
