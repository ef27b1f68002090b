"""A watershed of many small pieces: the loop of Soille and Ansoult (1990) with a queue of its own for each piece.

Pixels are taken by height, then by when they were reached, then from the top left; scikit-image's watershed does the
same with one queue for the whole picture, whose length is what makes it slow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.postprocess.compiled import compiled


@compiled
def before(a, b, height, age, place):  # type: ignore[no-untyped-def]
    """Return whether entry a of the queue comes before entry b."""
    if height[a] != height[b]:
        return height[a] < height[b]
    if age[a] != age[b]:
        return age[a] < age[b]
    return place[a] < place[b]


@compiled
def exchange(a, b, height, age, place):  # type: ignore[no-untyped-def]
    """Exchange two entries of the queue."""
    height[a], height[b] = height[b], height[a]
    age[a], age[b] = age[b], age[a]
    place[a], place[b] = place[b], place[a]


@compiled
def rise(i, height, age, place):  # type: ignore[no-untyped-def]
    """Move an entry up the heap to where it belongs."""
    while i > 0:
        parent = (i - 1) // 2
        if not before(i, parent, height, age, place):
            break
        exchange(i, parent, height, age, place)
        i = parent


@compiled
def sink(count, height, age, place):  # type: ignore[no-untyped-def]
    """Move the first entry down the heap to where it belongs."""
    i = 0
    while True:
        least, left = i, 2 * i + 1
        if left < count and before(left, least, height, age, place):
            least = left
        if left + 1 < count and before(left + 1, least, height, age, place):
            least = left + 1
        if least == i:
            break
        exchange(i, least, height, age, place)
        i = least


@compiled
def grouped(piece, count):  # type: ignore[no-untyped-def]
    """Return the order that sorts seeds by the piece that they lie in, and where each piece begins in it."""
    starts = np.zeros(count + 1, np.int64)
    for k in piece:
        starts[k + 1] += 1
    for k in range(count):
        starts[k + 1] += starts[k]
    order, filled = np.empty(len(piece), np.int64), starts.copy()
    for s in range(len(piece)):
        order[filled[piece[s]]] = s
        filled[piece[s]] += 1
    return order, starts


@compiled
def run(labels, ground, free, places, starts, largest, width):  # type: ignore[no-untyped-def]
    """Flood piece by piece: `places` are seeds sorted by piece; `largest`: pixels that a queue may hold."""
    height, age, place = np.empty(largest, ground.dtype), np.empty(largest, np.int64), np.empty(largest, np.int64)
    size = len(labels)
    for k in range(len(starts) - 1):
        count, reached = 0, 0
        for s in range(starts[k], starts[k + 1]):
            height[count], age[count], place[count] = ground[places[s]], 0, places[s]
            count += 1
            rise(count - 1, height, age, place)
        while count > 0:
            here = place[0]
            count -= 1
            exchange(0, count, height, age, place)
            sink(count, height, age, place)
            column = here % width
            for side in range(4):
                if side == 0:
                    there, inside = here - width, here >= width
                elif side == 1:
                    there, inside = here - 1, column > 0
                elif side == 2:
                    there, inside = here + 1, column + 1 < width
                else:
                    there, inside = here + width, here + width < size
                if inside and free[there]:
                    reached += 1
                    free[there] = 0
                    labels[there] = labels[here]
                    height[count], age[count], place[count] = ground[there], reached, there
                    count += 1
                    rise(count - 1, height, age, place)


def flood(
    labels: NDArray[np.int32],
    ground: NDArray[Any],
    free: NDArray[np.uint8],
    seeds: NDArray[np.intp],
    piece: NDArray[np.int32],
    pixels: NDArray[np.intp],
) -> None:
    """Flood `labels` (H, W) from `seeds` over the `free` pixels, in place; `free` is 0 afterwards where water came.

    `ground`: (H, W) float, flooded from low to high. `seeds`: row-major places of labelled pixels, ascending. `piece`:
    the connected piece of each of them, from 0; `pixels`: how many seeds and free pixels each piece has at most.
    """
    if not len(seeds):
        return
    order, starts = grouped(piece, len(pixels))
    flat = (array.reshape(-1) for array in (labels, ground, free))
    run(*flat, seeds[order], starts, int(pixels.max()), labels.shape[1])
