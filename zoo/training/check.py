"""Everything that can be known to be wrong before a run starts, all at once, each with its file, line and key.

`check` says what is wrong with a recipe, `prepare` refuses a wrong one and returns what was found out about a right
one, `check_file` tells recipes, dataset cards and weights cards apart by what they hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from zoo import cards, registry
from zoo.cards import DatasetCard, WeightsCard
from zoo.data.stains import from_component
from zoo.errors import Problem, Problems, UserError, suggest
from zoo.families import build
from zoo.families.base import Family
from zoo.recipe import Data, Loading, Recipe, Train, apply_overrides, load_recipe, read_recipe, recipe_file
from zoo.schema import Component, Document, first_of, problems_of, read_yaml, validate
from zoo.training import estimate, optim, setup
from zoo.training.check_data import (
    check_loading,
    check_needs,
    check_single_values,
    check_smallest,
    check_source,
    check_stride,
    placed,
)
from zoo.training.check_parts import Key, Notes, check_arguments, check_component, check_encoders
from zoo.training.context import unknown_player

LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Plan:
    """A recipe in which nothing is known to be wrong: `recipe` with the model's options filled in from the cards of
    the training data, the family's class, its options and those cards."""

    recipe: Recipe
    family: type[Family]
    options: Any
    cards: tuple[DatasetCard, ...]


def check(name: str | Path, overrides: Sequence[str] = (), *, data: bool = False, devices: int = 1) -> list[Problem]:
    """Return every mistake in a recipe, by name or path, in the order of the file.

    `data`: whether the datasets' files must be on this machine. `devices`: over how many a batch is shared out.
    Raises `UserError` where there is no such recipe.
    """
    path = recipe_file(name)
    try:
        document = read_recipe(path)
        apply_overrides(document, overrides)
    except Problems as error:
        return list(error.problems)
    notes = Notes(document)
    recipe = _salvaged(Recipe, document, (), notes)
    if recipe is not None:
        _check_recipe(notes, recipe, data, devices)
    elif isinstance(document.values.get("family"), str):
        _family(notes, document.values["family"])
    return sorted(notes.problems, key=lambda p: (p.file.startswith("command line"), p.file, p.line))


def prepare(recipe: Recipe, document: Document | None = None, *, data: bool = True, devices: int = 1) -> Plan:
    """Return the plan of a recipe. Raises `Problems` with every mistake; `document` tells their lines."""
    notes = Notes(document or Document(recipe.values(), {(): (f"recipe {recipe.name}", 0)}))
    plan = _check_recipe(notes, recipe, data, devices)
    if notes.problems or plan is None:
        raise Problems(notes.problems)
    return plan


def load_recipe_for_training(name: str | Path, overrides: Sequence[str] = (), *, devices: int = 1) -> Recipe:
    """Return a recipe that may be trained here: its mistakes, and data that are not here, raise `Problems`."""
    problems = check(name, overrides, data=True, devices=devices)
    if problems:
        raise Problems(problems)
    return load_recipe(name, overrides)


# --- one schema, in spite of mistakes ---------------------------------------------------------------------------------


def _salvaged(schema: type[Any], document: Document, prefix: Key, notes: Notes) -> Any | None:
    """Return checked values without what is wrong, so that the rest can be checked too; note what is wrong.

    None where nothing is left to go on with.
    """
    values: Any = document.values
    for part in prefix:
        values = values.get(part) or {}
    values = copy.deepcopy(values)
    for attempt in range(5):
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            found = problems_of(schema, error, document, prefix)
            if attempt == 0:
                notes.problems += [p for p in found if p not in notes.problems]
            keys = [_parts(p.where)[len(prefix) :] for p in found]
            repaired = [_repair(schema, values, key) for key in keys]
            if not all(repaired):
                return None
    return None


def _parts(where: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in where.split(".") if part)


PLACEHOLDERS: dict[Key, Any] = {("zoo",): 1, ("name",): "unnamed", ("summary",): "", ("train",): {}}


