"""Published cases of PixCell and of large-image diffusion: networks, losses, schedules, samplers, assembly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding
from torch import Tensor, nn

import zoo
from zoo.cases import Case
from zoo.families.diffusion import assembly, first_stage, latent_layouts, layouts, sampling
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.first_stage import FirstStage
from zoo.families.diffusion.networks import Network
from zoo.families.diffusion.networks.control import ControlledPixCell
from zoo.families.diffusion.networks.flow import EmbeddingFlow, carry, flow_loss
from zoo.families.diffusion.networks.latent_unet import Embedder, LatentUNet
from zoo.families.diffusion.networks.pixcell import PixCell, condition_positions
from zoo.families.diffusion.published import SD3_VAE
from zoo.families.diffusion.schedule import Schedule, add_noise, denoising_loss
from zoo.families.diffusion.solver import continuous_dpm
from zoo.nn.lora import without_low_rank

Found = dict[str, Any]
SCHEDULE = Schedule()


def answer(case: Case) -> Mapping[str, Any]:
    """Return what this build computes for a case of the system "pixcell"."""
    about = f"{case.source} {case.component}"
    for words, part in _PARTS:
        if re.search(words, about):
            return part(case)
    raise case.unknown()


def _asked(case: Case, values: Mapping[str, Any], more: Callable[[str], Any] | None = None) -> Found:
    """Return the wanted outputs; `more` is asked for those that `values` lacks."""
    found = {name: values[name] if name in values or more is None else more(name) for name in case.wanted}
    return found


def _network(case: Case, name: str, **arguments: Any) -> Network:
    """Return the network of a family that denoises latents of as many channels."""
    stage = {"name": "kl", "arguments": {"channels": arguments["channels"]}}
    with case.building():
        family = zoo.create(
            "diffusion",
            setting="latent",
            network={"name": name, "arguments": arguments},
            first_stage=stage,
            first_stage_weights=SD3_VAE,
        )
    return cast(Diffusion, family).network


def _stage(case: Case, kind: Mapping[str, Any]) -> FirstStage:
    """Return the autoencoder of a family; its network is as small as one can be."""
    channels = kind["arguments"].get("code_width", kind["arguments"]["channels"])
    small = {"channels": channels, "layers": 0, "heads": 1, "head_width": 8, "width": 1}
    with case.building():
        family = zoo.create(
            "diffusion", setting="latent", network={"name": "pixcell", "arguments": small}, first_stage=dict(kind)
        )
    return cast(FirstStage, cast(Diffusion, family).first_stage)


def _watched(parts: Mapping[str, nn.Module], run: Callable[[], Any]) -> Found:
    """Return what modules gave while `run` ran."""
    found: Found = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[name] = output

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


# --- the transformer --------------------------------------------------------------------------------------------------


def _cut(case: Case, tokens: Tensor) -> Tensor:
    """Return tokens (B, N, D) cut as the case's notes say: "Token tensors are sliced [:1,:16]"."""
    said = re.search(r"[Tt]oken tensors are sliced \[([:\d, ]+)\]", str(case.manifest.get("notes", "")))
    ends = [int(end) if end else None for end in re.findall(r":(\d*)", said[1])] if said else []
    return tokens[tuple(slice(end) for end in ends)]


def _transformer(case: Case) -> Found:
    network = cast(PixCell, _network(case, "pixcell", **layouts.pixcell_arguments(case.configuration)))
    adapted = "lora" in case.configuration
    case.load(network, layouts.adapter_state if adapted else None)
    return {} if case.layout_only else _of_transformer(case, network)


def _original(case: Case) -> Found:
    network = cast(PixCell, _network(case, "pixcell", **layouts.original_arguments(case.configuration)))
    case.load(network, layouts.original_state)
    return {} if case.layout_only else _of_transformer(case, network)


def _condition(case: Case) -> Found:
    more = {name: case.inputs[name] for name in ("resolution", "aspect_ratio") if name in case.inputs}
    return {"embedding": case.inputs["encoder_hidden_states"], **more}


