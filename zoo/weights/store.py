"""Finding weights: names -> cards -> files on this machine, checked before they are used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo import cards, paths
from zoo.errors import UserError, suggest
from zoo.fetch import FetchError, checksum, hub
from zoo.schema import read_yaml
from zoo.weights import cache
from zoo.weights.tensors import difference, load_file, load_strictly, read_shapes, read_tensors, write_tensors

__all__ = [
    "Found",
    "absent",
    "card",
    "card_files",
    "card_index",
    "check_card",
    "checksum",
    "difference",
    "find",
    "load_file",
    "load_strictly",
    "local",
    "read_shapes",
    "read_tensors",
    "resolve",
    "write_tensors",
]

BUNDLE = Path(__file__).parent / "bundled"
CARDS = Path(__file__).parent / "cards"
CARD = "card.yaml"
"""Name of the card in a folder that `zoo weights push` made."""
_SMALL = 2**25
"""Bytes of a file whose sum is taken at every use; that of a larger one is remembered with its size and time."""


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine: its name, its path, its card where it has one."""

    name: str
    path: Path
    card: cards.WeightsCard | None = None


# --- cards ------------------------------------------------------------------------------------------------------------


def card_index() -> dict[str, list[Path]]:
    """Return weights name -> card files: bundled, shipped, of other packages, of the user; none of the first is read.

    A name with several files is a mistake that `card_file` says.
    """
    found: dict[str, list[Path]] = {}
    for folder in (BUNDLE, CARDS, *_packages()):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, []).append(path)
    for folder in paths.weights_folders():
        for path in sorted((*folder.glob("*.yaml"), *folder.glob(f"*/{CARD}"))):
            found.setdefault(_name_in(path), []).append(path)
    return found


def _packages() -> list[Path]:
    """Return the folders of cards of other packages: entry points of the group `zoo.weights`, each names a package."""
    from importlib import metadata, util

    found = []
    for point in metadata.entry_points(group="zoo.weights"):
        spec = util.find_spec(point.value.partition(":")[0])
        found += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return found


def _name_in(path: Path) -> str:
    """Return the name that a card of the user bears; that of its file where it cannot be read."""
    if path.name != CARD:
        return path.stem
    try:
        return str(read_yaml(path).values.get("name", path.parent.name))
    except UserError:
        return path.parent.name


def card_files() -> dict[str, Path]:
    """Return weights name -> card file; of a name that stands twice the first (`find` says so)."""
    return {name: files[0] for name, files in sorted(card_index().items())}


def card(name: str) -> cards.WeightsCard:
    """Return the card of a whole name (recipe.tag). Raises `UserError`: unknown, twice, or not what its file says."""
    index = card_index()
    if name not in index:
        raise UserError(f'no weights "{name}". {suggest(name, index, "zoo list weights")}')
    if len(index[name]) > 1:
        where = " and ".join(map(str, index[name][:3]))
        raise UserError(f'weights "{name}" have several cards: {where}. Expected one. Rename or remove the others.')
    found = cards.read_weights_card(index[name][0])
    if found.name != name:
        raise UserError(f'{index[name][0]}: name: it says "{found.name}". Expected {name}, as its file is called.')
    return found


def resolve(name: str) -> str:
    """Return the whole name behind a name whose tag may be left out: the default's, or the only one.

    Raises `UserError` with the nearest names.
    """
    index = card_index()
    if name in index:
        return name
    tags = [n for n in index if n.split(".")[0] == name]
    if len(tags) == 1:
        return tags[0]
    default = [n for n in tags if card(n).default]
    if len(default) == 1:
        return default[0]
    if len(default) > 1:
        raise UserError(
            f'weights "{name}": several tags say they are the default: {", ".join(default)}. Write one out.'
        )
    having = f" It has tags: {', '.join(tags)}." if tags else ""
    known = [*_beside(name), *index]
    raise UserError(f'no weights "{name}".{having} {suggest(name, known, "zoo list weights")}')


def known(name: str) -> bool:
    """Return whether there are weights of that name, with its tag or without."""
    return any(name in (whole, whole.split(".")[0]) for whole in card_index())


def _beside(name: str) -> list[str]:
    """Return the run folders and files of weights that lie where a path that leads to nothing points."""
    folder = Path(name).expanduser().parent
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    runs = [p for p in inside if p.suffix == ".safetensors" or (p / "recipe.yaml").is_file()]
    return [str(p) for p in runs]


# --- files ------------------------------------------------------------------------------------------------------------


