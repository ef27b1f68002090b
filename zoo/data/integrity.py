"""Is a copy whole, and does anything leak: what `zoo data check` says.

Leakage is looked for in four ways: the same id or group in two splits, the same pixels (SHA-256), pictures that look
alike (two perceptual hashes that agree), and tiles whose edges continue each other.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo import cards
from zoo.cards import DatasetCard, TruthCard
from zoo.data.datasets import Dataset, card_splits, make_reader, read_index
from zoo.data.readers.base import Entry, FolderReader, Reader
from zoo.data.seams import Edges, edges_of, touching
from zoo.errors import DataError, counted
from zoo.types import Boxes, Instances, Label, Sample, Semantic, Truth

Level = Literal["error", "leak", "note"]
NEAR = 3  # bits of 64 in which each of two hashes may differ for two pictures to count as alike
_GENERATED = 16  # images a split that are read of a dataset that can be generated without end
_MANY = 20  # classes up to which all are listed


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know: `error` (something cannot be used), `leak`, or `note`."""

    level: Level
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


@dataclass(frozen=True)
class Print:
    """What is kept of an image to recognise it: `content` (SHA-256 of its pixels), two 64-bit hashes, its edges."""

    dataset: str
    id: str
    group: str | None
    content: str
    hashes: tuple[int, int] | None
    edges: Edges | None

    @property
    def name(self) -> str:
        """Return DATASET/ID."""
        return f"{self.dataset}/{self.id}"


@dataclass
class SplitStatistics:
    """What a split holds: counts, and for each truth its foreground and classes (of the images that were read)."""

    images: int = 0
    groups: int = 0
    annotated: Counter[str] = field(default_factory=Counter)
    """Truth -> images that carry it."""
    foreground: dict[str, float] = field(default_factory=dict)
    """Semantic, instances: truth -> share of annotated pixels that are not background."""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Truth -> class -> pixels (semantic), objects (instances, boxes) or images (label)."""


@dataclass
class Report:
    """What a check found. `ok` is False where something cannot be used; leaks alone do not make it False."""

    dataset: str
    licence: str
    findings: list[Finding]
    splits: dict[str, SplitStatistics]
    sizes: dict[str, int]
    """Spatial size -> images."""

    @property
    def ok(self) -> bool:
        """Return whether nothing is broken or absent."""
        return not any(f.level == "error" for f in self.findings)

    @property
    def leaks(self) -> list[Finding]:
        """Return what leaks."""
        return [f for f in self.findings if f.level == "leak"]

    def lines(self, width: int = 80) -> list[str]:
        """Return the report as lines of text for a terminal of that width."""
        out = [f"{self.dataset}: licence {self.licence}"]
        common = sorted(self.sizes.items(), key=lambda kv: -kv[1])
        out.append("  sizes: " + ", ".join(f"{size} ({n})" for size, n in common[:4]) + (" ..." if common[4:] else ""))
        for name, split in self.splits.items():
            out.append(f"  {name}: {counted(split.images, 'image')}, {counted(split.groups, 'group')}")
            for key, n in sorted(split.annotated.items()):
                share = f", foreground {100 * split.foreground[key]:.1f} %" if key in split.foreground else ""
                out.append(f"    {key}: on {counted(n, 'image')}{share}")
                if split.classes.get(key):
                    out.append("      " + _classes(split.classes[key]))
        out += [f"  {finding}" for finding in self.findings]
        return [part for line in out for part in _wrapped(line, width)]

    def values(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "dataset": self.dataset,
            "ok": self.ok,
            "licence": self.licence,
            "sizes": self.sizes,
            "splits": {k: {**vars(v), "annotated": dict(v.annotated)} for k, v in self.splits.items()},
            "findings": [vars(f) for f in self.findings],
        }


def _wrapped(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def check_dataset(
    name: str | Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    root: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read every item of a dataset and say what is there, what is broken or absent, and what leaks.

    `progress(done, all)` is called after each image. Raises `UserError` where the dataset cannot be opened at all.
    """
    file, card = cards.dataset_card_file(name), cards.dataset_card(name)
    reader = make_reader(card, file, arguments, root)
    entries, findings = _unique(read_index(card, reader))
    members, absent = split_members(card, file, entries)
    findings += absent
    if isinstance(reader, FolderReader):
        findings += [Finding("note", card.name, what) for what in reader.absent()]
    some = _sampled(reader, members, entries, findings)
    prints, counts, sizes = _read_all(card, reader, some, findings, progress)
    findings += _between_splits(members, prints)
    findings += _same_content(prints)
    splits = {key: _statistics(card, ids, entries, counts) for key, ids in members.items()}
    for key, split in splits.items():
        findings += _empty(key, split, card, splits["all"])
    return Report(card.name, card.licence_line, findings, splits, dict(sizes))


