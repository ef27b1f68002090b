"""What weights may say and still be drawn from, but where a training would teach nothing, or end in a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.data import truths
from zoo.families.diffusion.options import DiffusionOptions
from zoo.families.diffusion.sampling import fits
from zoo.weights import store

if TYPE_CHECKING:
    from zoo.families.diffusion.family import Diffusion


def check_options(options: DiffusionOptions) -> None:
    """Raise `ValueError` for options that go together in weights, but not in a recipe.

    Raises `UserError` where the weights of the first stage are not on this machine.
    """
    embedding, drawn, noise = options.embedding, options.sampling, options.noise
    if embedding is not None and embedding.truth is None and options.condition_encoder is None:
        raise ValueError("embedding: nothing makes it in training. Name a condition_encoder, or embedding.truth")
    if options.mask is not None and options.mask.classes and options.mask.classes[0] != truths.BACKGROUND:
        raise ValueError(f"mask.classes: {options.mask.classes[0]} stands first. Expected {truths.BACKGROUND} there")
    if options.first_stage_weights != "none":
        store.find(options.first_stage_weights)
    if drawn.steps > noise.steps:
        raise ValueError(f"sampling.steps: {drawn.steps}, but noise.steps is {noise.steps}. Write no more than that")
    if not fits(drawn.sampler, noise.prediction):
        raise ValueError(
            f"sampling.sampler: {drawn.sampler} cannot draw where noise.prediction is {noise.prediction}. Write dpm++"
        )
    if drawn.guidance != 1 and options.dropout == 0 and (options.mask is not None or embedding is not None):
        raise ValueError(
            f"sampling.guidance: {drawn.guidance:g}, but nothing is hidden in training (dropout: 0), so that there is "
            "nothing to lead away from. Write guidance: 1, or a dropout"
        )


def check(family: Diffusion) -> None:
    """Raise `ValueError` where network, size and noise do not go together."""
    network, side = family.network, family.side
    unit, cells = network.divisor * family.factor, round(network.tokens**0.5)
    least = (network.size or 0) * family.factor
    if side < least:
        raise ValueError(
            f"size: {side}, but the network is made for {least} pixels and draws nothing smaller. Write size: {least}, "
            f"or network.arguments.size: {side // family.factor}"
        )
    if family.origin == "image" and (side % unit or side % max(cells, 1)):
        grid = f" that {cells} cells divide" if cells > 1 else ""
        raise ValueError(f"size: {side}, but large pictures are drawn in multiples of {unit}{grid}. Write another size")
    if getattr(network, "sizes", False):
        raise ValueError("network.arguments.sizes: nothing tells a picture's size in training. Write sizes: false")
    if family.options.noise.prediction == "flow" and network.bound and network.outputs > network.channels:
        raise ValueError(
            "network.arguments.learned_variance: a flow has no variance to learn. Write learned_variance: false"
        )
