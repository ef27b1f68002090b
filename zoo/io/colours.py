"""Colours of classes: those that a card names, else a palette that colour-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), without black, ordered to stand out from pink and purple tissue
PALETTE: tuple[Rgb, ...] = (
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (0, 158, 115),  # bluish green
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (204, 121, 167),  # reddish purple
)


def colours_of(classes: Sequence[str], named: Mapping[str, str] | None = None) -> list[Rgb]:
    """Return a colour a class: `named` (#rrggbb by class name) goes before the palette; "background" is grey."""
    found: list[Rgb] = []
    following = 0
    for name in classes:
        if named and name in named:
            found.append(from_hex(named[name]))
        elif name == "background":
            found.append((128, 128, 128))
        else:
            found.append(_shade(following))
            following += 1
    return found


def _shade(place: int) -> Rgb:
    """Return a colour of the palette; those after its end are darker, then paler, so that 21 classes differ."""
    turn, colour = place // len(PALETTE) % 3, PALETTE[place % len(PALETTE)]
    weight, ground = ((1.0, 0), (0.55, 0), (0.4, 255))[turn]
    red, green, blue = (round(weight * value + (1 - weight) * ground) for value in colour)
    return red, green, blue


def brightened(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return channels (C, H, W) uint8 times one factor, so that one pixel in a thousand is full or brighter."""
    top = float(np.percentile(planes, 99.9)) if planes.size else 0.0
    if not 0 < top < 255:
        return planes
    return np.asarray(np.minimum(planes.astype(np.float32) * (255 / top), 255), np.uint8)


def composite(planes: NDArray[np.uint8], colours: Sequence[Rgb]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of channels (C, H, W) uint8 on black, each in its colour; the brightest wins."""
    picture = np.zeros((*planes.shape[1:], 3), np.uint8)
    for plane, colour in zip(planes, colours, strict=True):
        for place, strength in enumerate(colour):
            table = (np.arange(256) * (strength / 255)).round().astype(np.uint8)
            np.maximum(picture[..., place], table[plane], out=picture[..., place])
    return picture


def from_hex(text: str) -> Rgb:
    """Return the colour of #rrggbb. Raises `ValueError` for anything else."""
    digits = text.removeprefix("#")
    if len(digits) != 6:
        raise ValueError(f'"{text}" is no colour. Expected #rrggbb')
    red, green, blue = (int(digits[i : i + 2], 16) for i in (0, 2, 4))
    return red, green, blue


MARKERS: Mapping[str, str] = {
    "hoechst": "#3366ff", "dapi": "#3366ff", "dna": "#3366ff",
    "pan-ck": "#00d25b", "e-cadherin": "#b4e600", "sma": "#ff7f0e", "cd31": "#ff2d95", "ki67": "#bdbdbd",
    "cd45": "#00e5ff", "cd3": "#ff3b30", "cd3e": "#ff3b30", "cd4": "#ffd400", "cd8": "#ff00ff", "cd8a": "#ff00ff",
    "foxp3": "#9d6bff", "cd20": "#00b3ff", "cd45ro": "#7fffd4", "cd68": "#ffa07a", "cd163": "#c08040",
    "pd-l1": "#ff6f91", "pd-1": "#f5b041",
}  # fmt: skip
"""Colours in which markers are usually shown, on black."""


def marker_colours(names: Sequence[str]) -> list[str]:
    """Return a colour (#rrggbb) a channel of fluorescence: the usual one of a known marker, else one of the wheel."""
    import colorsys

    found = []
    for number, name in enumerate(names):
        wheel = colorsys.hsv_to_rgb((number * 0.618034) % 1, 0.85, 1.0)
        other = "#" + "".join(f"{round(255 * v):02x}" for v in wheel)
        found.append(MARKERS.get(name.lower(), other))
    return found