def _classes(counts: Mapping[str, int]) -> str:
    """Return how much there is of each class; of many classes only those that are there."""
    shown = {c: k for c, k in counts.items() if k or len(counts) <= _MANY}
    left = len(counts) - len(shown)
    parts = [f"{c} {k}" for c, k in shown.items()] + ([f"and {left} classes of which there is nothing"] if left else [])
    return ", ".join(parts)


def _unique(entries: Sequence[Entry]) -> tuple[list[Entry], list[Finding]]:
    kept: dict[str, Entry] = {}
    findings = []
    for entry in entries:
        if entry.id in kept:
            files = " and ".join(str(f) for e in (kept[entry.id], entry) for f in list(e.files.values())[:1])
            findings.append(Finding("error", entry.id, f"the id stands for two images ({files}). Rename one."))
        kept.setdefault(entry.id, entry)
    return list(kept.values()), findings


def _sampled(
    reader: Reader, members: Mapping[str, Sequence[str]], entries: Sequence[Entry], findings: list[Finding]
) -> Sequence[Entry]:
    """Return the items to read: all of a folder, the first of each split of a large generated dataset."""
    if reader.needs_folder or len(entries) <= _GENERATED * len(members):
        return entries
    wanted = {i for name, ids in members.items() if name != "all" for i in ids[:_GENERATED]}
    what = f"the images are generated; the first {_GENERATED} of each split were looked at."
    findings.append(Finding("note", "all", what))
    return [e for e in entries if e.id in wanted]


def split_members(
    card: DatasetCard, file: Path, entries: Sequence[Entry]
) -> tuple[dict[str, list[str]], list[Finding]]:
    """Return split -> ids that are here ("all" last), and an error a fixed split that lacks images."""
    here = {e.id for e in entries}
    members: dict[str, list[str]] = {}
    findings = []
    fixed = card_splits(card, file)
    for name, ids in fixed.items():
        absent = [i for i in ids if i not in here]
        if absent:
            shown = ", ".join(absent[:5]) + (" ..." if absent[5:] else "")
            what = f"{len(absent)} of its {len(ids)} images are not here: {shown}. Complete the copy."
            findings.append(Finding("error", f"split {name}", what))
        members[name] = [i for i in ids if i in here]
    for entry in entries:
        if entry.split and entry.split not in fixed:
            members.setdefault(entry.split, []).append(entry.id)
    return {**members, "all": [e.id for e in entries]}, findings


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_all(
    card: DatasetCard,
    reader: Reader,
    entries: Sequence[Entry],
    findings: list[Finding],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Print], dict[str, dict[str, Counter[str]]], Counter[str]]:
    prints: list[Print] = []
    counts: dict[str, dict[str, Counter[str]]] = {}
    sizes: Counter[str] = Counter()
    for done, entry in enumerate(entries, 1):
        try:
            sample = reader.read(entry)
        except (DataError, OSError) as error:
            findings.append(Finding("error", entry.id, str(error)))
        else:
            prints.append(print_of(sample))
            sizes[" x ".join(map(str, sample.shape))] += 1
            counts[entry.id] = {k: _count(t, card.truths.get(k)) for k, t in sample.truth.items()}
        if progress:
            progress(done, len(entries))
    return prints, counts, sizes


