"""Prediction of one picture of any size: cut, encoded, inferred, activated, blended, decoded.

A family whose decoding is pixelwise (`spec.local`) is decoded band by band, so that a large picture needs the memory of
one row of tiles; every other is decoded whole, or where the picture is large in blocks (`zoo.inference.blocks`) or from
maps on disk (`zoo.inference.stored`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import UserError, suggest
from zoo.families.base import Family, Maps
from zoo.inference import blocks, stored, volumes
from zoo.inference.blocks import Part, planes_of
from zoo.inference.fast import fast
from zoo.inference.resample import Resampling
from zoo.inference.source import ModelGrid, Mpp, Source, model_shape, of_array, restained, scale_of, value_range
from zoo.inference.stitch import Band, Runner, stitched
from zoo.inference.windows import Plan, plan
from zoo.types import Geometry, InstancesPrediction, Prediction

SURVEYED = 256
"""Side of the tiles of a survey, in model pixels, at most."""
WHOLE = 2**24
"""Pixels on the model's grid up to which a picture is decoded in one piece."""


@dataclass(frozen=True)
class Settings:
    """How to predict. `tile`, `overlap`: model pixels, None = the family's; `batch`: tiles at once; `whole`: pixels up
    to which non-local decoding takes the picture in one piece; `fuse`: whether many tiles go through a fused network
    (`zoo.inference.fast`); `labels`: format of a label volume; `scratch`: where maps of large pictures lie meanwhile;
    `infer` and `decode`: the family's own options.
    """

    mpp: Mpp = None
    tile: int | None = None
    overlap: int | None = None
    batch: int = 8
    seed: int = 0
    whole: int = WHOLE
    fuse: bool = True
    labels: Literal["tif", "zarr"] = "tif"
    scratch: Path | None = None
    infer: Mapping[str, Any] = field(default_factory=dict)
    decode: Mapping[str, Any] = field(default_factory=dict)


def settings_for(family: Family, options: Mapping[str, Any], **known: Any) -> Settings:
    """Return checked settings; each of `options` goes to the family's `decode` or `infer`, whichever takes it.

    Raises `UserError` for an option that neither takes, and for numbers that cannot be.
    """
    settings = Settings(**known)
    if settings.batch < 1:
        raise UserError(f"batch: {settings.batch} tiles at once will not do. Expected 1 or more.")
    for name, value, least in (("tile", settings.tile, 1), ("overlap", settings.overlap, 0)):
        if value is not None and value < least:
            raise UserError(f"{name}: {value} pixels will not do. Expected {least} or more.")
    if family.spec.axes == "CZYX":
        divisors = family.spec.divisors or (family.spec.divisor,) * 3
        margin = family.spec.margin if settings.overlap is None else settings.overlap // 2
        for side, divisor in zip(volumes.tiles_of(family.spec, settings.tile), divisors, strict=True):
            volumes.along(4 * side, side, margin, divisor)
    elif family.spec.stitch != "latents":  # which cuts no tiles
        side = settings.tile or family.spec.tile
        tile_plan(family, (4 * side, 4 * side), settings)
    taken = {name: _keywords(getattr(family, name)) for name in ("decode", "infer")}
    chosen: dict[str, dict[str, Any]] = {"decode": {}, "infer": {}}
    for name, value in options.items():
        place = next((place for place, words in taken.items() if name in words), None)
        if place is None:
            words = [*taken["decode"], *taken["infer"], "mpp", "tile", "overlap", "batch", "seed"]
            raise UserError(f'predict: unknown option "{name}". {suggest(name, words)}'.strip())
        chosen[place][name] = value
    family.check_decoding(**chosen["decode"])
    return replace(settings, decode=chosen["decode"], infer=chosen["infer"])


def check_origin(family: Family, name: str = "") -> None:
    """Raise `UserError` for a model that makes its pictures from something else than images.

    `name`: how the user calls the model.
    """
    if family.origin == "image":
        return
    name = name or family.weights_name or family.name
    what, option = {
        "mask": ("a mask", "--mask M"),
        "embedding": ("an embedding", "--embedding E"),
        "noise": ("noise alone", "--size N"),
    }[family.origin]
    raise UserError(
        f"{name}: this model draws from {what} and looks at no image. Use: zoo generate {name} {option} --out DIR"
    )


def _keywords(method: Any) -> list[str]:
    """Return the names of a method's options beyond those of the interface."""
    parameters = inspect.signature(method).parameters.values()
    return [
        p.name
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in ("maps", "geometry", "inputs", "rng")
    ]


