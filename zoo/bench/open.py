"""What a benchmark is asked to do, checked before anything starts: weights, ensembles, datasets, leaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.bench import leakage
from zoo.bench.work import Weights
from zoo.data.datasets import Dataset, open_dataset
from zoo.errors import Problem, Problems, UserError
from zoo.schema import parse_value
from zoo.weights import store
from zoo.weights.store import Found


def open_named(text: str, limit: int | None = None) -> Dataset:
    """Return the dataset of `NAME`, `NAME:SPLIT` or `NAME:SPLIT@FOLD/FOLDS`, the images that a fold holds back.

    Without a split it is "test" where there is one, else "all". `+KEY=VALUE` behind it tells the reader something, as
    in `phantom-nuclei:test+sites=a,b,c`.
    """
    text, words = _arguments(text)
    found = _opened(text, limit, words)
    return replace(found, split="+".join([found.split, *(f"{k}={_short(v)}" for k, v in words.items())]))


def _arguments(text: str) -> tuple[str, dict[str, Any]]:
    """Return what is left of a word, and the arguments of the reader behind it."""
    name, *parts = text.split("+")
    if Path(text).exists() or not parts or not all("=" in part for part in parts):
        return text, {}
    found: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        found[key] = value.split(",") if "," in value else parse_value(value)
    return name, found


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _opened(text: str, limit: int | None, words: dict[str, Any]) -> Dataset:
    name, colon, split = text.rpartition(":")
    if colon and not Path(text).exists():
        split, at, fold = split.partition("@")
        if not at:
            return open_dataset(name, split=split, limit=limit, arguments=words)
        number, slash, folds = fold.partition("/")
        if not (slash and number.isdigit() and folds.isdigit() and int(folds) > 1):
            raise UserError(f"{text}: the fold will not do. Expected NAME:SPLIT@FOLD/FOLDS, as in {name}:{split}@0/5")
        found = open_dataset(
            name, split=split, fold=int(number), folds=int(folds), part="validate", limit=limit, arguments=words
        )
        return replace(found, split=f"{split}@{fold}")
    try:
        return open_dataset(text, split="test", limit=limit, arguments=words)
    except UserError as error:
        if 'no split "test"' not in str(error):
            raise
        return open_dataset(text, split="all", limit=limit, arguments=words)


def open_all(weights: Sequence[str], datasets: Sequence[str], limit: int | None) -> tuple[list[Weights], list[Dataset]]:
    """Return the weights and datasets of the words of a command. Raises `Problems` with everything that is wrong."""
    problems: list[Problem] = []
    found: list[tuple[Found, ...]] = []
    opened: list[Dataset] = []
    if limit is not None and limit < 1:
        raise UserError(f"bench: --limit: {limit} images will not do. Expected 1 or more.")
    if not weights or not datasets:
        what = "weights" if not weights else "datasets"
        raise UserError(f"bench: no {what}. Expected at least one. Name it: --{what} NAME")
    for name in weights:
        try:
            found.append(tuple(store.find(part) for part in members_of(str(name))))
        except UserError as error:
            problems.append(Problem(where="bench", what=str(error)))
    for text in datasets:
        try:
            dataset = open_named(text, limit)
            if len(dataset) == 0:
                raise UserError(f"{text}: the split holds no image. Choose another split.")
            opened.append(dataset)
        except UserError as error:
            problems.append(Problem(where="bench", what=str(error)))
    if problems:
        raise Problems(problems)
    labels = _labels(found, weights)
    return [
        Weights(label, members, leakage.joined([leakage.record_of(m) for m in members]))
        for label, members in zip(labels, found, strict=True)
    ], opened


def members_of(text: str) -> list[str]:
    """Return the members of `A+B`, an ensemble; a path that holds a plus is one file."""
    return [text] if "+" not in text or Path(text).exists() else [part for part in text.split("+") if part]


def _labels(found: Sequence[tuple[Found, ...]], given: Sequence[str]) -> list[str]:
    """Return a label for each; where two files have one name, what the user typed tells them apart."""
    names = ["+".join(f.name for f in members) for members in found]
    return [name if names.count(name) == 1 else str(text) for name, text in zip(names, given, strict=True)]


def leaked(weights: Weights, dataset: Dataset) -> list[str]:
    """Return the ids of a dataset that the weights' training record covers."""
    return leakage.overlap(weights.record.trained or (), dataset.name, dataset.split, dataset.index)


def refuse_leaks(weights: Iterable[Weights], datasets: Sequence[Dataset]) -> None:
    """Raise `Problems` with every pair that leaks."""
    found = [
        Problem(what=leakage.sentence(w.label, d.name, d.split, ids, len(d)))
        for w in weights
        for d in datasets
        if (ids := leaked(w, d))
    ]
    if found:
        raise Problems(found)


def notes_on(weights: Weights, dataset: Dataset, leaks: int) -> list[str]:
    """Return what a reader must know of weights on a dataset."""
    notes = []
    if leaks:
        notes.append(f"{leaks} of {len(dataset)} images, or their patients or slides, were trained on")
    if weights.record.trained is None:
        notes.append("the weights do not say what they were trained on, so leakage cannot be checked")
    if leakage.overlap(weights.record.validated, dataset.name, dataset.split, dataset.index) and not leaks:
        notes.append("the best weights were chosen on these images or their groups")
    return notes
