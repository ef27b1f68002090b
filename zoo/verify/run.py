"""Answering published cases with this build, and comparing."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.cases import Answer, Case, LayoutError
from zoo.errors import ZooError, suggest
from zoo.verify.read import Published, read

if TYPE_CHECKING:
    from torch import Tensor

LAYOUT = "state_dict"
"""Name of the error of a case without tensors: the share of its entries that differ in name or shape."""
SMALLEST = 1e-3
"""Norm below which an expected output counts as this large."""


@dataclass(frozen=True)
class Report:
    """How one case went: relative error of each output (inf = not computed, or of another shape), and a note."""

    case: str
    ok: bool
    errors: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def as_values(self) -> dict[str, Any]:
        """Return the report for JSON, in which an error that is no number is null."""
        errors = {name: value if math.isfinite(value) else None for name, value in self.errors.items()}
        return {"case": self.case, "ok": self.ok, "errors": errors, "note": self.note}

    def line(self) -> str:
        """Return one line: the output that is furthest beyond (or closest to) its tolerance."""
        start = f"{'ok  ' if self.ok else 'FAIL'}  {self.case}"
        if not self.errors:
            return f"{start}: {self.note}" if self.note else start
        worst = max(self.errors, key=lambda name: _excess(self.errors[name], self.limits.get(name, 0.0)))
        text = f"{start}: {worst} {self.errors[worst]:.1e} (tolerance {self.limits.get(worst, 0.0):.0e})"
        return f"{text}; {self.note}" if self.note else text


def _excess(error: float, limit: float) -> float:
    if error == 0:
        return 0.0
    return error / limit if limit > 0 else math.inf


def verify(name: str, manifest: Path) -> Report:
    """Return how this build answers one case. Whatever goes wrong becomes a note: never an exception.

    What libraries print meanwhile goes to standard error, so that standard output is the caller's alone.
    """
    try:
        with _quiet():
            published = read(name, manifest)
            return _compare(published, answer(published.case))
    except LayoutError as error:
        return Report(name, False, {LAYOUT: error.wrong / max(error.total, 1)}, {LAYOUT: 0.0}, str(error))
    except ZooError as error:
        return Report(name, False, note=" ".join(str(error).split()))
    except Exception as error:  # a part that falls over says so here; the other cases go on
        first = (str(error).strip() or "no message").splitlines()[0]
        return Report(name, False, note=f"{type(error).__name__}: {first}")


def answer(case: Case) -> dict[str, Any]:
    """Return what this build computes for a case: output name (without `out.`) -> value.

    Raises `zoo.errors.ZooError` where the build has no part for it.
    """
    known = registry.table("cases")
    name = f"{case.system}/{case.kind}" if f"{case.system}/{case.kind}" in known else case.system
    if name not in known:
        near = suggest(case.system, {key.split("/")[0] for key in known})
        raise ZooError(f'this build has no system "{case.system}". {near}'.strip())
    part: Answer = registry.get("cases", name)
    return dict(part(case))


def _compare(published: Published, outputs: Mapping[str, Any]) -> Report:
    case = published.case
    untouched = [key for key in case.manifest.get("state_dict") or {} if key not in case.taken]
    if untouched:
        more = f" and {len(untouched) - 1} more" if len(untouched) > 1 else ""
        return Report(case.name, False, note=f"the build made no use of {untouched[0]}{more} of the state dict")
    if case.layout_only:
        return Report(case.name, True, {LAYOUT: 0.0}, {LAYOUT: 0.0})
    errors, limits, notes = {}, {}, []
    for key, expected in published.expected.items():
        limits[key] = tolerance(case.manifest, key, expected)
        errors[key], note = compare(expected, outputs.get(key.removeprefix("out.")))
        if note:
            notes.append(f"{key}: {note}")
    ok = all(errors[key] <= limits[key] for key in errors)
    return Report(case.name, ok, errors, limits, "; ".join(notes[:3]))


def tolerance(manifest: Mapping[str, Any], key: str, expected: Tensor) -> float:
    """Return the relative error that an output may have: its own, else that of integers (0), else the default."""
    said: Mapping[str, float] = manifest.get("tolerance") or {}
    if key in said:
        return float(said[key])
    if not (expected.is_floating_point() or expected.is_complex()):
        return float(said.get("integer", 0))
    return float(said.get("default", 0))


def compare(expected: Tensor, actual: Any) -> tuple[float, str]:
    """Return ||actual - expected|| / max(||expected||, 1e-3) in float64, inf with a note where there is none."""
    import torch

    if actual is None:
        return math.inf, "not computed"
    given = torch.as_tensor(actual).detach().cpu()
    if given.shape != expected.shape:
        return math.inf, f"shape {tuple(given.shape)} where {tuple(expected.shape)} was published"
    want, got = expected.double(), given.double()
    error = float((got - want).norm() / want.norm().clamp_min(SMALLEST))
    return (error, "") if math.isfinite(error) else (math.inf, "not a number")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what Python and compiled libraries print to standard output to standard error instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
