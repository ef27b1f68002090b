"""Which weights are kept as the best, and when nothing gets better any more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from zoo.recipe import Train
from zoo.training.folder import RunFolder


class Best:
    """The best validations of a stage: `best.safetensors`, and with `keep` > 1 the best few in checkpoints/.

    Of equal ones the newest counts: where a validation has nothing to compare with, every one is equal.
    A file that has fallen out of the best few is removed only after a checkpoint that no longer counts on it.
    """

    def __init__(self, folder: RunFolder, train: Train, lower: bool) -> None:
        self.folder, self.keep, self.early, self.lower = folder, train.keep, train.early_stop, lower
        self.kept: list[tuple[float, int]] = []
        self.reference: float | None = None
        self.waited = 0

    @property
    def stopped(self) -> bool:
        """Return whether early stopping says that it is enough."""
        return self.early is not None and self.waited >= self.early.patience

    def _better(self, value: float, than: float | None, delta: float = 0.0) -> bool:
        if than is None or math.isnan(than):
            return not math.isnan(value)
        return value < than - delta if self.lower else value > than + delta

    def observe(self, value: float, epoch: int) -> list[Path]:
        """Take note of a validation and return the files that its weights are to be written to."""
        if self._better(value, self.reference, self.early.min_delta if self.early else 0.0):
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        if math.isnan(value):
            return []
        first = not self.kept or not self._better(self.kept[0][0], value)
        self.kept.append((value, epoch))
        self.kept.sort(key=lambda pair: (pair[0] if self.lower else -pair[0], -pair[1]))
        del self.kept[self.keep :]
        paths = [self.folder.best] if first else []
        if self.keep > 1 and (value, epoch) in self.kept:
            paths.append(self._path(epoch))
        return paths

    def _path(self, epoch: int) -> Path:
        return self.folder.checkpoints / f"best-{epoch:04d}.safetensors"

    def tidy(self) -> None:
        """Remove the files of epochs that are no longer among the best."""
        wanted = {self._path(epoch) for _, epoch in self.kept}
        for path in self.folder.checkpoints.glob("best-*.safetensors"):
            if path not in wanted:
                path.unlink()

    def state(self) -> dict[str, Any]:
        """Return plain values that `load` takes back."""
        return {"kept": [list(pair) for pair in self.kept], "reference": self.reference, "waited": self.waited}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.kept = [(float(value), int(epoch)) for value, epoch in state["kept"]]
        self.reference, self.waited = state["reference"], state["waited"]
