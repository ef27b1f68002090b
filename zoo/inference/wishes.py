"""What pictures are to be like: masks, embeddings and other pictures, from files and from datasets."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.cards import dataset_files
from zoo.data.datasets import open_dataset
from zoo.data.readers.polygons import instance_map
from zoo.errors import DataError, UserError, suggest
from zoo.families.diffusion.conditions import HIDDEN, make_targets, outline
from zoo.families.diffusion.family import Diffusion
from zoo.inference.inputs import find_images
from zoo.inference.source import ModelGrid, Mpp, model_shape, of_file, scale_of
from zoo.io.images import read_image, read_indices
from zoo.types import Instances

JSON = (".geojson", ".json")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wish:
    """One thing that pictures are to be like, whatever their seeds.

    `stem`: of the names of their files; `shape`: (H, W); `told`: "mask" (H, W) uint8 and "edge" (H, W) uint8, or
    "embedding" (T, D) float32, or of a large picture "grid" (R, C, D), an embedding a cell; `origin`: what
    provenance says of it; `objects` (H, W): the objects of a mask by number, where they are known.
    """

    stem: str
    shape: tuple[int, int]
    told: Arrays = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    objects: NDArray[Any] | None = None


@dataclass(frozen=True)
class Asked:
    """What a user asks for: at most one of the three ways, and a size where they do not say it.

    `object_class`: the class of all objects of masks that hold object numbers. `mpp`: um per pixel of `like`.
    `limit`: masks of a dataset that are taken.
    """

    masks: Sequence[str] = ()
    embeddings: Sequence[str] = ()
    like: Sequence[str] = ()
    size: tuple[int, int] | None = None
    object_class: str | None = None
    mpp: Mpp = None
    limit: int | None = None


def wishes(family: Diffusion, asked: Asked, out: Path, failures: list[dict[str, str]]) -> list[Wish]:
    """Return what is asked for, in order; a bad file among several is added to `failures` as {"file", "error"}.

    Raises `UserError` where the model is not told what is asked, or where nothing of it can be used.
    """
    _check_ways(family, asked)
    if asked.masks and (asked.embeddings or asked.like):
        return _masks_in_a_style(family, asked, out, failures)
    jobs: list[tuple[str, Callable[[], Iterator[Wish]]]] = []
    for name in asked.masks:
        jobs += _mask_jobs(family, asked, name, out)
    jobs += [(name, partial(_of_embeddings, family, asked, Path(name))) for name in _files(asked.embeddings)]
    if asked.like:
        items = find_images(asked.like, out)
        jobs += [(str(i.path), partial(_of_picture, family, asked, i.path, i.stem.as_posix())) for i in items]
    if not jobs:
        jobs = [("", lambda: iter([Wish("picture", asked.size or (family.side, family.side))]))]
    found: list[Wish] = []
    for name, job in jobs:
        try:
            found += [_sized(family, wish) for wish in job()]
        except DataError as error:
            if len(jobs) == 1:
                raise UserError(str(error)) from None
            failures.append({"file": name, "error": str(error)})
    if not found:
        raise UserError("\n".join(failure["error"] for failure in failures))
    return _distinct(found)


def _masks_in_a_style(family: Diffusion, asked: Asked, out: Path, failures: list[dict[str, str]]) -> list[Wish]:
    """Return the wishes for masks, all of them like one embedding or picture. Raises `UserError` for several."""
    own = (family.side, family.side)
    styles = wishes(family, replace(asked, masks=(), size=own), out, failures)
    if len(styles) != 1:
        raise UserError(f"--mask with {len(styles)} things to be like. Expected one, for all masks: draw them in turn.")
    found = wishes(family, replace(asked, embeddings=(), like=()), out, failures)
    told, origin = styles[0].told, styles[0].origin
    return [replace(wish, told={**wish.told, **told}, origin={**wish.origin, "style": origin}) for wish in found]


def _check_ways(family: Diffusion, asked: Asked) -> None:
    ways = {"--mask": asked.masks, "--embedding": asked.embeddings, "--like": asked.like}
    named = [way for way, values in ways.items() if values]
    both = {"mask", "embedding"} <= set(family.takes)
    if len(named) > 1 and not (both and len(named) == 2 and "--mask" in named):
        raise UserError(f"{' and '.join(named)}: one of them at a time. Leave out the others.")
    takes = {"--mask": "mask" in family.takes, "--embedding": "embedding" in family.takes}
    takes["--like"] = takes["--embedding"] and family.options.condition_encoder is not None
    for way in named:
        if not takes[way]:
            can = [w for w, yes in takes.items() if yes]
            told = f"It is told by {' or '.join(can)}." if can else "It is told nothing: leave the option out."
            raise UserError(f"{way}: {family.weights_name or 'the model'} does not take that. {told}")
    mask = family.options.mask
    if asked.object_class is not None and mask is not None and asked.object_class not in (mask.classes or ())[1:]:
        known = (mask.classes or ())[1:]
        raise UserError(f'--class: no class "{asked.object_class}". {suggest(asked.object_class, known)}'.strip())


def _sized(family: Diffusion, wish: Wish) -> Wish:
    """Return a wish whose size the model can draw. Raises `DataError`."""
    height, width = wish.shape
    what = wish.origin.get("file", "--size")
    least, fixed = family.network.divisor * family.factor, family.network.size
    if min(height, width) < least:
        raise DataError(f"{what}: {height} x {width} pixels. Expected {least} or more a side.")
    if fixed is not None and min(height, width) < fixed * family.factor:
        side = fixed * family.factor
        raise DataError(
            f"{what}: {height} x {width} pixels, and the model draws {side} x {side} or larger. Choose another size."
        )
    return wish


def _distinct(found: list[Wish]) -> list[Wish]:
    """Return what has names of its own; a file that is named twice is taken once. Raises `UserError`."""
    taken: dict[str, Wish] = {}
    for wish in found:
        other = taken.setdefault(wish.stem, wish).origin.get("file")
        if other != wish.origin.get("file"):
            raise UserError(
                f"{other} and {wish.origin.get('file')}: both would write {wish.stem}-*. Expected one file a name. "
                "Draw them into two folders."
            )
    return list(taken.values())


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --- masks ------------------------------------------------------------------------------------------------------------


def _mask_jobs(
    family: Diffusion, asked: Asked, name: str, out: Path
) -> Iterator[tuple[str, Callable[[], Iterator[Wish]]]]:
    """Yield what reads the masks that a name means: a file, a folder, a glob, or DATASET[:SPLIT]."""
    path = Path(name).expanduser()
    dataset, _, split = name.partition(":")
    own = Path(dataset).expanduser()
    if (dataset in dataset_files() and not path.exists()) or (own / "zoo-dataset.yaml").is_file():
        yield name, partial(_of_dataset, family, asked, dataset, split or "test")
        return
    if path.suffix.lower() in JSON:
        yield str(path), partial(_of_file, family, asked, path, path.stem)
        return
    for item in find_images([path], out):
        yield str(item.path), partial(_of_file, family, asked, item.path, item.stem.as_posix())


def _of_dataset(family: Diffusion, asked: Asked, name: str, split: str) -> Iterator[Wish]:
    dataset = open_dataset(name, split=split, limit=asked.limit)
    assert family.options.mask is not None
    try:
        maker = make_targets(family.options, dataset.card)
    except ValueError as error:
        raise UserError(f"--mask {name}: {error}.") from None
    for index in range(len(dataset)):
        sample = dataset[index]
        told = maker(sample)
        if "mask" in told:
            truth = sample.truth.get(maker.key or "")
            objects = truth.map if isinstance(truth, Instances) else None
            window = _middle(told["mask"].shape, asked.size)
            mask, edge, objects = (None if a is None else a[window] for a in (told["mask"], told.get("edge"), objects))
            assert mask is not None
            yield _wish(sample.id.replace("/", "_"), mask, edge, f"{name}:{split}/{sample.id}", objects)


def _middle(shape: tuple[int, ...], size: tuple[int, int] | None) -> tuple[slice, slice]:
    """Return the middle of a dataset's mask, where a smaller size is asked for."""
    height, width = size or (shape[0], shape[1])
    if height > shape[0] or width > shape[1]:
        raise DataError(f"--size: {height} x {width}, but the mask has {shape[0]} x {shape[1]} pixels.")
    y, x = (shape[0] - height) // 2, (shape[1] - width) // 2
    return slice(y, y + height), slice(x, x + width)


