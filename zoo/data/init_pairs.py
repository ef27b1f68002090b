"""A card for a user's own pairs: an image and pictures of the same field, in folders whose files share their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.cards import CARD_NAME, DatasetCard
from zoo.data.init import card_text, grouping, slug_of, spacing_of, splits_of
from zoo.data.readers.pairs import RGB
from zoo.data.readers.pixels import natural
from zoo.errors import DataError, UserError, counted, suggest
from zoo.io.images import IMAGE_SUFFIXES, ImageFile, read_image

_SPLIT = "{split}"
_LOOK = 200  # images whose size and spacing are looked at
_KNOWN = ("train", "val", "valid", "validation", "test")


def init_pairs(
    folder: Path | str,
    images: str,
    pictures: Sequence[str],
    *,
    name: str | None = None,
    um: float | None = None,
    group_pattern: str | None = None,
    licence: str = "not stated",
    seed: int = 0,
) -> tuple[str, list[str]]:
    """Return the text of a zoo-dataset.yaml for folders of pairs, and a report that says what was found and guessed.

    `images`, `pictures`: folders below `folder`; `{split}` in their names stands for a split, as in `{split}A`. A split
    may also be their sub-folder (`he/train`). The rest: see `init_folder`. Writes nothing. Raises `UserError` for
    folders that are not there or share no name.
    """
    base = Path(folder).expanduser()
    if not base.is_dir():
        raise UserError(f"{base}: there is no such folder.")
    if not pictures or images in pictures:
        raise UserError(f"{base}: pictures: expected one folder or more, and none of them that of the images.")
    images, pictures, split_names = _splits_in(base, images, pictures)
    keys = _keys(pictures)
    names = {s: _names(base, images, s) for s in split_names or ("",)}
    report = _partners(base, images, pictures, names)
    ids = [f"{split}/{n}" if split else n for split, found in names.items() for n in found]
    first = next(iter(names.items()))
    channels = {key: _channels(_file(base, where, *first)) for key, where in keys.items()}
    report += [f"{key}: {', '.join(found)}" for key, found in channels.items()]
    pattern, why = grouping([i.split("/", 1)[1] for i in ids] if split_names else ids, group_pattern)
    splits, line = splits_of(ids, pattern, seed)
    if split_names:
        splits, line = {}, f"splits: {', '.join(split_names)}, by folder"
    sizes, spacing = _looked(base, images, names, um)
    report += [why, line, spacing[1]]
    arguments: dict[str, Any] = {"image": images, "pictures": keys}
    arguments |= {"splits": {s: s for s in split_names}} if split_names else {}
    arguments |= {"group_pattern": pattern} if pattern else {}
    arguments |= {"encoding": "linear"} if any(tuple(c) != RGB for c in channels.values()) else {}
    values = {
        "zoo": 1,
        "name": slug_of(base, name),
        "summary": f"{counted(len(ids), 'image')} of {sizes} pixels, each with {', '.join(keys)}.",
        "reader": {"name": "pairs", "arguments": arguments},
        "licence": {"name": licence, "allows": [], "note": "State what may be done with these images."},
        "layout": " and ".join(f"{where}/NAME" for where in (images, *pictures)),
        "channels": list(RGB),
        "spacing": spacing[0],
        "truths": {key: {"kind": "picture", "channels": found} for key, found in channels.items()},
        "group": "assumed from the name" if pattern else None,
        "splits": {key: list(members) for key, members in splits.items()},
    }
    DatasetCard.model_validate(values)
    if list(RGB) in channels.values():
        report.append("Where a picture is stained with haematoxylin and DAB, write: stains: [haematoxylin, dab]")
    report.append(f"Read the card, mend what is wrong, and state its licence: {base / CARD_NAME}")
    return card_text(values), report


def _splits_in(base: Path, images: str, pictures: Sequence[str]) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the folders, with `{split}` where they are cut into splits, and the names of these."""
    if _SPLIT in images:
        pattern = re.compile(re.escape(images).replace(re.escape(_SPLIT), "([^/]+?)"))
        here = [p.relative_to(base).as_posix() for p in sorted(base.rglob("*")) if p.is_dir()]
        found = tuple(m.group(1) for m in map(pattern.fullmatch, here) if m)
        if not found:
            raise UserError(f"{base}: no folder fits {images}. Expected, say, {images.replace(_SPLIT, 'train')}.")
        return images, list(pictures), _in_order(found)
    if not (base / images).is_dir():
        near = suggest(images, sorted(p.name for p in base.iterdir() if p.is_dir()))
        raise UserError(f"{base / images}: there is no such folder. {near}".rstrip())
    inside = tuple(p.name for p in (base / images).iterdir() if p.is_dir() and p.name in _KNOWN)
    if inside:
        return f"{images}/{_SPLIT}", [f"{where}/{_SPLIT}" for where in pictures], _in_order(inside)
    return images, list(pictures), ()