def _repair(schema: type[BaseModel], values: Any, key: Key) -> bool:
    """Take out what a problem is about: the value, or where it is missing or in a list, what holds it; False where
    nothing could be changed."""
    if not key:  # a mistake about several keys: both or neither of `train` and `stages`
        if "train" in values and "stages" in values:
            del values["train"]
            return True
        return "train" in schema.model_fields and "stages" not in values and values.setdefault("train", {}) == {}
    holder = values
    for part in key[:-1]:
        try:
            holder = holder[part]
        except (LookupError, TypeError):
            return _repair(schema, values, key[:-1])
    if isinstance(holder, dict) and key[-1] in holder:
        del holder[key[-1]]
        return True
    if key in PLACEHOLDERS and isinstance(holder, dict):
        holder[str(key[-1])] = PLACEHOLDERS[key]
        return True
    return len(key) > 1 and _repair(schema, values, key[:-1])


# --- the recipe -------------------------------------------------------------------------------------------------------


def _check_recipe(notes: Notes, recipe: Recipe, here: bool, devices: int) -> Plan | None:
    before = len(notes.problems)
    family = _family(notes, recipe.family)
    options = None
    if family is not None:
        options = _salvaged(
            family.Options, Document({"model": recipe.model}, _places(notes), notes.document.file), ("model",), notes
        )
    stride = check_encoders(notes, options, ("model",)) if isinstance(options, BaseModel) else None
    trained: list[tuple[Key, DatasetCard]] = []
    for key, data in _all_data(recipe):
        trained += _check_data(notes, data, key, stride, here, devices)
    complete = len(trained) == sum(len(loading.datasets) for _, data in _all_data(recipe) for _, loading in data.all())
    for key, train in _all_trains(recipe):
        _check_train(notes, train, key)
        _check_early_stop(notes, train, key, recipe)
    _check_stain(notes, recipe)
    _check_stages(notes, recipe)
    _check_evaluate(notes, recipe)
    if family is None or options is None or not complete:
        return None  # what would be said of cards that are not known is said already
    if not check_needs(notes, recipe.family, family.needs(options), trained, ("data", "train")):
        return None
    found = tuple(card for _, card in trained)
    if what := family.missing(options, found, [name for _, data in _all_data(recipe) for name in data.streams]):
        notes.add(("data", "train"), what)
    try:
        resolved = family.resolve(options, found)
    except ValidationError as error:
        notes.add(("model",), first_of(error))
        return None
    except (ValueError, UserError) as error:
        notes.add(("model",), f"{str(error).splitlines()[0]}")
        return None
    _check_channels(notes, resolved, trained)
    if len(notes.problems) == before:
        _check_built(notes, recipe, family, resolved, stride, devices)
    values = resolved.model_dump(mode="json", by_alias=True)
    return Plan(recipe.model_copy(update={"model": values}), family, resolved, found)


def _check_stain(notes: Notes, recipe: Recipe) -> None:
    if recipe.stains is None:
        return
    try:
        from_component(recipe.stains)
    except UserError as error:
        notes.add(("stains",), str(error).removeprefix("stain: "))


def _places(notes: Notes) -> dict[Key, tuple[str, int]]:
    return notes.document.places


def _family(notes: Notes, name: str) -> type[Family] | None:
    if name not in registry.table("family"):
        notes.add(("family",), registry.unknown("family", name))
        return None
    try:
        found: type[Family] = registry.get("family", name)
    except (ImportError, AttributeError) as error:
        where = registry.table("family")[name]
        notes.add(("family",), f'family "{name}" cannot be imported from {where} ({error}). Install what it needs')
        return None
    return found


def _all_data(recipe: Recipe) -> list[tuple[Key, Data]]:
    staged = [(("stages", i, "data"), s.data) for i, s in enumerate(recipe.stages)]
    own: list[tuple[Key, Data]] = [(key, data) for key, data in staged if data is not None]
    return own if own and len(own) == len(recipe.stages) else [(("data",), recipe.data), *own]