def _of_file(family: Diffusion, asked: Asked, path: Path, stem: str) -> Iterator[Wish]:
    options = family.options.mask
    assert options is not None
    classes = options.classes or ()
    if path.suffix.lower() in JSON:
        if asked.size is None:
            raise DataError(f"{path}: polygons have no size of their own. Say it with --size.")
        ids, kinds, _ = instance_map(path, classes[1:], asked.size)
        table = np.zeros(int(ids.max(initial=0)) + 1, np.uint8)
        for label, kind in kinds.items():
            table[label] = kind
        edge = outline(ids, options.boundary) if options.boundary else None
        yield _wish(stem, table[ids], edge, str(path), ids)
        return
    values = read_indices(path)
    if asked.size is not None and tuple(values.shape) != asked.size:
        raise DataError(
            f"{path}: the mask has {values.shape[0]} x {values.shape[1]} pixels, and --size says {asked.size[0]} x "
            f"{asked.size[1]}. Leave out --size."
        )
    mask, edge = from_values(values, classes, options.boundary, asked.object_class, str(path))
    numbered = (asked.object_class is not None or len(classes) == 2) and not (mask == HIDDEN).any()
    yield _wish(stem, mask, edge, str(path), values if numbered and len(np.unique(values)) > 2 else None)


def from_values(
    values: NDArray[Any], classes: Sequence[str], boundary: int, object_class: str | None, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return class indices (H, W) uint8 and outlines (H, W) uint8 or None, of a mask as it is stored.

    A map of class indices (255 = nothing is told here), or of object numbers: those are objects of `object_class`, or
    of the model's only class (where 255 without 1 is an object as well, as in black and white masks). Raises
    `DataError` for values that are neither.
    """
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise DataError(f"{where}: the mask holds fractions. Expected a class, or an object's number, a pixel.")
        values = values.astype(np.int64)
    if values.size and values.min() < 0:
        raise DataError(f"{where}: the mask holds the value {int(values.min())}. Expected 0 or more.")
    one = object_class if object_class is not None else classes[1] if len(classes) == 2 else None
    if object_class is None and set(np.unique(values)) in ({1, HIDDEN}, {0, 1, HIDDEN}):
        one = None  # no two objects have these numbers: a class, and where nothing is told
    if one is not None:
        mask = np.where(values > 0, np.uint8(classes.index(one)), np.uint8(0))
        return mask, outline(values, boundary) if boundary else None
    strays = [int(v) for v in np.unique(values) if v >= len(classes) and v != HIDDEN]
    if strays:
        shown = ", ".join(map(str, strays[:3])) + (f" and {len(strays) - 3} more" if len(strays) > 3 else "")
        known = ", ".join(f"{i} {name}" for i, name in enumerate(classes))
        raise DataError(
            f"{where}: the mask holds {shown}, which {'is no class' if len(strays) == 1 else 'are no classes'}. "
            f"Expected {known}, or 255 where nothing is told. Where the values are object numbers, name their class "
            "with --class."
        )
    mask = values.astype(np.uint8)
    if not boundary:
        return mask, None
    return mask, outline(np.where(mask == HIDDEN, 0, mask), boundary)


def _wish(
    stem: str, mask: NDArray[Any], edge: NDArray[Any] | None, name: str, objects: NDArray[Any] | None = None
) -> Wish:
    told = {"mask": mask} if edge is None else {"mask": mask, "edge": edge}
    origin = {"kind": "mask", "file": name, "sha256": _digest(*told.values())}
    return Wish(stem, (mask.shape[0], mask.shape[1]), told, origin, objects)


# --- embeddings -------------------------------------------------------------------------------------------------------


def _files(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        hits = sorted(glob.glob(str(Path(name).expanduser()))) if glob.has_magic(name) else [name]  # noqa: PTH207
        found += hits or [name]
    return found


def _of_embeddings(family: Diffusion, asked: Asked, path: Path) -> Iterator[Wish]:
    options = family.options.embedding
    assert options is not None
    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror or 'not found'}).") from None
    except (ValueError, EOFError):
        raise DataError(f"{path}: no array of numbers. Expected a .npy file, as zoo embed writes it.") from None
    shape = f"{options.tokens} x {options.width}" if options.tokens > 1 else f"{options.width}"
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not values.size:
        raise DataError(f"{path}: no array of numbers. Expected {shape} numbers a picture.")
    if not values.ndim or values.shape[-1] != options.width:
        width = values.shape[-1] if values.ndim else 1
        raise DataError(
            f"{path}: embeddings of {width} numbers. Expected {options.width}, as the model was trained "
            f"with{f' ({family.options.condition_encoder.name})' if family.options.condition_encoder else ''}."
        )
    if values.ndim > 3 or (values.ndim < 3 and values.size % (options.tokens * (options.width or 1))):
        raise DataError(f"{path}: an array of shape {values.shape}. Expected {shape} numbers a picture.")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: the embedding holds nan or infinity. Compute it again.")
    whole = _grid_size(family, values)
    if whole is not None and asked.size == whole and _beyond(family, asked):
        grid = values.astype(np.float32)
        about: dict[str, Any] = {"kind": "embedding", "file": str(path), "sha256": _digest(grid)}
        yield Wish(path.stem, asked.size, {"grid": grid}, about)
        return
    if whole is not None and values.shape[1] != options.tokens and values.shape[:2] != (cells_of(family),) * 2:
        raise DataError(
            f"{path}: a grid of {values.shape[0]} x {values.shape[1]} embeddings. Expected {shape} numbers a picture, "
            f"or with a grid the size that it tells of: --size {whole[0]} {whole[1]}."
        )
    rows = values.astype(np.float32).reshape(-1, options.tokens, options.width or 1)
    size = asked.size or (family.side, family.side)
    for number, row in enumerate(rows):
        origin = {"kind": "embedding", "file": str(path), "row": number, "sha256": _digest(row)}
        yield Wish(path.stem if len(rows) == 1 else f"{path.stem}-{number:04d}", size, {"embedding": row}, origin)


def _of_picture(family: Diffusion, asked: Asked, path: Path, stem: str) -> Iterator[Wish]:
    """Yield the wish for a picture like the middle of another one, at the model's resolution."""
    file = read_image(path)
    source = of_file(file, family.spec)
    shape = model_shape(source.shape, scale_of(family.spec, source.mpp, asked.mpp, source.name))
    picture = np.asarray(ModelGrid(source, shape, shape[1]).band(0, shape[0]))
    if _beyond(family, asked):
        assert asked.size is not None
        yield _of_large_picture(family, picture, asked.size, path, stem)
        return
    y, x = (max(0, (n - family.side) // 2) for n in shape)
    picture = np.ascontiguousarray(picture[y : y + family.side, x : x + family.side])
    pixels = family.prepare({"image": torch.from_numpy(picture).permute(2, 0, 1)[None]})["image"]
    embedding = family.embedding_of(pixels.to(family.device))[0].cpu().numpy()
    origin = {"kind": "like", "file": str(path), "sha256": _digest(picture)}
    yield Wish(stem, asked.size or (family.side, family.side), {"embedding": embedding}, origin)


def cell_of(family: Diffusion) -> int:
    """Return the pixels of a cell, of which one embedding tells, along a side."""
    return family.side // cells_of(family)


def cells_of(family: Diffusion) -> int:
    """Return the cells of one picture of the model's, along a side."""
    assert family.options.embedding is not None
    count: int = round(family.options.embedding.tokens**0.5)
    return count


def _grid_size(family: Diffusion, values: NDArray[Any]) -> tuple[int, int] | None:
    """Return the pixels that a grid of embeddings (R, C, D) tells of; None for an array that is none."""
    if values.ndim != 3:
        return None
    cell = cell_of(family)
    return values.shape[0] * cell, values.shape[1] * cell


def _beyond(family: Diffusion, asked: Asked) -> bool:
    """Return whether a picture is asked for that a grid of embeddings has to tell of."""
    return asked.size is not None and max(asked.size) > family.most


def _of_large_picture(family: Diffusion, picture: NDArray[Any], size: tuple[int, int], path: Path, stem: str) -> Wish:
    """Return the wish for a large picture like the middle of another one, cell by cell."""
    if size[0] > picture.shape[0] or size[1] > picture.shape[1]:
        raise DataError(
            f"{path}: {picture.shape[0]} x {picture.shape[1]} pixels at the model's resolution, and --size asks for "
            f"{size[0]} x {size[1]}. Expected no more than there is."
        )
    side, y, x = family.side, *((have - want) // 2 for have, want in zip(picture.shape, size, strict=False))
    region = picture[y : y + size[0], x : x + size[1]]
    below, right = (-n % side for n in size)
    whole = np.pad(region, ((0, below), (0, right), (0, 0)), mode="symmetric")
    count = side // cell_of(family)
    rows = []
    for i in range(0, len(whole), side):
        windows = [whole[i : i + side, j : j + side] for j in range(0, whole.shape[1], side)]
        pixels = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2)
        told = family.embedding_of(family.prepare({"image": pixels})["image"].to(family.device)).cpu()
        rows.append(told.view(len(windows), count, count, -1).permute(1, 0, 2, 3).flatten(1, 2))
    grid = torch.cat(rows).numpy()
    origin = {"kind": "like", "file": str(path), "sha256": _digest(np.ascontiguousarray(region))}
    return Wish(stem, size, {"grid": grid}, origin)


__all__ = ["Asked", "Wish", "from_values", "wishes"]
