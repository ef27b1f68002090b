"""How the published prediction cuts an image for its network, and a large image for the whole of its prediction.

Tiles: equal sizes, neighbours overlapping by the network's receptive field, each result written once. Blocks: fixed
stride with an overlap in which objects may end and a context that only the network sees. All numbers are pixels;
ranges are (begin, end).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Range = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """One tile: `read` of the image; of what comes back `inner` is written to `write`; a range an axis each."""

    read: tuple[Range, ...]
    inner: tuple[Range, ...]
    write: tuple[Range, ...]


def tile_axis(size: int, count: int, step: int, overlap: int) -> list[tuple[Range, Range, Range]]:
    """Return (read, inner, write) of each tile along an axis of `size` pixels, a multiple of `step`.

    About `count` tiles whose sizes are multiples of `step`; neighbours overlap by `overlap` steps on each side.
    """
    total = size // step
    smallest = 2 * overlap + 1

    def tiles(length: int) -> int:
        if length >= total:
            return 1
        return math.ceil((total - 2 * overlap) / (length - 2 * overlap))

    length = next((n for n in range(smallest, total + 1) if tiles(n) <= count), total)
    if length > smallest:
        fewer, more = tiles(length), tiles(length - 1)
        if abs(more - count) <= abs(fewer - count):
            length -= 1
    if length >= total or count == 1:
        whole = (0, size)
        return [(whole, whole, whole)]
    found: list[Any] = []
    stride, number = length - 2 * overlap, tiles(length)
    for i in range(number):
        begin = min(i * stride, total - length)
        first = 0 if i == 0 else found_end(found, step)
        last = total if i == number - 1 else begin + length - overlap
        ranges = ((begin, begin + length), (first - begin, last - begin), (first, last))
        found.append(tuple((a * step, b * step) for a, b in ranges))
    return found


def found_end(found: Sequence[Any], step: int) -> int:
    """Return where the last tile's written part ends, in steps."""
    return int(found[-1][2][1]) // step


def tiles(shape: Sequence[int], counts: Sequence[int], steps: Sequence[int], overlaps: Sequence[int]) -> Iterator[Tile]:
    """Yield the tiles of an image, the last axis fastest; `overlaps` in steps."""
    axes = [tile_axis(*values) for values in zip(shape, counts, steps, overlaps, strict=True)]
    for parts in itertools.product(*axes):
        read, inner, write = zip(*parts, strict=True)
        yield Tile(read, inner, write)


@dataclass(frozen=True)
class Block:
    """One block along an axis: `read`, of it `write` (both of the image), and `crop`, what of the block that is."""

    read: Range
    write: Range
    crop: Range


def cover_axis(size: int, block: int, overlap: int, context: int, grid: int) -> list[Block]:
    """Return the blocks along an axis of `size` pixels.

    `block`, `overlap`, `context` are raised to multiples of `grid`; a block must be longer than overlap and two
    contexts. Raises `ValueError` where it is not.
    """
    unit = [math.ceil(v / grid) for v in (block, overlap, context)]
    length, least, around = unit
    total = math.ceil(size / grid)
    if least + 2 * around >= length:
        raise ValueError(f"blocks of {block} cannot hold an overlap of {overlap} and a context of {context} a side")
    if length >= total:
        return [Block((0, size), (0, size), (0, size))]
    stride = length - (least + 2 * around)
    strides = [stride] * math.ceil((total - length) / stride)
    excess = sum(strides) + length - total
    for i in itertools.islice(itertools.cycle(range(len(strides))), excess):
        strides[i] -= 1
    begins = [0, *itertools.accumulate(strides)]
    before = [0] + [around] * (len(begins) - 1)
    after = [around] * (len(begins) - 1) + [0]
    for i in range(len(begins) - 2):  # a block must not write into what the one after the next writes
        ends = begins[i] + length - after[i]
        wide = ends - (begins[i + 2] + before[i + 2])
        if wide > 0:
            after[i] += wide // 2
            before[i + 2] += wide - wide // 2
    found = []
    for begin, left, right in zip(begins, before, after, strict=True):
        read = (begin * grid, min((begin + length) * grid, size))
        end = read[1] if right == 0 else (begin + length - right) * grid
        write = ((begin + left) * grid, end)
        found.append(Block(read, write, (write[0] - read[0], write[1] - read[0])))
    return found


def cover(
    shape: Sequence[int],
    block: Sequence[int],
    overlap: Sequence[int],
    context: Sequence[int],
    grid: Sequence[int],
) -> list[tuple[Block, ...]]:
    """Return the blocks of an image, one `Block` an axis, the last axis fastest."""
    axes = [cover_axis(*values) for values in zip(shape, block, overlap, context, grid, strict=True)]
    return list(itertools.product(*axes))


# --- the network on tiles ---------------------------------------------------------------------------------------------

Run = Callable[[Tensor], dict[str, Tensor]]


def tiled(
    run: Run,
    image: Tensor,
    grid: Sequence[int],
    divisor: Sequence[int],
    counts: Sequence[int],
    overlap: Sequence[int],
) -> dict[str, Tensor]:
    """Return the maps of (1, C, *S), S multiples of `divisor`, computed on tiles; `overlap` in pixels."""
    found: dict[str, Tensor] = {}
    shape = image.shape[2:]
    steps = [math.ceil(o / d) for o, d in zip(overlap, divisor, strict=True)]
    for tile in tiles(shape, counts, divisor, steps):
        read: Any = (..., *(slice(*r) for r in tile.read))
        inner: Any = (..., *(slice(a // g, b // g) for (a, b), g in zip(tile.inner, grid, strict=True)))
        write: Any = (..., *(slice(a // g, b // g) for (a, b), g in zip(tile.write, grid, strict=True)))
        maps = run(image[read])
        for name, value in maps.items():
            if name not in found:
                size = [n // g for n, g in zip(shape, grid, strict=True)]
                found[name] = value.new_zeros((*value.shape[:2], *size))
            found[name][write] = value[inner]
    return found


def receptive_field(run: Run, channels: int, grid: Sequence[int], size: int | None = None) -> tuple[int, ...]:
    """Return how many pixels away along each axis an input changes `prob`: measured with an impulse.

    `size`: side of the test image in grid points (None: 128 in 2-D, 64 in 3-D).
    """
    dims = len(grid)
    side = size or (128 if dims == 2 else 64)
    shape = [side * g for g in grid]
    middle = [n // 2 for n in shape]
    blank = torch.zeros(1, channels, *shape)
    impulse = blank.clone()
    where: Any = (0, slice(None), *middle)
    impulse[where] = 1
    with torch.inference_mode():
        changed: NDArray[Any] = (run(impulse)["prob"] != run(blank)["prob"])[0, 0].numpy()
    if not changed.any():
        return (0,) * dims
    return tuple(
        int(max(abs(int(places.min()) * g - m), abs(int(places.max()) * g - m)))
        for places, g, m in zip(np.nonzero(changed), grid, middle, strict=True)
    )
