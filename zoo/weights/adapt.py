"""Making weights fit a module with other input channels or other classes: only where a user asks for it.

Nothing here knows a model. Input: entries that differ in their second axis only, from the old number of channels to the
new one. Classes: entries that differ in their first axis only. Everything else that differs stays an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import UserError
from zoo.weights.tensors import Change, Make

if TYPE_CHECKING:
    from torch import Tensor

Adapt = Literal["none", "input", "classes", "both"]
RGB = ("red", "green", "blue")
"""What three channels are where a file does not name them."""
KINDS = ("none", "input", "classes", "both")


def change(adapt: str, old: Mapping[str, Any], new: Mapping[str, Any], notes: list[str]) -> Change:
    """Return what `load_file` asks for entries that differ; `notes` gets a line for each that was made to fit.

    `old`, `new`: the options of the file and of the module; their `channels` and `classes`, where they have them, say
    which slices mean the same. Raises `UserError` for an unknown word.
    """
    if adapt not in KINDS:
        raise UserError(f'zoo.load: adapt: "{adapt}" is not one of {", ".join(KINDS)}.')

    def changed(own: Mapping[str, Tensor], shapes: Mapping[str, Any], _meta: Mapping[str, str]) -> dict[str, Make]:
        found: dict[str, Make] = {}
        for name, value in own.items():
            ours, theirs = tuple(value.shape), tuple(shapes[name].shape) if name in shapes else ()
            if ours == theirs or len(ours) != len(theirs):
                continue
            same = [a == b for a, b in zip(ours, theirs, strict=True)]
            if adapt in ("input", "both") and len(ours) > 2 and same.count(False) == 1 and not same[1]:
                found[name] = _input(_names(old, "channels"), _names(new, "channels"))
                notes.append(f"{name}: spread from {theirs[1]} to {ours[1]} input channels")
            elif adapt in ("classes", "both") and same.count(False) == 1 and not same[0]:
                rows = _rows(_names(old, "classes"), _names(new, "classes"), theirs[0], ours[0])
                found[name] = _classes(rows)
                notes.append(f"{name}: {len(rows)} of {ours[0]} rows kept, the others start anew")
        return found

    return changed


def _names(options: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = options.get(key)
    return tuple(map(str, found)) if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _input(known: Sequence[str], new: Sequence[str]) -> Make:
    """Channels of one name keep their slice, a new one gets the mean of the old ones; without names in common, the
    slices are repeated in turn and scaled so that a grey image gives the same response (as timm does; one channel is
    the sum)."""

    def make(own: Tensor, given: Tensor) -> Tensor:
        count, before = own.shape[1], given.shape[1]
        old = known or (RGB if before == 3 else ())
        if len(old) == before and len(new) == count and set(old) & set(new):
            mean = given.mean(1)
            slices = [given[:, old.index(name)] if name in old else mean for name in new]
        else:
            slices = [given[:, i % before] * (before / count) for i in range(count)]
            if count == 1:
                slices = [given.sum(1)]
        result = own.clone()
        for i, one in enumerate(slices):
            result[:, i] = one
        return result

    return make


def _rows(old: Sequence[str], new: Sequence[str], before: int, now: int) -> dict[int, int]:
    """Return row of the module -> row of the file of the classes that both have.

    Rows are the classes, or the classes but the background (one row for two classes), or the classes and as many rows
    more in both (boundaries). Where the counts fit none of these, no row is known to mean the same.
    """
    for more in (0, 1, 2):
        ours = next((list(new[s:]) for s in (0, 1) if len(new[s:]) + more == now), None)
        theirs = next((list(old[s:]) for s in (0, 1) if len(old[s:]) + more == before), None)
        if ours and theirs:
            kept = {ours.index(name): theirs.index(name) for name in ours if name in theirs}
            return kept | {len(ours) + i: len(theirs) + i for i in range(more)}
    return {}


def _classes(rows: Mapping[int, int]) -> Make:
    def make(own: Tensor, given: Tensor) -> Tensor:
        result = own.clone()
        for ours, theirs in rows.items():
            result[ours] = given[theirs]
        return result

    return make
