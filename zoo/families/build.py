"""From options or a file of weights to a module: `zoo.create` and `zoo.load`.

A file of weights is a safetensors file whose metadata holds what rebuilds the module and nothing that changes from run
to run: family, checked options, what it was trained on, operating points. No time, no path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from zoo import registry
from zoo.cards import DatasetCard
from zoo.data.stains import from_component, to_component
from zoo.errors import Problems, UserError
from zoo.families import without
from zoo.families.base import Family
from zoo.nn.lora import LowRank
from zoo.schema import Component, Document, problems_of
from zoo.weights import store
from zoo.weights.adapt import Adapt
from zoo.weights.adapt import change as adaptation
from zoo.weights.convert import FORMAT
from zoo.weights.convert import metadata as metadata_of


def checked(family: str, options: Mapping[str, Any], document: Document | None = None) -> tuple[type[Family], Any]:
    """Return the family's class and its checked options.

    `document` tells lines where the options come from a recipe (they stand under `model`). Raises `Problems`.
    """
    cls: type[Family] = registry.get("family", family)
    _weights_said(options)
    try:
        return cls, cls.Options.model_validate(dict(options))
    except ValidationError as error:
        if document is None:
            plain = Document({"model": dict(options)}, {(): (f"zoo.create({family!r})", 0)}, "")
            raise Problems(problems_of(cls.Options, error, plain, ("model",))) from None
        raise Problems(problems_of(cls.Options, error, document, ("model",))) from None


def _weights_said(options: Any) -> None:
    """Raise `UserError` where a foundation encoder is named and nothing says whether it is to be a random one."""
    from zoo.encoders import foundation

    if not isinstance(options, Mapping):
        return
    for key, value in options.items():
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)
        said = value.get("arguments") if isinstance(value, Mapping) else getattr(value, "arguments", None)
        weights = f"{key}_weights"
        named = key.endswith("encoder") and isinstance(name, str) and name in foundation.TABLE
        if named and weights not in options and "weights" not in (said or {}):
            raise UserError(
                f"{key}: {name}: no weights are said. Expected {weights}: published, a file, or none for random "
                f"ones. To have them: zoo weights pull {foundation.TABLE[str(name)].card}"
            )
        _weights_said(value)


def create(family: str, options: Mapping[str, Any], cards: Sequence[DatasetCard] = ()) -> Family:
    """Return an untrained module in evaluation mode; `cards` fill in what the options leave to the data."""
    cls, values = checked(family, options)
    try:
        return cls(cls.resolve(values, cards)).eval()
    except ValueError as error:
        raise UserError(f"zoo.create({family!r}): {error}") from None


def metadata(family: Family, **more: Any) -> dict[str, str]:
    """Return the metadata of a file of weights: strings only, as safetensors wants them."""
    options = family.options.model_dump(mode="json", by_alias=True)
    if not any(isinstance(part, LowRank) for part in family.modules()):
        options = _merged(options)
    if family.stain is not None:
        more["stain"] = to_component(family.stain).model_dump(mode="json")
    return metadata_of(family.name, options, more)


def _merged(options: Any) -> Any:
    """Return options of a module without adapters: those that had some were merged into the weights."""
    if isinstance(options, list):
        return [_merged(value) for value in options]
    if not isinstance(options, dict):
        return options
    if options.get("tune") == "lora":
        options = {k: v for k, v in options.items() if k not in ("tune", "rank", "alpha", "projections")}
    return {key: _merged(value) for key, value in options.items()}


def save(
    family: Family, path: Path | str, *, half: bool = False, state: Mapping[str, Any] | None = None, **more: Any
) -> None:
    """Write a file of weights, atomically; `half` stores floats in 16 bits, `state` replaces the module's own state.

    A module whose adapters were merged gives a file that loads without adapters. `more` becomes metadata (recipe,
    recipe_hash, seed, trained_on, operating): equal content gives equal bytes.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in (state or family.state_dict()).items()}
    if half:
        tensors = {k: _halved(k, v) if v.dtype in (torch.float32, torch.float64) else v for k, v in tensors.items()}
    store.write_tensors(Path(path), tensors, metadata(family, **more))