def _all_trains(recipe: Recipe) -> list[tuple[Key, Train]]:
    if recipe.train is not None:
        return [(("train",), recipe.train)]
    return [(("stages", i, "train"), stage.train) for i, stage in enumerate(recipe.stages)]


def _check_data(
    notes: Notes, data: Data, key: Key, stride: int | None, here: bool, devices: int
) -> list[tuple[Key, DatasetCard]]:
    trained: list[tuple[Key, DatasetCard]] = []
    for inside, loading in data.all():
        where = (*key, *inside)
        found = check_loading(notes, loading, where, training=True, here=here, devices=devices)
        check_stride(notes, loading, where, stride)
        trained += found
    if data.validate_ is not None:
        where = (*key, "validate")
        check_loading(notes, data.validate_, where, training=False, here=here, devices=1)
        check_stride(notes, data.validate_, where, stride)
    return trained


def _check_train(notes: Notes, train: Train, key: Key) -> None:
    _optimizer(notes, train.optimizer, (*key, "optimizer"))
    check_component(notes, "schedule", train.schedule, (*key, "schedule"), make=_schedule)
    for name, player in train.players.items():
        where = (*key, "players", name)
        if player.optimizer is not None:
            _optimizer(notes, player.optimizer, (*where, "optimizer"))
        if player.schedule is not None:
            check_component(notes, "schedule", player.schedule, (*where, "schedule"), make=_schedule)
    if train.procedure is not None:
        check_component(notes, "procedure", train.procedure, (*key, "procedure"))
    if train.weights is not None:
        from zoo.weights import store

        try:
            store.find(train.weights)
        except UserError as error:
            notes.add_error((*key, "weights"), error)
    from importlib.util import find_spec

    for logger in train.loggers:
        if find_spec(LOGGERS[logger]) is None:
            notes.add((*key, "loggers"), f"{logger} is not installed. Install it: pip install 'histozoo[{logger}]'")


def _optimizer(notes: Notes, component: Component, key: Key) -> None:
    check_component(notes, "optimizer", component, key, given=1, make=_optimize_one)
    lr = component.arguments.get("lr")
    if isinstance(lr, int | float) and not isinstance(lr, bool) and math.isfinite(lr) and not 0 < lr < 1e3:
        what = f"a learning rate of {lr:g} will not do. Expected a number above 0, and below 1000"
        notes.add((*key, "arguments", "lr"), what)


def _optimize_one(component: Component) -> None:
    import torch

    if component.arguments.get("lr", 1) > 0:
        optim.make("optimizer", component, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])


def _schedule(component: Component) -> None:
    optim.make("schedule", component)


def _check_early_stop(notes: Notes, train: Train, key: Key, recipe: Recipe) -> None:
    validated = recipe.data.validate_ is not None or any(s.data and s.data.validate_ for s in recipe.stages)
    if train.early_stop is not None and not validated:
        notes.add((*key, "early_stop"), "nothing is validated, so that nothing can stop early. Add data.validate")


def _check_built(
    notes: Notes, recipe: Recipe, family: type[Family], options: Any, stride: int | None, devices: int
) -> None:
    """Build the module without its memory, which tells what does not fit together and what can be monitored."""
    import torch

    plain = build.without_downloads(options.model_dump(mode="json", by_alias=True))
    try:
        with torch.device("meta"):
            module = family(family.Options.model_validate(plain))
    except (ValueError, UserError) as error:
        notes.add(("model",), str(error).strip().splitlines()[0])
        return
    except (NotImplementedError, RuntimeError):
        return  # a part that cannot be built without memory; the run itself will build it
    except Exception as error:  # whatever a library says of arguments that will not do
        notes.add(("model",), f"the model cannot be built ({str(error).strip() or type(error).__name__}). Change it")
        return
    _check_moving(notes, recipe, module)
    _check_targets(notes, recipe, family, options)
    for where, learnt in _all_data(recipe):
        check_smallest(notes, learnt, where, module.spec.smallest)
        check_single_values(notes, learnt, where, stride, devices, {type(part).__name__ for part in module.modules()})
    for key, data, train in _validations(recipe):
        known = _monitored(notes, module, data, (*key, "data", "validate"))
        known += (terms := _terms(module))
        own = train.monitor.startswith("loss/") and not terms  # known to the loss alone
        if train.monitor not in known and not own:
            hint = suggest(train.monitor, known) or f"It gives {', '.join(known)}"
            what = f'validation gives no "{train.monitor}". {hint}'
            notes.add((*key, "train", "monitor"), what)


