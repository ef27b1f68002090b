"""Cards: what a dataset or a file of weights is, where it comes from, and what one may do with it.

Strict schemas over YAML. Lists, pages and checks are made from cards; nothing is said twice.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from zoo import paths
from zoo.errors import UserError, suggest
from zoo.schema import Component, Schema, read_yaml, validate

Provenance = Literal["published", "assumed", "unknown"]
Use = Literal["research", "commercial", "redistribution", "derivatives"]


class Licence(Schema):
    """What one may do."""

    name: str
    """SPDX identifier where there is one, else the name that the source gives."""
    allows: tuple[Use, ...]
    """What it allows without asking; "derivatives" means giving away what was trained or made from it."""
    url: str | None = None
    """Page with the full text."""
    note: str | None = None
    """What else a user must know (citation, registration)."""


class Download(Schema):
    """One file that a user may fetch directly."""

    url: str
    """Address."""
    sha256: str
    """Checksum of the file as served."""
    size: int | None = None
    """Bytes."""
    unpack: bool = False
    """Whether the file is an archive to unpack below the dataset's folder."""


class Source(Schema):
    """Where a user gets it."""

    url: str | None = None
    """Page to visit."""
    paper: str | None = None
    """Citation."""
    steps: tuple[str, ...] = ()
    """What to do, a sentence each, where there is no direct download."""
    downloads: tuple[Download, ...] = ()
    """Direct downloads, where the licence allows them."""


class Spacing(Schema):
    """um per pixel at level 0, and how it is known."""

    um: float | tuple[float, ...] | None = None
    """um per pixel, one number or one an axis; none = not known."""
    provenance: Provenance = "unknown"
    """published | assumed | unknown."""
    note: str | None = None
    """Where the number comes from."""

    @field_validator("um")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else [value]:
            if number is not None and not 0 < number < 1e4:
                raise ValueError(f"{number} um per pixel will not do. Expected a positive number")
        return value


class TruthCard(Schema):
    """One truth that the dataset carries."""

    kind: Literal["semantic", "instances", "boxes", "picture", "label", "vector"]
    """Which kind of truth (zoo.types)."""
    classes: tuple[str, ...] = ()
    """Class names in index order. Semantic: from 0, with the background. Instances, boxes: from 1."""
    attributes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Attributes of a box and the names of their values."""
    channels: tuple[str, ...] = ()
    """Channel names of a picture."""
    values: tuple[str, ...] = ()
    """Names of what is measured of each object, or of the numbers of a vector."""
    ignore: int | None = None
    """Index that means "not annotated here" in a semantic map."""
    colours: dict[str, str] = Field(default_factory=dict)
    """Colour of a class as #rrggbb, for overlays."""


class Defect(Schema):
    """A known fault of the data."""

    what: str
    """The fault."""
    handling: str
    """What the reader does about it."""


