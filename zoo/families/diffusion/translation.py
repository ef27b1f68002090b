"""Virtual staining: from a picture's embedding to that of the same tissue in another stain, which is then drawn.

Source: Yellapragada et al. 2025 (PixCell, virtual staining): the network learns one stain from its own embeddings, the
flow learns to carry embeddings; neither sees the other in training.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.errors import suggest
from zoo.families.diffusion.kept import Kept
from zoo.families.diffusion.networks.flow import EmbeddingFlow, carry, flow_loss
from zoo.families.diffusion.options import DiffusionOptions
from zoo.types import Batch

if TYPE_CHECKING:
    from zoo.families.diffusion.family import Diffusion


def make(options: DiffusionOptions) -> EmbeddingFlow | None:
    """Return the flow of embeddings that options ask for. Raises `ValueError` where their width is not known."""
    if options.translator is None:
        return None
    said = dict(options.translator.arguments)
    known = list(inspect.signature(EmbeddingFlow).parameters)
    for key in said:
        if key not in known:
            raise ValueError(f'translator has no argument "{key}". {suggest(key, known)}'.strip())
    width = options.embedding.width if options.embedding is not None else None
    if width is None:
        raise ValueError("the width of embeddings is not known. Write it down: embedding: {width: ...}")
    for key in ("width", "outputs"):
        if said.get(key) not in (None, width):
            raise ValueError(f"translator.arguments.{key}: {said[key]}, and embeddings have {width} numbers. Remove it")
    return EmbeddingFlow(**({"width": width} | said))


def translate(flow: EmbeddingFlow, embedding: Tensor, steps: int) -> Tensor:
    """Return embeddings (B, T, D) carried to the other stain, each by itself."""
    return carry(flow, embedding.flatten(0, 1), steps).view_as(embedding)


def loss_of(family: Diffusion, batch: Batch, generator: torch.Generator, kept: Kept) -> Tensor:
    """Return the flow's mean loss over the pairs of a batch, at times drawn from the generator."""
    assert family.translator is not None
    inputs = family.prepare(family.inputs_of(batch))
    here = batch.has.get("picture")
    rows = torch.ones(len(inputs["image"]), dtype=torch.bool) if here is None else here.cpu()
    start, end = (
        family.embedding_of(pictures.float(), kept).flatten(0, 1)
        for pictures in (inputs["image"], family.drawn(inputs))
    )
    keep = rows.repeat_interleave(len(start) // len(rows)).to(start.device)
    t = torch.rand(len(start), generator=generator).to(start.device)
    if not bool(keep.any()):
        return sum((p.sum() * 0 for p in family.translator.parameters()), torch.zeros(()))
    return flow_loss(family.translator, start[keep], end[keep], t[keep])