def _count(truth: Truth, card: TruthCard | None) -> Counter[str]:
    """Return class -> pixels, objects or images; "*" counts annotated pixels, "+" those that are not background."""
    classes = card.classes if card else ()

    def named(index: int) -> str:
        return classes[index] if 0 <= index < len(classes) else f"class {index}"

    found: Counter[str] = Counter()
    if isinstance(truth, Semantic):
        planes = truth.map if truth.multilabel else np.stack([truth.map == i for i in range(max(len(classes), 2))])
        known = np.ones(planes.shape[1:], bool) if truth.ignore is None else np.asarray(truth.map != truth.ignore)
        for index, plane in enumerate(planes):
            found[named(index)] = int((plane & known).sum())
        found["*"] = int(known.sum())
        found["+"] = int((np.any(planes if truth.multilabel else planes[1:], axis=0) & known).sum())
    elif isinstance(truth, Instances):
        known = np.ones(truth.map.shape, bool) if truth.ignore is None else ~truth.ignore
        ids = np.unique(truth.map[truth.map > 0]).tolist()
        found.update(named((truth.classes or {}).get(i, 1) - 1) for i in ids)
        found["*"], found["+"] = int(known.sum()), int(((truth.map > 0) & known).sum())
    elif isinstance(truth, Boxes):
        found.update(named(int(i) - 1) for i in truth.classes)
    elif isinstance(truth, Label):
        found[named(truth.value)] = 1
    return found


def _statistics(
    card: DatasetCard, ids: Sequence[str], entries: Sequence[Entry], counts: Mapping[str, Mapping[str, Counter[str]]]
) -> SplitStatistics:
    chosen = set(ids)
    split = SplitStatistics(len(ids), len({e.unit for e in entries if e.id in chosen}))
    for key, truth in card.truths.items():
        found = [counts[i][key] for i in ids if key in counts.get(i, {})]
        if not found:
            continue
        total = sum(found, Counter[str]())
        split.annotated[key] = len(found)
        if truth.kind in ("semantic", "instances"):
            split.foreground[key] = total["+"] / max(total["*"], 1)
        split.classes[key] = {name: total[name] for name in truth.classes}
    return split


def _empty(name: str, split: SplitStatistics, card: DatasetCard, whole: SplitStatistics) -> list[Finding]:
    """Return errors for a split without foreground, notes for truths and classes that never come."""
    found = []
    for key in card.truths:
        where = f"split {name}: {key}"
        if not split.annotated[key]:
            found.append(Finding("note", where, "no image carries this truth."))
        elif split.foreground.get(key) == 0:
            what = (
                "no pixel is foreground. A model cannot learn from it, and Dice means nothing on it. Check the masks."
            )
            found.append(Finding("error", where, what))
        else:
            elsewhere = whole.classes[key] if name != "all" else {}
            never = [c for c, n in split.classes[key].items() if n == 0 and elsewhere.get(c, 1)]
            if never:
                found.append(Finding("note", where, f"nothing of class {', '.join(never)}."))
    return found


# --- leakage ----------------------------------------------------------------------------------------------------------


def print_of(sample: Sample) -> Print:
    """Return what is kept of an image to recognise it. Volumes are known by content alone."""
    pixels = np.ascontiguousarray(sample.image)
    digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype.str}".encode())
    digest.update(pixels.tobytes())
    flat = pixels.ndim == 3 and pixels.dtype == np.uint8
    return Print(
        sample.dataset,
        sample.id,
        sample.group,
        digest.hexdigest(),
        perceptual(pixels) if flat else None,
        edges_of(pixels) if flat else None,
    )