def _check_targets(notes: Notes, recipe: Recipe, family: type[Family], options: Any) -> None:
    """Try whether what is validated on has the truths and classes that the loss needs."""
    for key, loading, _ in _validations(recipe):
        for place, source in placed(notes, loading.datasets, (*key, "data", "validate", "datasets")):
            try:
                family.targets(options, cards.dataset_card(source.name))
            except (ValueError, UserError) as error:
                notes.add(place, str(error).strip().splitlines()[0])


def _check_moving(notes: Notes, recipe: Recipe, module: Family) -> None:
    """Compare what stages freeze with the names of parameters, and players that are changed with the procedure's."""
    before = len(notes.problems)
    names = [name for name, _ in module.named_parameters()]
    for i, stage in enumerate(recipe.stages):
        for k, prefix in enumerate(stage.freeze):
            if unknown := setup.unknown_prefix(prefix, names):
                notes.add(("stages", i, "freeze", k), unknown)
    for (key, train), stage in zip(_all_trains(recipe), recipe.all_stages, strict=True):
        try:
            players = setup.procedure_of(module, train).players(module)
            for name in train.players:
                if name not in players:
                    notes.add((*key, "players", name), unknown_player(name, players))
            if len(notes.problems) == before:
                estimate.check_stage(module, stage, stage.data or recipe.data)
        except (TypeError, ValueError, UserError) as error:
            where = ("model",) if isinstance(error, ValueError) else key
            notes.add((*key, "procedure") if train.procedure is not None else where, str(error))


def _validations(recipe: Recipe) -> list[tuple[Key, Loading, Train]]:
    """Return (key of the stage, what is validated on, how is trained) of each stage that is validated."""
    stages: list[tuple[Key, Data, Train]] = [((), recipe.data, recipe.train)] if recipe.train is not None else []
    stages += [(("stages", i), stage.data or recipe.data, stage.train) for i, stage in enumerate(recipe.stages)]
    return [(key, data.validate_, train) for key, data, train in stages if data.validate_ is not None]


def _monitored(notes: Notes, module: Family, loading: Loading, key: Key) -> list[str]:
    """Return the names of the numbers that a validation gives: with several outputs OUTPUT/NAME, else the name."""
    from zoo.training.validate import judged

    found = ["loss"]
    for source in loading.datasets:
        try:
            tasks = judged(module, cards.dataset_card(source.name))
        except UserError as error:
            notes.add((*key, "datasets"), f"{source.name}: {error}")
            continue
        for task in tasks:
            prefix = f"{task.output}/" if len(module.spec.outputs) > 1 else ""
            found += [prefix + name for name in task.metrics if prefix + name not in found]
    return found


def _terms(module: Family) -> list[str]:
    """Return the terms of a family whose options are a list of registered losses, as a validation names them."""
    listed = getattr(module.options, "loss", None)
    found: list[str] = []
    for part in listed if isinstance(listed, tuple) else ():
        if not isinstance(part, Component) or part.name not in registry.table("loss"):
            return []
        found.append(part.name if part.name not in found else f"{part.name}_{len(found) + 1}")
    return [f"loss/{name}" for name in found]


def _check_stages(notes: Notes, recipe: Recipe) -> None:
    seen: set[str] = set()
    for i, stage in enumerate(recipe.stages):
        if stage.name in seen:
            notes.add(("stages", i, "name"), f'two stages are named "{stage.name}". Give each its own name')
        seen.add(stage.name)