def _halved(name: str, value: torch.Tensor) -> torch.Tensor:
    small = value.half()
    if bool((small.isinf() & ~value.isinf()).any()):
        raise UserError(f"{name}: it holds numbers above 65504, which half precision cannot. Store it in full.")
    return small


def load(name: str | Path, *, device: str | torch.device = "cpu", adapt: Adapt = "none", **changes: Any) -> Family:
    """Return a trained module in evaluation mode, float32, from a weights name, a run folder or a file.

    `changes` are options that differ from the file's. Where they change the shape of entries, nothing is loaded unless
    `adapt` says "input" (other channels), "classes" or "both"; `family.weights_notes` then says what was done.
    """
    found = store.find(name)
    _, meta = store.read_shapes(found.path)
    store.check_card(found, meta)
    family_name, options = _options(found.path, meta)
    left = without.read(meta)
    cls, values = checked(family_name, without_downloads(options | changes, left.encoders if left else ()))
    family = _built(cls, values, left, found.path)
    notes: list[str] = []
    plan = None if adapt == "none" else adaptation(adapt, options, values.model_dump(mode="json"), notes)
    store.load_file(family, found.path, plan, left.entries if left else ())
    if left:
        without.check(left, family, found.path)
    family.weights_name = found.name
    family.weights_metadata = meta
    family.weights_notes = tuple(notes)
    if "stain" in meta:
        family.stain = from_component(Component.model_validate(json.loads(meta["stain"])))
    return family.eval().to(device)


def _built(cls: type[Family], values: Any, left: without.Left | None, path: Path) -> Family:
    """Return the untrained module; of an encoder that the file lacks with its own weights. Raises `UserError`."""
    if left is None:
        return cls(values)
    try:
        return cls(values)
    except UserError as error:
        raise UserError(f"{path}: {without.how(left)}. {error}") from None


def fits(path: Path) -> str:
    """Return the family of a file of weights that builds its module and fills all of it. Raises `UserError`."""
    return load(path).name


def _options(path: Path, meta: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return family and options that a file says. Raises `UserError`."""
    if "family" not in meta or "options" not in meta:
        raise UserError(f"{path}: the file says no family. Expected weights that the zoo wrote, as in a run folder.")
    try:
        version, options = int(meta.get("format", FORMAT)), dict(json.loads(meta["options"]))
    except (ValueError, TypeError):
        raise UserError(f"{path}: its metadata (format, options) are damaged. Copy the file again.") from None
    if version > FORMAT:
        raise UserError(f"{path}: written by a newer histozoo (format {version}). Upgrade histozoo.")
    return meta["family"], options


def with_options(path: Path, options: Any) -> None:
    """Write a file of weights anew with other options (an operating point); tensors and the rest stay."""
    tensors, meta = store.read_tensors(path)
    told = json.dumps(options.model_dump(mode="json", by_alias=True), sort_keys=True)
    store.write_tensors(path, tensors, meta | {"options": told})


def without_downloads(options: Any, keep: Sequence[str] = ()) -> Any:
    """Return options in which no part asks for pretrained weights: those of the file replace them anyway; but for
    foundation encoders of those names, which the file does not hold."""
    if not keep:
        return _without(options)
    kept: Any = json.loads(json.dumps(options))
    return _without(kept, [(id(mapping), key) for mapping, key, name in without.places(kept) if name in keep])


def _without(options: Any, held: Sequence[tuple[int, str]] = ()) -> Any:
    if isinstance(options, Mapping):
        return {
            k: "none"
            if k in ("weights", "encoder_weights") and isinstance(v, str) and (id(options), k) not in held
            else _without(v, held)
            for k, v in options.items()
        }
    return [_without(v, held) for v in options] if isinstance(options, list) else options
