"""Embedding files into a table (`zoo embed`): what is there is kept, what is missing is computed, what fails is named.

A picture's rows lie in a file of their own beside the table until all are there, so that a run that dies loses no
picture that it had finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from zoo.encoders import Encoder
from zoo.errors import DataError, Interrupted, UserError, counted
from zoo.inference.embed import Embedder, How, Picture, embedded, spec_of
from zoo.inference.inputs import Item, find_images
from zoo.inference.source import scale_of
from zoo.io import features
from zoo.io.features import Rows
from zoo.io.images import read_image


@dataclass
class Embedded:
    """What was done: tiles and pictures, those of them whose rows were of another file, failures, and the batch size
    that was settled on."""

    out: Path
    tiles: int = 0
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    batch: int = 0
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """Return the exit status."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        parts = [f"{counted(self.tiles, 'tile')} of {counted(len(self.done), 'image')}"]
        if self.seconds and self.tiles:
            parts.append(f"{self.tiles / self.seconds:.3g} tiles a second, {self.batch} at once")
        parts += [f"{len(self.skipped)} were there"] if self.skipped else []
        if self.replaced:
            names = ", ".join(self.replaced[:3]) + (", ..." if len(self.replaced) > 3 else "")
            parts.append(f"rows of {len(self.replaced)} other files of the same name were replaced ({names})")
        parts += [f"{len(self.failures)} failed"] if self.failures else []
        return f"{self.out}: {', '.join(parts)}"


