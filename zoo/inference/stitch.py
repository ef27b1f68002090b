"""From tiles to bands of stitched maps: one row of tiles in memory, whatever the picture's height."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.families.base import Family, Maps
from zoo.inference.source import ModelGrid
from zoo.inference.windows import Axis, Plan

Infer = Callable[[NDArray[Any], range], Maps]


@dataclass(frozen=True)
class Band:
    """Rows `begin` to `begin + h` of the output grid: name -> (1, C, h, W), activated and blended."""

    begin: int
    maps: Maps

    @property
    def end(self) -> int:
        """Return the row after the last."""
        return self.begin + int(next(iter(self.maps.values())).shape[2])


@dataclass(frozen=True)
class Runner:
    """Runs a family on tiles: encodes, infers, activates. Tile i draws its random numbers from (seed, i) alone."""

    family: Family
    seed: int = 0
    options: Any = None
    limits: Tensor | None = None

    def __call__(self, tiles: NDArray[Any], indices: range) -> Maps:
        """Return activated maps, name -> (B, C, h, w), of (B, h, w, C) pixels, whose numbers are `indices`."""
        device = self.family.device
        inputs = {"image": torch.from_numpy(tiles).to(device).permute(0, 3, 1, 2)}
        if self.limits is not None:
            inputs["range"] = self.limits.to(device).expand(len(tiles), -1, -1)
        options = self.options or {}
        prepared = self.family.prepare(inputs)
        if type(self.family).infer is Family.infer and not options:
            return self.family.activate(self.family.forward(prepared))
        parts = [
            self.family.infer({k: v[i : i + 1] for k, v in prepared.items()}, rng=self._rng(index), **options)
            for i, index in enumerate(indices)
        ]
        return self.family.activate({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _rng(self, index: int) -> torch.Generator:
        state = int(np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0])
        return torch.Generator(self.family.device).manual_seed(state & (2**63 - 1))


def stitched(
    infer: Infer, grid: ModelGrid, plan: Plan, batch: int, scales: Sequence[float] = (1.0, 1.0)
) -> Iterator[Band]:
    """Yield bands of maps from top to bottom; together they cover the picture once.

    `infer` gives activated maps of a batch of tiles. `scales`: output pixels per input pixel of each
    axis.
    """
    rows, columns = plan.rows.scaled(scales[0]), plan.columns.scaled(scales[1])
    carry: Maps = {}
    done = 0
    for index, start in enumerate(plan.rows.starts):
        pixels = grid.band(start, start + plan.rows.tile)
        row = _tile_row(infer, pixels, plan.columns, columns, rows, index, batch)
        begin = rows.support(index)[0]
        final = rows.support(index + 1)[0] if index + 1 < len(rows.starts) else rows.length
        weight = rows.weights(index)
        carry = {name: _blend_rows(part, carry.get(name), weight) for name, part in row.items()}
        assert begin == done
        if final > begin:
            yield Band(begin, {name: part[None, :, : final - begin] for name, part in carry.items()})
            carry = {name: part[:, final - begin :].clone() for name, part in carry.items()}
        done = final


def _blend_rows(row: Tensor, carry: Tensor | None, weight: NDArray[np.float32]) -> Tensor:
    """Weigh a row of tiles in place, and add what the rows above left behind at its top."""
    changing = np.flatnonzero(weight != 1)
    for part in np.split(changing, np.flatnonzero(np.diff(changing) != 1) + 1) if len(changing) else ():
        first, last = int(part[0]), int(part[-1]) + 1
        row[:, first:last] *= torch.from_numpy(weight[first:last]).to(row.device)[:, None]
    if carry is not None and carry.shape[1]:
        row[:, : carry.shape[1]] += carry
    return row


def _tile_row(
    infer: Infer, pixels: NDArray[Any], inputs: Axis, columns: Axis, rows: Axis, index: int, batch: int
) -> Maps:
    """Return name -> (C, rows that count, W) of one row of tiles, blended along the row only."""
    begin, end = rows.support(index)
    top = begin - rows.starts[index]
    count = len(inputs.starts)
    found: Maps = {}
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        tiles = np.stack([pixels[:, inputs.starts[n] : inputs.starts[n] + inputs.tile] for n in numbers])
        maps = infer(tiles, range(index * count + numbers.start, index * count + numbers.stop))
        for name, values in maps.items():
            if name not in found:
                shape = (values.shape[1], end - begin, columns.length)
                found[name] = torch.zeros(shape, dtype=torch.float32, device=values.device)
            for number, value in zip(numbers, values, strict=True):
                _add_tile(found[name], value[:, top : top + end - begin], columns, number)
    return found


def _add_tile(row: Tensor, tile: Tensor, columns: Axis, number: int) -> None:
    """Add the columns of a tile that count to its row; where it counts alone, that is a plain copy."""
    begin = columns.support(number)[0]
    shift = columns.starts[number]
    weight = columns.weights(number)
    whole = np.flatnonzero(weight == 1)
    left, right = (int(whole[0]), int(whole[-1]) + 1) if len(whole) else (len(weight), len(weight))
    row[..., begin + left : begin + right] = tile[..., begin + left - shift : begin + right - shift]
    for first, last in ((0, left), (right, len(weight))):
        if last > first:
            part = tile[..., begin + first - shift : begin + last - shift]
            row[..., begin + first : begin + last] += part * torch.from_numpy(weight[first:last]).to(row.device)