class DatasetCard(Schema):
    """A dataset: `datasets/NAME.yaml`, or `zoo-dataset.yaml` in a user's own folder."""

    zoo: Literal[1]
    """Version of this schema."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name that users type."""
    summary: str
    """One sentence."""
    reader: Component
    """Which reader opens it, with its arguments."""
    folder: str | None = None
    """Folder below the data root; none for data that is generated or comes with a package."""
    licence: Licence
    """What one may do with it."""
    source: Source = Source()
    """Where a user gets it."""
    layout: str = ""
    """The published folder layout, in words."""
    axes: Literal["CYX", "CZYX"] = "CYX"
    """Axes of an image."""
    channels: tuple[str, ...] = ("red", "green", "blue")
    """Channel names of an image."""
    spacing: Spacing = Spacing()
    """um per pixel."""
    truths: dict[str, TruthCard]
    """Truths by key."""
    group: str | None = None
    """What must not be split ("patient", "slide"); none = every image is its own group."""
    splits: str | dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Image ids of each split, or the name of a JSON file beside the card that holds them."""
    defects: tuple[Defect, ...] = ()
    """Known faults."""
    notes: str = ""
    """Anything else."""

    @property
    def licence_line(self) -> str:
        """Return the licence and what it allows, in one line."""
        return f"{self.licence.name} ({', '.join(self.licence.allows) or 'nothing without asking'})"


class Number(Schema):
    """One measured result."""

    dataset: str
    """Dataset name."""
    split: str
    """Split name."""
    metric: str
    """Metric name."""
    value: float
    """The mean over cases."""
    interval: tuple[float, float] | None = None
    """95 % interval, bootstrapped by group."""
    n: int | None = None
    """Images."""
    groups: int | None = None
    """Groups (patients, slides)."""
    note: str | None = None
    """What else a reader must know."""


class Trained(Schema):
    """What a file of weights has seen: the record that the benchmark checks for leakage."""

    dataset: str
    """Dataset name."""
    split: str
    """Split name."""
    groups: tuple[str, ...] = ()
    """Groups seen (patients, slides)."""
    images: tuple[str, ...] = ()
    """Image ids seen."""


class WeightsLicence(Schema):
    """Licences of a published model: of its code and of its weights, which are often not the same."""

    code: str
    """Licence of the published code."""
    weights: Licence
    """Licence of the weights."""


class WeightsSource(Schema):
    """Where the file comes from."""

    kind: Literal["bundled", "folder", "http", "hub", "unavailable"]
    """bundled with the package | a folder | an HTTP(S) address | a hub repository | cannot be had."""
    file: str | None = None
    """File name, below the bundle, the folder or the repository."""
    url: str | None = None
    """Address of the file, or of the page to visit."""
    repository: str | None = None
    """Hub repository, owner/name."""
    revision: str | None = None
    """Immutable revision (a commit)."""
    sha256: str | None = None
    """Checksum of the file as served."""
    size: int | None = None
    """Bytes."""
    reason: str | None = None
    """Why it cannot be had."""


class WeightsCard(Schema):
    """A file of weights: RECIPE.TAG."""

    zoo: Literal[1]
    """Version of this schema."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name that users type: recipe-name.tag."""
    summary: str
    """One sentence."""
    default: bool = False
    """Whether the recipe's name alone means these weights."""
    family: str
    """Family name."""
    recipe: str | None = None
    """Recipe name."""
    recipe_hash: str | None = None
    """Content hash of the resolved recipe."""
    commit: str | None = None
    """Commit of the code that trained them."""
    seed: int | None = None
    """Seed."""
    source: WeightsSource
    """Where the file comes from."""
    licence: WeightsLicence
    """What one may do with it."""
    gate: Literal["none", "consent", "token"] = "none"
    """What is asked before a download."""
    input: str = ""
    """What goes in, in words."""
    output: str = ""
    """What comes out, in words."""
    trained_on: tuple[Trained, ...] = ()
    """What the weights have seen."""
    numbers: tuple[Number, ...] = ()
    """Measured results."""
    notes: str = ""
    """Anything else."""


CARD_NAME = "zoo-dataset.yaml"


def dataset_files() -> dict[str, Path]:
    """Return name -> file of every shipped dataset card, without reading any."""
    return {path.stem: path for path in sorted(paths.shipped("datasets").glob("*.yaml"))}


@functools.lru_cache(maxsize=256)
def _read_dataset(path: Path, _changed: float) -> DatasetCard:
    return validate(DatasetCard, read_yaml(path))


def dataset_card_file(name: str | Path) -> Path:
    """Return the file of a dataset card by name, folder or path. Raises `UserError` with the nearest names."""
    known = dataset_files()
    if str(name) in known:
        return known[str(name)]
    path = Path(name).expanduser()
    if path.is_dir() and (path / CARD_NAME).is_file():
        return path / CARD_NAME
    if path.is_dir():
        raise UserError(f"{path}: the folder has no {CARD_NAME}. Make one with: zoo data init {path}")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise UserError(f'no dataset "{name}". {suggest(str(name), known, "zoo list datasets")}')


def dataset_card(name: str | Path) -> DatasetCard:
    """Return a dataset's card by name, folder or path. Raises `UserError`."""
    path = dataset_card_file(name)
    return _read_dataset(path.resolve(), path.stat().st_mtime)


def read_weights_card(path: Path) -> WeightsCard:
    """Return a weights card. Raises `Problems`."""
    return validate(WeightsCard, read_yaml(path))
