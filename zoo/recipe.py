"""What a recipe may say; loading with line numbers, `extends`, overrides, stages and a content hash.

A recipe is one strict YAML file. What a family may be told stands under `model:` and is checked by the family itself
(`zoo.training.check`), so that this room knows no model.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from zoo import paths
from zoo.errors import Problem, Problems, UserError, suggest
from zoo.schema import Component, Document, Schema, parse_value, read_yaml, validate


class DataSource(Schema):
    """One dataset of a mix."""

    name: str
    """Dataset name (`zoo list datasets`) or a folder that holds a zoo-dataset.yaml."""
    split: str = "train"
    """Split name; "all" for every image."""
    fold: NonNegativeInt | None = None
    """Use fold number `fold` of `folds`, cut by group: in `train` all but that fold, in `validate` that fold."""
    folds: PositiveInt = 5
    """Number of folds."""
    weight: PositiveFloat = 1.0
    """Share of this dataset in the samples of an epoch, relative to the others."""
    limit: PositiveInt | None = None
    """Use the first so many images only."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the dataset's reader (a phantom's difficulty and size, for example)."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return _source(value) if isinstance(value, str) else value


def _source(text: str) -> dict[str, str]:
    name, _, split = text.partition(":")
    return {"name": name, "split": split} if split else {"name": name}


