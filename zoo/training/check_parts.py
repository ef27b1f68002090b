"""What can be wrong with a part that a recipe names: its name, its arguments, its pretrained weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from zoo import registry
from zoo.errors import Problem, Problems, UserError, nearest, suggest
from zoo.schema import Component, Document, wrong_arguments

Key = tuple[str | int, ...]


@dataclass
class Notes:
    """Mistakes found so far, each at a key of the recipe."""

    document: Document
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: Sequence[str | int], what: str) -> None:
        """Note one mistake."""
        what = what.strip()
        finished = what.endswith((".", "?")) or "See: " in what.rpartition(". ")[2] + what.rpartition("? ")[2]
        problem = self.document.problem(key, what if finished else f"{what}.")
        if problem not in self.problems:
            self.problems.append(problem)

    def add_error(self, key: Sequence[str | int], error: Exception) -> None:
        """Note what an exception says: several mistakes where it holds several."""
        if isinstance(error, Problems):
            for problem in error.problems:
                inside = f"{problem.where}: " if problem.where else ""
                self.add(key, inside + problem.what)
        else:
            self.add(key, str(error).strip().splitlines()[0])


def check_component(
    notes: Notes, kind: str, component: Component, key: Key, given: int = 0, make: Callable[..., Any] | None = None
) -> None:
    """Check a registered part: its name, its arguments against the signature, and what it says when it is made.

    `given`: how many leading arguments the caller provides. `make` is called with the component to try it out; it must
    cost little.
    """
    if component.name not in registry.table(kind):
        notes.add(
            (*key, "name") if (*key, "name") in notes.document.places else key, registry.unknown(kind, component.name)
        )
        return
    try:
        made = registry.get(kind, component.name)
    except ImportError as error:
        notes.add(key, f'{kind} "{component.name}" cannot be imported ({error}). Install what it needs')
        return
    before = len(notes.problems)
    check_arguments(notes, f"{kind} {component.name}", made, component.arguments, (*key, "arguments"), given)
    if make is not None and len(notes.problems) == before:
        try:
            make(component)
        except (UserError, ValueError, TypeError) as error:
            notes.add((*key, "arguments"), str(error).removeprefix("augment: "))


def check_arguments(
    notes: Notes, name: str, made: Callable[..., Any], arguments: Mapping[str, Any], key: Key, given: int = 0
) -> None:
    """Check keyword arguments against a signature: unknown names, wrong types, missing ones."""
    parameters = list(inspect.signature(made).parameters.values())[given:]
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    wrong = wrong_arguments(made, arguments)
    for argument in arguments:
        if argument in wrong:
            notes.add((*key, argument), wrong[argument])
        elif argument not in named and not open_ended:
            takes = suggest(argument, named) or f"It takes {', '.join(named) or 'no arguments'}."
            notes.add((*key, argument), f'{name} has no argument "{argument}". {takes}')
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in arguments:
            notes.add(key, f'{name} needs the argument "{argument}". Write it down')


def check_encoders(notes: Notes, options: BaseModel, key: Key) -> int | None:
    """Check every encoder that a family's options name; return the largest total stride, None where not known."""
    from zoo.encoders import listing

    strides: list[int] = []
    for name, component in _encoders(options):
        try:
            info = listing.info(component.name)
        except UserError as error:
            notes.add_error((*key, name), error)
            continue
        smaller = component.arguments.get("output_stride")
        strides.append(min(info.strides[-1], smaller) if isinstance(smaller, int) else info.strides[-1])
        weights = component.arguments.get("weights", getattr(options, f"{name}_weights", "none"))
        if info.card and "weights" not in component.arguments and f"{name}_weights" not in options.model_fields_set:
            what = f"encoder {info.name}: no weights are said. Expected published, a file, or none for random ones. "
            notes.add((*key, name), what + f"To have them: zoo weights pull {info.card}")
            continue
        _check_encoder_weights(notes, info, str(weights), (*key, f"{name}_weights"))
    return max(strides) if strides else None


def _encoders(options: BaseModel) -> Iterator[tuple[str, Component]]:
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, Component) and (name == "encoder" or name.endswith("_encoder")):
            yield name, value


def _check_encoder_of_a_model(notes: Notes, info: Any, weights: str, key: Key) -> None:
    """Check a run folder or weights of the zoo of which the encoder is wanted."""
    from zoo.encoders import pretrained
    from zoo.weights import store

    try:
        place = pretrained.choose(info, weights)
        _, meta = store.read_shapes(place) if isinstance(place, Path) else ({}, {})
    except UserError as error:
        notes.add_error(key, error)
        return
    own = json.loads(meta.get("options", "{}")).get("encoder")
    name = own.get("name") if isinstance(own, dict) else own
    if isinstance(name, str) and name != info.name:
        notes.add(
            key, f"the encoder of {weights} is {name}. Expected {info.name}. Write that encoder, or other weights"
        )


def _check_encoder_weights(notes: Notes, info: Any, weights: str, key: Key) -> None:
    from zoo import paths
    from zoo.encoders import pretrained
    from zoo.weights import readers, store

    if Path(weights).expanduser().is_file():
        try:
            readers.format_of(Path(weights).expanduser())
        except UserError as error:
            notes.add_error(key, error)
        return
    if weights == "none":
        return
    own = weights in ("imagenet", "published", info.card) or weights in info.weights
    if Path(weights).expanduser().is_dir() or (not own and store.known(weights)):
        _check_encoder_of_a_model(notes, info, weights, key)
        return
    if info.card:
        if weights not in ("published", info.card):
            what = f'encoder {info.name} has no weights "{weights}", and no file is there. '
            notes.add(key, what + f"Write published ({info.card}), a file or none, or see: zoo show {info.name}")
        elif paths.offline():
            try:
                pretrained.choose(info, weights)
            except UserError as error:
                notes.add_error(key, error)
        return
    if weights == "imagenet" and info.imagenet is None:
        notes.add(key, f"encoder {info.name} has no ImageNet weights. Write none, or see: zoo show {info.name}")
    elif weights != "imagenet" and weights not in info.weights:
        what = f'encoder {info.name} has no weights "{weights}", and no file is there. '
        known = ["none", "imagenet", *info.weights, *nearest(weights, list(store.card_index()))]
        notes.add(key, what + suggest(weights, known, f"zoo show {info.name}"))
    elif paths.offline():
        chosen = info.weights[info.imagenet if weights == "imagenet" else weights]
        if pretrained.local(info, chosen) is None:
            notes.add_error(key, pretrained.absent(info, chosen, "ZOO_OFFLINE=1 forbids fetching them"))
