"""The compiled loops over candidates, strongest first, in planes and in volumes (see `kernels`)."""

from __future__ import annotations

import numpy as np

from zoo.families.stardist.kernels import (
    area_of,
    crossings,
    enter,
    fill,
    gather,
    inside,
    shared,
    verdict_volume,
)
from zoo.postprocess.compiled import compiled

DONE, ASK, MORE_ENTRIES, MORE_ROOM = 0, 1, 2, 3
"""Why a loop came back: all candidates are decided; a pair is too close to call; an array must grow."""

MARGIN = 0.05
"""Share of the shorter girth of two polygons by which rounding may change their common area."""


@compiled
def boxes_of(points, dist, vertices, boxes, grid):  # type: ignore[no-untyped-def]
    """Write float boxes (n, 6) of polyhedra and the whole voxels in them, (n, 6) half-open."""
    for i in range(len(points)):
        for a in range(3):
            low, high = np.inf, -np.inf
            for k in range(dist.shape[1]):
                value = points[i, a] + np.float64(dist[i, k]) * vertices[k, a]
                low, high = min(low, value), max(high, value)
            boxes[i, a], boxes[i, a + 3] = low, high + 1e-6
            grid[i, a], grid[i, a + 3] = np.int64(np.ceil(low)), np.int64(np.floor(high)) + 1


