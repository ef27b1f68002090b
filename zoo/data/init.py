"""A card for a user's own folder: what is there, what the masks mean, how to split it.

Everything that is guessed is said in the report, and stands in the card for the user to mend.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from zoo.cards import CARD_NAME, DatasetCard
from zoo.data.readers.base import Entry
from zoo.data.readers.folder import SPLITS, FolderArguments, MaskSource, found_images, group_of, mask_of
from zoo.data.readers.polygons import read_shapes
from zoo.data.splits import split_by_group
from zoo.errors import DataError, UserError, counted, suggest
from zoo.io.images import IMAGE_SUFFIXES, ImageFile, read_image, read_indices

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "raw", "tiles", "patches", "bilder")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "gt",
    "groundtruth",
    "segmentation",
    "masken",
)
MASK_SUFFIXES = ("_mask", "_masks", "_anno", "_label", "_labels", "_gt", "_seg", "-mask", "-labels")
GROUP_PATTERNS = (
    (r"^([^/]+)/", "the first sub-folder"),
    (r"^(TCGA-\w\w-\w{4})", "the patient in a TCGA barcode"),
    (r"^(.+?)[ _-]*\[[^]]*\]$", "what stands before QuPath's tile bracket"),
    (r"^(.+?)[_-]+x?\d+[_-]+y?\d+$", "what stands before the tile's coordinates"),
    (r"^(.+?)[_-]+[a-zA-Z]*\d+$", "what stands before the last number"),
)
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
_NAMELESS = "(not classified)"
_LOOK = 200  # masks whose values are looked at


@dataclass
class _Found:
    """What was seen in a folder."""

    images: list[ImageFile] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


@dataclass
class _Masks:
    """What the masks mean."""

    kind: Literal["semantic", "instances"]
    classes: list[str]
    values: dict[int, str] = field(default_factory=dict)
    why: str = ""
    counts: Counter[str] = field(default_factory=Counter)


def init_folder(
    folder: Path | str,
    *,
    name: str | None = None,
    um: float | None = None,
    group_pattern: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    kind: Literal["semantic", "instances"] | None = None,
    truth: str = "objects",
    licence: str = "not stated",
    seed: int = 0,
) -> tuple[str, list[str]]:
    """Return the text of a zoo-dataset.yaml for a folder, and a report that says what was found and guessed.

    `um`: um per pixel; where it is None and the files state none, the card says that it is not known. `group_pattern`:
    regular expression on an image's id whose first bracket is the patient or slide; None = guessed. `images`, `masks`:
    folders below `folder`; None = guessed. `kind`: what masks hold; None = guessed from their values. Writes nothing.
    Raises `UserError` where the folder holds no image.
    """
    base = Path(folder).expanduser()
    if not base.is_dir():
        raise UserError(f"{base}: there is no such folder.")
    _check_folders(base, images=images, masks=masks)
    arguments = _layout(base, images, masks, truth, group_pattern)
    found = _look(base, arguments, truth)
    total = counted(len(found.ids), "image")
    report = [f"{base}: {total}, {len(found.masks)} with masks, {len(found.unreadable)} unreadable"]
    report += [f"  unreadable: {line}" for line in found.unreadable[:5]]
    source = arguments.masks.get(truth)
    meaning = _meaning(found, kind) if found.masks else None
    if meaning and source:
        report.append(f"masks: {meaning.kind}, {meaning.why}")
        report += [f"  {key}: {count}" for key, count in meaning.counts.items()]
        arguments = arguments.model_copy(
            update={"masks": {truth: source.model_copy(update={"values": meaning.values})}}
        )
    elif not found.masks:
        arguments = arguments.model_copy(update={"masks": {}})
        report.append(_no_masks(base, source, found))
        same = paired(base) if images is None and masks is None else ()
        if same:
            pictures = " ".join(f"--pictures {where}" for where in same[1:])
            all_of_them = " and ".join(same)
            report.append(f"{all_of_them} have files of the same names. Of pairs, say: --images {same[0]} {pictures}")
    pattern, why = grouping(found.ids, arguments.group_pattern)
    report.append(why)
    splits, line = splits_of(found.ids, pattern, seed)
    report.append(line)
    spacing, line = spacing_of(found.images, um)
    report.append(line)
    arguments = arguments.model_copy(update={"group_pattern": pattern})
    values = _card(base, name, found, arguments, meaning, truth, spacing, splits, licence)
    DatasetCard.model_validate(values)
    report.append(f"Read the card, mend what is wrong, and state its licence: {base / CARD_NAME}")
    return card_text(values), report


def paired(base: Path) -> tuple[str, ...]:
    """Return sub-folders of images whose files have the same names, where there are two or more and nothing else."""
    found: dict[str, set[str]] = {}
    for folder in sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found[folder.name] = {
            p.relative_to(folder).with_suffix("").as_posix()
            for p in folder.rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES
        }
    same = len(found) > 1 and len({frozenset(names) for names in found.values()}) == 1 and all(found.values())
    return tuple(found) if same else ()


def _layout(base: Path, images: str | None, masks: str | None, truth: str, pattern: str | None) -> FolderArguments:
    """Return where images and masks lie, as far as names of folders and files tell."""
    if images is None and masks is None and (nested := _nested(base)):
        sources = {truth: {"folder": f"*/{nested[1]}"}}
        told = {"images": f"*/{nested[0]}", "masks": sources, "group_pattern": pattern}
        return FolderArguments.model_validate(told)
    here = {p.name.casefold(): p.name for p in base.iterdir() if p.is_dir()}
    images = images or next((here[n] for n in IMAGE_FOLDERS if n in here), ".")
    masks = masks or next((here[n] for n in MASK_FOLDERS if n in here), None)
    suffix = ""
    stems = [p.stem for p in (base / images).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
    if masks is None:
        suffix = next((s for s in MASK_SUFFIXES if any(stem.endswith(s) for stem in stems)), "")
        masks = images
    else:
        beside = [p.stem for p in (base / masks).rglob("*")]
        known = set(stems)
        if not any(stem in known for stem in beside):
            suffix = next((s for s in MASK_SUFFIXES if any(m.removesuffix(s) in known for m in beside)), "")
    sources = {truth: {"folder": masks, "suffix": suffix}}
    return FolderArguments.model_validate({"images": images, "masks": sources, "group_pattern": pattern})


def _check_folders(base: Path, **given: str | None) -> None:
    for option, name in given.items():
        if name is not None and not (base / name).is_dir():
            near = suggest(name, sorted(p.name for p in base.iterdir() if p.is_dir()))
            raise UserError(f"--{option} {name}: {base} has no such folder. {near}".rstrip())


def _nested(base: Path) -> tuple[str, str] | None:
    """Return the names of the folders of images and masks that every sub-folder has (train/images, train/masks)."""
    inside = [p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")]
    shared = set.intersection(*({q.name for q in p.iterdir() if q.is_dir()} for p in inside)) if inside else set()
    here = {name.casefold(): name for name in shared}
    images, masks = (next((here[n] for n in names if n in here), None) for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    return (images, masks) if images and masks else None


def _no_masks(base: Path, source: MaskSource | None, found: _Found) -> str:
    """Return the sentence about a folder in which no image has a mask."""
    said = "masks: none found, so the card carries no truth. "
    if source is None or source.folder == ".":
        return f"{said}Where there are some: --masks FOLDER"
    files = sorted(p.name for p in base.glob(f"{source.folder}/*") if not p.name.startswith("."))
    if not files:
        return f"{said}Where there are some: --masks FOLDER"
    return (
        f"{said}No file of {source.folder}/ ({files[0]}) has the name of an image ({found.ids[0]}). Expected the same "
        f"name, or one with {', '.join(MASK_SUFFIXES[:3])} ... behind it: rename the masks"
    )


def _look(base: Path, arguments: FolderArguments, truth: str) -> _Found:
    found = _Found()
    source = arguments.masks[truth]
    root = base / arguments.images
    seen: dict[str, Path] = {}
    inside_masks = (base / source.folder) if source.folder != arguments.images else None
    for path, item in found_images(base, arguments):
        if inside_masks is not None and path.is_relative_to(inside_masks):
            continue
        try:
            image = read_image(path)
            image.read(0, 0, 1, 1)
            image.close()
        except DataError as error:
            found.unreadable.append(str(error))
            continue
        if item in seen:
            raise UserError(f'{path}: the id "{item}" is also that of {seen[item].name}. Rename one of the two.')
        seen[item] = path
        found.images.append(image)
        found.ids.append(item)
        mask = mask_of(base, source, item, path)
        if mask is not None:
            found.masks[item] = mask
    if not found.ids:
        if found.unreadable:
            count = counted(len(found.unreadable), "image")
            raise UserError(f"{root}: none of {count} can be read. The first: {found.unreadable[0]}")
        raise UserError(
            f"{root}: the folder holds no image. Expected {', '.join(IMAGE_SUFFIXES)} files in it, or in a sub-folder "
            "images/."
        )
    return found


def _meaning(found: _Found, kind: Literal["semantic", "instances"] | None) -> _Masks:
    """Return what masks mean, from their format and values."""
    files = list(found.masks.values())
    if files[0].is_dir():
        return _Masks("instances", ["object"], why="a folder of binary masks an image")
    if files[0].suffix.lower() in (".geojson", ".json"):
        return _from_shapes(files, kind)
    seen: Counter[int] = Counter()
    tops: list[int] = []
    gapless = True
    for path in _spread(files):
        try:
            values, counts = np.unique(read_indices(path), return_counts=True)
        except DataError as error:
            found.unreadable.append(str(error))
            continue
        if values.dtype.kind == "f" and not (values == np.rint(values)).all():
            found.unreadable.append(f"{path}: the mask holds fractions. Expected whole numbers.")
            continue
        seen.update(dict(zip(map(int, values.tolist()), counts.tolist(), strict=True)))
        tops.append(int(values.max()))
        gapless &= bool(len(values) >= 0.8 * (int(values.max()) + (1 if values.min() == 0 else 0)))
    if not seen:
        raise UserError(f"{files[0].parent}: no mask can be read. {found.unreadable[-1] if found.unreadable else ''}")
    ids = len(seen) > 2 and gapless and len(set(tops)) > 1 and (max(tops) > 12 or len(set(tops)) > 3)
    if kind == "instances" or (kind is None and ids):
        why = f"numbers count from 1 in each mask and reach from {min(tops)} to {max(tops)}"
        return _Masks("instances", ["object"], why=why, counts=Counter({"objects": sum(tops)}))
    return _classes(seen)


def _classes(seen: Counter[int]) -> _Masks:
    """Return a semantic meaning: stored values in ascending order, the first of them background."""
    stored = sorted(seen)
    if len(stored) > 64:
        raise UserError(
            f"masks: {len(stored)} different values ({stored[0]} to {stored[-1]}) are too many for classes. Export "
            "class or object numbers without compression loss (PNG, TIFF, NPY); of objects, say --kind instances."
        )
    if stored == [0]:
        raise UserError("masks: every pixel of every mask is 0, so that there is nothing to learn. Export them again.")
    if stored[0] != 0:
        stored = [0, *stored]
    named = ["background", "foreground"] if len(stored) == 2 else ["background", *(f"class-{v}" for v in stored[1:])]
    values = dict(zip(stored, named, strict=True))
    total = sum(seen.values())
    counts = Counter({f"{name} (stored {value})": seen[value] for value, name in values.items()})
    why = (
        f"{len(stored)} values ({', '.join(map(str, stored[:8]))}) over {total} pixels; rename the classes in the card"
    )
    return _Masks("semantic", named, values, why, counts)


def _from_shapes(files: Sequence[Path], kind: Literal["semantic", "instances"] | None) -> _Masks:
    names: Counter[str] = Counter()
    regions = 0
    for path in files:
        shapes = read_shapes(path)
        names.update(shape.name or _NAMELESS for shape in shapes)
        regions += sum(shape.name is not None and not shape.detection for shape in shapes)
    classes = sorted(n for n in names if not n.endswith("*") and n != _NAMELESS) or ["object"]
    chosen = kind or ("semantic" if regions else "instances")
    drawn = "classified annotations" if regions else "detections or unclassified objects"
    why = f"GeoJSON polygons, {drawn}; their classification names are the classes"
    if names[_NAMELESS] and len(classes) > 1:
        why += ". Classify those without a name in QuPath: their images cannot be read"
    return _Masks(chosen, ["background", *classes] if chosen == "semantic" else classes, why=why, counts=names)


def _spread(files: Sequence[Path]) -> list[Path]:
    step = max(1, len(files) // _LOOK)
    return list(files[::step])


def grouping(ids: Sequence[str], given: str | None) -> tuple[str | None, str]:
    """Return a pattern and the sentence that says why: the first that makes groups of several images, and several."""
    if given is not None:
        found = [group_of(i, given) for i in ids]
        without = [i for i, group in zip(ids, found, strict=True) if group is None]
        if len(without) == len(ids):
            raise UserError(
                f"--group {given}: it matches no image, as {ids[0]}. Write one that finds the patient there."
            )
        alone = f"; {without[0]} and others ({len(without)} in all) do not match and stand alone" if without else ""
        return given, f"groups: {len({*found} - {None})} by the given pattern {given}{alone}"
    flat = [i.split("/", 1)[1] if i.split("/")[0] in SPLITS and "/" in i else i for i in ids]
    inside = any(a != b for a, b in zip(ids, flat, strict=True))
    for pattern, meaning in GROUP_PATTERNS:
        groups = Counter(group_of(i, pattern) for i in flat)
        if None not in groups and 3 <= len(groups) <= len(ids) / 1.5:
            written = pattern.replace("^", "^[^/]+/", 1) if inside else pattern
            return written, f"groups: {len(groups)} assumed, {meaning}. Check that a group is one patient or slide."
    return None, (
        "groups: none found in the names, so every image is its own group. If several images come from one patient or "
        "slide, give a group pattern: otherwise results will be too good."
    )


def splits_of(ids: Sequence[str], pattern: str | None, seed: int) -> tuple[dict[str, tuple[str, ...]], str]:
    """Return splits of whole groups (none where sub-folders say them), and the sentence that says how they came."""
    laid_out = {i.split("/")[0] for i in ids if "/" in i} & set(SPLITS)
    if laid_out:
        return {}, f"splits: {', '.join(sorted(laid_out))}, by sub-folder"
    entries = [Entry(i, group_of(i, pattern)) for i in ids]
    groups = len({e.unit for e in entries})
    if groups < len(SHARES):
        return {}, f"splits: none, {counted(groups, 'group')} will not do for {', '.join(SHARES)}. Use split=all."
    splits = split_by_group(entries, SHARES, seed=seed)
    return splits, "splits: " + ", ".join(f"{n} {len(i)}" for n, i in splits.items()) + " images, whole groups"


def spacing_of(images: Sequence[ImageFile], um: float | None) -> tuple[dict[str, Any], str]:
    """Return a card's spacing, and the sentence that says where it is from. Raises `UserError` for no spacing."""
    if um is not None:
        if not 0 < um < 1e4:
            raise UserError(f"um: {um} um per pixel will not do. Expected a positive number.")
        return {"um": um, "provenance": "assumed", "note": "Given by the user."}, f"um per pixel: {um}, as given"
    stated = {round(i.mpp, 4) for i in images if i.mpp is not None}
    if len(stated) == 1 and all(i.mpp is not None for i in images):
        value = stated.pop()
        note = "Stated by every file."
        return {"um": value, "provenance": "assumed", "note": note}, f"um per pixel: {value}, as every file states"
    where = "the files disagree or some state none" if stated else "no file states it"
    note = f"Not known: {where}."
    return (
        {"provenance": "unknown", "note": note},
        f"um per pixel: not known, {where}. Give --um NUMBER (0.25 at 40x, 0.5 at 20x on most scanners), or write it "
        "into the card.",
    )