def predict_array(
    family: Family,
    image: NDArray[Any],
    *,
    mpp: Mpp = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 8,
    seed: int = 0,
    **options: Any,
) -> dict[str, Prediction]:
    """Return output name -> prediction, in pixels of the image, for one image of any size.

    `image`: (H, W, 3) or (H, W) uint8, or (H, W, C) with the channels of `family.spec`; for a model of volumes
    (D, H, W) or (D, H, W, C). `mpp`: its um per pixel (of each axis of a volume), which a model with a resolution
    needs; "native" takes the pixels as they are. `tile`, `overlap`: side of a tile and pixels that neighbours share, in
    model pixels. `seed` fixes what a sampler draws; each tile draws its own, so that the result does not depend on
    `batch`. `options`: the family's own. Raises `UserError`.
    """
    check_origin(family)
    settings = settings_for(family, options, mpp=mpp, tile=tile, overlap=overlap, batch=batch, seed=seed)
    if family.spec.axes == "CZYX":
        return volumes.predict_array(family, image, mpp=mpp, tile=tile, overlap=overlap, **settings.decode)
    source = of_array(image, family.spec)
    return assemble(predict_source(family, source, settings), source.shape)


def maps_of(family: Family, image: NDArray[Any], *, mpp: Mpp = None) -> tuple[Maps, Geometry]:
    """Return the activated, stitched maps of one image, (1, C, ...) by name, and their geometry."""
    if family.spec.axes == "CZYX":
        return volumes.maps_of(family, image, mpp=mpp)
    source, settings = of_array(image, family.spec), settings_for(family, {}, mpp=mpp)
    shape = model_shape(source.shape, scale_of(family.spec, source.mpp, mpp, source.name))
    with torch.inference_mode():
        maps = _joined(_bands(family.eval(), source, shape, settings), family.spec.out(shape))
    return maps, Geometry(source.shape, (shape[0] / source.shape[0], shape[1] / source.shape[1]))


def assemble(parts: Iterator[Part], shape: tuple[int, int]) -> dict[str, Prediction]:
    """Return the predictions of a picture of `shape` from its parts."""
    found: dict[str, Prediction] = {}
    for part in parts:
        if part.whole:
            return part.predictions
        for name, prediction in part.predictions.items():
            planes = planes_of(prediction)
            if name not in found:
                empty = {key: np.empty((*plane.shape[:-2], *shape), plane.dtype) for key, plane in planes}
                found[name] = replace(prediction, **empty)  # type: ignore[arg-type]
            for (_, into), (_, plane) in zip(planes_of(found[name]), planes, strict=True):
                into[..., part.begin : part.begin + plane.shape[-2], :] = plane
        for name, table in part.tables.items():
            provisional = found[name]
            assert isinstance(provisional, InstancesPrediction)
            labels = table.final[provisional.map]
            found[name] = replace(provisional, map=labels, class_index=table.class_index, scores=table.scores)
    return found


@torch.inference_mode()
def predict_source(family: Family, source: Source, settings: Settings) -> Generator[Part, None, None]:
    """Yield the predictions of a picture from top to bottom, in as many parts as memory asks for.

    The family is in evaluation mode while this runs, and as it was afterwards.
    """
    training = [module for module in family.modules() if module.training]
    family.eval()
    try:
        yield from _parts(family, source, settings)
    finally:
        for module in training:
            module.training = True


