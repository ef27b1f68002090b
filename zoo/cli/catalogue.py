"""What `zoo list` and `zoo show` know of each kind of thing, gathered without importing a model or torch."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.text import shorten
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.cards import WeightsCard
    from zoo.encoders.listing import Info


@dataclass(frozen=True)
class Item:
    """One line of a list: `usable` is None where the question makes no sense."""

    name: str
    columns: tuple[str, ...]
    family: str = ""
    licence: str = ""
    usable: bool | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def as_values(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found: dict[str, Any] = {"name": self.name, **self.values}
        for key in ("family", "licence"):
            if getattr(self, key):
                found[key] = getattr(self, key)
        return found if self.usable is None else {**found, "usable_now": self.usable}


def broken(name: str, file: Path, error: ZooError) -> Item:
    """Return the line of something whose file cannot be read; one bad file does not hide the others."""
    first = str(error).splitlines()[0]
    return Item(name, ("", f"not readable: {first}"), usable=False, values={"file": str(file), "error": str(error)})


def recipes() -> list[Item]:
    """Return the shipped recipes."""
    from zoo.recipe import load_recipe, recipe_files

    found = []
    for name, file in recipe_files().items():
        try:
            recipe = load_recipe(file)
        except ZooError as error:
            found.append(broken(name, file, error))
            continue
        data = [stage.data or recipe.data for stage in recipe.all_stages]
        loadings = [x for d in data for x in (d.train, d.validate_, *d.streams.values()) if x is not None]
        datasets = list(dict.fromkeys(source.name for loading in loadings for source in loading.datasets))
        values = {"summary": recipe.summary, "datasets": datasets, "file": str(file)}
        usable = all(has_dataset(dataset) for dataset in datasets)
        found.append(Item(name, (recipe.family, recipe.summary), recipe.family, usable=usable, values=values))
    return found


def has_dataset(name: str) -> bool:
    """Return whether a dataset is on this machine: generated, in a package, or a folder below the data root."""
    from zoo import cards, paths

    try:
        card, file = cards.dataset_card(name), cards.dataset_card_file(name)
    except ZooError:
        return False
    own = file.parent.resolve() != paths.shipped("datasets").resolve()
    if card.folder is None:
        return True
    base = file.parent if own else paths.data_root()
    return base is not None and (base / card.folder).is_dir()


def encoders() -> list[Item]:
    """Return the encoders, from the committed list."""
    from zoo.encoders import foundation, listing

    found = []
    for name in listing.names():
        info = listing.info(name)
        if info.card:
            found.append(_foundation(info))
            continue
        millions = f"{info.parameters / 1e6:.1f} M"
        tags = list(info.weights)
        licences = sorted({w.licence or "not stated" for w in info.weights.values()})
        strides = "/".join(map(str, info.strides))
        about = f"strides {strides}; {len(tags)} weights" if tags else f"strides {strides}; no weights"
        values = {
            "source": info.source,
            "parameters": info.parameters,
            "channels": info.channels,
            "strides": info.strides,
            "weights": tags,
        }
        found.append(Item(name, (millions.rjust(8), about), licence=", ".join(licences), usable=None, values=values))
    for name, reason in foundation.UNAVAILABLE.items():
        said = {"available": False, "reason": reason}
        columns = ("-".rjust(8), f"not available: {reason}")
        found.append(Item(name, columns, "foundation", usable=False, values=said))
    return sorted(found, key=lambda item: item.name)


def _foundation(info: Info) -> Item:
    """Return the line of a foundation encoder: what it takes to have the weights, its resolution, its licence."""
    from zoo.weights import store

    card = store.card(str(info.card))
    state, licence = state_of(card), card.licence.weights
    about = f"{state}; {info.mpp:g} um; {licence.name}"
    values = {
        "source": info.source,
        "parameters": info.parameters,
        "channels": info.channels,
        "strides": info.strides,
        "weights": [card.name],
        "mpp": info.mpp,
        "gate": card.gate,
        "state": state,
        "allows": list(licence.allows),
    }
    millions = f"{info.parameters / 1e6:.1f} M".rjust(8)
    return Item(info.name, (millions, about), "foundation", licence.name, values=values)


def has_encoder_weights(name: str) -> bool:
    """Return whether any pretrained weights of an encoder are on this machine; touches no network."""
    from zoo.encoders import foundation, listing, pretrained
    from zoo.weights import store

    if name in foundation.UNAVAILABLE:
        return False
    info = listing.info(name)
    if info.card:
        return store.local(store.card(info.card)) is not None
    return any(pretrained.local(info, weights) for weights in info.weights.values())


STATES = {
    "here": "on this machine",
    "pull": "zoo weights pull fetches them",
    "gated": "zoo weights pull fetches them with a token of an account that has accepted the terms",
    "by hand": "a person fetches the file; zoo weights pull NAME --from FILE takes it",
    "later": "published, but this version has no family, encoder or converter for them",
    "never": "cannot be had",
}
"""What `zoo list weights` says of weights, and what it means."""


def state_of(card: WeightsCard) -> str:
    """Return one of `STATES`, without touching a network."""
    from zoo import registry
    from zoo.encoders import foundation
    from zoo.weights import store

    if card.source.kind == "unavailable":
        return "never"
    if card.encoder in foundation.UNAVAILABLE:
        return "later"
    unknown_family = card.family is not None and card.family not in registry.table("family")
    if unknown_family or (card.convert is not None and card.convert.name not in registry.table("converter")):
        return "later"
    if store.local(card) is not None:
        return "here"
    if card.source.kind == "manual":
        return "by hand"
    return "gated" if card.gate == "token" else "pull"


def weights() -> list[Item]:
    """Return the weights that have a card, code licence and weight licence side by side."""
    from zoo.weights import store

    found = []
    for name, files in sorted(store.card_index().items()):
        try:
            card = store.card(name)
            state = state_of(card)
        except ZooError as error:
            found.append(broken(name, files[0], error))
            continue
        code, licence = card.licence.code, card.licence.weights
        values = {
            "summary": card.summary,
            "encoder": card.encoder,
            "part": card.part,
            "recipe": card.recipe,
            "default": card.default,
            "state": state,
            "code_licence": code,
            "allows": list(licence.allows),
            "gate": card.gate,
            "file": str(files[0]),
        }
        columns = (state, f"{licence.name}; code {code}")
        found.append(Item(card.name, columns, card.family or "", licence.name, state == "here", values))
    return found


def datasets() -> list[Item]:
    """Return the datasets that have a card."""
    from zoo.cards import dataset_card, dataset_files

    found = []
    for name, file in dataset_files().items():
        try:
            card = dataset_card(file)
        except ZooError as error:
            found.append(broken(name, file, error))
            continue
        allows = list(card.licence.allows)
        values = {"summary": card.summary, "truths": list(card.truths), "allows": allows, "file": str(file)}
        here = has_dataset(name)
        columns = ("here" if here else "absent", shorten(card.licence.name, 16), card.summary)
        found.append(Item(card.name, columns, licence=card.licence.name, usable=here, values=values))
    return found


def metrics() -> list[Item]:
    """Return the metrics."""
    from zoo import registry
    from zoo.metrics import METRICS

    found = []
    for name in registry.names("metric"):
        about = METRICS.get(name)
        text = about.summary if about else summary_of(registry.table("metric")[name])
        values = {"summary": text, **({"kind": about.kind, "better": about.better} if about else {})}
        found.append(Item(name, (about.kind if about else "", text), values=values))
    return found


def components(kind: str) -> Callable[[], list[Item]]:
    """Return what lists the registered components of one kind."""

    def listed() -> list[Item]:
        from zoo import registry

        found = []
        for name in registry.names(kind):
            target = registry.table(kind)[name]
            text = summary_of(target)
            values = {"summary": text, "source": target}
            found.append(Item(name, (text,), name if kind == "family" else "", values=values))
        return found

    return listed


KINDS: dict[str, Callable[[], list[Item]]] = {
    "recipes": recipes,
    "encoders": encoders,
    "weights": weights,
    "datasets": datasets,
    "metrics": metrics,
    "families": components("family"),
    "losses": components("loss"),
    "decoders": components("decoder"),
    "augmentations": components("augmentation"),
    "optimizers": components("optimizer"),
    "schedules": components("schedule"),
}


# --- one sentence about a component, read from its source, so that listing imports no model --------------------------


def summary_of(target: str) -> str:
    """Return the `summary` of a class or the first sentence of a docstring behind "module:attribute", or ""."""
    module, _, attribute = target.partition(":")
    for _ in range(5):  # a name may be handed on by packages' __init__ modules
        tree = _tree(module)
        if tree is None:
            return ""
        node = _definition(tree.body, attribute)
        if node is not None:
            return _said(node)
        onward = _imported(tree.body, attribute)
        if onward is None:
            return ""
        module, attribute = onward
    return ""


def _tree(module: str) -> ast.Module | None:
    top, *rest = module.split(".")
    spec = find_spec(top)  # of a top-level package: imports nothing
    for place in (spec.submodule_search_locations or []) if spec else []:
        base = Path(place).joinpath(*rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    if spec and spec.origin and not rest and Path(spec.origin).is_file():
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return None


def _definition(body: Iterable[ast.stmt], name: str) -> ast.FunctionDef | ast.ClassDef | None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in body if isinstance(node, kinds) and node.name == name), None)


def _said(node: ast.FunctionDef | ast.ClassDef) -> str:
    for inner in node.body:
        targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
        value = getattr(inner, "value", None)
        named = any(isinstance(t, ast.Name) and t.id == "summary" for t in targets)
        if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    lines = (ast.get_docstring(node) or "").split("\n\n")[0]
    return " ".join(lines.split())


def _imported(body: Iterable[ast.stmt], name: str) -> tuple[str, str] | None:
    for node in ast.walk(ast.Module(list(body), [])):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return None