def _card(
    base: Path,
    name: str | None,
    found: _Found,
    arguments: FolderArguments,
    meaning: _Masks | None,
    truth: str,
    spacing: dict[str, Any],
    splits: dict[str, tuple[str, ...]],
    licence: str,
) -> dict[str, Any]:
    """Return the card's values."""
    sizes = Counter(f"{i.height} x {i.width}" for i in found.images)
    common = ", ".join(f"{size} ({n})" for size, n in sizes.most_common(3)) + (" ..." if len(sizes) > 3 else "")
    # the reader turns grey, alpha, palettes and depth into RGB; other channel counts are named by number
    counts = {i.shape[2] if len(i.shape) == 3 else 1 for i in found.images}
    plain = counts <= {1, 2, 3, 4}
    channels = ["red", "green", "blue"] if plain else [f"channel-{k}" for k in range(1, max(counts) + 1)]
    truths = {truth: {"kind": meaning.kind, "classes": meaning.classes}} if meaning else {}
    told = arguments.model_dump(exclude_defaults=True)
    told["images"] = arguments.images
    return {
        "zoo": 1,
        "name": slug_of(base, name),
        "summary": f"{counted(len(found.ids), 'image')} of {common} pixels, {len(found.masks)} with masks.",
        "reader": {"name": "folder", "arguments": told},
        "licence": {"name": licence, "allows": [], "note": "State what may be done with these images."},
        "layout": f"{arguments.images}/ and {', '.join(_where(s) for s in arguments.masks.values()) or 'no masks'}",
        "channels": channels,
        "spacing": spacing,
        "truths": truths,
        "group": "assumed from the name" if arguments.group_pattern else None,
        "splits": {key: list(ids) for key, ids in splits.items()},
    }


def slug_of(base: Path, name: str | None) -> str:
    """Return a dataset's name: that which is given, else the folder's, in the letters of names."""
    plain = unicodedata.normalize("NFKD", (name or base.resolve().name).casefold())
    letters = "".join(c for c in plain if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9._-]+", "-", letters).strip("-._") or "my-data"


def _where(source: MaskSource) -> str:
    return f"{source.folder}/*{source.suffix}"


class _Dumper(yaml.SafeDumper):
    """Block style for mappings, one line for lists of plain values."""


def _list(dumper: yaml.SafeDumper, values: Sequence[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Quote what starts like a number: the zoo's YAML reads 008 as a number, PyYAML's writer does not."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if value[:1] in "0123456789+-." else None)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _string)


def card_text(values: dict[str, Any]) -> str:
    """Return the card as YAML."""
    head = "# A dataset card. What was guessed is yours to mend; `zoo check` says whether it is valid.\n"
    return head + yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