class Loading(Schema):
    """How samples become batches."""

    datasets: tuple[DataSource, ...] = Field(min_length=1)
    """Datasets, each `NAME`, `NAME:SPLIT` or a mapping."""
    size: tuple[PositiveInt, ...] | None = None
    """Height and width (and depth first, for volumes) of a patch in model pixels; none = whole images."""
    batch: PositiveInt = 8
    """Samples a step, over all devices."""
    samples: PositiveInt | None = None
    """Samples an epoch; none = one an image."""
    mpp: PositiveFloat | None = None
    """Resample every image of known spacing to this um per pixel; none = as it is."""
    balance: Literal["none", "datasets", "batches", "classes", "foreground"] = "none"
    """Which samples come more often: none | by dataset weight, in an epoch (datasets) or in each batch (batches) | rare
    classes | patches with something in them."""
    foreground: float = Field(default=0.5, ge=0, le=1)
    """Share of patches that must hold something, under `balance: foreground`."""
    patch_epochs: PositiveInt | None = None
    """Cut the patches of so many epochs once, with their targets, and use them again in another order under new light;
    none = every epoch cuts anew. For targets that cost more than the step."""
    fixed: bool = False
    """Whether patches that are used again stay as they are, light included: a few fixed views of each image, whose
    features a frozen encoder keeps (`keep` of its arguments)."""
    augment: str | tuple[Component, ...] = "none"
    """A preset (none, light, he-strong, fluorescence) or a list of augmentations."""
    augment_on: Literal["workers", "device"] = "workers"
    """Where augmentation runs: albumentations in the workers, or kornia in batches on the device."""
    workers: NonNegativeInt = 2
    """Loader processes; 0 = in the main process."""
    cache: Literal["none", "memory"] = "memory"
    """Where decoded images are kept."""

    @field_validator("datasets", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @field_validator("augment", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _views(self) -> Self:
        if self.fixed and (self.patch_epochs is None or self.augment_on != "workers"):
            raise ValueError("fixed wants patch_epochs, the number of views, and augment_on: workers. Write them")
        return self


class Data(Schema):
    """What is trained on."""

    train: Loading
    """Training batches."""
    validate_: Loading | None = Field(default=None, alias="validate")
    """Validation images; none = no validation."""
    streams: dict[str, Loading] = Field(default_factory=dict)
    """Further streams of the same step, for data that cannot share a tensor."""

    def all(self) -> list[tuple[tuple[str, ...], Loading]]:
        """Return what is trained on, the main stream first, each with its key below `data`."""
        return [(("train",), self.train), *((("streams", name), loading) for name, loading in self.streams.items())]


class PlayerTrain(Schema):
    """What one player of a procedure does differently from the rest (a discriminator, say)."""

    optimizer: Component | None = None
    """Optimiser; none = as in `train`."""
    schedule: Component | None = None
    """Schedule; none = as in `train`."""
    clip: PositiveFloat | None = None
    """Gradient norm; none = as in `train`."""


class EarlyStop(Schema):
    """When to stop before the last epoch."""

    patience: PositiveInt
    """Validations without a better value."""
    min_delta: float = 0.0
    """What counts as better."""


class Train(Schema):
    """How training goes. The clock is batches, not optimiser steps."""

    epochs: PositiveInt = 10
    """Epochs."""
    batches: PositiveInt | None = None
    """Stop after so many batches, whatever the epoch; none = not before the last epoch."""
    optimizer: Component = Component(name="adamw", arguments={"lr": 1e-3, "weight_decay": 1e-4})
    """Optimiser of every player."""
    schedule: Component = Component(name="cosine", arguments={"warmup": 0.05})
    """Learning rate: constant, cosine, poly or plateau; `warmup` is a share of all batches."""
    players: dict[str, PlayerTrain] = Field(default_factory=dict)
    """Changes for single players of the procedure."""
    procedure: Component | None = None
    """Procedure; none = the family's own."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Arithmetic of forward and backward: 32 | bf16 | 16. A CPU without bfloat16 computes in 32 bits."""
    accumulate: PositiveInt = 1
    """Batches an optimiser step."""
    clip: PositiveFloat | None = None
    """Largest gradient norm; none = no clipping."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the running average of the weights, which is what is validated and kept; none = no average."""
    channels_last: bool = True
    """Memory format; the faster one for convolutions on a CPU and on tensor cores."""
    monitor: str = "loss"
    """Validation value that says which weights are best ("loss", or a metric's name)."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether smaller or larger is better; auto = smaller for a loss or a distance."""
    keep: PositiveInt = 1
    """How many of the best checkpoints are kept."""
    early_stop: EarlyStop | None = None
    """Early stopping; none = never."""
    validate_every: PositiveInt = 1
    """Epochs between validations."""
    checkpoint_every: PositiveInt | None = None
    """Batches between checkpoints; none = at the end of each epoch."""
    pictures_every: NonNegativeInt = 5
    """Epochs between pictures of predictions; 0 = none."""
    find_batch: bool = False
    """Try larger batches before training and take the largest that fits (recorded in the run folder)."""
    threads: PositiveInt | None = None
    """Threads of torch in the main process; none = as torch chooses (recorded, and kept on resume)."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Loggers beside metrics.csv."""
    weights: str | None = None
    """Weights to start from: a name, a run folder or a file."""

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, value: Any) -> Any:
        """An argument alone (`train.schedule.arguments.warmup=0.1`) is one of the part that is there by default."""
        if not isinstance(value, Mapping):
            return value
        filled = dict(value)
        for key in ("optimizer", "schedule"):
            given = value.get(key)
            if isinstance(given, Mapping) and given and "name" not in given and set(given) <= {"arguments", "weight"}:
                own = cls.model_fields[key].default
                arguments = given.get("arguments", {})
                merged = {**own.arguments, **arguments} if isinstance(arguments, Mapping) else arguments
                filled[key] = {**given, "name": own.name, "arguments": merged}
        return filled

    @field_validator("precision", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Stage(Schema):
    """One of several trainings in a row; each starts from the weights of the one before."""

    name: str
    """Name of the stage."""
    train: Train
    """How this stage trains."""
    data: Data | None = None
    """What it trains on; none = the recipe's data."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that stand still, as prefixes of parameter names."""


class Tiling(Schema):
    """How large images are cut."""

    tile: PositiveInt | None = None
    """Side of a tile in model pixels; none = the family's."""
    overlap: NonNegativeInt | None = None
    """Pixels that neighbours share; none = the family's margin."""
    batch: PositiveInt = 8
    """Tiles at once."""


class Evaluate(Schema):
    """What is measured after training, by `zoo bench` and at the end of a run."""

    datasets: tuple[DataSource, ...] = ()
    """Datasets, as under `data`."""
    metrics: tuple[str, ...] = ()
    """Metric names; none = what fits the kinds of truth."""
    tiling: Tiling = Tiling()
    """How large images are cut."""


class Recipe(Schema):
    """One model: what it is, what it learns from, how, and how it is judged."""

    zoo: Literal[1]
    """Version of this schema."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name, TASK-FAMILY-ENCODER."""
    summary: str
    """One sentence."""
    seed: NonNegativeInt = 0
    """Fixes data order, augmentation and initialisation."""
    output: str = "runs/{name}"
    """Run folder; {name} and {seed} are filled in."""
    family: str
    """Family (`zoo list families`)."""
    model: dict[str, Any] = Field(default_factory=dict)
    """What the family is told (`zoo show FAMILY`)."""
    data: Data
    """What it learns from."""
    stains: Component | None = None
    """Stain normalisation of every image, wherever the model sees one: a method (`zoo stain --help`) and its arguments,
    `target: FILE` for a reference picture; none = images as they are."""
    train: Train | None = None
    """How it learns."""
    stages: tuple[Stage, ...] = ()
    """Several trainings in a row, in place of `train`."""
    evaluate: Evaluate = Evaluate()
    """How it is judged."""

    @model_validator(mode="after")
    def _train_or_stages(self) -> Recipe:
        if bool(self.train) == bool(self.stages):
            raise ValueError("a recipe says either `train` or `stages`. Write down exactly one of the two")
        return self

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Return the stages; one named "train" where the recipe has no `stages`."""
        return self.stages or (Stage(name="train", train=self.train or Train()),)

    @property
    def run_folder(self) -> Path:
        """Return the run folder with its placeholders filled in."""
        return Path(self.output.replace("{name}", self.name).replace("{seed}", str(self.seed))).expanduser()

    def values(self) -> dict[str, Any]:
        """Return plain values that YAML and JSON can hold; `Recipe.model_validate` of them gives this recipe."""
        return self.model_dump(mode="json", by_alias=True)

    def content_hash(self) -> str:
        """Return the SHA-256 of what decides the result: all but name, summary and output."""
        values = {k: v for k, v in self.values().items() if k not in ("name", "summary", "output")}
        _without_later_keys(values)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_LATER: dict[str, Any] = {"foreground": 0.5, "patch_epochs": None, "fixed": False}
"""Keys of `Loading` that came after recipes had been hashed, with their defaults."""


def _without_later_keys(values: dict[str, Any]) -> None:
    """Remove what a recipe did not say because there was no such key yet: its hash stays that of earlier versions."""
    if values.get("stains") is None:
        values.pop("stains", None)
    for data in (values["data"], *(stage.get("data") for stage in values.get("stages") or ())):
        if data is None:
            continue
        for loading in (data["train"], data.get("validate"), *data.get("streams", {}).values()):
            for key, default in _LATER.items():
                if loading is not None and loading.get(key) == default:
                    loading.pop(key, None)


def recipe_files() -> dict[str, Path]:
    """Return name -> file of every shipped recipe, without reading any."""
    return {path.stem: path for path in sorted(paths.shipped("recipes").glob("*.yaml"))}


def recipe_file(name: str | Path) -> Path:
    """Return the file of a recipe by name, path or run folder. Raises `UserError` with the nearest names."""
    known = recipe_files()
    if str(name) in known:
        return known[str(name)]
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        raise UserError(f"{path}: the folder holds no recipe.yaml. Expected a run folder or a recipe's name.")
    if path.is_file():
        return path
    raise UserError(f'no recipe "{name}". {suggest(str(name), known, "zoo list recipes")}')


def _merge(base: Document, change: Document) -> Document:
    """Lay one recipe over another: mappings key by key, everything else replaced."""
    merged = Document(copy.deepcopy(base.values), dict(base.places), change.file)

    def lay(into: dict[str, Any], values: Mapping[str, Any], key: tuple[str | int, ...]) -> None:
        for name, value in values.items():
            here = (*key, name)
            if isinstance(value, Mapping) and isinstance(into.get(name), dict) and "name" not in value:
                lay(into[name], value, here)
            else:
                for place in [p for p in merged.places if p[: len(here)] == here]:
                    del merged.places[place]
                into[name] = copy.deepcopy(value)
            merged.places.update({p: at for p, at in change.places.items() if p[: len(here)] == here})

    lay(merged.values, change.values, ())
    merged.places[()] = (change.file, 1)
    return merged


def read_recipe(path: Path) -> Document:
    """Read a recipe and what it extends (one other, which extends none). Raises `Problems`."""
    document = read_yaml(path)
    parent = document.values.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise Problems([document.problem(("extends",), f"{parent!r} will not do. Expected one name, or one path.")])
    beside = [file for file in (path.parent / f"{parent}.yaml", path.parent / parent) if file.is_file()]
    try:
        base = read_yaml(beside[0] if beside else recipe_file(parent))
    except Problems:
        raise
    except UserError as error:
        raise Problems([document.problem(("extends",), str(error))]) from None
    if "extends" in base.values:
        what = f'"{parent}" itself extends another recipe. A recipe may extend one that extends none: name that one.'
        raise Problems([document.problem(("extends",), what)])
    return _merge(base, document)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Apply `dotted.key=value` to a document in place; a number in the key is a place in a list. Raises `Problems`."""
    problems: list[Problem] = []
    for text in overrides:
        name, equals, right = text.partition("=")
        if not equals or not name:
            what = f'"{text}" is no override. Expected key=value. Write for example train.epochs=20.'
            problems.append(Problem("command line", 0, "", what))
            continue
        key = tuple(int(p) if p.isdigit() else p for p in name.split("."))
        try:
            _set(document.values, key, parse_value(right))
        except (LookupError, TypeError, ValueError) as error:
            problems.append(Problem("command line", 0, name, f"cannot be set ({error}). See: zoo show recipe"))
        for place in [p for p in document.places if p[: len(key)] == key]:
            del document.places[place]
        document.places[key] = (f"command line ({name})", 0)
    if problems:
        raise Problems(problems)


def _set(values: Any, key: tuple[str | int, ...], value: Any) -> None:
    for position, part in enumerate(key[:-1]):
        if part == "datasets" and isinstance(values, dict) and (given := values.get("datasets")):
            sources = given if isinstance(given, list) else [given]  # NAME, or NAME:SPLIT, stands for a list of one
            values["datasets"] = [_source(each) if isinstance(each, str) else each for each in sources]
        if isinstance(values, list):
            values = values[int(part)]
        elif isinstance(values, dict):
            if isinstance(values.get(str(part)), str) and key[position + 1] in ("name", "arguments", "weight"):
                values[str(part)] = {"name": values[str(part)]}
            values = values.setdefault(str(part), {})
            if values is None:
                raise TypeError(f"{part} is none")
        else:
            raise TypeError(f"{part} is inside a plain value")
    last = key[-1]
    if isinstance(values, list):
        values[int(last)] = value
    elif isinstance(values, dict):
        values[str(last)] = value
    else:
        raise TypeError(f"{last} is inside a plain value")


def load_document(name: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Document]:
    """Return a checked recipe and the document behind it, whose places tell lines. Raises `Problems`, `UserError`."""
    document = read_recipe(recipe_file(name))
    apply_overrides(document, overrides)
    return validate(Recipe, document), document


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a checked recipe by name or path. Raises `Problems` (all mistakes at once) or `UserError`."""
    return load_document(name, overrides)[0]


def dump_yaml(values: Mapping[str, Any], width: int = 110) -> str:
    """Return YAML text, folded at `width` columns, that `read_yaml` reads back to equal values."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
        text = repr(value)
        return dumper.represent_scalar("tag:yaml.org,2002:float", text.replace("inf", ".inf").replace("nan", ".nan"))

    Dumper.add_representer(float, number)
    return yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    extends = {"type": "string", "description": "Name of one other recipe, over which this one is laid."}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    schema["required"] = ["zoo", "name"]
    return schema