def perceptual(rgb: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return two 64-bit hashes of (C, H, W): signs of horizontal differences, signs of low cosine frequencies.

    None for a picture too flat to be recognised (grey values that vary by less than 2).
    """
    import cv2
    from scipy.fft import dctn

    grey = rgb.mean(axis=0, dtype=np.float32)
    if grey.std() < 2:
        return None
    steps = np.diff(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA), axis=1) > 0
    low = dctn(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA), norm="ortho")[:8, :8].ravel()
    waves = low > np.median(low[1:])
    return tuple(int.from_bytes(np.packbits(bits).tobytes(), "big") for bits in (steps, waves))  # type: ignore[return-value]


def alike(first: Sequence[Print], second: Sequence[Print]) -> list[tuple[Print, Print]]:
    """Return the pairs whose two hashes differ in at most `NEAR` bits each, but whose pixels are not the same."""
    a, b = ([p for p in prints if p.hashes] for prints in (first, second))
    if not a or not b:
        return []
    rows, columns = (np.array([p.hashes for p in prints], np.uint64) for prints in (a, b))
    found = []
    for i, row in enumerate(rows):
        near = (np.bitwise_count(columns ^ row) <= NEAR).all(axis=1)
        found += [(a[i], b[j]) for j in np.flatnonzero(near) if a[i].content != b[j].content]
    return [(x, y) for x, y in found if x.name != y.name]


def leakage(first: Iterable[Print], second: Iterable[Print], names: tuple[str, str]) -> list[Finding]:
    """Return what two sets of images share: groups (of one dataset), pixels, looks, edges. `names` are said."""
    a, b = list(first), list(second)
    where = f"{names[0]} and {names[1]}"
    found = []
    groups = {(p.dataset, p.group) for p in a if p.group} & {(p.dataset, p.group) for p in b if p.group}
    if groups:
        n = sum((p.dataset, p.group) in groups for p in b)
        shown = _some(sorted(str(group) for _, group in groups))
        what = f"share {counted(len(groups), 'group')} ({shown}), with {counted(n, 'image')} of {names[1]}."
        found.append(Finding("leak", where, what))
    contents = {p.content: p for p in a}
    same = [(contents[p.content], p) for p in b if p.content in contents]
    found += _pairs(where, "with the same pixels", same)
    found += _pairs(where, "of alike looks", alike(a, b))
    edges = {p.name: p.edges for p in (*a, *b) if p.edges}
    in_a, in_b = {p.name for p in a}, {p.name for p in b}
    seams = [(s.first, s.second) for s in touching(edges)]
    across = [(x, y) for x, y in seams if (x in in_a and y in in_b) or (x in in_b and y in in_a)]
    if across:
        shown = _some([f"{x} | {y}" for x, y in across])
        what = f"{counted(len(across), 'pair')} of neighbouring tiles of one picture: {shown}."
        found.append(Finding("leak", where, what))
    return found


def prints_of(dataset: Dataset) -> list[Print]:
    """Return the prints of every readable image of a dataset."""
    found = []
    for position in range(len(dataset)):
        try:
            found.append(print_of(dataset[position]))
        except DataError:
            continue
    return found


def _between_splits(members: Mapping[str, Sequence[str]], prints: Sequence[Print]) -> list[Finding]:
    by_id = {p.id: p for p in prints}
    split_names = [name for name in members if name != "all"]
    found = []
    for position, one in enumerate(split_names):
        for other in split_names[position + 1 :]:
            both = sorted(set(members[one]) & set(members[other]))
            if both:
                what = f"share {counted(len(both), 'image')} ({_some(both)}). Put each into one split."
                found.append(Finding("leak", f"{one} and {other}", what))
            a, b = ([by_id[i] for i in members[s] if i in by_id and i not in both] for s in (one, other))
            found += leakage(a, b, (one, other))
    return found


def _same_content(prints: Sequence[Print]) -> list[Finding]:
    copies: dict[str, list[str]] = defaultdict(list)
    for one in prints:
        copies[one.content].append(one.id)
    twice = [ids for ids in copies.values() if len(ids) > 1]
    pairs = [" = ".join(map(str, pair)) for ids in twice for pair in pairwise(ids)]
    what = f"{counted(len(pairs), 'image')} with the pixels of another: {_some(pairs)}."
    return [Finding("note", "all", what)] if pairs else []


def _pairs(where: str, what: str, pairs: Sequence[tuple[Print, Print]]) -> list[Finding]:
    if not pairs:
        return []
    shown = _some([f"{x.name} = {y.name}" for x, y in pairs])
    return [Finding("leak", where, f"{counted(len(pairs), 'pair')} {what}: {shown}.")]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
