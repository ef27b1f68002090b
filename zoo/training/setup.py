"""From a recipe to what a run needs: resolved options, the module, where its weights start, what stands still."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from zoo import registry
from zoo.cards import dataset_card
from zoo.data.stains import from_component, to_component
from zoo.encoders.base import Encoder
from zoo.errors import UserError, suggest
from zoo.families import build, without
from zoo.families.base import Family, Procedure
from zoo.nn.lora import is_adapted, merged, under_adapters
from zoo.recipe import Data, Recipe, Stage, Train
from zoo.training import feed
from zoo.training.context import reseed, step_seed
from zoo.training.shard import fill, is_cut
from zoo.weights import store


def all_data(recipe: Recipe) -> list[Data]:
    """Return the data of every stage, each once."""
    found: list[Data] = []
    for stage in recipe.all_stages:
        data = stage.data or recipe.data
        if data not in found:
            found.append(data)
    return found


def resolve(recipe: Recipe) -> Recipe:
    """Return the recipe with every option filled in that the data decide. Raises `UserError`."""
    cls, options = build.checked(recipe.family, recipe.model)
    sources = [source for data in all_data(recipe) for source in feed.sources(data)]
    names = list(dict.fromkeys(source.name for source in sources))
    try:
        options = cls.resolve(options, [dataset_card(name) for name in names])
        options = cls.derive(options, feed.SomeSamples(sources))
        if cls.needs(options):
            feed.check_something_to_learn(sources)
    except ValueError as error:
        raise UserError(f"recipe {recipe.name}: model: {error}") from None
    changes: dict[str, Any] = {"model": options.model_dump(mode="json", by_alias=True)}
    if recipe.stains is not None:
        changes["stains"] = to_component(from_component(recipe.stains))
    return recipe.model_copy(update=changes)


def narrow(recipe: Recipe, family: Family) -> str | None:
    """Return what to beware of where patches are so small that the coarsest maps see little but their own border.

    Norms then learn the statistics of padding, and tiles that are larger than the patches give other ones. Measured:
    a U-Net over mobilenetv3 (stride 32) that learnt from 64 pixels found nuclei with Dice 0.93 in tiles of 64 and with
    0.2 in tiles of 256.
    """
    stride = max((max(m.strides) for m in family.modules() if isinstance(m, Encoder)), default=0)
    tile = family.spec.tile
    for data in all_data(recipe):
        for loading in (data.train, *data.streams.values()):
            side = min(loading.size or (0,))
            if 0 < side <= 2 * stride and tile >= 2 * side and family.spec.axes != "CZYX":
                return (
                    f"patches of {side} pixels are {side / stride:g} pixels wide at the encoder's coarsest level, "
                    f"little but border, and prediction takes tiles of {tile}, where that level sees something else. "
                    "Raise data.train.size, or lower model.tile to it."
                )
    return None


def create(recipe: Recipe) -> Family:
    """Return the untrained module of a resolved recipe; its initialisation is a function of the seed."""
    cls, options = build.checked(recipe.family, recipe.model)
    reseed(step_seed(recipe.seed, -1, 0))
    family = cls(options)
    if recipe.stains is not None:
        family.stain = from_component(recipe.stains)
    return family


def procedure_of(family: Family, train: Train) -> Procedure:
    """Return how a stage trains. Raises `UserError` for an unknown procedure."""
    if train.procedure is None:
        return family.procedure()
    made: Procedure = registry.get("procedure", train.procedure.name)(**train.procedure.arguments)
    return made


@dataclass(frozen=True)
class Record:
    """What the file of weights says of its making."""

    trained_on: list[dict[str, Any]]
    validated_on: list[dict[str, Any]]
    started_from: list[str]


def record_of(recipe: Recipe) -> Record:
    """Return what the weights of a recipe will have seen, that of the weights it starts from included."""
    data = all_data(recipe)
    trained = feed.seen([s for d in data for s in feed.sources(d)], training=True)
    validated = feed.seen([s for d in data if d.validate_ for s in d.validate_.datasets], training=False)
    names = [stage.train.weights for stage in recipe.all_stages if stage.train.weights]
    names += [name for name in _weights_in(recipe.model) if name not in names and _is_model(name)]
    for name in names:
        trained += [t for t in seen_by(name) if t not in trained]
    return Record(trained, validated, names)


def _weights_in(options: Any) -> Iterator[str]:
    """Yield what a family's options name as weights of their parts (encoder_weights, ...)."""
    for key, value in options.items() if isinstance(options, Mapping) else ():
        if isinstance(value, str) and (key == "weights" or key.endswith("_weights")):
            yield value
        elif isinstance(value, Mapping):
            yield from _weights_in(value)