def _check_evaluate(notes: Notes, recipe: Recipe) -> None:
    for i, source in enumerate(recipe.evaluate.datasets):
        if "split" not in source.model_fields_set:  # the benchmark takes "test" where there is one
            source = source.model_copy(update={"split": "all"})
        check_source(notes, source, ("evaluate", "datasets", i), training=False, here=False)
    for i, metric in enumerate(recipe.evaluate.metrics):
        if metric not in registry.table("metric"):
            notes.add(("evaluate", "metrics", i), registry.unknown("metric", metric))
    tiling = recipe.evaluate.tiling
    if tiling.tile is not None and tiling.overlap is not None and tiling.overlap >= tiling.tile:
        what = f"tiles of {tiling.tile} cannot overlap by {tiling.overlap} pixels. Write a smaller overlap"
        notes.add(("evaluate", "tiling", "overlap"), what)


def _check_channels(notes: Notes, options: Any, trained: Sequence[tuple[Key, DatasetCard]]) -> None:
    """Compare the channels that the options name with those of the cards."""
    wanted = getattr(options, "channels", None)
    if not isinstance(wanted, tuple | list) or not all(isinstance(name, str) for name in wanted):
        return
    for place, card in trained:
        absent = [name for name in wanted if name not in card.channels]
        if absent and len(card.channels) != 1:
            what = (
                f"dataset {card.name} has channels {', '.join(card.channels)}, but the model wants {', '.join(wanted)}"
            )
            notes.add(place, f"{what}. Set model.channels, or choose another dataset")


# --- files of any kind ------------------------------------------------------------------------------------------------


def check_file(name: str | Path) -> list[Problem]:
    """Return every mistake in a recipe, a dataset card or a weights card, by name, path or run folder."""
    path = Path(name).expanduser()
    try:
        if not path.exists():
            path = _named(str(name))
        if path.is_dir():
            path = path / ("recipe.yaml" if (path / "recipe.yaml").is_file() else cards.CARD_NAME)
        values = read_yaml(path).values
        if "truths" in values or "reader" in values:
            return _check_dataset_card(path)
        if "source" in values or "trained_on" in values:
            validate(WeightsCard, read_yaml(path))
            return []
        return check(path)
    except Problems as error:
        return list(error.problems)
    except UserError as error:
        return [Problem(what=str(error))]


def _named(name: str) -> Path:
    from zoo.recipe import recipe_files
    from zoo.weights.store import card_files

    known = {**card_files(), **cards.dataset_files(), **recipe_files()}
    if name not in known:
        raise UserError(f"{name}: no such file, recipe or card. {suggest(name, known, 'zoo list recipes')}")
    return known[name]


def _check_dataset_card(path: Path) -> list[Problem]:
    document = read_yaml(path)
    notes = Notes(document)
    card: DatasetCard | None = _salvaged(DatasetCard, document, (), notes)
    if card is None:
        return notes.problems
    if card.reader.name not in registry.table("reader"):
        notes.add(("reader",), registry.unknown("reader", card.reader.name))
    else:
        made = registry.get("reader", card.reader.name)
        _check_reader(notes, made, card)
    return sorted(notes.problems, key=lambda p: p.line)


def _check_reader(notes: Notes, made: Any, card: DatasetCard) -> None:
    schema = getattr(made, "Arguments", None)
    if schema is None:
        check_arguments(notes, f"reader {card.reader.name}", made, card.reader.arguments, ("reader", "arguments"), 2)
        return
    try:
        schema.model_validate(card.reader.arguments)
    except ValidationError as error:
        if "arguments" not in notes.document.values.get("reader", {}):
            plain = Document(dict(card.reader.arguments), {(): notes.document.place(("reader",))}, notes.document.file)
            notes.problems += problems_of(schema, error, plain)
        else:
            notes.problems += problems_of(schema, error, notes.document, ("reader", "arguments"))
