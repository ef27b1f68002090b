"""Pictures drawn by a generator, into files: `generate`.

A picture is a function of weights, seed, what it is told and how it is drawn, and of nothing else: what is drawn beside
it in a batch changes no grey level by more than rounding. It is written beside its final place and moved there whole,
with all of that in its metadata; what is there already is not drawn again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import zoo
from zoo.errors import Interrupted, UserError, ZooError, counted, suggest
from zoo.families.diffusion import sampling
from zoo.families.diffusion.assembly import between_cells, cells_under
from zoo.families.diffusion.family import Diffusion, to_uint8
from zoo.inference import pairs as pair
from zoo.inference.canvas import Canvas, Process, decoded
from zoo.inference.outcome import Summary, check_folder
from zoo.inference.sheet import write_sheet
from zoo.inference.windows import Plan, plan
from zoo.inference.wishes import Asked, Wish, cell_of, wishes
from zoo.io.tiff import TiffRows
from zoo.paths import replacing

KEY = "zoo"
"""Name of the metadata that tell how a picture was made: text of a PNG; a TIFF has them as its description."""
PNG_SIDE = 2048
"""Longest side of a picture that is written as PNG; larger ones are tiled TIFFs."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn. None = as the model says.

    `batch`: pictures, or windows of a large one, at once. `tile`, `overlap`: of pictures larger than the model's, in
    pixels. `precision`: arithmetic of the network.
    """

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    batch: int = 8
    tile: int | None = None
    overlap: int | None = None
    precision: Literal["32", "bf16"] = "32"


@dataclass(frozen=True)
class Job:
    """One picture: what it is like, the user's seed, and everything that decides it, for its metadata."""

    wish: Wish
    seed: int
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of its file, without folder."""
        ending = "png" if max(self.wish.shape) <= PNG_SIDE else "tif"
        return f"{self.wish.stem}-{self.seed:04d}.{ending}"

    @property
    def noise(self) -> int:
        """Return the seed of its noise: other masks get other noise under the same seed, so that stains vary."""
        digest = hashlib.sha256(f"{self.seed} {self.wish.origin.get('sha256', '')}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def generate(
    family: Any,
    asked: Asked,
    out: str | Path,
    *,
    count: int = 1,
    seed: int = 0,
    drawing: Drawing | None = None,
    overwrite: bool = False,
    progress: bool = True,
    pairs: bool = False,
) -> Summary:
    """Draw `count` pictures of everything that is asked for, with seeds `seed`, `seed` + 1 ..., into the folder `out`.

    `pairs`: make `out` a dataset to train on, pictures in images/, what they were drawn from in masks/.

    Raises `UserError` before anything is drawn (a family that draws nothing, a condition that the model does not take,
    guidance without a null condition, too little room), `ZooError` where the disk fills up midway, and `Interrupted` on
    Ctrl-C: in both cases what is finished stays, and the same call goes on.
    """
    out, drawing = Path(out), drawing or Drawing()
    family = _checked(family, drawing, count, seed)
    family.check_here()
    check_folder(out)
    summary = Summary(out, "drawn")
    asked_for = wishes(family, asked, out, summary.failures)
    _check_guidance(family, drawing, asked_for)
    how = _how(family, drawing)
    if pairs:
        pair.check(family, bool(asked.masks))
    pictures = out / pair.IMAGES if pairs else out
    jobs = [_job(family, drawing, wish, seed + k, how) for wish in asked_for for k in range(count)]
    todo = [job for job in jobs if overwrite or not _there(pictures / job.name, job.record)]
    drawn_now = {job.name for job in todo}
    summary.skipped = [job.name for job in jobs if job.name not in drawn_now]
    _check_room(out, family, drawing, todo)
    sheet = [[pictures / job.name for job in jobs if job.wish is wish] for wish in asked_for]
    try:
        if pairs:
            pair.write_card(out, family)
        for job in todo if pairs else ():  # first, so that no picture is there without its mask
            pair.write_mask(out, job.name, job.wish, family)
        for job in _drawn(family, drawing, todo, pictures, progress):
            summary.done.append(job.name)
        write_sheet(out / "sheet.png", asked_for, sheet)
        summary.write_failures()
    except KeyboardInterrupt:
        raise Interrupted(f"{summary}. Stopped; the same command goes on from here.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ZooError(
            f"{out}: the disk is full after {len(summary.done)} of {counted(len(todo), 'picture')}. Free some space; "
            "the same command goes on from there."
        ) from None
    finally:
        with suppress(OSError):  # of a full disk, which is said already
            summary.write_failures()
    return summary


# --- before anything is drawn -----------------------------------------------------------------------------------------


def _checked(family: Any, drawing: Drawing, count: int, seed: int) -> Diffusion:
    if not isinstance(family, Diffusion):
        raise UserError(
            f"{family.weights_name or family.name}: a model of the family {family.name} draws nothing from noise. "
            "Expected weights of a generator; for this one use zoo predict."
        )
    for name, value, least in (
        ("--count", count, 1),
        ("--seed", seed, 0),
        ("--steps", drawing.steps, 1),
        ("--batch", drawing.batch, 1),
        ("--tile", drawing.tile, family.network.divisor * family.factor),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: {value} will not do. Expected {least} or more.")
    steps, most = drawing.steps or family.options.sampling.steps, family.options.noise.steps
    if steps > most:
        raise UserError(f"--steps: {steps} will not do. Expected at most {most}.")
    if drawing.sampler is not None and drawing.sampler not in sampling.SAMPLERS:
        known = sampling.SAMPLERS
        raise UserError(f'--sampler: no sampler "{drawing.sampler}". {suggest(drawing.sampler, known)}'.strip())
    sampler, prediction = drawing.sampler or family.options.sampling.sampler, family.options.noise.prediction
    if not sampling.fits(sampler, prediction):
        raise UserError(f"--sampler: {sampler} cannot draw with what the model predicts ({prediction}). Use dpm++.")
    if drawing.tile is not None and family.network.size is not None and drawing.tile != family.side:
        raise UserError(
            f"--tile: {drawing.tile} will not do: the model sees windows of {family.side} pixels. Leave it out."
        )
    if drawing.guidance is not None and not 0 <= drawing.guidance < 1e3:
        raise UserError(f"--guidance: {drawing.guidance} will not do. Expected 0 to 1000; 1 = none.")
    family.network.to(memory_format=torch.channels_last)  # the faster one on a CPU
    return family.eval()


def _check_guidance(family: Diffusion, drawing: Drawing, found: Sequence[Wish]) -> None:
    asked = drawing.guidance
    if asked is not None and asked != 1 and (not family.guidable or not any(wish.told for wish in found)):
        why = (
            "the model was trained without hiding its conditions (dropout: 0)"
            if family.takes and not family.guidable
            else "nothing is told that it could lead to"
        )
        raise UserError(f"--guidance {asked:g}: {why}, so there is no null condition to lead away from. Leave it out.")


def _check_room(out: Path, family: Diffusion, drawing: Drawing, todo: Sequence[Job]) -> None:
    """Raise `UserError` where pictures, and the noisy one that a large picture is kept in, have no room."""
    needed = 0
    for job in todo:
        height, width = job.wish.shape
        needed += 3 * height * width
    work = [3 * 4 * 2 * job.wish.shape[0] * job.wish.shape[1] for job in todo if _large(family, drawing, job.wish)]
    needed += max(work, default=0)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: {counted(len(todo), 'picture')} may need {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free. "
            "Free some space, or draw fewer."
        )


# --- what decides a picture -------------------------------------------------------------------------------------------


def _how(family: Diffusion, drawing: Drawing) -> dict[str, Any]:
    """Return what all pictures of a call have in common, in plain values."""
    digest = hashlib.sha256(json.dumps(family.options.values(), sort_keys=True).encode())
    for name, tensor in sorted(family.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    usual = family.options.sampling
    return {
        "synthetic": True,
        "software": f"histozoo {zoo.__version__}",
        "weights": family.weights_name,
        "weights_sha256": digest.hexdigest(),
        "steps": drawing.steps or usual.steps,
        "precision": drawing.precision,
    }


def _job(family: Diffusion, drawing: Drawing, wish: Wish, seed: int, how: dict[str, Any]) -> Job:
    usual = family.options.sampling
    flow = family.options.noise.prediction == "flow"
    guidance = usual.guidance if drawing.guidance is None else drawing.guidance
    record = {
        **how,
        "seed": seed,
        "guidance": float(guidance) if wish.told and family.guidable else 1.0,
        "sampler": "euler" if flow else drawing.sampler or usual.sampler,
        "told": wish.origin,
        "size": list(wish.shape),
    }
    if _large(family, drawing, wish):
        tiles = _plan(family, drawing, wish.shape)
        record |= {
            "sampler": "euler" if flow else "ddim",
            "tile": tiles.rows.tile,
            "overlap": tiles.rows.tile - _stride(tiles),
        }
    return Job(wish, seed, record)


def _stride(tiles: Plan) -> int:
    starts = tiles.columns.starts if len(tiles.columns.starts) > 1 else tiles.rows.starts
    return starts[1] - starts[0] if len(starts) > 1 else tiles.rows.tile


def provenance(path: Path) -> dict[str, Any] | None:
    """Return what a file's metadata tell of how it was drawn; None where they tell nothing."""
    try:
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                text = image.info.get(KEY, "")
        else:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                text = tiff.pages[0].description
        found = json.loads(text)
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def _there(path: Path, record: dict[str, Any]) -> bool:
    return path.is_file() and provenance(path) == json.loads(json.dumps(record))


