"""Cards: what a dataset or a file of weights is, where it comes from, and what one may do with it.

Strict schemas over YAML. Lists, pages and checks are made from cards; nothing is said twice.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from zoo import paths
from zoo.errors import UserError, suggest
from zoo.schema import Component, Schema, read_yaml, validate

Provenance = Literal["published", "assumed", "unknown"]
Use = Literal["research", "commercial", "redistribution", "derivatives"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""64 hexadecimal digits, small letters."""


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
    file: str | None = None
    """Name to keep it under, below the dataset's folder; none = the last part of the address."""
    sha256: Sha256 | None = None
    """Checksum of the file as served; none = not published: recorded on the first fetch and compared afterwards."""
    size: int | None = None
    """Bytes."""
    unpack: bool = False
    """Whether the file is an archive to unpack below the dataset's folder."""
    inside: str | None = None
    """Folder of the archive whose content is wanted; none = all of it."""

    @field_validator("file", "inside")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        return None if value is None else inside(value)


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
    stains: tuple[str, ...] = ()
    """Of a picture of stained tissue: its stains. With haematoxylin and dab, cells are counted in it."""
    values: tuple[str, ...] = ()
    """Names of what is measured of each object, or of the numbers of a vector."""
    positive: float | None = None
    """Value from which an object counts as positive for what is measured; none = values are no calls."""
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


class WeightsFile(Schema):
    """A file of a published model beside the main one: settings, thresholds, a further network."""

    file: str
    """Its name below the repository or the folder, and the name to keep it under."""
    url: str | None = None
    """Its address, where the source is one of HTTP(S)."""
    sha256: Sha256 | None = None
    """Checksum as served; none = not published: recorded on the first pull and compared afterwards."""
    size: int | None = None
    """Bytes."""

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return inside(value)


class WeightsSource(Schema):
    """Where the file comes from."""

    kind: Literal["bundled", "folder", "http", "hub", "manual", "unavailable"]
    """bundled with the package | a folder beside the card | an HTTP(S) address | a hub repository | a person fetches it
    from `page` and gives it with `zoo weights pull NAME --from FILE` | cannot be had."""
    file: str | None = None
    """File name, below the bundle, the folder or the repository; of an address or a person's file, the name to keep."""
    folder: str | None = None
    """Folder, relative to the card's."""
    url: str | None = None
    """Address of the file."""
    repository: str | None = None
    """Hub repository, owner/name."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Commit, which cannot change; none = not known: the commit of the first pull is recorded and kept to."""
    sha256: Sha256 | None = None
    """Checksum of the file as served; none = not published: recorded on the first pull and compared afterwards."""
    size: int | None = None
    """Bytes."""
    unpack: bool = False
    """Whether the file is an archive; what is in it is what gets converted."""
    more: tuple[WeightsFile, ...] = ()
    """Files that belong to it."""
    page: str | None = None
    """Page to visit: what it is, its terms, where a person gets it."""
    reason: str | None = None
    """Why it cannot be had."""

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        return None if value is None else inside(value)

    @model_validator(mode="after")
    def _complete(self) -> WeightsSource:
        wanted = {
            "bundled": ("file", "sha256"),
            "folder": ("file",),
            "http": ("url",),
            "hub": ("repository", "file"),
            "manual": ("page",),
            "unavailable": ("reason",),
        }[self.kind]
        missing = [key for key in wanted if not getattr(self, key)]
        if missing:
            raise ValueError(f"{missing[0]} is missing, which a source of kind {self.kind} needs. Write it down")
        return self

    @property
    def files(self) -> tuple[WeightsFile, ...]:
        """Return the main file, then the others."""
        if self.kind == "unavailable":
            return ()
        main = self.file or str(self.url or "").partition("?")[0].rstrip("/").rpartition("/")[2] or "weights"
        return (WeightsFile(file=main, url=self.url, sha256=self.sha256, size=self.size), *self.more)


def inside(name: str) -> str:
    """Return a relative name that does not lead outside its folder. Raises `ValueError` for another one."""
    parts = name.replace("\\", "/").split("/")
    if not name.strip() or name.startswith(("/", "~")) or ".." in parts or ":" in parts[0]:
        raise ValueError(f'"{name}" leads outside its folder. Expected a relative name')
    return name


class WeightsCard(Schema):
    """A file of weights: RECIPE.TAG."""

    zoo: Literal[1]
    """Version of this schema."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)+$")
    """Name that users type: recipe-name.tag."""
    summary: str
    """One sentence."""
    default: bool = False
    """Whether the recipe's name alone means these weights."""
    family: str | None = None
    """Family name; none = weights of an encoder, or of another part."""
    encoder: str | None = None
    """Encoder name, where the weights are those of an encoder alone."""
    part: str | None = None
    """What part of a model they are, in words, where they are neither a family's nor an encoder's (an autoencoder)."""
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
    convert: Component | None = None
    """What makes weights of the family out of the published files (a "converter"); none = the zoo wrote the file."""
    licence: WeightsLicence
    """What one may do with it."""
    gate: Literal["none", "consent", "token"] = "none"
    """What is asked before a download: consent to the terms; a token of an account that has accepted them."""
    paper: str | None = None
    """Citation."""
    input: str = ""
    """What goes in, in words."""
    output: str = ""
    """What comes out, in words."""
    trained_on: tuple[Trained, ...] = ()
    """What the weights have seen; empty = not known."""
    numbers: tuple[Number, ...] = ()
    """Measured results."""
    notes: str = ""
    """Anything else."""

    @model_validator(mode="after")
    def _one_of_two(self) -> WeightsCard:
        if sum(word is not None for word in (self.family, self.encoder, self.part)) != 1:
            raise ValueError("expected one of family, encoder and part. Write the one whose weights these are")
        return self

    @property
    def binds(self) -> bool:
        """Return whether a user must agree before a download: a gate, or a licence that forbids commercial use."""
        return self.gate != "none" or "commercial" not in self.licence.weights.allows

    @property
    def of(self) -> str:
        """Return the family, the encoder, or the part."""
        return self.family or self.encoder or str(self.part)


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
    if len(path.parts) > 1:
        seen = "" if path.is_absolute() else f", seen from {Path.cwd()}. Go to where it is, or write the whole path"
        raise UserError(f"{name}: there is no such folder{seen}.")
    raise UserError(f'no dataset "{name}". {suggest(str(name), known, "zoo list datasets")}')


def dataset_card(name: str | Path) -> DatasetCard:
    """Return a dataset's card by name, folder or path. Raises `UserError`."""
    path = dataset_card_file(name)
    return _read_dataset(path.resolve(), path.stat().st_mtime)


def read_weights_card(path: Path) -> WeightsCard:
    """Return a weights card. Raises `Problems`."""
    return validate(WeightsCard, read_yaml(path))