def find(name: str | Path) -> Found:
    """Return the file behind a weights name, a pulled hub reference, a run folder, a pushed folder or a path.

    Raises `UserError` with the nearest names, or with what to pull; `FetchError` where a file is not as its card says.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return Found(path.stem, path)
    if str(name).startswith(hub.SCHEME):
        return _pulled_reference(str(name))
    chosen = card(resolve(str(name)))
    found = local(chosen)
    if found is None:
        raise absent(chosen)
    if chosen.source.kind in ("bundled", "folder") and chosen.source.sha256:
        _check_sum(found, chosen.name, chosen.source.sha256)
    return Found(chosen.name, found, chosen)


def _in_folder(path: Path) -> Found:
    if (path / CARD).is_file():
        found = cards.read_weights_card(path / CARD)
        file = path / str(found.source.file)
        if not file.is_file():
            raise UserError(f"{path}: its card names {found.source.file}, which is not there. Copy the folder again.")
        if found.source.sha256:
            _check_sum(file, str(file), found.source.sha256)
        return Found(found.name, file, found)
    for name in ("best.safetensors", "last.safetensors"):
        if (path / name).is_file():
            return Found(path.name, path / name)
    raise UserError(f"{path}: the folder holds no best.safetensors or last.safetensors. Expected a run folder.")


def _pulled_reference(name: str) -> Found:
    _, revision = hub.parse(name)
    if revision is None or not hub.is_commit(revision):
        raise UserError(f'"{name}": no commit stands after @. Pull it to learn which one: zoo weights pull {name}')
    record = cache.read(name)
    if record is None:
        raise UserError(f'"{name}" is not on this machine. Pull it: zoo weights pull {name}')
    return Found(name, record.path, cards.read_weights_card(record.path.parent / CARD))


def local(chosen: cards.WeightsCard) -> Path | None:
    """Return where the file of a card is on this machine, or None; asks no network, takes no sums."""
    source = chosen.source
    if source.kind == "bundled":
        path = BUNDLE / str(source.file)
    elif source.kind == "folder":
        path = card_index()[chosen.name][0].parent / (source.folder or ".") / str(source.file)
    else:
        record = cache.read(chosen.name)
        return record.path if record is not None and not cache.stale(record, chosen) else None
    return path if path.is_file() else None


def absent(chosen: cards.WeightsCard) -> UserError:
    """Return what to do about weights that are not on this machine."""
    source, page = chosen.source, f" See {chosen.source.page}" if chosen.source.page else ""
    if source.kind == "unavailable":
        return UserError(f'weights "{chosen.name}" cannot be had: {str(source.reason).rstrip(".")}.{page}')
    if source.kind in ("bundled", "folder"):
        return UserError(f'weights "{chosen.name}": {source.file} is not there. Install or copy it again.{page}')
    record = cache.read(chosen.name)
    if record is not None:
        why = cache.stale(record, chosen)
        return UserError(
            f'weights "{chosen.name}": the card has changed since they were pulled: {why}. Pull them again.'
        )
    how = f"zoo weights pull {chosen.name}"
    if source.kind == "manual":
        return UserError(
            f'weights "{chosen.name}" are not on this machine. Get {source.file or "it"} from {source.page}, then: '
            f"{how} --from FILE"
        )
    return UserError(f'weights "{chosen.name}" are not on this machine. Pull them: {how}')


def _check_sum(path: Path, label: str, expected: str) -> None:
    """Compare a file with its card before it is used. Raises `FetchError`; the file stays where its owner put it."""
    status = path.stat()
    seen = paths.cache_root() / "checked" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    stamp = f"{status.st_size} {status.st_mtime_ns} {expected}"
    if status.st_size > _SMALL and seen.is_file() and seen.read_text(encoding="utf-8") == stamp:
        return
    actual = checksum(path)
    if actual != expected:
        raise FetchError(f"{label}: SHA-256 of {path} is {actual}, its card says {expected}. Copy or push it again.")
    if status.st_size > _SMALL:
        with contextlib.suppress(OSError):
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(stamp, encoding="utf-8")


def check_card(found: Found, metadata: Mapping[str, str]) -> None:
    """Raise `UserError` where a file is not what its card says: another family, or a recipe of another hash."""
    if found.card is None:
        return
    family, wanted = metadata.get("family"), found.card.family
    if wanted and family and family != wanted:
        raise UserError(f"{found.path}: weights of family {family}, its card says {wanted}. Pull or push it again.")
    made, said = metadata.get("recipe_hash"), found.card.recipe_hash
    if made and said and made != said:
        raise UserError(
            f"{found.path}: made by a recipe of hash {made[:12]}..., its card says {said[:12]}.... Expected the same "
            "recipe: the card or the file belongs to another run. Push or pull it again."
        )