# --- drawing ----------------------------------------------------------------------------------------------------------


def _large(family: Diffusion, drawing: Drawing, wish: Wish) -> bool:
    return max(wish.shape) > (drawing.tile or family.most) or "grid" in wish.told


def _drawn(family: Diffusion, drawing: Drawing, todo: list[Job], out: Path, progress: bool) -> Iterator[Job]:
    """Draw and write one picture after another; yield each when it is there."""
    told = _Told(len(todo), progress)
    position = 0
    while position < len(todo):
        first = todo[position]
        if _large(family, drawing, first.wish):
            _draw_large(family, drawing, first, out, told)
            yield first
            position += 1
        else:
            some = todo[position : position + _alike(todo, position, drawing.batch)]
            for job, picture in zip(some, draw(family, drawing, some), strict=True):
                _write_png(out / job.name, picture, job.record)
                yield job
            position += len(some)
        told.pictures(position)


def _alike(todo: Sequence[Job], position: int, most: int) -> int:
    """Return how many jobs from a position on share a size and what they are told."""
    first = todo[position]
    number = 0
    for job in todo[position : position + most]:
        if job.wish.shape != first.wish.shape or job.wish.told.keys() != first.wish.told.keys():
            break
        number += 1
    return number


@torch.inference_mode()
def draw(family: Diffusion, drawing: Drawing, jobs: Sequence[Job]) -> list[NDArray[np.uint8]]:
    """Return pictures (H, W, 3) of jobs of one size, drawn together."""
    wishes_of = [job.wish for job in jobs]
    told = family.condition(_inputs(wishes_of, family.device))
    record = jobs[0].record
    with _autocast(family, drawing):
        found = family.sample(
            told,
            wishes_of[0].shape,
            [job.noise for job in jobs],
            steps=record["steps"],
            guidance=record["guidance"],
            sampler=record["sampler"],
        )
    return [np.ascontiguousarray(np.moveaxis(to_uint8(picture), 0, -1)) for picture in found]