def embed_files(
    encoder: Encoder,
    paths: Iterable[str | Path],
    out: str | Path,
    how: How,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Embedded:
    """Embed images, folders and globs into the table `out` (.parquet, .h5 or .zarr); return what was done.

    Pictures whose rows are there, from the same encoder and settings, are kept unless `overwrite`; others are added. A
    broken picture is noted and skipped. Raises `UserError` before anything is computed (no picture, a resolution that
    is needed and not known, a table of another encoder), `Interrupted` on Ctrl-C.
    """
    out = Path(out)
    features.ending(out)
    items = find_images(paths, out.with_name(f"{out.name}.parts"))
    run = Run(encoder, out, how, device)
    run.check(items, overwrite)
    try:
        run.pictures(items, progress)
    except KeyboardInterrupt:
        raise Interrupted(f"{run.summary}. Stopped; the same command goes on from here.") from None
    return run.finish(items)


class Run:
    """One call of `embed_files`: what is there already, what has to be computed, and the table that comes of it."""

    def __init__(self, encoder: Encoder, out: Path, how: How, device: str) -> None:
        self.out, self.how, self.encoder = out, how, encoder
        self.about = _about(encoder, how)
        self.parts = out.with_name(f"{out.name}.parts") / self.about["key"][:16]
        self.embedder = Embedder(encoder, how, device)
        self.summary = Embedded(out)
        self.before: dict[str, str] = {}

    def check(self, items: list[Item], overwrite: bool) -> None:
        """Raise `UserError` for what can be known to be wrong; learn what is there."""
        if self.out.exists() and not overwrite:
            said = features.about(self.out)
            if said.get("key") != self.about["key"]:
                raise UserError(
                    f"{self.out}: it holds features of {said.get('encoder')} with other weights or settings. "
                    "Choose another --out, or write over it with --overwrite."
                )
            self.before = dict(said.get("images", {}))
        elif overwrite:
            shutil.rmtree(self.parts.parent, ignore_errors=True)
        for item in items:
            try:
                file = read_image(item.path)
            except DataError:
                continue
            scale_of(spec_of(self.encoder), file.mpp, self.how.mpp, str(item.path))
            break
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out}: cannot write there ({error.strerror}). Choose another --out.") from None

    def pictures(self, items: list[Item], progress: bool) -> None:
        """Embed what is not there."""
        began, summary = time.perf_counter(), self.summary
        for picture in _shown(embedded(self.embedder, self._missing(items)), len(items), progress):
            if picture.error is not None:
                if not isinstance(picture.error, DataError | UserError):
                    raise picture.error
                summary.failures.append({"file": str(picture.item.path), "error": str(picture.error)})
                continue
            rows = picture.rows()
            _write_part(self._part(picture.name, picture.stamp), rows)
            summary.done.append(picture.name)
            summary.replaced += [picture.name] if picture.name in self.before else []
            summary.tiles += len(rows)
            summary.seconds, summary.batch = time.perf_counter() - began, self.embedder.batches.size

    def _missing(self, items: list[Item]) -> Iterator[Picture]:
        for item in items:
            name = item.stem.as_posix()
            stamp = _stamp(item.path)
            if self.before.get(name) == stamp or self._part(name, stamp).is_file():
                self.summary.skipped.append(name)
            else:
                yield Picture(item, name, stamp)

    def _part(self, name: str, stamp: str) -> Path:
        digest = hashlib.sha256(f"{name} {stamp}".encode()).hexdigest()
        return Path(self.parts, f"{digest[:32]}.npz")

    def finish(self, items: list[Item]) -> Embedded:
        """Write the table: what was there and is still meant, then what was computed, in the order of the pictures."""
        stamps = {i.stem.as_posix(): _stamp(i.path) for i in items if i.path.exists()}
        new = {n: p for n, s in stamps.items() if (p := self._part(n, s)).is_file()}
        if not new:
            if not self.before:
                shutil.rmtree(self.parts.parent, ignore_errors=True)
            self._tidy()
            return self.summary
        images = {**self.before, **{n: stamps[n] for n in new}}
        partial = self.out.with_name(f".partial-{self.out.name}")
        table = None
        for rows in self._all(new):
            if table is None:
                about = {**self.about, "images": images}
                table = features.writer(partial, rows.features.shape[1], self.how.dtype, about)
            table.append(rows)
        assert table is not None
        table.close()
        if self.out.is_dir():
            shutil.rmtree(self.out)
        partial.replace(self.out)
        shutil.rmtree(self.parts.parent, ignore_errors=True)
        return self.summary

    def _all(self, new: dict[str, Path]) -> Iterator[Rows]:
        if self.before and self.out.exists():
            for rows in features.read(self.out):
                kept = rows.pick(np.array([name not in new for name in rows.images], bool))
                if len(kept):
                    yield kept
        for path in new.values():
            yield _read_part(path)

    def _tidy(self) -> None:
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            shutil.rmtree(self.parts.parent, ignore_errors=True)


def _about(encoder: Encoder, how: How) -> dict[str, Any]:
    """Return what decides a feature, with a hash of it that counts the weights themselves."""
    step = how.step or how.tile
    said: dict[str, Any] = {
        "zoo": zoo.__version__,
        "encoder": encoder.name,
        "weights": encoder.weights,
        "pool": how.pool or encoder.pool,
        "mpp": encoder.mpp,
        "source_mpp": how.mpp,
        "tile": how.tile,
        "step": step,
        "dtype": how.dtype,
        "precision": how.precision,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {**said, "key": digest.hexdigest()}


def _stamp(path: Path) -> str:
    """Return what changes when a file does; of a file that cannot be read nothing, for reading it will say so."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _write_part(path: Path, rows: Rows) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.savez(file, images=rows.images.astype(str), places=rows.places, features=rows.features)
    partial.replace(path)


def _read_part(path: Path) -> Rows:
    with np.load(path) as found:
        return Rows(found["images"].astype(object), found["places"], found["features"])


def _shown(pictures: Iterator[Picture], count: int, progress: bool) -> Iterator[Picture]:
    if not progress:
        yield from pictures
        return
    from tqdm import tqdm

    yield from tqdm(pictures, total=count, unit="image", file=sys.stderr, dynamic_ncols=True, leave=False)