def _of_transformer(case: Case, network: PixCell) -> Found:
    x, t, condition = case.inputs["hidden_states"], case.inputs["timestep"], _condition(case)
    residuals = [case.inputs[f"residual_{i}"] for i in range(sum(name.startswith("residual_") for name in case.inputs))]
    said = {**condition, "residuals": residuals}
    blocks = network.transformer_blocks
    parts = {
        "patches": network.pos_embed,
        "time": network.adaln_single,
        "conditioning_tokens": network.caption_projection,
        **{f"after_block_{i}": block for i, block in enumerate(blocks)},
    }
    found: Found = {}

    def run() -> None:
        found["sample"] = network(x, t, said)

    with torch.inference_mode():
        seen = _watched(parts, run)
        tokens = {name: _cut(case, value) for name, value in seen.items() if name.startswith("after_block_")}
        modulation, time = seen["time"]
        found |= {**tokens, "conditioning_tokens": seen["conditioning_tokens"]}
        found |= {"tokens_after_patch_embed": _cut(case, seen["patches"]), "modulation_6d": modulation}
        found |= {"after_last_block": tokens[f"after_block_{len(blocks) - 1}"], "timestep_embedding": time}

        def more(name: str) -> Any:
            if name == "sample_unconditional":
                return network(x, t, network.null(condition))
            if name == "sample_without_residuals":
                return network(x, t, condition)
            if name == "sample_adapter_off":
                with without_low_rank(network):
                    return network(x, t, said)
            return None

        return _asked(case, found, more)


def _controlnet(case: Case) -> Found:
    said = layouts.pixcell_arguments(case.configuration)
    blocks = case.configuration.get("n_controlnet_blocks")
    network = cast(ControlledPixCell, _network(case, "pixcell-control", control_blocks=blocks, **said))
    case.load(network.control)
    if case.layout_only:
        return {}
    condition = {**_condition(case), "mask": case.inputs["conditioning"]}
    scale = case.inputs.get("conditioning_scale", 1.0)
    with torch.inference_mode():
        residuals = network.control.residuals(case.inputs["hidden_states"], case.inputs["timestep"], condition, scale)
    return _asked(case, {f"residual_{i}": value for i, value in enumerate(residuals)}, lambda _: None)


def _time_with_sizes(case: Case) -> Found:
    width = int(case.configuration["embedding_dim"])
    sizes = bool({"resolution", "aspect_ratio"} & set(case.inputs)) or "size_emb_dim" in case.configuration
    network = cast(
        PixCell, _network(case, "pixcell", channels=4, layers=0, heads=1, head_width=width, width=1, sizes=sizes)
    )
    case.load(network.adaln_single)
    if case.layout_only:
        return {}
    t = case.inputs["timestep"]
    more = {name: case.inputs[name] for name in ("resolution", "aspect_ratio")} if sizes else None
    with torch.inference_mode():
        modulation, embedding = network.adaln_single(t, more, batch_size=len(t), hidden_dtype=torch.float32)
    return _asked(case, {"modulation_6d": modulation, "embedding": embedding}, lambda _: None)