def _inputs(some: Sequence[Wish], device: torch.device) -> dict[str, Tensor]:
    names = some[0].told
    return {name: torch.from_numpy(np.stack([wish.told[name] for wish in some])).to(device) for name in names}


def _autocast(family: Diffusion, drawing: Drawing) -> Any:
    if drawing.precision == "32":
        return nullcontext()
    return torch.autocast(family.device.type, dtype=torch.bfloat16)


def _plan(family: Diffusion, drawing: Drawing, shape: tuple[int, int]) -> Plan:
    """Return the windows of a large picture, in what is denoised."""
    divisor, factor = family.network.divisor, family.factor
    side = (drawing.tile or family.side) // factor
    overlap = side // 4 if drawing.overlap is None else drawing.overlap // factor
    padded = tuple(-(-n // (divisor * factor)) * divisor for n in shape)
    try:
        return plan((padded[0], padded[1]), side, overlap, divisor)
    except UserError as error:
        raise UserError(f"--{error}") from None


@torch.inference_mode()
def _draw_large(family: Diffusion, drawing: Drawing, job: Job, out: Path, told: _Told) -> None:
    """Draw a large picture in windows and write it from the top."""
    tiles = _plan(family, drawing, job.wish.shape)
    noise = family.options.noise
    process = Process(family.schedule, noise.prediction, job.record["steps"], clamp=family.factor == 1)
    folder = out / f".{job.name}.work"
    canvas = Canvas(folder, family.network.channels, tiles, process, job.noise, json.dumps(job.record, sort_keys=True))
    predict = _window_predictor(family, drawing, job, tiles)
    told.steps(canvas.done, process.steps)
    bands = canvas.denoise(predict, drawing.batch, lambda step: told.steps(step, process.steps))
    _write_bands(out / job.name, job, bands if family.stage is None else decoded(family, tiles, _stride(tiles), bands))
    canvas.remove()


def _window_predictor(family: Diffusion, drawing: Drawing, job: Job, tiles: Plan) -> Any:
    arrays = dict(job.wish.told)
    factor = family.factor
    below, right = (
        length * factor - size
        for length, size in zip((tiles.rows.length, tiles.columns.length), job.wish.shape, strict=True)
    )
    for name in ("mask", "edge"):
        if name in arrays:
            arrays[name] = np.pad(arrays[name], ((0, below), (0, right)), mode="edge")
    height, width = tiles.rows.tile * factor, tiles.columns.tile * factor

    def predict(x: Tensor, t: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        inputs: dict[str, Tensor] = {}
        places = [(i * factor, j * factor) for i, j in corners]
        for name, array in arrays.items():
            if name == "grid":
                inputs["embedding"] = _cells(family, array, places).to(family.device)
                continue
            parts = [array if name == "embedding" else array[i : i + height, j : j + width] for i, j in places]
            inputs[name] = torch.from_numpy(np.stack(parts)).to(family.device)
        with _autocast(family, drawing):
            condition = family.at_size(family.condition(inputs))
            guided = sampling.guided(family.network, condition or None, job.record["guidance"])
            return guided(x.to(family.device), t.to(family.device))

    return predict


def _cells(family: Diffusion, grid: NDArray[Any], places: Sequence[tuple[int, int]]) -> Tensor:
    """Return (n, T, D), what windows at these places are told of a grid of embeddings (R, C, D).

    One embedding a window is interpolated between cells (Graikos et al.); several are those of the cells under it.
    """
    cell, tokens = cell_of(family), family.network.tokens
    whole = torch.from_numpy(grid)
    if tokens == 1:
        return between_cells(whole, places, cell)[:, None]
    return cells_under(whole, places, cell, round(tokens**0.5))


# --- files ------------------------------------------------------------------------------------------------------------


def _write_png(path: Path, picture: NDArray[np.uint8], record: dict[str, Any]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", record["software"])
    info.add_text(KEY, json.dumps(record, sort_keys=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(picture).save(file, "PNG", pnginfo=info)


def _write_bands(path: Path, job: Job, bands: Iterator[NDArray[np.float32]]) -> None:
    """Write a picture that comes in bands (rows, W, 3) of [-1, 1]."""
    height, width = job.wish.shape

    def rows() -> Iterator[NDArray[np.uint8]]:
        left = height
        for band in bands:
            part = band[:left, :width]
            left -= len(part)
            if len(part):
                yield np.asarray(np.clip(np.rint((part + 1) * 127.5), 0, 255), np.uint8)

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        _write_png(path, np.concatenate(list(rows())), job.record)
        return
    part = path.with_name(f".{path.name}.part")
    text = json.dumps(job.record, sort_keys=True)
    file = TiffRows(part, (height, width, 3), np.uint8, rgb=True, description=text)
    try:
        for band in rows():
            file.put(band)
        file.close()
        part.replace(path)
    finally:
        file.abort()
        part.unlink(missing_ok=True)


class _Told:
    """What the user sees while it goes on: one line on a terminal, nothing elsewhere."""

    def __init__(self, count: int, show: bool) -> None:
        self.count, self.done = count, 0
        self.show: Callable[[str], None] = _line if show and sys.stderr.isatty() else lambda _: None

    def pictures(self, done: int) -> None:
        """Say how many pictures there are."""
        self.done = done
        self.show(f"{done}/{self.count} pictures" + ("\n" if done == self.count else ""))

    def steps(self, done: int, steps: int) -> None:
        """Say how far a large picture is."""
        self.show(f"{self.done}/{self.count} pictures, step {done}/{steps} of the next")


def _line(text: str) -> None:
    sys.stderr.write(f"\r{text:<60}")
    sys.stderr.flush()