def _in_order(splits: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(splits, key=lambda s: (_KNOWN.index(s) if s in _KNOWN else len(_KNOWN), s)))


def _keys(pictures: Sequence[str]) -> dict[str, str]:
    """Return truth -> folder: the folder's name without the split, or "picture" where too little is left."""
    found: dict[str, str] = {}
    for where in pictures:
        last = [part for part in where.replace(_SPLIT, "").split("/") if part][-1:]
        key = re.sub(r"[^a-z0-9_]+", "_", (last[0] if last else "").lower()).strip("_")
        key = key if len(key) > 1 and not key[0].isdigit() else "picture"
        if key in found:
            raise UserError(f"{where} and {found[key]} would both be the truth {key}. Rename one of the two folders.")
        found[key] = where
    return found


def _names(base: Path, where: str, split: str) -> dict[str, Path]:
    """Return name -> file of a folder, in natural order. Raises `UserError` where it is not there or empty."""
    folder = base / where.replace(_SPLIT, split)
    if not folder.is_dir():
        near = suggest(folder.name, sorted(p.name for p in base.iterdir() if p.is_dir()))
        raise UserError(f"{folder}: there is no such folder. {near}".rstrip())
    files = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    files.sort(key=lambda p: natural(p.relative_to(folder).as_posix()))
    if not files:
        raise UserError(f"{folder}: the folder holds no image. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}


def _partners(base: Path, images: str, pictures: Sequence[str], names: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Return what is there, and which files lack a partner. Raises `UserError` where no name is shared."""
    report = [f"{base}: {counted(sum(map(len, names.values())), 'image')} in {images}"]
    for where in pictures:
        for split, found in names.items():
            other = _names(base, where, split)
            if not found.keys() & other.keys():
                raise UserError(
                    f"{base / where.replace(_SPLIT, split)}: no file has the name of one in "
                    f"{images.replace(_SPLIT, split)} ({next(iter(other))}, {next(iter(found))}). "
                    "Expected one file of the same name in both."
                )
            lonely = sorted(found.keys() ^ other.keys(), key=natural)
            if lonely:
                more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
                report.append(f"  {where}: without a partner: {', '.join(lonely[:3])}{more}. Remove or complete them.")
    return report


def _file(base: Path, where: str, split: str, found: Mapping[str, Path]) -> Path:
    other = _names(base, where, split)
    return next(path for name, path in other.items() if name in found)


def _channels(path: Path) -> list[str]:
    """Return the names of a picture's channels: RGB, or numbers that the user may replace by markers."""
    try:
        with read_image(path) as file:
            shape = file.shape
    except DataError as error:
        raise UserError(str(error)) from None
    count = shape[2] if len(shape) == 3 else 1
    return list(RGB) if count in (3, 4) else [f"channel-{k}" for k in range(1, count + 1)]


def _looked(
    base: Path, images: str, names: Mapping[str, Mapping[str, Path]], um: float | None
) -> tuple[str, tuple[dict[str, Any], str]]:
    """Return the commonest sizes, and the card's spacing with the sentence that says where it is from."""
    paths = [path for found in names.values() for path in found.values()]
    files: list[ImageFile] = []
    for path in paths[:: max(1, len(paths) // _LOOK)]:
        try:
            with read_image(path) as file:
                files.append(file)
        except DataError:
            continue  # `zoo data check` names it
    if not files:
        raise UserError(f"{base / images}: no image can be read. Look at them with: zoo data check {base}")
    sizes = Counter(f"{f.height} x {f.width}" for f in files)
    common = ", ".join(size for size, _ in sizes.most_common(3)) + (" ..." if len(sizes) > 3 else "")
    return common, spacing_of(files, um)