def _tables(case: Case) -> Found:
    said = case.configuration
    images, width = said.get("image", {}), int(said.get("embed_dim_image", 1152))

    def image(grid: Any, base: int, interp: float, width: int) -> Tensor:
        sides = tuple(grid) if isinstance(grid, Sequence) else (grid, grid)
        table = get_2d_sincos_pos_embed(width, sides, base_size=base, interpolation_scale=interp, output_type="pt")
        return cast(Tensor, table.float())

    def of(name: str) -> Any:
        one = re.fullmatch(r"image_pos_(\w+)", name)
        if one and one[1] in images:
            table = image(images[one[1]]["grid"], images[one[1]]["base"], images[one[1]]["interp"], width)
            rows = case.inputs.get(f"image_rows_{one[1]}")
            return table if rows is None else table[rows]
        if one and one[1] in said:
            other = said[one[1]]
            return image(other["grid"], other["base"], other["interp"], int(other.get("embed_dim", width)))
        token = re.fullmatch(r"cond_pos_(\d+)(_original)?", name)
        if token and token[1] in images:
            place = images[token[1]]
            # the published class has 2 written into it; the training code takes the image's
            interp = place["interp"] if token[2] else 2
            return condition_positions(
                int(said.get("embed_dim_cond", 1536)), (int(token[1]) // 256) ** 2, place["base"], interp
            )[0]
        if name == "timestep_sinusoid":
            return get_timestep_embedding(case.inputs["timestep"], 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        return None

    return _asked(case, {}, of)


# --- the flow of embeddings -------------------------------------------------------------------------------------------


def _flow(case: Case) -> Found:
    with case.building():
        network = EmbeddingFlow(**layouts.flow_arguments(case.configuration)).eval()
    case.load(network)
    if case.layout_only:
        return {}
    start, end, t = case.inputs["he"], case.inputs["ihc"], case.inputs["t"]
    seen: Found = {}

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.update(xt=x, velocity=network(x, t))
        return cast(Tensor, seen["velocity"])

    loss = flow_loss(velocity, start, end, t)
    found = {**seen, "loss": loss.reshape(1), "sinusoid_of_999t": network.time_waves(t)}
    found["grad_velocity"] = torch.autograd.grad(loss, seen["velocity"])[0]

    def more(name: str) -> Any:
        euler = re.fullmatch(r"euler_(\d+)_(left|inner)", name)
        with torch.inference_mode():
            return carry(network, start, int(euler[1]), cast(Any, euler[2])) if euler else None

    return _asked(case, found, more)


# --- noise, losses, samplers ------------------------------------------------------------------------------------------


def _schedule_of(said: Mapping[str, Any]) -> Schedule:
    names = {"linear": "linear", "squaredcos_cap_v2": "cosine", "cosine": "cosine", "scaled_linear": "scaled-linear"}
    name = names[str(said.get("schedule", said.get("noise_schedule", said.get("beta_schedule", "linear"))))]
    steps = int(said.get("steps", said.get("diffusion_steps", said.get("num_train_timesteps", 1000))))
    scale = 1.0 if "beta_start" in said else 1000 / steps  # the published code keeps the noise at the end
    start, end = float(said.get("beta_start", 1e-4 * scale)), float(said.get("beta_end", 0.02 * scale))
    return Schedule(cast(Any, name), steps, start, end)


def _noise_tables(case: Case) -> Found:
    schedule, index = _schedule_of(case.configuration), case.inputs["index"]
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.alphas_cumprod,
        "alphas_cumprod_prev": schedule.alphas_cumprod_before,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "sqrt_alphas_cumprod": schedule.alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - schedule.alphas_cumprod).sqrt(),
    }
    return _asked(case, {name: table[index] for name, table in tables.items()}, lambda _: None)


def _training_loss(case: Case) -> Found:
    schedule, inputs = _schedule_of(case.configuration), case.inputs
    clean, noise, t = inputs["x0"], inputs["noise"], inputs["timestep"]
    output = inputs["model_output"].clone().requires_grad_()
    terms = denoising_loss(schedule, output, clean, noise, t)
    loss = torch.stack(list(terms.values())).sum(0)
    found = {"mse": terms["error"], "loss": loss, "x_t": add_noise(schedule, clean, noise, t)}
    found |= {"vb": terms["bound"]} if "bound" in terms else {}
    found["grad_of_mean_loss"] = torch.autograd.grad(loss.mean(), output)[0]
    return _asked(case, found, lambda _: None)


def _denoise(case: Case) -> Found:
    said = case.configuration
    network = cast(PixCell, _network(case, "pixcell", **layouts.pixcell_arguments(said["transformer"])))
    case.load(network)
    scheduler = sampling.scheduler_of_config(said.get("scheduler", {}))
    found: Found = {}
    with torch.inference_mode():
        predict = sampling.guided(network, _condition(case), float(said.get("guidance_scale", 1.0)))

        def kept(x: Tensor, t: Tensor) -> Tensor:
            output = predict(x, t)
            found[f"guided_eps_step_{1 + sum(name.startswith('guided') for name in found)}"] = output
            return output

        def after(number: int, x: Tensor) -> None:
            found[f"x_after_step_{number}"] = x

        sampling.sample(kept, case.inputs["x_T"], scheduler, int(said.get("num_inference_steps", 20)), None, after)
    found |= {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}
    return _asked(case, found, lambda _: None)


