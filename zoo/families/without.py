"""Weights given away without the tensors of an encoder whose licence forbids giving them away.

The file holds the rest (decoder, low-rank changes), names what was left out, and keeps its SHA-256. `build.load` builds
the encoder from the weights that the user has pulled, and refuses others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError
from zoo.weights import store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.families.base import Family

KEY = "left_out"
"""Name of the entry in a file's metadata."""


@dataclass(frozen=True)
class Left:
    """What was left out: `encoders`, the names; `entries` of the module's state; the SHA-256 of those tensors."""

    encoders: tuple[str, ...]
    entries: tuple[str, ...]
    sha256: str

    def plain(self) -> dict[str, Any]:
        """Return plain values for a file's metadata."""
        return {"encoders": list(self.encoders), "entries": list(self.entries), "sha256": self.sha256}


def read(meta: Mapping[str, str]) -> Left | None:
    """Return what a file of weights says was left out; None where nothing was."""
    if KEY not in meta:
        return None
    said = json.loads(meta[KEY])
    return Left(tuple(said["encoders"]), tuple(said["entries"]), said["sha256"])


# --- which encoders ---------------------------------------------------------------------------------------------------


def places(options: Any, random: bool = False) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield (mapping, key, foundation encoder) of each place in options that names its weights.

    Those that are none, an encoder drawn at random, only where `random`.
    """
    from zoo.encoders import foundation

    if isinstance(options, list):
        for part in options:
            yield from places(part, random)
    if not isinstance(options, dict):
        return
    for key, value in options.items():
        name = value.get("name") if isinstance(value, dict) else value
        if key.endswith("encoder") and isinstance(name, str) and name in foundation.TABLE:
            inner = value.get("arguments") or {} if isinstance(value, dict) else {}
            for mapping, said in ((options, f"{key}_weights"), (inner, "weights")):
                if mapping.get(said, "none") != "none" or (random and said in mapping):
                    yield mapping, said, name
        yield from places(value, random)


def forbidden(name: str, use: str) -> bool:
    """Return whether the licence of a foundation encoder's weights does not allow a use."""
    from zoo.encoders import foundation

    return use not in store.card(foundation.TABLE[name].card).licence.weights.allows


def published(options: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """Return options in which the encoders of those names have their published weights, wherever theirs came from."""
    found: dict[str, Any] = json.loads(json.dumps(options))
    for mapping, key, name in list(places(found, random=True)):
        if name in names:
            mapping[key] = "published"
    return found


# --- leaving out ------------------------------------------------------------------------------------------------------


def plan(family: Family, meta: Mapping[str, str]) -> Left | None:
    """Return what must not be in a file of these weights that is given away; None where nothing binds.

    `meta`: the metadata of the run's file, whose options say where the encoder's weights came from. They have to be on
    this machine. Raises `UserError` where they are not, or where an encoder was trained further and its licence allows
    no derivatives.
    """
    options = json.loads(meta.get("options", "{}"))
    started = bool(json.loads(meta.get("started_from", "[]")))  # then an encoder that says none may hold published ones
    names = {name for _, _, name in places(options, random=started) if forbidden(name, "redistribution")}
    if not names:
        return None
    fresh = type(family)(type(family).Options.model_validate(published(options, names)))
    own, original = family.state_dict(), fresh.state_dict()
    entries: list[str] = []
    for prefix, encoder in _encoders(fresh, names):
        inside = [n for n in original if n.startswith(f"{prefix}.")]
        equal = [n for n in inside if own[n].equal(original[n])]
        moved = set(inside) - set(equal) - _added(fresh, prefix)
        if moved and forbidden(encoder, "derivatives"):
            raise UserError(
                f"{len(moved)} tensors of the encoder {encoder} were trained further, and its licence "
                f"({_licence(encoder)}) lets nobody give those away. Expected tune: lora or frozen. Where its owner "
                "has agreed, add --with-permission"
            )
        entries += equal
    return Left(tuple(sorted(names)), tuple(entries), digest(own, entries))


def _encoders(family: nn.Module, names: Any) -> Iterator[tuple[str, str]]:
    from zoo.encoders.base import Encoder

    for prefix, module in family.named_modules():
        if isinstance(module, Encoder) and module.name in names:
            yield prefix, module.name


def _added(family: nn.Module, prefix: str) -> set[str]:
    """Return the names of what was added to an encoder: low-rank changes."""
    from zoo.nn.lora import LowRank

    return {
        f"{at}.{name}"
        for at, module in family.named_modules()
        if isinstance(module, LowRank) and at.startswith(prefix)
        for name, _ in module.named_parameters(recurse=False)
    }


def _licence(name: str) -> str:
    from zoo.encoders import foundation

    return store.card(foundation.TABLE[name].card).licence.weights.name


def digest(state: Mapping[str, Tensor], names: Any) -> str:
    """Return the SHA-256 of the names and bytes of some tensors."""
    import torch

    found = hashlib.sha256()
    for name in sorted(names):
        value = state[name].detach().cpu().contiguous()
        found.update(name.encode())
        if value.numel():
            found.update(value.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save(left: Left, family: Family, path: Path, meta: Mapping[str, str], *, half: bool, **more: Any) -> None:
    """Write a file of weights without what is left out; its options ask for the published encoder."""
    from zoo.families import build

    state = {k: v for k, v in family.state_dict().items() if k not in set(left.entries)}
    build.save(family, path, half=half, state=state, **more, **{KEY: left.plain()})
    options = published(json.loads(meta["options"]), left.encoders)
    build.with_options(path, type(family).Options.model_validate(options))


def how(left: Left) -> str:
    """Return a sentence about what a file lacks and where it comes from."""
    from zoo.encoders import foundation

    names = " and ".join(f"{name} ({_licence(name)})" for name in left.encoders)
    pulls = ", ".join(f"zoo weights pull {foundation.TABLE[name].card}" for name in left.encoders)
    return f"Holds no tensors of the encoder {names}. Pull it first: {pulls}"


# --- filling in -------------------------------------------------------------------------------------------------------


def check(left: Left, family: Family, path: Path) -> None:
    """Raise `UserError` where the encoder that was filled in is not the one that the weights were trained on."""
    if digest(family.state_dict(), left.entries) != left.sha256:
        raise UserError(
            f"{path}: it was trained on other weights of {', '.join(left.encoders)} than those on this machine. "
            f"{how(left)}, the same revision."
        )
