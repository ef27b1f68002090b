"""A contact sheet: small pictures beside what they were drawn from, to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.families.diffusion.conditions import shown
from zoo.inference.wishes import Wish
from zoo.paths import replacing

SIDE = 128
"""Longest side of a small picture."""
ROWS, COLUMNS = 16, 8
GAP = 4
RGB8 = NDArray[np.uint8]


def write_sheet(path: Path, wishes: Sequence[Wish], files: Sequence[Sequence[Path]]) -> None:
    """Write a PNG: of the first wishes a row each, the mask where there is one, then the first pictures.

    Pictures of a single wish go on over several rows.
    """
    rows: list[list[RGB8]] = []
    if len(wishes) == 1 and files:
        wish, some = wishes[0], [p for p in files[0] if p.is_file()][: ROWS * COLUMNS]
        cells = _mask(wish) + [_small(p) for p in some]
        rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    else:
        for wish, drawn in list(zip(wishes, files, strict=True))[:ROWS]:
            cells = _mask(wish) + [_small(p) for p in drawn[: COLUMNS - 1] if p.is_file()]
            rows += [cells] if cells else []
        if not any("mask" in wish.told for wish in wishes) and all(len(row) == 1 for row in rows):
            cells = [row[0] for row in rows]
            rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    if not rows:
        return
    side = SIDE + 2 * GAP
    sheet = np.full((side * len(rows), side * max(map(len, rows)), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = (side * n + (side - size) // 2 for n, size in zip((i, j), cell.shape[:2], strict=True))
            sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    _write(path, sheet)


def _mask(wish: Wish) -> list[RGB8]:
    if "mask" not in wish.told:
        return []
    step = -(-max(wish.shape) // SIDE)
    mask, edge = (wish.told.get(name) for name in ("mask", "edge"))
    assert mask is not None
    found = shown(_thin(mask, step), None if edge is None else _thin(edge, step))
    return [_fit(found[0])]


def _thin(array: NDArray[Any], step: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[::step, ::step]))[None]


def _small(path: Path) -> RGB8:
    if path.suffix == ".tif":
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            step = -(-max(page.shape[:2]) // SIDE)
            rows = [page.asarray()[::step, ::step]] if page.size < 2**26 else [_thinned(page, step)]
        return _fit(np.asarray(rows[0]))
    from PIL import Image

    with Image.open(path) as image:
        return _fit(np.asarray(image.convert("RGB")))


def _thinned(page: Any, step: int) -> RGB8:
    """Return every `step`-th pixel of a tiled page, tile by tile."""
    found = np.zeros((-(-page.shape[0] // step), -(-page.shape[1] // step), 3), np.uint8)
    for tile, place, shape in page.segments():
        if tile is None:
            continue
        y, x = place[-3], place[-2]
        part = np.asarray(tile).reshape(tile.shape[-3:])[: shape[-3], : shape[-2]]
        first, left = -y % step, -x % step
        thin = part[first::step, left::step]
        i, j = (y + first) // step, (x + left) // step
        found[i : i + thin.shape[0], j : j + thin.shape[1]] = thin
    return found


def _fit(picture: RGB8) -> RGB8:
    """Return a picture whose longer side is `SIDE`: small ones enlarged by whole factors, pixel by pixel."""
    from PIL import Image

    longest = max(picture.shape[:2])
    if longest <= SIDE:
        factor = SIDE // longest
        return np.asarray(picture.repeat(factor, 0).repeat(factor, 1))
    height, width = (max(1, round(n * SIDE / longest)) for n in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _write(path: Path, picture: RGB8) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    with replacing(path) as file:
        file.write(buffer.getvalue())
