"""Pulling weights: asked once, fetched, checked, converted, and only then there.

What is fetched lies in a staging folder until it has become a file that builds and fills its module; a pull that dies
goes on there. Nothing of a published file is executed (`zoo.weights.readers`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import cards, registry
from zoo.cards import WeightsCard
from zoo.errors import UserError
from zoo.fetch import FetchError, archives, checksum, consent, http, hub, quarantine
from zoo.weights import cache, readers, store
from zoo.weights.convert import FORMAT, Converted, Files, metadata
from zoo.weights.gather import MIRROR, Gathered, How, gather, place
from zoo.weights.store import Found

if TYPE_CHECKING:
    from torch import Tensor


def pull(name: str, how: How) -> Found:
    """Have weights on this machine. `name`: a weights name, its tag may be left out, or hf://OWNER/NAME[@REVISION].

    Raises `UserError` (unknown, cannot be had, licence not accepted, files that do not fit) and `FetchError`.
    """
    if name.startswith(hub.SCHEME):
        return _reference(name, how)
    chosen = store.card(store.resolve(name))
    if chosen.source.kind in ("bundled", "folder"):
        return store.find(chosen.name)
    if chosen.source.kind == "unavailable":
        raise store.absent(chosen)
    found = store.local(chosen)
    if found is not None and how.origin is None:
        return Found(chosen.name, found, chosen)
    check_convertible(chosen)
    agree(chosen, how)
    target = cache.folder(chosen.name)
    with http.locked(target, chosen.name):
        found = store.local(chosen)
        if found is None or how.origin is not None:
            found = _install(chosen, target, how)
    return Found(chosen.name, found, chosen)


def check_convertible(card: WeightsCard) -> None:
    """Raise `UserError` where this version cannot use the weights, before anything is fetched."""
    if card.convert is not None and card.convert.name not in registry.table("converter"):
        raise UserError(
            f'weights "{card.name}": this version has no converter "{card.convert.name}" for them. Update histozoo, or '
            "install the package that brings it. Files alone: zoo weights mirror"
        )
    if card.family is not None and card.family not in registry.table("family"):
        raise UserError(f'weights "{card.name}": {registry.unknown("family", card.family)}')


def terms(card: WeightsCard) -> str:
    """Return what binds a user of weights, in sentences."""
    weights = card.licence.weights
    allows = ", ".join(weights.allows) or "nothing without asking its owner"
    lines = [f"{card.name}: licence of the weights: {weights.name}; allows {allows}."]
    if "commercial" not in weights.allows:
        lines.append("Commercial use is not allowed.")
    lines.append(f"Licence of the published code: {card.licence.code}.")
    if weights.note:
        lines.append(weights.note.rstrip(".") + ".")
    page = weights.url or card.source.page
    return " ".join(lines) + (f" Terms: {page}" if page else "")


def agree(card: WeightsCard, how: How) -> None:
    """Ask for consent where the licence binds, once for a name and a licence. Raises `UserError` without it."""
    if card.binds:
        consent.ask(card.name, card.licence.weights.name, terms(card), accept=how.accept)


def _install(card: WeightsCard, target: Path, how: How) -> Path:
    staging = cache.root() / ".staging" / target.name
    gathered = gather(card, staging / "served", how)
    try:
        made = _make(card, gathered, staging, how)
    except UserError as error:
        if card.source.sha256 is None:  # nothing says that it is the right file: another pull must fetch it again
            kept = quarantine(gathered.main)
            raise UserError(f"{str(error).rstrip('.')}. The file lies at {kept}, unused.") from None
        raise
    target.mkdir(parents=True, exist_ok=True)
    final = target / made.name
    sum_, size = checksum(made), made.stat().st_size
    made.replace(final)
    converter = card.convert.name if card.convert else None
    cache.write(cache.Pulled(card.name, final.name, sum_, size, gathered.served, gathered.revision, converter))
    shutil.rmtree(staging, ignore_errors=True)
    return final


def _make(card: WeightsCard, gathered: Gathered, staging: Path, how: How) -> Path:
    """Return the file that is to be kept, in the staging folder: converted and checked. Raises `UserError`."""
    if card.family is None and card.convert is None:
        finite(readers.read(gathered.main).tensors, str(gathered.main))
        return gathered.main
    if card.convert is None:
        check(card, gathered.main)
        return gathered.main
    how.say(f"{card.name}: converting {gathered.main.name}")
    files = Files(gathered.folder, gathered.main)
    if card.source.unpack:
        unpacked = staging / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        archives.unpack(gathered.main, unpacked)
        files = Files(unpacked, unpacked)
    converted = convert(card, files)
    path = staging / f"{card.name}.safetensors"
    store.write_tensors(path, converted.tensors, _described(card, converted, gathered))
    if card.family is None:
        registry.get("engine", "fills")(card.encoder, path)
    else:
        check(card, path)
    return path


def convert(card: WeightsCard, files: Files) -> Converted:
    """Return what the card's converter makes of the files. Raises `UserError` where they are of another layout."""
    if card.convert is None:
        raise ValueError(f"{card.name} needs no converter")
    try:
        converted: Converted = registry.get("converter", card.convert.name)(files, **card.convert.arguments)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join((str(error).splitlines() or [""])[0].split())[:120]
        raise UserError(
            f"{card.name}: {files.main.name} is not laid out as the converter {card.convert.name} expects "
            f"({type(error).__name__}: {reason}). Expected the published file."
        ) from None
    if (converted.family or None) != card.family:
        raise UserError(f"{card.name}: the files are of family {converted.family}, the card says {card.family}.")
    finite(converted.tensors, card.name)
    return converted


def finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError` for weights that are not numbers."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise UserError(f'{where}: "{name}" holds NaN or infinity. Expected finite weights. Get the file again.')


def _described(card: WeightsCard, converted: Converted, gathered: Gathered) -> dict[str, str]:
    more: dict[str, Any] = {"published": {file: sums["sha256"] for file, sums in gathered.served.items()}}
    if card.recipe:
        more["recipe"] = card.recipe
    if card.trained_on:
        more["trained_on"] = [t.model_dump(mode="json") for t in card.trained_on]
    if card.family is None:
        return {"format": str(FORMAT), "encoder": str(card.encoder), **{k: json.dumps(v) for k, v in more.items()}}
    return metadata(converted.family, converted.options, more | dict(converted.more))


def check(card: WeightsCard, path: Path) -> None:
    """Raise `UserError`, in one line, where a file does not build and fill its module, or is not what the card says."""
    shapes, meta = store.read_shapes(path)
    store.check_card(Found(card.name, path, card), meta)
    finite_file(path, list(shapes))
    try:
        registry.get("engine", "fits")(path)
    except UserError as error:
        head, *rest = str(error).splitlines()
        first = f" First: {' '.join(rest[0].split())}." if rest else ""
        raise UserError(f"{card.name}: {head.removeprefix(f'{path}: ')}{first}") from None


def finite_file(path: Path, names: list[str]) -> None:
    """Raise `UserError` for a safetensors file with weights that are not numbers, reading an entry at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in names:
            finite({name: file.get_tensor(name)}, str(path))


# --- a repository that `zoo weights push` filled ----------------------------------------------------------------------


def _reference(name: str, how: How) -> Found:
    repository, revision = hub.parse(name)
    described = hub.file(repository, store.CARD, revision)
    commit = hub.commit_of(described)
    card = cards.read_weights_card(described)
    whole = f"{hub.SCHEME}{repository}@{commit}"
    record = cache.read(whole)
    if record is not None:
        return Found(whole, record.path, card)
    agree(replace_name(card, whole), how)
    target = cache.folder(whole)
    with http.locked(target, whole):
        served = hub.file(repository, str(card.source.file), commit)
        actual = checksum(served)
        if card.source.sha256 not in (None, actual):
            raise FetchError(f"{whole}: SHA-256 of {card.source.file} is {actual}, its card says {card.source.sha256}.")
        check(card, served)
        place(served, target / served.name)
        place(described, target / store.CARD)
        size = served.stat().st_size
        cache.write(
            cache.Pulled(whole, served.name, actual, size, {served.name: {"sha256": actual, "size": size}}, commit)
        )
    return store.find(whole)


def replace_name(card: WeightsCard, name: str) -> WeightsCard:
    """Return a card under another name, for consent to what somebody else's repository holds."""
    return card.model_copy(update={"name": name})


# --- machines without a network ---------------------------------------------------------------------------------------


def mirror(name: str, out: Path, how: How) -> Path | None:
    """Put the published files of a name into a mirror's folder, and return where; None for what is bundled.

    The folder is what `--from` and `ZOO_MIRROR` read, on a disk or behind a web server. Raises as `pull` does.
    """
    chosen = store.card(store.resolve(name))
    if chosen.source.kind in ("bundled", "folder"):
        return None
    if chosen.source.kind == "unavailable":
        raise store.absent(chosen)
    agree(chosen, how)
    folder = out / chosen.name
    with http.locked(folder, chosen.name):
        gathered = gather(chosen, folder, how)
    shutil.copyfile(store.card_index()[chosen.name][0], folder / store.CARD)
    with http.locked(out / MIRROR):
        index = out / MIRROR
        values = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
        values[chosen.name] = {"revision": gathered.revision, "served": gathered.served}
        partial = index.with_suffix(".part")
        partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(index)
    return folder


# --- what is here -----------------------------------------------------------------------------------------------------


def verify(name: str) -> tuple[Found, str, str]:
    """Return the file, its SHA-256 and what it was compared with. Raises `FetchError` for a wrong sum (a pulled file is
    put into quarantine), `UserError` where it does not build its module."""
    path = Path(name).expanduser()
    record = None
    if not path.exists() and not name.startswith(hub.SCHEME):
        chosen = store.card(store.resolve(name))
        record = cache.read(chosen.name) if chosen.source.kind not in ("bundled", "folder") else None
    elif name.startswith(hub.SCHEME):
        record = cache.read(name)
    found = store.find(name)
    actual = checksum(found.path)
    if record is not None and actual != record.sha256:
        kept = quarantine(found.path)
        raise FetchError(
            f"{found.name}: SHA-256 is {actual}, it was pulled as {record.sha256}. The file lies at {kept} and is not "
            f"used any more. Pull it again: zoo weights pull {found.name}"
        )
    if record is not None:
        compared = "as it was pulled"
    elif found.card and found.card.source.sha256:
        compared = "as its card says"
        if actual != found.card.source.sha256:
            raise FetchError(
                f"{found.path}: SHA-256 is {actual}, its card says {found.card.source.sha256}. Copy it again."
            )
    else:
        compared = "no card to compare with"
    if found.card is not None and found.card.family is None:
        finite(readers.read(found.path).tensors, str(found.path))
    else:
        if found.card is not None:
            store.check_card(found, store.read_shapes(found.path)[1])
        registry.get("engine", "fits")(found.path)
    return found, actual, compared


def remove(name: str) -> int:
    """Delete pulled weights and what is left of a pull, and return the bytes freed. Raises `UserError`."""
    whole = name if name.startswith(hub.SCHEME) else store.resolve(name)
    folders = [cache.folder(whole), cache.root() / ".staging" / cache.folder(whole).name]
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        raise UserError(f'weights "{whole}" were not pulled. See: zoo list weights --usable-now')
    size = sum(file.stat().st_size for folder in there for file in folder.rglob("*") if file.is_file())
    for folder in there:
        shutil.rmtree(folder)
    return size
