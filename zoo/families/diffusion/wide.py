"""Pictures like another one that is larger than the model's: told cell by cell, drawn in windows that agree in every
step.

Source: Graikos et al. 2024, section 3.3, and Yellapragada et al. 2025 (PixCell). At one time and one noisy picture the
clean picture is a line in what the network predicts, so the mean of predictions over windows is that of clean pictures,
whatever is predicted, and every sampler takes its step with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.families.diffusion import latent, sampling
from zoo.families.diffusion.assembly import Corner, between_cells, cells_under, corners

if TYPE_CHECKING:
    from zoo.families.diffusion.family import Diffusion

TOGETHER = 8
"""Windows in one call of the network."""
Predict = Callable[[Tensor, Tensor], Tensor]


def drawn_like(
    family: Diffusion,
    image: Tensor,
    seed: int,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
) -> Tensor:
    """Return (1, 3, H, W) float32 in [0, 1], drawn like `image` (1, 3, H, W) in [-1, 1], or like its target.

    For a family that draws from an image. Memory: the noisy picture, and one batch of windows. Raises `UserError` as
    `Diffusion.sample` does.
    """
    whole = latent.padded(image, family.side)
    told = grid_of(family, whole)
    window = family.side // family.factor
    size = (whole.shape[2] // family.factor, whole.shape[3] // family.factor)
    count = round(family.network.tokens**0.5)
    cell = window // count
    stride = max(1, 3 * count // 4) * cell if count > 1 else max(1, 3 * window // 4)
    strength = family.strength(guidance)
    parts: list[tuple[Sequence[Corner], Predict]] = []
    places = corners(size, window, stride)
    for begin in range(0, len(places), TOGETHER):
        some = places[begin : begin + TOGETHER]
        cells = between_cells(told, some, cell)[:, None] if count == 1 else cells_under(told, some, cell, count)
        parts.append((some, sampling.guided(family.network, {"embedding": cells}, strength)))
    found = family.denoised(windowed(parts, window), size, [seed], steps=steps, sampler=sampler)
    return found[:, :, : image.shape[2], : image.shape[3]]


def grid_of(family: Diffusion, whole: Tensor) -> Tensor:
    """Return (R, C, D), the embeddings of a picture's cells, carried to its target where the family has a translator.

    `whole`: (1, 3, H, W) in [-1, 1], H and W multiples of the family's side; windows that do not overlap are embedded.
    """
    side, count = family.side, round(family.network.tokens**0.5)
    rows = []
    for y in range(0, whole.shape[2], side):
        windows = torch.cat([whole[:, :, y : y + side, x : x + side] for x in range(0, whole.shape[3], side)])
        inputs = {"image": windows}
        cells = family.translated({"embedding": family.embedding_of(windows)}, inputs)["embedding"]
        rows.append(cells.view(len(windows), count, count, -1).permute(1, 0, 2, 3).flatten(1, 2))
    return torch.cat(rows)


def windowed(parts: Sequence[tuple[Sequence[Corner], Predict]], window: int) -> Predict:
    """Return what predicts a picture (1, C, H, W) as the mean over windows; a part says it of those at its corners."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        total, counts = torch.zeros_like(x), x.new_zeros(x.shape[2:])
        for some, part in parts:
            tiles = torch.cat([x[:, :, i : i + window, j : j + window] for i, j in some])
            said = part(tiles, t.expand(len(some)))
            for (i, j), one in zip(some, said, strict=True):
                total[0, :, i : i + window, j : j + window] += one
                counts[i : i + window, j : j + window] += 1
        return total / counts

    return predict