@compiled
def corners_of(points, dist, step, vertices, boxes, girth):  # type: ignore[no-untyped-def]
    """Write whole corners (n, R, 2) of polygons, cut towards zero, their boxes (n, 6), z from 0 to 1, and girth."""
    rays = dist.shape[1]
    for i in range(len(points)):
        y0 = x0 = np.int32(2**31 - 1)
        y1 = x1 = np.int32(-(2**31))
        for k in range(rays):
            y = np.int32(points[i, 0] + dist[i, k] * step[k, 0])
            x = np.int32(points[i, 1] + dist[i, k] * step[k, 1])
            vertices[i, k, 0], vertices[i, k, 1] = y, x
            y0, y1, x0, x1 = min(y0, y), max(y1, y), min(x0, x), max(x1, x)
        boxes[i, 0], boxes[i, 1], boxes[i, 2] = 0, y0, x0
        boxes[i, 3], boxes[i, 4], boxes[i, 5] = 1, y1, x1
        for k in range(rays):
            a, b = vertices[i, k], vertices[i, (k + 1) % rays]
            girth[i] += np.sqrt(np.float64((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2))


@compiled
def advance_volumes(  # type: ignore[no-untyped-def]
    j,
    decided,
    points,
    dist,
    boxes,
    grid,
    volumes,
    threshold,
    low,
    side,
    cells,
    head,
    entry,
    link,
    used,
    stamp,
    found,
    far,
    faces,
    inverse,
    beside,
    start,
    cube,
    mask,
    begins,
    filled,
    kept,
    asked,
):
    """Go on with candidate j; `decided`: it is kept whatever the loop would say.

    Returns (candidate, why it came back, number of `asked` objects, used entries, filled mask).
    """
    reciprocal = np.empty(dist.shape[1])
    n = len(points)
    while j < n:
        for k in range(dist.shape[1]):
            reciprocal[k] = 1.0 / dist[j, k]
        if not decided:
            near = gather(j, boxes, points, low, side, cells, head, entry, link, stamp, found, far)
            open_ones, gone = 0, False
            for c in range(near):
                i = found[c]
                told = verdict_volume(
                    i,
                    j,
                    points,
                    reciprocal,
                    grid,
                    volumes,
                    threshold,
                    faces,
                    inverse,
                    beside,
                    start,
                    cube,
                    mask,
                    begins[i],
                )
                if told == 1:
                    gone = True
                    break
                if told == -1:
                    asked[open_ones] = i
                    open_ones += 1
            if gone:
                j += 1
                continue
            if open_ones:
                return j, ASK, open_ones, used, filled
        size = (grid[j, 3] - grid[j, 0]) * (grid[j, 4] - grid[j, 1]) * (grid[j, 5] - grid[j, 2])
        if filled + size > len(mask):
            return j, MORE_ROOM, size, used, filled
        now = enter(j, boxes, low, side, cells, head, entry, link, used)
        if now < 0:
            return j, MORE_ENTRIES, 0, used, filled
        used = now
        fill(j, points, reciprocal, grid, faces, inverse, beside, start, cube, mask, filled)
        begins[j] = filled
        filled += size
        kept[j] = True
        decided = False
        j += 1
    return n, DONE, 0, used, filled


@compiled
def advance_planes(  # type: ignore[no-untyped-def]
    j,
    decided,
    vertices,
    boxes,
    centres,
    girth,
    threshold,
    low,
    side,
    cells,
    head,
    entry,
    link,
    used,
    stamp,
    found,
    far,
    values,
    counts,
    widths,
    begins,
    rows_at,
    areas,
    filled,
    kept,
    asked,
):
    """Go on with candidate j of polygons `vertices` (n, R, 2) in whole (y, x); as `advance_volumes`."""
    n, rays = len(vertices), vertices.shape[1]
    own = np.empty((1, rays))
    own_count = np.empty(1, np.int64)
    while j < n:
        top = vertices[j, :, 0].min()
        rows = vertices[j, :, 0].max() - top
        if rows > len(own):
            own, own_count = np.empty((rows, rays)), np.empty(rows, np.int64)
        crossings(vertices[j], top, rows, own, own_count)
        area = area_of(own, own_count, rows)
        if not decided:
            near = gather(j, boxes, centres, low, side, cells, head, entry, link, stamp, found, far)
            open_ones, gone = 0, False
            for c in range(near):
                i = found[c]
                first, last = max(boxes[i, 1], boxes[j, 1]), min(boxes[i, 4], boxes[j, 4])
                left, right = max(boxes[i, 2], boxes[j, 2]), min(boxes[i, 5], boxes[j, 5])
                need = threshold * min(areas[i], area)
                margin = MARGIN * min(girth[i], girth[j]) + 1.5
                if (last - first) * (right - left) < need - margin:
                    continue
                other_top = vertices[i, :, 0].min()
                other_rows = vertices[i, :, 0].max() - other_top
                begin, width = begins[i], widths[i]
                other = values[begin : begin + other_rows * width].reshape(other_rows, width)
                at = rows_at[i]
                common = shared(
                    other,
                    counts[at : at + other_rows],
                    other_top,
                    own,
                    own_count,
                    top,
                    max(top, other_top),
                    min(top + rows, other_top + other_rows),
                )
                if common > need + margin:
                    gone = True
                    break
                if common >= need - margin:
                    asked[open_ones] = i
                    open_ones += 1
            if gone:
                j += 1
                continue
            if open_ones:
                return j, ASK, open_ones, used, filled[0], filled[1]
        width = np.int64(0)
        for r in range(rows):
            width = max(width, own_count[r])
        if filled[0] + rows * width > len(values) or filled[1] + rows > len(counts):
            return j, MORE_ROOM, rows * max(width, 1), used, filled[0], filled[1]
        now = enter(j, boxes, low, side, cells, head, entry, link, used)
        if now < 0:
            return j, MORE_ENTRIES, 0, used, filled[0], filled[1]
        used = now
        begins[j], widths[j], rows_at[j], areas[j] = filled[0], width, filled[1], area
        for r in range(rows):
            counts[filled[1] + r] = own_count[r]
            for k in range(own_count[r]):
                values[filled[0] + r * width + k] = own[r, k]
        filled[0] += rows * width
        filled[1] += rows
        kept[j] = True
        decided = False
        j += 1
    return n, DONE, 0, used, filled[0], filled[1]


@compiled
def paint(  # type: ignore[no-untyped-def]
    labels, begin, points, reciprocal, grid, ids, faces, inverse, beside, start, cube
):
    """Draw polyhedra into a window of labels whose first voxel is `begin`: who comes first keeps a voxel.

    A voxel is judged by its place as seen from the centre, so that windows agree whatever their borders.
    """
    weights = np.empty(3)
    for i in range(len(points)):
        z0, z1 = max(grid[i, 0], begin[0]), min(grid[i, 3], begin[0] + labels.shape[0])
        y0, y1 = max(grid[i, 1], begin[1]), min(grid[i, 4], begin[1] + labels.shape[1])
        x0, x1 = max(grid[i, 2], begin[2]), min(grid[i, 5], begin[2] + labels.shape[2])
        for z in range(z0, z1):
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if labels[z - begin[0], y - begin[1], x - begin[2]] == 0:
                        d = inside(
                            z - points[i, 0],
                            y - points[i, 1],
                            x - points[i, 2],
                            reciprocal[i],
                            faces,
                            inverse,
                            beside,
                            start,
                            cube,
                            weights,
                        )
                        if d <= 1.0:
                            labels[z - begin[0], y - begin[1], x - begin[2]] = ids[i]
