"""What a run tells: metrics.csv, loggers, and one line of progress."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.training import checkpoint


class Terms:
    """Named numbers of the steps since the last row: their means, and a watch for numbers that are none.

    Reading a number off an accelerator waits for it, so there they are read every `every` batches; a bad one is still
    told with its own batch.
    """

    def __init__(self, every: int = 1, patience: int = 0) -> None:
        self.every, self.patience = every, patience
        self.waiting: list[tuple[int, dict[str, float], dict[str, Tensor | float]]] = []
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.bad = 0
        self.failure: str | None = None
        """What is wrong with a loss that is no number; the run stops for it."""

    def add(self, batch: int, rates: dict[str, float], terms: Mapping[str, Tensor | float]) -> None:
        """Take the numbers of one batch."""
        self.waiting.append((batch, rates, dict(terms)))
        if len(self.waiting) >= self.every:
            self.read()

    def read(self) -> None:
        """Read what waits."""
        waiting, self.waiting = self.waiting, []
        tensors = [v.float().reshape(()) for _, _, terms in waiting for v in terms.values() if isinstance(v, Tensor)]
        values = iter(torch.stack(tensors).tolist() if tensors else [])
        for batch, rates, terms in waiting:
            numbers = {k: next(values) if isinstance(v, Tensor) else float(v) for k, v in terms.items()}
            wrong = {k: v for k, v in numbers.items() if not math.isfinite(v)}
            self.bad = self.bad + 1 if wrong else 0
            if self.bad > self.patience and self.failure is None:
                self.failure = explain(batch, rates, numbers)
            for name, value in numbers.items():
                if math.isfinite(value):
                    self.sums[name] = self.sums.get(name, 0.0) + value
                    self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return this process's means since the last call of `take`."""
        return {name: self.sums[name] / self.counts[name] for name in self.sums}

    def take(self, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """Return the means over all processes since the last call, and begin anew."""
        self.read()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for own_sums, own_counts in gather((self.sums, self.counts)):
            for name, value in own_sums.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + own_counts[name]
        self.sums, self.counts = {}, {}
        return {name: value / counts[name] for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        """Return plain values that `load` takes back."""
        return {"sums": self.sums, "counts": self.counts, "bad": self.bad}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.sums, self.counts, self.bad = dict(state["sums"]), dict(state["counts"]), state["bad"]


def explain(batch: int, rates: Mapping[str, float], numbers: Mapping[str, float]) -> str:
    """Return the message of a run that stops because a loss is no number."""
    wrong = [f"{k} = {v}" for k, v in numbers.items() if not math.isfinite(v)]
    fine = [f"{k} = {v:.4g}" for k, v in numbers.items() if math.isfinite(v)]
    rate = ", ".join(f"{v:.3g} ({k})" for k, v in rates.items())
    return (
        f"training stopped: {', '.join(wrong)} in batch {batch} (learning rate {rate}; "
        f"{'other terms: ' + ', '.join(fine) if fine else 'no other term was finite'}). Expected finite losses. "
        "Try a smaller learning rate, train.clip=1, a longer warm-up or train.precision=32; where it is batch 0, look "
        "at the data: zoo data check NAME. The last checkpoint is as it was before."
    )


class Table:
    """metrics.csv: one row a call, flushed; a new column rewrites the file."""

    FIRST = ("stage", "epoch", "batch", "seconds")

    def __init__(self, path: Path, after: int | None = None) -> None:
        """`after`: drop rows of batches beyond this one (they will be done again); None = a new file."""
        self.path = path
        self.columns: list[str] = list(self.FIRST)
        self.rows: list[dict[str, str]] = []
        if after is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.FIRST)
                self.rows = [row for row in reader if row.get("seconds") and int(row["batch"]) <= after]
        self._rewrite()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row; absent columns stay empty."""
        values = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(values)
        new = [k for k in values if k not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(values)

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        checkpoint.write_bytes(self.path, text.getvalue().encode())


def loggers(names: tuple[str, ...], folder: Path, run: str, values: dict[str, Any]) -> list[Any]:
    """Return Lightning loggers by name, told the recipe. Raises `UserError` where one is not installed."""
    found: list[Any] = []
    for name in names:
        try:
            found.append(_logger(name, folder, run))
        except (ModuleNotFoundError, ImportError) as error:
            raise UserError(
                f'train.loggers: "{name}" is not installed ({error.name or error}). '
                f"Install it: pip install histozoo[{name}]"
            ) from None
        found[-1].log_hyperparams(values)
    return found


def _logger(name: str, folder: Path, run: str) -> Any:
    if name == "tensorboard":
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(root_dir=folder, name="tensorboard", version="")
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(name=run, save_dir=str(folder))
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(experiment_name=run, tracking_uri=(folder / "mlflow").absolute().as_uri())


class Progress:
    """One tidy line on a terminal; elsewhere a plain line an epoch (and one a minute within it)."""

    def __init__(self, show: bool, stream: TextIO | None = None) -> None:
        self.show = show
        self.stream = stream or sys.stderr
        self.terminal = show and self.stream.isatty()
        self.drawn = 0.0
        self.width = 0
        self.begun = time.monotonic()
        self.done_before = 0

    def start(self, done: int) -> None:
        """Begin timing an epoch of which `done` batches are already done."""
        self.begun, self.done_before = time.monotonic(), done
        self.drawn = self.begun if not self.terminal else 0.0

    def step(self, title: str, done: int, total: int, numbers: Mapping[str, float], unit: str = "batch") -> None:
        """Tell the state after a batch, or another unit of work; costs nothing between redraws."""
        now = time.monotonic()
        if not self.show or now - self.drawn < (0.2 if self.terminal else 60.0):
            return
        self.drawn = now
        rate = (done - self.done_before) / max(1e-9, now - self.begun)
        left = clock((total - done) / rate) if rate > 0 else "?"
        parts = [f"{title}  {done}/{total}", f"{rate:.3g} {unit}/s", f"{left} left", *_numbers(numbers)]
        self._line(fit(parts), keep=not self.terminal)

    def line(self, text: str) -> None:
        """Tell something that stays."""
        if self.show:
            self._line(text, keep=True)

    def _line(self, text: str, keep: bool) -> None:
        if self.terminal:
            self.stream.write("\r" + text.ljust(self.width) + ("\n" if keep else ""))
            self.width = 0 if keep else len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def _numbers(numbers: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in numbers.items()]


def fit(parts: list[str], width: int = 79) -> str:
    """Return as many of the parts as one line of a terminal holds."""
    line = ""
    for part in parts:
        joined = f"{line}  {part}" if line else part
        if len(joined) > width:
            break
        line = joined
    return line


def clock(seconds: float) -> str:
    """Return a duration in words: 12 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