def _analytic(case: Case) -> Found:
    said, bias, start = case.configuration, case.inputs["bias"], case.inputs["x_T"]
    steps = int(said.get("steps", said.get("num_inference_steps", 20)))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return 0.6 * torch.tanh(x) + 0.2 * bias * (1 + t.view(-1, 1, 1, 1) / 1000)

    config = said.get("scheduler", {})
    scheduler = sampling.scheduler_of_config(config)
    found: Found = {"x_0_diffusers_scheduler": sampling.sample(predict, start, scheduler, steps)}
    found["x_0_original_dpm_solver"] = continuous_dpm(predict, start, _schedule_of(config), steps)
    return _asked(case, {**found, "timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}, lambda _: None)


# --- large images -----------------------------------------------------------------------------------------------------


def _large(case: Case) -> Found:
    said, grid = case.configuration, case.inputs["embedding_grid"]
    network = cast(PixCell, _network(case, "pixcell", **layouts.pixcell_arguments(said["transformer"])))
    case.load(network)
    side, cell = round(network.tokens**0.5), int(said.get("cell", 32))
    found: Found = {}

    def predict(windows: Tensor, t: Tensor, corners: Sequence[assembly.Corner]) -> Tensor:
        condition = {"embedding": assembly.cells_under(grid, corners, cell, side)}
        return sampling.guided(network, condition, 1 + float(said.get("guidance_w", 2.0)))(windows, t)

    def keep(name: str) -> sampling.OnStep:
        return lambda number, x: found.update({f"{name}_after_step_{number}": x})

    with torch.inference_mode():
        found["x_final"] = assembly.windowed_ddim(
            predict,
            case.inputs["x_T"],
            SCHEDULE,
            int(said.get("num_timesteps", 20)),
            window=int(said.get("window", 128)),
            stride=int(said.get("stride", 64)),
            on_step=keep("x"),
            on_clean=keep("x0"),
        )
    return _asked(case, found, lambda _: None)


def _kernel(case: Case) -> Found:
    def of(name: str) -> Any:
        said = re.fullmatch(r"kernel_(\d+)_sigma_([\d.]+)", name)
        return assembly.blend_kernel(int(said[1]), float(said[2])) if said else None

    return _asked(case, {}, of)


def _interpolated(case: Case) -> Found:
    said, inputs = case.configuration, case.inputs
    threshold = float(said.get("dot_threshold", 0.9995))

    def of(name: str) -> Any:
        if name == "slerp":
            return assembly.slerp(inputs["slerp_a"], inputs["slerp_b"], inputs["slerp_t"], threshold)
        if name == "embedding_at_position":
            grid = inputs["embedding_grid"]
            grid = grid.reshape(*said.get("grid", (4, 4)), grid.shape[-1])
            return assembly.between_cells(grid, inputs["positions"], int(said.get("patch_size", 64)), threshold)
        return None

    return _asked(case, {}, of)


def _embedder(case: Case) -> Found:
    said = case.configuration
    region, context = int(said.get("region_embed_dim", 0)), int(said.get("target_dim", 512))
    with case.building():
        network = Embedder(int(said["patch_embed_dim"]), context, region, bool(said.get("normalize_ssl", True)))
    case.load(network)
    if case.layout_only:
        return {}
    patch = case.inputs["feat_20x" if "feat_20x" in case.inputs else "feat_patch"]

    def of(name: str) -> Any:
        if name == "context":
            return network(patch, case.inputs.get("feat_5x"))
        if name == "context_without_region":
            return network(patch)
        return network(torch.zeros_like(patch[:1])) if name == "context_of_zero" else None

    with torch.inference_mode():
        return _asked(case, {}, of)


def _unet(case: Case) -> Found:
    said = latent_layouts.unet_arguments(case.configuration)
    network = cast(LatentUNet, _network(case, "latent-unet", width=1, **said))
    case.load(network.unet, lambda state: latent_layouts.unet_state(state, said["blocks"]))
    if case.layout_only:
        return {}
    unet, rows = network.unet, said["blocks"] + 1

    def block(name: str) -> nn.Module | None:
        number = re.fullmatch(r"after_(input|output)_block_(\d+)", name)
        if name == "middle":
            return cast(nn.Module, unet.mid_block)
        if number is None:
            return None
        down, index = number[1] == "input", int(number[2])
        if down and index == 0:
            return cast(nn.Module, unet.conv_in)
        level, place = divmod(index - 1 if down else index, rows)
        part = (unet.down_blocks if down else unet.up_blocks)[level]
        if down and place == said["blocks"]:
            return cast(nn.Module, part.downsamplers[0])
        if not down and place == rows - 1 and part.upsamplers:
            return cast(nn.Module, part.upsamplers[0])
        attends = getattr(part, "attentions", None)
        return cast(nn.Module, (attends or part.resnets)[place])

    parts = {name: part for name in case.wanted if (part := block(name)) is not None}
    found: Found = {}

    def run() -> None:
        found["eps"] = network(case.inputs["x"], case.inputs["timesteps"], {"context": case.inputs["context"]})

    with torch.inference_mode():
        seen = _watched(parts, run)
    values = {name: value[0] if isinstance(value, tuple) else value for name, value in seen.items()}
    return _asked(case, found | values, lambda _: None)


def _first_stage(case: Case) -> Found:
    kind = latent_layouts.first_stage_arguments(case.configuration)
    stage = _stage(case, kind)
    case.load(cast(nn.Module, stage.vae), latent_layouts.first_stage_state)
    if case.layout_only:
        return {}
    return _of_first_stage(case, stage)


def _of_first_stage(case: Case, stage: FirstStage) -> Found:
    with torch.inference_mode():
        latent = case.inputs["latent"] if "latent" in case.inputs else stage.encode(case.inputs["image"])

        def of(name: str) -> Any:
            if name == "latent":
                return latent
            if name in ("reconstruction", "sample"):
                return stage.raw(latent / stage.scale + stage.shift)
            if isinstance(stage, first_stage.VQ):
                quantised = {"indices": stage.codes, "reconstruction_unquantised": stage.unquantised}
                return quantised[name](latent) if name in quantised else None
            return None

        return _asked(case, {}, of)


def _autoencoder(case: Case) -> Found:
    kind = latent_layouts.vae_arguments(case.configuration)
    stage = _stage(case, kind)
    case.load(cast(nn.Module, stage.vae))
    return {} if case.layout_only else _of_first_stage(case, stage)


_PARTS: tuple[tuple[str, Callable[[Case], Found]], ...] = (
    (r"AdaLayerNormSingle\b", _time_with_sizes),
    (r"gaussian_kernel", _kernel),
    (r"sample_4k", _large),
    (r"training_losses", _training_loss),
    (r"gaussian_diffusion\.py", _noise_tables),
    (r"dpm_solver\.py", _analytic),
    (r"resmlp|SimpleMLP", _flow),
    (r"get_2d_sincos_pos_embed", _tables),
    (r"get_conditioning|slerp", _interpolated),
    (r"PatchEmbedder|SSLEmbedder", _embedder),
    (r"openaimodel|UNetModel", _unet),
    (r"VQModelInterface|Encoder/Decoder", _first_stage),
    (r"AutoencoderKL", _autoencoder),
    (r"PixCellControlNet\b", _controlnet),
    (r"Scheduler; loop", _denoise),
    (r"PixArt\.py", _original),
    (r"PixCellTransformer2DModel|train_lora|transformer_2d", _transformer),
)
"""What a case's source and component say -> what answers, the first that fits."""
