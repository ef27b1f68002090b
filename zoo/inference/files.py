"""Images in, files that other tools open out: `predict_files`.

What an image gets is written beside its final place and moved there when it is complete, its record
(`STEM.prediction.json`) last: a run that is stopped leaves no half result, and the next one goes on where it ended.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import zoo
from zoo import registry
from zoo.errors import DataError, Interrupted, UserError, ZooError
from zoo.families.base import Family
from zoo.inference import volume_files
from zoo.inference.inputs import Item, find_images
from zoo.inference.outcome import Summary, check_folder
from zoo.inference.predict import Settings, check_origin, predict_source, settings_for
from zoo.inference.source import Mpp, Source, of_file, scale_of
from zoo.io import overlay
from zoo.io.coco import write_coco
from zoo.io.geojson import Feature, write_features
from zoo.io.images import read_image
from zoo.io.writers import Target, Writer
from zoo.types import Kind

RECORD = "prediction.json"


def predict_files(
    family: Family,
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    mpp: Mpp = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    labels: Literal["tif", "zarr"] = "tif",
    **options: Any,
) -> Summary:
    """Predict images, folders and globs into the folder `out`; return what was done.

    An image whose results are there, made with the same weights and options, is skipped unless `overwrite`. A broken
    image is noted in `failures.json` and skipped. `mpp` and the rest: see `predict_array`. Raises `UserError` before
    anything is written (nothing to read, a model that looks at no image, an option that cannot be, a resolution that is
    needed and not known), `ZooError` where the disk fills on the way, and `Interrupted` on Ctrl-C.
    """
    check_origin(family)
    out = Path(out)
    known: dict[str, Any] = {"mpp": mpp, "tile": tile, "overlap": overlap, "batch": batch, "seed": seed}
    settings = settings_for(family, options, **known, labels=labels)
    items = find_images(paths, out, family.spec.axes == "CZYX")
    _check_resolution(family, items, settings)
    check_folder(out)
    summary = Summary(out, "predicted")
    run = fingerprint(family, settings)
    try:
        for item in _shown(items, progress):
            _one(family, item, settings, run, summary, overwrite)
    except KeyboardInterrupt:
        raise Interrupted(f"{summary}. Stopped; the same command goes on from here.") from None
    finally:
        summary.write_failures()
        _write_boxes(family, items, summary)
    return summary


def _write_boxes(family: Family, items: list[Item], summary: Summary) -> None:
    """Write the boxes of all images that are there as one COCO file for each output that is boxes: `coco.json`."""
    named = [name for name, output in family.spec.outputs.items() if output.kind == "boxes"]
    there = {*summary.done, *summary.skipped}
    for name in named:
        ending = f"{name}.boxes.json" if len(named) > 1 else "boxes.json"
        found = [(i.path, summary.out / f"{i.stem.as_posix()}.{ending}") for i in items if i.stem.as_posix() in there]
        if found:
            path = summary.out / (f"{name}.coco.json" if len(named) > 1 else "coco.json")
            write_coco(path, [(f"{file.parent.relative_to(summary.out) / image.name}", file) for image, file in found])


def fingerprint(family: Family, settings: Settings) -> str:
    """Return a hash of everything but the image that decides a result: weights, options, settings, this version."""
    digest = hashlib.sha256()
    kept = {k: v for k, v in vars(settings).items() if k not in ("batch", "scratch")}
    stain = None if family.stain is None else family.stain.values()
    told = [zoo.__version__, family.name, family.options.model_dump(mode="json"), stain, kept]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(family.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_resolution(family: Family, items: list[Item], settings: Settings) -> None:
    """Raise `UserError` where the first readable image lacks a resolution that the model needs."""
    for item in items:
        try:
            if family.spec.axes == "CZYX":
                volume_files.check(family, item.path, settings.mpp)
                return
            file = read_image(item.path)
        except DataError:
            continue
        scale_of(family.spec, file.mpp, settings.mpp, str(item.path))
        return


def _shown(items: list[Item], progress: bool) -> Iterator[Item]:
    if not progress:
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, unit="image", file=sys.stderr, dynamic_ncols=True, leave=False)


def _one(family: Family, item: Item, settings: Settings, run: str, summary: Summary, overwrite: bool) -> None:
    final = summary.out / item.stem
    try:
        key = _key(item.path, run)
        if not overwrite and _is_done(final, key):
            summary.skipped.append(item.stem.as_posix())
            return
        _predict(family, item.path, final, settings, key)
        summary.done.append(item.stem.as_posix())
    except (DataError, UserError) as error:
        summary.failures.append({"file": str(item.path), "error": str(error)})
    except MemoryError:
        advice = "the image does not fit into memory. Save it as a tiled TIFF."
        summary.failures.append({"file": str(item.path), "error": f"{item.path}: {advice}"})
    except OSError as error:
        said = f"{final}: cannot be written ({error.strerror}). Make room or choose another --out."
        if not summary.done:
            raise UserError(said) from None
        raise ZooError(f"{said} {summary}; the same command goes on from here.") from None


def _key(path: Path, run: str) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return hashlib.sha256(f"{run} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()


def _named(final: Path, suffix: str) -> Path:
    return final.with_name(f"{final.name}.{suffix}")


def _record(final: Path) -> dict[str, Any]:
    try:
        found = json.loads(_named(final, RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_done(final: Path, key: str) -> bool:
    record = _record(final)
    files = record.get("files", [])
    return record.get("key") == key and bool(files) and all((final.parent / name).exists() for name in files)


def _predict(family: Family, path: Path, final: Path, settings: Settings, key: str) -> None:
    """Predict one image into a folder beside its final place, and move the files when they are complete."""
    final.parent.mkdir(parents=True, exist_ok=True)
    work = final.with_name(f".{final.name}.part-{os.getpid()}")
    for left in (work, *_abandoned(final)):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    try:
        if family.spec.axes == "CZYX":
            about = _write_volume(family, path, work, final.name, settings)
        else:
            file = read_image(path)
            about = _write(family, of_file(file, family.spec), work, final.name, settings)
            file.close()
        before = _record(final).get("files", [])
        _named(final, RECORD).unlink(missing_ok=True)
        written = sorted(p.name for p in work.iterdir())
        for stale in set(before) - set(written):
            _remove(final.parent / Path(stale).name)
        for name in written:
            _remove(final.parent / name)
            (work / name).replace(final.parent / name)
        record = {
            "zoo": zoo.__version__,
            "family": family.name,
            "weights": family.weights_name or None,
            "image": path.name,
            **about,
            "files": written,
            "key": key,
        }
        partial = work / RECORD
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(_named(final, RECORD))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _abandoned(final: Path) -> Iterator[Path]:
    """Yield the folders that processes which are no more were working in when they were killed."""
    prefix = f".{final.name}.part-"
    for folder in final.parent.glob(f"{glob.escape(prefix)}*"):
        pid = folder.name.removeprefix(prefix)
        if pid.isdigit() and not _alive(int(pid)):
            yield folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or no number of a process at all
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_volume(family: Family, path: Path, folder: Path, stem: str, settings: Settings) -> dict[str, Any]:
    return volume_files.write(
        family,
        path,
        folder,
        stem,
        mpp=settings.mpp,
        tile=settings.tile,
        overlap=settings.overlap,
        labels=settings.labels,
        decode=settings.decode,
    )


def _write(family: Family, source: Source, folder: Path, stem: str, settings: Settings) -> dict[str, Any]:
    """Write every file of one image; return what the record says about it."""
    mpp = _mpp_of(family, source, settings)
    kinds = Counter(output.kind for output in family.spec.outputs.values())

    def target(name: str, kind: Kind) -> Target:
        prefix = f"{stem}.{name}" if kinds[kind] > 1 else stem
        output = family.spec.outputs.get(name)
        colours = output.colours if output else {}
        return Target(lambda ending: folder / f"{prefix}.{ending}", source.shape, mpp, colours, source.rows)

    writers: dict[str, Writer] = {}
    try:
        with closing(predict_source(family, source, replace(settings, scratch=folder))) as parts:
            for part in parts:
                for name, prediction in part.predictions.items():
                    if name not in writers:
                        kind = prediction.kind
                        writers[name] = registry.get("writer", kind)(target(name, kind))
                    writers[name].put(part.begin, prediction)
                tables = part.tables
        for name, writer in writers.items():
            writer.end(tables.get(name))
        _common(writers, source, folder, stem)
    finally:
        for writer in writers.values():
            writer.abort()
    height, width = source.shape
    return {"height": height, "width": width, "mpp": mpp, "seed": settings.seed}


def _mpp_of(family: Family, source: Source, settings: Settings) -> float | None:
    """Return um per pixel of the image: what the user says goes before what the file says."""
    if isinstance(settings.mpp, int | float):
        return float(settings.mpp)
    return family.spec.mpp if settings.mpp == "native" and source.mpp is None else source.mpp


def _common(writers: dict[str, Writer], source: Source, folder: Path, stem: str) -> None:
    """Write what an image has once, whatever its outputs: `STEM.geojson` and `STEM.overlay.png`.

    Where a model says objects beside a semantic map, the objects are what is drawn and listed.
    """
    kinds = {name: type(writer) for name, writer in writers.items()}
    objects = [registry.get("writer", kind) for kind in ("instances", "boxes")]
    semantic, label = registry.get("writer", "semantic"), registry.get("writer", "label")
    chosen = [w for name, w in writers.items() if kinds[name] in objects]
    chosen = chosen or [w for name, w in writers.items() if kinds[name] is semantic]

    def features() -> Iterator[Feature]:
        for writer in chosen:
            yield from writer.features()

    def about() -> dict[str, Any]:
        return {key: value for writer in chosen for key, value in writer.about_features().items()}

    if chosen:
        write_features(folder / f"{stem}.geojson", features(), about)
    drawn = [*chosen, *(w for name, w in writers.items() if kinds[name] is label)]
    if not drawn:
        return
    layers: list[overlay.Layer] = []
    legend: list[overlay.Entry] = []
    for writer in drawn:
        more, entries = writer.layers()
        layers += more
        legend += entries
    from PIL import Image

    picture = overlay.draw(thumbnail(source, overlay.reduction(source.shape)), layers, legend)
    Image.fromarray(picture).save(folder / f"{stem}.overlay.png", compress_level=4)


def thumbnail(source: Source, step: int) -> NDArray[np.uint8]:
    """Return (ceil(H / step), ceil(W / step), 3) uint8: the picture with `step` x `step` pixels averaged into one."""
    import cv2

    height, width = source.shape
    lines = max(1, 512 // step) * step
    size = -(-width // step)
    bands = []
    for begin in range(0, height, lines):
        rows = source.rows(begin, min(begin + lines, height))
        rows = rows if rows.shape[2] == 3 else rows[..., :1]
        missing = (-len(rows) % step, size * step - width)
        if any(missing):
            rows = np.pad(rows, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
        small = rows if step == 1 else cv2.resize(rows, (size, len(rows) // step), interpolation=cv2.INTER_AREA)
        bands.append(small.reshape(*small.shape[:2], -1))
    picture = np.concatenate(bands)
    if picture.dtype != np.uint8:
        low, high = np.percentile(picture, (0.5, 99.5))
        picture = np.clip((picture - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return picture if picture.shape[2] == 3 else np.repeat(picture, 3, axis=2)
