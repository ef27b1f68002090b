"""The numbers of encoders as tables: for a page, for a terminal, for machines."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NEIGHBOURS = 11
"""Neighbours of the k-NN probe and of the robustness index: PathoROB's for Camelyon."""


@dataclass(frozen=True)
class Score:
    """A number of an encoder on a dataset; `low`, `high` of its 95 % interval over groups, None where there is none."""

    encoder: str
    dataset: str
    measure: str
    value: float
    low: float | None
    high: float | None
    images: int
    groups: int
    note: str = ""


@dataclass
class Probed:
    """What was found: scores, a record an image, images that failed."""

    out: Path
    scores: list[Score] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Return the exit status."""
        return 1 if self.failures else 0


def write(found: Probed) -> None:
    values = {"kind": "encoders", "scores": [asdict(s) for s in found.scores], "failures": found.failures}
    (found.out / "results.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (found.out / "table.md").write_text(markdown(found), encoding="utf-8")
    if found.images:
        with (found.out / "per_image.csv").open("w", newline="", encoding="utf-8") as file:
            names = list(dict.fromkeys(key for row in found.images for key in row))
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(found.images)


NAMES = {
    "knn": f"k-NN (k = {NEIGHBOURS}), balanced accuracy",
    "linear": "linear probe, balanced accuracy",
    "robustness_index": f"robustness index (k = {NEIGHBOURS})",
}


def rows_of(found: Probed) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return dataset -> (head, rows) of its table, best linear probe (or else first measure) first."""
    tables: dict[str, tuple[list[str], list[list[str]]]] = {}
    for dataset in dict.fromkeys(s.dataset for s in found.scores):
        own = [s for s in found.scores if s.dataset == dataset]
        present = [m for m in NAMES if any(s.measure == m for s in own)]
        at = {(s.encoder, s.measure): s for s in own}
        first = "linear" if "linear" in present else present[0]
        order = sorted(dict.fromkeys(s.encoder for s in own), key=lambda e: -at[e, first].value)
        rows = [[encoder, *(_cell(at.get((encoder, m))) for m in present)] for encoder in order]
        tables[dataset] = (["encoder", *present], rows)
    return tables


def _cell(score: Score | None) -> str:
    if score is None or not np.isfinite(score.value):
        return ""
    between = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f})"
    return f"{score.value:.3f}{between}"


def markdown(found: Probed) -> str:
    """Return the tables for a page."""
    parts = ["# Encoders\n"]
    for dataset, (head, rows) in rows_of(found).items():
        size = next(s for s in found.scores if s.dataset == dataset)
        parts.append(f"## {dataset}: {size.images} images, {size.groups} groups\n")
        named_ = [NAMES.get(h, h) for h in head]
        parts.append("| " + " | ".join(named_) + " |\n|" + "---|" * len(head))
        parts += ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("")
    random = sorted({s.encoder for s in found.scores if s.encoder.endswith(":none")})
    if random:
        parts.append(f"Random weights, not pretrained: {', '.join(random)}.\n")
    parts.append("In brackets: 95 % of 1000 resamples of whole groups (the same for every encoder).\n")
    return "\n".join(parts)


def terminal(found: Probed) -> str:
    """Return the tables for 80 columns."""
    parts = []
    for dataset, (head, rows) in rows_of(found).items():
        size = next(s for s in found.scores if s.dataset == dataset)
        parts.append(f"{dataset}: {size.images} images, {size.groups} groups")
        for measure in range(1, len(head)):
            parts.append(f"  {NAMES.get(head[measure], head[measure])}")
            parts += [f"    {row[0]:<40.40}  {row[measure]}" for row in rows]
    random = sorted({s.encoder for s in found.scores if s.encoder.endswith(":none")})
    if random:
        parts.append(f"random weights, not pretrained: {', '.join(random)}")
    parts += [f"failed: {f['error']}" for f in found.failures]
    return "\n".join(parts)
