"""Samplers: diffusers' schedulers by name, classifier-free guidance, and the loop over steps.

Sources: Song et al. 2021 (DDIM); Lu et al. 2022 (DPM-Solver++); Liu et al. 2022 (PNDM); Ho and Salimans 2021
(classifier-free guidance, section 3.2). A picture's noise comes from its own generator, so that it depends on its seed
and not on its neighbours in a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from zoo.errors import UserError, suggest
from zoo.families.diffusion.networks.base import Condition, Network
from zoo.families.diffusion.schedule import Prediction, Schedule

Sampler = Literal["dpm++", "ddim", "ddpm", "plms", "unipc", "euler"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, h, w), times (B,)) -> output of as many channels: what the network predicts, guided."""
OnStep = Callable[[int, Tensor], None]
"""Called after each step with its number from 1 and x."""

_CLASSES = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "plms": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
_BETAS = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_KINDS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample", "flow": "flow_prediction"}
_USUAL: Mapping[str, Mapping[str, Any]] = {
    "dpm++": {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    "ddim": {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"},
    "ddpm": {"clip_sample": False, "timestep_spacing": "trailing"},
    "plms": {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"},
    "unipc": {"timestep_spacing": "linspace", "final_sigmas_type": "zero"},
    "euler": {"timestep_spacing": "linspace"},
}


def make_scheduler(
    name: Sampler = "dpm++", schedule: Schedule | None = None, prediction: Prediction = "epsilon", **arguments: Any
) -> Any:
    """Return diffusers' scheduler of a name over our schedule; `arguments` are its own and go before ours.

    For the prediction "flow" any name gives the Euler steps of flow matching. Raises `UserError` for an unknown name.
    """
    if name not in _CLASSES:
        raise UserError(f'no sampler "{name}". {suggest(name, sorted(_CLASSES))}'.strip())
    schedule = schedule or Schedule()
    if prediction == "flow":
        return _scheduler("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": schedule.steps, **arguments})
    said = {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": _BETAS[schedule.betas_name],
        "beta_start": schedule.start,
        "beta_end": schedule.end,
        "prediction_type": _KINDS[prediction],
        **_USUAL[name],
        **arguments,
    }
    return _scheduler(_CLASSES[name], said)


def scheduler_of_config(config: Mapping[str, Any]) -> Any:
    """Return the scheduler of a published `scheduler_config.json`: DPM-Solver++ where it names no class.

    Raises `UserError` for a class that is none of ours, or an argument that it does not have.
    """
    name = str(config.get("_class_name", _CLASSES["dpm++"]))
    known = [*_CLASSES.values(), "FlowMatchEulerDiscreteScheduler"]
    if name not in known:
        raise UserError(f'no scheduler "{name}". {suggest(name, known)}'.strip())
    return _scheduler(name, {key: value for key, value in config.items() if not key.startswith("_")})


def _scheduler(name: str, arguments: Mapping[str, Any]) -> Any:
    import inspect

    import diffusers

    cls = getattr(diffusers, name)
    known = list(inspect.signature(cls.__init__).parameters)
    for key in arguments:
        if key not in known:
            raise UserError(f'{name} has no argument "{key}". {suggest(key, known)}'.strip())
    return cls(**arguments)


def noise_like(shape: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """Return (B, *shape) standard normal numbers, each picture's from its seed, and the generators to go on with."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]), generators


def guided(
    network: Network,
    condition: Condition | None,
    guidance: float = 1.0,
    *,
    null: Condition | None = None,
    together: bool = True,
) -> Predict:
    """Return what predicts with classifier-free guidance: null + guidance * (conditional - null).

    Channels of a learned variance are cut off after guiding. `null`: in place of the network's own; `together`: both
    halves in one call, [null, conditional]. What does not change over steps is computed once, here. Raises `UserError`
    for guidance without a null condition.
    """
    condition = None if condition is None else network.complete(condition)
    if guidance == 1 or condition is None:
        kept = network.remember(condition)

        def plain(x: Tensor, t: Tensor) -> Tensor:
            return cast(Tensor, network(x, t, kept)[:, : network.channels])

        return plain
    empty = network.null(condition) if null is None else null
    if empty is None:
        raise UserError(
            f"guidance is {guidance:g}, but the network was trained without a null condition. Use --guidance 1."
        )
    if not together:
        halves = network.remember(empty), network.remember(condition)

        def twice(x: Tensor, t: Tensor) -> Tensor:
            out, said = (network(x, t, half)[:, : network.channels] for half in halves)
            return cast(Tensor, out + guidance * (said - out))

        return twice
    both = network.remember(network.both(empty, condition))

    def once(x: Tensor, t: Tensor) -> Tensor:
        out, said = network(torch.cat([x, x]), torch.cat([t, t]), both)[:, : network.channels].chunk(2)
        return cast(Tensor, out + guidance * (said - out))

    return once


def sample(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    generators: list[torch.Generator] | None = None,
    on_step: OnStep | None = None,
    **arguments: Any,
) -> Tensor:
    """Return what is denoised from `noise` (B, C, h, w) in `steps` steps.

    `generators`: one a picture, for samplers that add noise on the way; `arguments` go to the scheduler's step (`eta`
    of DDIM).
    """
    with warnings.catch_warnings():  # diffusers makes arrays of tensors in a way that NumPy 2 warns of
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler.set_timesteps(steps, device=noise.device)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    more = dict(arguments)
    if _draws(scheduler):
        more["generator"] = generators
    for number, time in enumerate(scheduler.timesteps, 1):
        given = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        output = predict(given, time.to(x.device).expand(len(x)))
        x = scheduler.step(output, time, x, return_dict=False, **more)[0]
        if on_step is not None:
            on_step(number, x)
    return x


def _draws(scheduler: Any) -> bool:
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters


SAMPLERS: tuple[str, ...] = get_args(Sampler)


def fits(sampler: str, prediction: Prediction) -> bool:
    """Return whether a sampler takes its steps with what a network predicts: diffusers' PNDM knows no clean picture."""
    return (sampler, prediction) != ("plms", "sample")