def _is_model(name: str) -> bool:
    """Return whether weights of a part are those of a whole model of the zoo, of which the encoder is taken."""
    path = Path(name).expanduser()
    try:
        if path.is_dir() or path.suffix == ".safetensors":
            return path.exists() and "family" in store.read_shapes(store.find(path).path)[1]
        return store.known(name) and store.card(store.resolve(name)).family is not None
    except UserError:
        return False  # whoever builds the part says what is wrong with it


def seen_by(name: str) -> list[dict[str, Any]]:
    """Return what weights have seen, from their card or from the file's metadata."""
    found = store.find(name)
    if found.card is not None:
        return [t.model_dump(mode="json") for t in found.card.trained_on]
    records: list[dict[str, Any]] = json.loads(store.read_tensors(found.path)[1].get("trained_on", "[]"))
    return records


def start_from(family: Family, name: str) -> str:
    """Copy weights into a module, entry by entry, and return one line about what was and was not taken.

    Weights without adapters go under those of the model; adapters that the model lacks are merged. A head whose shape
    differs (other classes) starts anew. Raises `UserError` where less than half fits.
    """
    found = store.find(name)
    tensors, meta = store.read_tensors(found.path)
    if without.read(meta):  # the file lacks an encoder: loading fills it in, and refuses another
        tensors = build.load(name).state_dict()
    own = family.state_dict()
    if any(is_adapted(key) for key in tensors) and not any(map(is_adapted, own)):
        tensors = merged(build.load(name)).state_dict()
    tensors = under_adapters(family.adopted(tensors), own)
    fitting = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    if 2 * len(fitting) < len(own):
        lines = store.difference(own, tensors)
        raise UserError(
            f"train.weights: {found.path}: only {len(fitting)} of the model's {len(own)} entries are in the file. "
            "Expected weights of the same architecture.\n" + "\n".join(f"  {line}" for line in lines[:6])
        )
    if any(map(is_cut, own.values())):
        for key, value in fitting.items():
            fill(own[key], value)
    else:
        family.load_state_dict(fitting, strict=False)
    new = [k for k in own if k not in fitting]
    shown = ", ".join(new[:3]) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
    return f"weights from {name}: {len(fitting)} entries" + (f"; new: {shown}" if new else "")


def unknown_prefix(prefix: str, names: Sequence[str]) -> str:
    """Return the sentence that says that no parameter of those `names` begins so; nothing where one does."""
    if any(name.startswith(prefix) for name in names):
        return ""
    depth = prefix.count(".") + 1
    starts = dict.fromkeys(".".join(name.split(".")[:k]) for k in (depth, 1) for name in names)
    return f'no parameter begins with "{prefix}". {suggest(prefix, starts)}'.strip()


class Frozen:
    """Parts of a module that stand still during a stage: no gradients, and evaluation mode for their norms."""

    def __init__(self, family: nn.Module, stage: Stage, free: Sequence[str]) -> None:
        """`free`: names of the parameters that the family itself lets move. Raises `UserError` for a strange prefix."""
        names = [name for name, _ in family.named_parameters()]
        for prefix in stage.freeze:
            if unknown := unknown_prefix(prefix, names):
                raise UserError(f"stages: {stage.name}: freeze: {unknown}")
        for name, parameter in family.named_parameters():
            parameter.requires_grad_(name in free and not name.startswith(stage.freeze))
        self.modules = [m for n, m in family.named_modules() if n and stage.freeze and n.startswith(stage.freeze)]

    def apply(self) -> None:
        """Put what stands still into evaluation mode; call after `train()`."""
        for module in self.modules:
            module.eval()
