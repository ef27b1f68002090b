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
from zoo.errors import Problems, UserError
from zoo.families.base import Family
from zoo.schema import Document, problems_of
from zoo.weights import store

FORMAT = 1


def checked(family: str, options: Mapping[str, Any], document: Document | None = None) -> tuple[type[Family], Any]:
    """Return the family's class and its checked options.

    `document` tells lines where the options come from a recipe (they stand under `model`). Raises `Problems`.
    """
    cls: type[Family] = registry.get("family", family)
    try:
        return cls, cls.Options.model_validate(dict(options))
    except ValidationError as error:
        if document is None:
            plain = Document({"model": dict(options)}, {(): (f"zoo.create({family!r})", 0)}, "")
            raise Problems(problems_of(cls.Options, error, plain, ("model",))) from None
        raise Problems(problems_of(cls.Options, error, document, ("model",))) from None


def create(family: str, options: Mapping[str, Any], cards: Sequence[DatasetCard] = ()) -> Family:
    """Return an untrained module in evaluation mode; `cards` fill in what the options leave to the data."""
    cls, values = checked(family, options)
    try:
        return cls(cls.resolve(values, cards)).eval()
    except ValueError as error:
        raise UserError(f"zoo.create({family!r}): {error}") from None


def metadata(family: Family, **more: Any) -> dict[str, str]:
    """Return the metadata of a file of weights: strings only, as safetensors wants them."""
    found = {
        "format": str(FORMAT),
        "family": family.name,
        "options": json.dumps(family.options.model_dump(mode="json", by_alias=True), sort_keys=True),
    }
    return found | {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in more.items()}


def save(
    family: Family, path: Path, *, half: bool = False, state: Mapping[str, Any] | None = None, **more: Any
) -> None:
    """Write a file of weights, atomically; `half` stores floats in 16 bits, `state` replaces the module's own state.

    `more` becomes metadata (recipe, recipe_hash, seed, trained_on, operating): equal content gives equal bytes.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in (state or family.state_dict()).items()}
    if half:
        tensors = {k: v.half() if v.dtype in (torch.float32, torch.float64) else v for k, v in tensors.items()}
    store.write_tensors(path, tensors, metadata(family, **more))


def load(name: str | Path, *, device: str | torch.device = "cpu", **changes: Any) -> Family:
    """Return a trained module in evaluation mode, float32, from a weights name, a run folder or a file."""
    found = store.find(name)
    tensors, meta = store.read_tensors(found.path)
    if "family" not in meta or "options" not in meta:
        raise UserError(
            f"{found.path}: the file says no family. Expected weights that the zoo wrote, as in a run folder."
        )
    try:
        version, options = int(meta.get("format", FORMAT)), dict(json.loads(meta["options"])) | changes
    except (ValueError, TypeError):
        raise UserError(f"{found.path}: its metadata (format, options) are damaged. Copy the file again.") from None
    if version > FORMAT:
        raise UserError(f"{found.path}: written by a newer histozoo (format {version}). Upgrade histozoo.")
    cls, values = checked(meta["family"], without_downloads(options))
    family = cls(values)
    store.load_strictly(family, tensors, str(found.path))
    family.weights_name = found.name
    family.weights_metadata = meta
    return family.eval().to(device)


def without_downloads(options: Any) -> Any:
    """Return options in which no part asks for pretrained weights: those of the file replace them anyway."""
    if isinstance(options, Mapping):
        return {
            k: "none" if k in ("weights", "encoder_weights") and isinstance(v, str) else without_downloads(v)
            for k, v in options.items()
        }
    return [without_downloads(v) for v in options] if isinstance(options, list) else options