def tile_plan(family: Family, shape: tuple[int, int], settings: Settings) -> Plan:
    """Return the tiles of a picture of `shape` on the model's grid."""
    spec = family.spec
    tile = settings.tile or spec.tile
    if spec.stitch == "latents":
        tile = max(*shape, tile)  # the family itself stitches, step by step
    whole = math.ceil(tile / spec.divisor) * spec.divisor
    overlap = min(spec.margin, tile // 2, whole - spec.divisor) if settings.overlap is None else settings.overlap
    return plan(shape, tile, overlap, spec.divisor, spec.margin)


def _parts(family: Family, source: Source, settings: Settings) -> Iterator[Part]:
    spec = family.spec
    if spec.axes != "CYX":
        raise UserError(
            f"{family.name}: a model of {spec.axes} volumes does not predict pictures. Choose another model."
        )
    shape = model_shape(source.shape, scale_of(spec, source.mpp, settings.mpp, source.name))
    tiles = tile_plan(family, shape, settings)
    if family.stain is not None:
        source = restained(source, family.stain)
    runner = _runner(family, source, settings, tiles.count)
    grid = ModelGrid(source, shape, tiles.columns.padded, spec.padding)
    out = (spec.out(shape)[0], spec.out(shape)[1])
    boxes_only = {output.kind for output in spec.outputs.values()} == {"boxes"}  # whose raw maps may be no maps at all
    if spec.stitch == "objects" and (tiles.count > 1 or boxes_only):
        yield from blocks.tiles(family, runner, grid, tiles, source.shape, settings.batch, settings.decode)
        return
    bands = stitched(runner, grid, tiles, settings.batch, spec.scales)
    with _surveyed(runner.family, source, shape, tiles):
        if is_local(family):
            yield from _local(family, bands, out, source.shape, settings)
        elif out[0] * out[1] <= settings.whole:
            yield _whole(family, bands, out, shape, source.shape, settings)
        elif family.keeps() is not None:
            yield from stored.large(family, bands, out, shape, source.shape, settings.decode, settings.scratch)
        else:
            yield from blocks.large(family, bands, out, shape, source.shape, settings.decode)


def _surveyed(family: Family, source: Source, shape: tuple[int, int], tiles: Plan) -> AbstractContextManager[None]:
    """Return the context of a picture of several tiles, of which the family has seen some spread over the whole."""
    spec = family.spec
    if not spec.survey or tiles.count == 1:
        return nullcontext()
    grid = ModelGrid(source, shape, tiles.columns.padded, spec.padding)
    sides = [max(spec.divisor, min(SURVEYED, spec.tile, n) // spec.divisor * spec.divisor) for n in shape]
    most = math.isqrt(spec.survey)
    starts = [
        np.linspace(0, max(n - side, 0), min(most, -(-n // side))).round().astype(int)
        for n, side in zip(shape, sides, strict=True)
    ]
    bands = (grid.band(int(y), int(y) + sides[0]) for y in starts[0])
    seen = np.stack([band[:, x : x + sides[1]] for band in bands for x in starts[1]])
    return family.survey(torch.from_numpy(seen).to(family.device).permute(0, 3, 1, 2))


def _runner(family: Family, source: Source, settings: Settings, count: int) -> Runner:
    encoding = family.spec.encoding
    limits = None
    if encoding.kind == "percentile":
        limits = torch.from_numpy(value_range(source, encoding.low, encoding.high, encoding.joint))
    quick = fast(family, count) if settings.fuse and not settings.infer else family
    return Runner(quick, settings.seed, settings.infer, limits)


def _bands(family: Family, source: Source, shape: tuple[int, int], settings: Settings) -> Iterator[Band]:
    spec, tiles = family.spec, tile_plan(family, shape, settings)
    grid = ModelGrid(source, shape, tiles.columns.padded, spec.padding)
    return stitched(_runner(family, source, settings, tiles.count), grid, tiles, settings.batch, spec.scales)


def _joined(bands: Iterator[Band], out: Sequence[int]) -> Maps:
    """Return the maps of a whole picture, a grid of `out` pixels, from its bands."""
    maps: Maps = {}
    for band in bands:
        for name, values in band.maps.items():
            if name not in maps:
                maps[name] = values.new_empty((1, values.shape[1], *out))
            maps[name][:, :, band.begin : band.end] = values
    return maps


def is_local(family: Family) -> bool:
    """Return whether a family's predictions can be decoded band by band."""
    kinds = {output.kind for output in family.spec.outputs.values()}
    return family.spec.local and kinds <= {"semantic", "picture"}


def _whole(
    family: Family,
    bands: Iterator[Band],
    out: tuple[int, int],
    model: tuple[int, int],
    shape: tuple[int, int],
    settings: Settings,
) -> Part:
    maps = _joined(bands, out)
    geometry = Geometry(shape, (model[0] / shape[0], model[1] / shape[1]))
    return Part(0, family.decode(maps, [geometry], **settings.decode)[0], True)


def _local(
    family: Family, bands: Iterator[Band], out: tuple[int, int], shape: tuple[int, int], settings: Settings
) -> Iterator[Part]:
    """Decode band by band, on the source's grid: pixelwise decoding commutes with where the bands end."""
    rows, columns = Resampling(out[0], shape[0]), Resampling(out[1], shape[1])
    kept: Maps = {}
    first = done = 0
    for band in bands:
        if rows.identity and columns.identity:
            begin, end, maps = band.begin, band.end, band.maps
        else:
            kept = {n: torch.cat([kept[n], v], 2) if kept else v.clone() for n, v in band.maps.items()}
            begin, end = done, rows.ready(band.end)
            if end == begin:
                continue
            low, high = rows.needs(begin, end)
            maps = {
                name: _resampled(values[:, :, low - first : high - first], rows, columns, (begin, end), low)
                for name, values in kept.items()
            }
            keep = rows.needs(end, end + 1)[0] if end < shape[0] else band.end
            kept = {name: values[:, :, keep - first :] for name, values in kept.items()}
            first, done = keep, end
        geometry = Geometry((end - begin, shape[1]))
        decoded = family.decode(maps, [geometry], **settings.decode)[0]
        yield Part(begin, decoded, end - begin == shape[0])


def _resampled(
    values: torch.Tensor, rows: Resampling, columns: Resampling, window: tuple[int, int], first: int
) -> torch.Tensor:
    array = rows.apply(values.cpu().numpy(), 2, *window, first)
    return torch.from_numpy(columns.apply(array, 3, 0, columns.new, 0)).to(values.device)
