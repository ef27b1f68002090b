"""Pictures larger than the network's: windows that agree in every step, and windows decoded without seams.

Source: Graikos et al. 2024 (Learned representation-guided diffusion models for large-image generation, section 3.3),
and the 4K images of PixCell. In each step every window is denoised by itself, what they say of the clean picture is
averaged where they overlap, and one step is taken with the average.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from zoo.families.diffusion.sampling import OnStep
from zoo.families.diffusion.schedule import Prediction, Schedule, clean_of

Corner = tuple[int, int]
"""Row and column of a window's first pixel."""
PredictWindows = Callable[[Tensor, Tensor, Sequence[Corner]], Tensor]
"""(windows (n, C, w, w), times (n,), their corners) -> what the network predicts, guided: (n, C, w, w)."""
Decode = Callable[[Tensor], Tensor]
"""Latent windows (n, C, w, w) -> pictures (n, channels, w * factor, w * factor) in [-1, 1]."""


def starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows along an axis begin: every multiple of the stride, and the last one at the end.

    Raises `ValueError` where the window is larger than the axis, or the stride than the window.
    """
    if not 1 <= stride <= window <= size:
        raise ValueError(f"windows of {window} every {stride} on {size} pixels. Expected stride <= window <= size")
    found = list(range(0, size - window + 1, stride))
    return found if found[-1] + window == size else [*found, size - window]


def corners(shape: Sequence[int], window: int, stride: int) -> list[Corner]:
    """Return the corners of all windows on (h, w), row by row."""
    rows, columns = (starts(size, window, stride) for size in shape[-2:])
    return list(itertools.product(rows, columns))


def blend_kernel(size: int, sigma: float = 0.8, width: int | None = None) -> Tensor:
    """Return (size, width) float32 weights of a window, 1 at most: exp(-(u^2 + v^2) / sigma^2), u and v in -1..1.

    `width`: none = as high as wide.
    """
    down, across = (torch.linspace(-1, 1, n, dtype=torch.float64).square() for n in (size, width or size))
    found = torch.exp(-(down[:, None] + across) / sigma**2)
    return (found / found.max()).float()


def windowed_ddim(
    predict: PredictWindows,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    *,
    window: int,
    stride: int,
    batch: int = 8,
    prediction: Prediction = "epsilon",
    eta: float = 0.0,
    late: bool = False,
    end: Literal["first", "clean"] = "first",
    begin: int = 0,
    generator: torch.Generator | None = None,
    on_step: OnStep | None = None,
    on_clean: OnStep | None = None,
) -> Tensor:
    """Return (1, C, H, W) denoised from `x` in `steps` DDIM steps, windows of `window` pixels every `stride`.

    `late`: the network is told a time one above that of its noise (Graikos et al.). `end`: the last step stops at the
    noise of time 0 (PixCell) or at none. `eta`: share of fresh noise, whose variance is that of a single training step
    (Graikos et al.). `begin`: steps already taken, for an interrupted run (`x` is what `on_step` got; `generator` must
    stand where it stood). `on_clean` gets the averaged clean picture. Memory: three pictures and one batch of windows.
    """
    jump = schedule.steps // steps
    bars = schedule.alphas_cumprod
    places = corners(x.shape, window, stride)
    counts = _counts(x, places, window)
    for number in range(begin, steps):
        time = schedule.steps - 1 - number * jump
        clean = torch.zeros_like(x)
        for some in _batched(places, batch):
            tiles = torch.cat([x[:, :, i : i + window, j : j + window] for i, j in some])
            told = torch.full((len(some),), time + late, device=x.device)
            output = predict(tiles, told, some)
            parts = clean_of(schedule, output, tiles, torch.full_like(told, time), prediction)
            for (i, j), part in zip(some, parts, strict=True):
                clean[:, :, i : i + window, j : j + window] += part
        clean /= counts
        if on_clean is not None:
            on_clean(number + 1, clean)
        x = _step(schedule, x, clean, time, jump, bars, eta, end, generator)
        if on_step is not None:
            on_step(number + 1, x)
    return x


def _step(
    schedule: Schedule,
    x: Tensor,
    clean: Tensor,
    time: int,
    jump: int,
    bars: Tensor,
    eta: float,
    end: str,
    generator: torch.Generator | None,
) -> Tensor:
    """Return x at the next lower time (Song et al. 2021, equation 12)."""
    bar, before = float(bars[time]), time - jump
    lower = float(bars[before]) if before >= 0 else float(bars[0]) if end == "first" else 1.0
    noise = (x - bar**0.5 * clean) / (1 - bar) ** 0.5
    fresh = eta * float(schedule.betas[time]) * (1 - lower) / (1 - bar)
    found: Tensor = lower**0.5 * clean + max(1 - lower - fresh, 0.0) ** 0.5 * noise
    if fresh > 0:
        found = found + fresh**0.5 * torch.randn(x.shape, generator=generator).to(x)
    return found


def _counts(x: Tensor, places: Sequence[Corner], window: int) -> Tensor:
    found = x.new_zeros(x.shape[-2:])
    for i, j in places:
        found[i : i + window, j : j + window] += 1
    return found


def _batched(places: Sequence[Corner], batch: int) -> Iterator[Sequence[Corner]]:
    for start in range(0, len(places), batch):
        yield places[start : start + batch]


def decode_bands(
    decode: Decode,
    latent: Tensor,
    *,
    window: int | tuple[int, int],
    stride: int,
    factor: int,
    sigma: float = 0.8,
    batch: int = 4,
) -> Iterator[Tensor]:
    """Yield bands of the decoded picture from the top, (channels, rows, W * factor) in [-1, 1].

    Windows (a side, or height and width) of `latent` (1, C, H, W), `stride` apart or their own side where that is
    less, are decoded by themselves and blended by `blend_kernel`; a band is given as soon as no further window
    reaches it, so memory is that of one row of windows, whatever the height.
    """
    height, width = latent.shape[-2:]
    tall, wide = (window, window) if isinstance(window, int) else window
    rows, columns = starts(height, tall, min(stride, tall)), starts(width, wide, min(stride, wide))
    kernel = blend_kernel(tall * factor, sigma, wide * factor)
    total: Tensor | None = None
    weight = torch.zeros(tall * factor, width * factor)
    for index, i in enumerate(rows):
        for some in _batched([(i, j) for j in columns], batch):
            pictures = decode(torch.cat([latent[:, :, i : i + tall, j : j + wide] for _, j in some])).float().cpu()
            if total is None:
                total = torch.zeros(pictures.shape[1], tall * factor, width * factor)
            for (_, j), picture in zip(some, pictures, strict=True):
                across = slice(j * factor, (j + wide) * factor)
                total[:, :, across] += picture * kernel
                weight[:, across] += kernel
        assert total is not None
        done = ((rows[index + 1] if index + 1 < len(rows) else i + tall) - i) * factor
        yield (total[:, :done] / weight[:done]).clamp(-1, 1)
        total = torch.cat([total[:, done:], torch.zeros_like(total[:, :done])], 1)
        weight = torch.cat([weight[done:], torch.zeros_like(weight[:done])])


def slerp(a: Tensor, b: Tensor, share: Tensor, threshold: float = 0.9995) -> Tensor:
    """Return (n, C) between vectors a and b (n, C) at shares (n,), along the arc; nearly parallel ones along the line.

    The angle is that of the directions; lengths are not normalised (Graikos et al., supplement).
    """
    share = share[:, None].to(a)
    cosine = torch.cosine_similarity(a, b, dim=1)[:, None]
    angle = cosine.clamp(-1, 1).arccos()
    arc = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return torch.where(cosine.abs() > threshold, (1 - share) * a + share * b, arc)


def between_cells(grid: Tensor, places: Sequence[Corner] | Tensor, cell: int, threshold: float = 0.9995) -> Tensor:
    """Return (n, C), the embeddings of windows that begin at `places` (n of row, column), of a grid (R, C', C).

    A grid's embedding stands for the window at the corner of its cell of `cell` pixels; between them it is interpolated
    on the sphere, columns first. The last row and column are repeated.
    """
    at = torch.as_tensor(places, device=grid.device)
    first = torch.div(at, cell, rounding_mode="floor")
    share = (at / cell - first).to(grid)
    most = torch.tensor(grid.shape[:2], device=grid.device) - 1
    row, column = first.clamp_max(most).unbind(1)
    below, right = (first + 1).clamp_max(most).unbind(1)
    upper = slerp(grid[row, column], grid[row, right], share[:, 1], threshold)
    lower = slerp(grid[below, column], grid[below, right], share[:, 1], threshold)
    return slerp(upper, lower, share[:, 0], threshold)


def cells_under(grid: Tensor, places: Sequence[Corner], cell: int, side: int) -> Tensor:
    """Return (n, side * side, C), the embeddings of the cells from each window's corner on, row by row (PixCell).

    `grid`: (R, C', C), one embedding a cell of `cell` latents; a window that begins inside a cell counts from that
    cell. The last row and column are repeated where a window reaches beyond the grid.
    """
    found = []
    for i, j in places:
        rows = torch.arange(i // cell, i // cell + side, device=grid.device).clamp_max(grid.shape[0] - 1)
        columns = torch.arange(j // cell, j // cell + side, device=grid.device).clamp_max(grid.shape[1] - 1)
        found.append(grid[rows][:, columns].flatten(0, 1))
    return torch.stack(found)
