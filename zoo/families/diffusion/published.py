"""Published weights as weights of this family: what `zoo weights pull` calls, once.

Configurations are read as JSON and tensors as tensors; the Python files that lie beside them are never opened. Sources:
Yellapragada et al. 2025 (PixCell); Graikos et al. 2024 (large images).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.families.diffusion import latent_layouts, layouts
from zoo.weights.convert import Converted, Files

SD3_VAE = "vae-sd3-5.stabilityai"
"""Weights of the autoencoder that PixCell's latents are of; their owner gives them out, nobody else may."""

PIXCELL_NOISE = {
    "schedule": "linear",
    "steps": 1000,
    "start": 1e-4,
    "end": 0.02,
    "prediction": "epsilon",
    "weighting": "plain",
}
LATENT_DIFFUSION_NOISE = {**PIXCELL_NOISE, "schedule": "scaled-linear", "start": 0.0015, "end": 0.0195}


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _pixcell_options(network: str, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the family's options of a published PixCell: its noise, its autoencoder, its way of sampling."""
    tokens, width = int(arguments["tokens"]), int(arguments["width"])
    own = {key: value for key, value in arguments.items() if key not in ("width", "tokens")}
    return {
        "setting": "latent",
        "network": {"name": network, "arguments": own},
        "first_stage": {"name": "kl"},
        "first_stage_weights": SD3_VAE,
        "noise": PIXCELL_NOISE,
        "embedding": {"width": width, "tokens": tokens, "seen": 224},
        "condition_encoder": {"name": "uni2-h"} if width == 1536 else None,
        "condition_encoder_weights": "published",
        "dropout": 0.1,
        # the best of the published table for each size (FID over guidance)
        "sampling": {"sampler": "dpm++", "steps": 20, "guidance": 1.2 if tokens == 16 else 2.0},
        "size": 8 * int(arguments["size"]),
        "mpp": 0.5,
        **more,
    }


def pixcell(files: Files, *, folder: str = "transformer") -> Converted:
    """Return a transformer from a folder as diffusers writes it: config.json beside the safetensors file.

    Raises `UserError` for a configuration that is not PixCell's.
    """
    arguments = layouts.pixcell_arguments(files.json(f"{folder}/config.json"))
    state = files.state_dict(f"{folder}/diffusion_pytorch_model.safetensors")
    return Converted("diffusion", _pixcell_options("pixcell", arguments), _under("network", state))


def pixcell_original(files: Files, *, heads: int = 16) -> Converted:
    """Return a transformer from a checkpoint of the training code. The heads are not to be seen in it."""
    state = files.state_dict(None, "state_dict")
    arguments = layouts.original_arguments_of(state, heads)
    options = _pixcell_options("pixcell", arguments)
    return Converted("diffusion", options, _under("network", layouts.original_state(state)))


def pixcell_control(files: Files, *, folder: str = "controlnet", base: str = "transformer") -> Converted:
    """Return a transformer with its ControlNet, from the folders of both."""
    arguments = layouts.pixcell_arguments(files.json(f"{base}/config.json"))
    control = files.state_dict(f"{folder}/diffusion_pytorch_model.safetensors")
    blocks = {int(name.split(".")[1]) for name in control if name.startswith("controlnet_blocks.")}
    if not blocks:
        raise UserError(f'{files.main}: no "controlnet_blocks" among its tensors. Expected a ControlNet of PixCell.')
    options = _pixcell_options(
        "pixcell-control",
        {**arguments, "control_blocks": len(blocks)},
        mask={"classes": ["background", "cell"], "boundary": 0, "told": "latent"},
    )
    transformer = files.state_dict(f"{base}/diffusion_pytorch_model.safetensors")
    tensors = {**_under("network.base", transformer), **_under("network.control", control)}
    return Converted("diffusion", options, tensors)


def pixcell_stain(
    files: Files, *, flow: str, size: int = 128, heads: int = 16, alpha: float | None = None
) -> Converted:
    """Return a transformer with adapters and the flow of embeddings that leads to its stain.

    `flow`: the file of the flow; `size`, `heads`, `alpha` are not to be seen in the files (those of PixCell-1024).
    """
    state = files.state_dict()
    arguments = layouts.adapted_arguments_of(state, size, heads, alpha)
    translator = files.state_dict(flow)
    said = layouts.flow_arguments_of(translator)
    options = _pixcell_options("pixcell", arguments, translator={"name": "embedding-flow", "arguments": said})
    tensors = {**_under("network", layouts.adapter_state(state)), **_under("translator", translator)}
    return Converted("diffusion", options, tensors)


def large_image(files: Files, *, encoder: str | None = None, mpp: float | None = None) -> Converted:
    """Return a latent U-Net with its embedder and autoencoder, from a checkpoint of latent diffusion.

    `encoder`: the zoo's name of what makes its embeddings, None where the zoo has none.
    """
    state = files.state_dict(None, "state_dict")
    parts = {
        prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for prefix in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    }
    for prefix, part in parts.items():
        if not part:
            raise UserError(
                f'{files.main}: no "{prefix}" among its tensors. Expected a checkpoint of latent diffusion.'
            )
    unet, stage, embedder = parts.values()
    arguments, width = latent_layouts.unet_arguments_of(unet, embedder)
    first = latent_layouts.first_stage_arguments_of(stage)
    stage = {name: value for name, value in stage.items() if not name.startswith("loss.")}
    tensors = {
        **_under("network.unet", latent_layouts.unet_state(unet, arguments["blocks"])),
        **_under("network.embedder", embedder),
        **_under("first_stage.vae", latent_layouts.first_stage_state(stage)),
    }
    options = {
        "setting": "latent",
        "network": {"name": "latent-unet", "arguments": arguments},
        "first_stage": first,
        "noise": LATENT_DIFFUSION_NOISE,
        "embedding": {"width": width, "tokens": 1},
        "condition_encoder": {"name": encoder} if encoder else None,
        "dropout": 0.1,
        "sampling": {"sampler": "plms", "steps": 50, "guidance": 2.0},
        "size": 256,
        "mpp": mpp,
    }
    return Converted("diffusion", options, tensors)
