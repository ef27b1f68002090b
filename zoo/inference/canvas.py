"""Pictures larger than the network's, denoised in windows that agree in every step; memory is that of a row of windows.

Source: Graikos et al., CVPR 2024, section 3.3: in each step every window is denoised by itself, what they say of the
clean picture is averaged where they overlap, and one deterministic step (DDIM; Euler's where flow is predicted) is
taken with the average. Here the noisy picture lies in a file, rows one after another; a pass reads it from the top and
writes the next one; weights are those of `zoo.inference.windows`, whose sum is 1 everywhere. A pass that is finished is
never done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.families.diffusion import schedule as noise_schedule
from zoo.families.diffusion.assembly import decode_bands
from zoo.families.diffusion.family import Diffusion
from zoo.families.diffusion.schedule import Prediction, Schedule
from zoo.inference.windows import Plan
from zoo.paths import replacing

Floats = NDArray[np.float32]
Predict = Callable[[Tensor, Tensor, Sequence[tuple[int, int]]], Tensor]
"""(windows (n, C, w, w), times (n,), their corners) -> what the network predicts, guided: (n, C, w, w)."""
NOISE = 64
"""Rows of noise that are drawn together."""


@dataclass(frozen=True)
class Process:
    """How noise is taken away: schedule, what is predicted, steps; `clamp` keeps clean pixels within [-1, 1]."""

    schedule: Schedule
    prediction: Prediction
    steps: int
    clamp: bool

    def times(self) -> list[float]:
        """Return the time of each step, from the noisiest on; the last one ends at the clean picture."""
        total = self.schedule.steps
        if self.prediction == "flow":
            return [total * (1 - k / self.steps) for k in range(self.steps)]
        return [round(total - k * total / self.steps) - 1 for k in range(self.steps)]

    def shares(self, time: float) -> tuple[float, float]:
        """Return the factors of clean picture and noise at a time."""
        signal, share = self.schedule.signal_and_noise(
            torch.tensor([time], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), self.prediction
        )
        return float(signal), float(share)

    def clean(self, output: Tensor, x: Tensor, time: float) -> Tensor:
        """Return the clean windows that an output means."""
        t = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
        found = noise_schedule.clean_of(self.schedule, output, x, t, self.prediction)
        return found.clamp(-1, 1) if self.clamp else found

    def step(self, x: Floats, clean: Floats, number: int) -> Floats:
        """Return rows one step less noisy; after the last step they are clean."""
        times = self.times()
        if number + 1 == self.steps:
            return clean
        signal, share = self.shares(times[number])
        next_signal, next_share = self.shares(times[number + 1])
        return np.asarray(next_signal * clean + next_share / share * (x - signal * clean), np.float32)


class Canvas:
    """The noisy picture of (C, H, W) numbers in a folder of its own, a file a step.

    `plan`: windows over exactly (H, W). `identity`: what decides the picture; a folder of another one is begun anew.
    """

    def __init__(self, folder: Path, channels: int, plan: Plan, process: Process, seed: int, identity: str) -> None:
        self.folder, self.channels, self.plan, self.process = folder, channels, plan, process
        self.height, self.width = plan.rows.length, plan.columns.length
        self.seed = seed
        self.identity = hashlib.sha256(f"{identity} {channels} {plan} {process}".encode()).hexdigest()
        self.done = self._begun()

    def _begun(self) -> int:
        """Return the steps that an earlier run finished; make the folder, with noise in it, where there is none."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            size = self.file(state["done"]).stat().st_size
            if state["identity"] == self.identity and size == 4 * self.height * self.width * self.channels:
                return int(state["done"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        with self.file(0).open("wb") as file:
            for row in range(0, self.height, NOISE):
                digest = hashlib.sha256(f"{self.seed} {row}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                block = torch.randn(min(NOISE, self.height - row), self.width, self.channels, generator=generator)
                file.write(block.numpy().tobytes())
        self._note(0)
        return 0

    def file(self, step: int) -> Path:
        """Return the file of the picture after so many steps."""
        return self.folder / f"x-{step}.bin"

    def _note(self, done: int) -> None:
        with replacing(self.folder / "state.json") as file:
            file.write(json.dumps({"identity": self.identity, "done": done}).encode())

    def _read(self, file: Any, begin: int, end: int) -> Floats:
        row = 4 * self.width * self.channels
        file.seek(begin * row)
        return np.frombuffer(file.read((end - begin) * row), np.float32).reshape(end - begin, self.width, self.channels)

    def denoise(self, predict: Predict, batch: int, on_step: Callable[[int], None] | None = None) -> Iterator[Floats]:
        """Do what is left to do; yield the clean picture in bands (rows, W, C) from the top.

        Raises `OSError` where the disk is full: what is finished stays.
        """
        steps = self.process.steps
        for number in range(self.done, steps - 1):
            part = self.folder / "next.part"
            with part.open("wb") as file:
                for band in self._pass(number, predict, batch):
                    file.write(band.tobytes())
            part.replace(self.file(number + 1))
            self._note(number + 1)
            self.file(number).unlink()
            if on_step is not None:
                on_step(number + 1)
        yield from self._pass(steps - 1, predict, batch)
        if on_step is not None:
            on_step(steps)

    def _pass(self, number: int, predict: Predict, batch: int) -> Iterator[Floats]:
        """Yield the picture after one more step, in bands from the top."""
        rows, columns = self.plan.rows, self.plan.columns
        time = self.process.times()[number]
        with self.file(number).open("rb") as file:
            kept = np.zeros((0, self.width, self.channels), np.float32)  # sums of rows that later windows add to
            top = 0
            for index, y in enumerate(rows.starts):
                x = self._read(file, y, y + rows.tile)
                begin, end = rows.support(index)
                total = np.zeros((end - top, self.width, self.channels), np.float32)
                total[: len(kept)] = kept
                down = rows.weights(index)[:, None, None]
                for places, clean in self._windows(x, y, time, predict, batch):
                    for column, window in zip(places, clean, strict=True):
                        left, right = columns.support(column)
                        start = columns.starts[column]
                        across = columns.weights(column)[None, :, None]
                        inside = window[begin - y : end - y, left - start : right - start]
                        total[begin - top :, left:right] += inside * down * across
                ready = rows.support(index + 1)[0] if index + 1 < len(rows.starts) else self.height
                yield self.process.step(self._read(file, top, ready), total[: ready - top], number)
                kept, top = total[ready - top :], ready

    def _windows(
        self, x: Floats, y: int, time: float, predict: Predict, batch: int
    ) -> Iterator[tuple[list[int], Floats]]:
        """Yield the clean windows of one row of them, (n, w, w, C), and their numbers along the row."""
        starts = self.plan.columns.starts
        tile = self.plan.columns.tile
        for first in range(0, len(starts), batch):
            numbers = list(range(first, min(first + batch, len(starts))))
            stack = np.stack([x[:, starts[k] : starts[k] + tile] for k in numbers])
            tiles = torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
            times = torch.full((len(numbers),), time)
            output = predict(tiles, times, [(y, starts[k]) for k in numbers]).float().cpu()
            clean = self.process.clean(output, tiles, time)
            yield numbers, np.ascontiguousarray(clean.permute(0, 2, 3, 1).numpy())

    def remove(self) -> None:
        """Remove the folder, after the picture has been written elsewhere."""
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def decoded(family: Diffusion, tiles: Plan, stride: int, bands: Iterator[Floats]) -> Iterator[Floats]:
    """Yield the picture of latents that come in bands (rows, W, C): (rows, W * factor, 3), blended over windows.

    The latents of the whole are held, a small part of the picture's size.
    """
    latents = torch.from_numpy(np.concatenate(list(bands))).permute(2, 0, 1)[None]
    pictures = decode_bands(
        lambda z: family.pictures(z.to(family.device)),
        latents,
        window=(tiles.rows.tile, tiles.columns.tile),
        stride=stride,
        factor=family.factor,
    )
    for band in pictures:
        yield np.ascontiguousarray(band.permute(1, 2, 0).numpy())
