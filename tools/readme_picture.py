"""Draw docs/zoo.jpg, the picture of the README: what the bundled weights are given, and below it what they draw.

    ZOO_DATA=DIR python tools/readme_picture.py

Every column shows the first image of a held-out split, none is chosen: nuclei in H&E and in fluorescence (DSB2018,
CC0), and synthetic tissue of seeds that no training saw.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import zoo
from zoo.data import open_dataset
from zoo.inference.generate import Drawing, generate
from zoo.inference.wishes import Asked
from zoo.io.colours import PALETTE
from zoo.types import Instances

OUT = Path(__file__).resolve().parent.parent / "docs" / "zoo.jpg"
SIDE, GAP, HEAD = 256, 6, 22

Picture = NDArray[np.uint8]


def sample(name: str, **arguments: Any) -> Any:
    """Return the first sample of the test split."""
    return open_dataset(name, split="test", arguments=arguments)[0]


def rgb(image: NDArray[Any]) -> Picture:
    """Return (SIDE, SIDE, 3) uint8 of (C, H, W): the upper left part, grey and dim pictures stretched."""
    part = np.moveaxis(image[:, :SIDE, :SIDE], 0, -1)
    if part.shape[-1] == 1 or part.mean() < 60:
        low, high = np.quantile(part, [0.01, 0.998])
        part = np.clip((part.astype(np.float32) - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(part, (*part.shape[:2], 3)))


def outlined(picture: Picture, labels: NDArray[Any]) -> Picture:
    """Return the picture with each object outlined in a colour of its own."""
    shown, colours = picture.copy(), np.array(PALETTE, np.uint8)
    labels = labels[:SIDE, :SIDE]
    same = np.ones(labels.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            same &= labels == np.roll(labels, step, axis)
    line = (labels > 0) & ~same
    shown[line] = colours[labels[line] % len(colours)]
    return shown


def nuclei(dataset: str, weights: str) -> tuple[Picture, Picture]:
    """Return an image and the nuclei that are found in it."""
    found = sample(dataset)
    image = np.moveaxis(found.image, 0, -1)
    model = zoo.load(weights)
    said = model.predict(image, mpp=found.spacing and found.spacing[-1])
    said = said["instances"] if isinstance(said, dict) else said
    picture = rgb(found.image)
    return picture, outlined(picture, np.asarray(said.map))


def stained() -> tuple[Picture, Picture]:
    """Return synthetic H&E and its virtual Ki67."""
    found = sample("phantom-stains", marker="Ki67", size=SIDE, test=1)
    said = zoo.load("ihc-translation-phantom").predict(np.moveaxis(found.image, 0, -1), mpp=0.5)
    return rgb(found.image), rgb(np.asarray(said.data))


def drawn(side: int = 128) -> tuple[Picture, Picture]:
    """Return a map of nuclei, and tissue that is drawn from it."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked(masks=("phantom-nuclei:test",), size=(side, side), limit=1)
        generate(zoo.load("tissue-diffusion-pixel-unet"), asked, folder, drawing=Drawing(), pairs=True, progress=False)
        found = open_dataset(folder)[0]
    picture, mask = rgb(found.image), next(t.map for t in found.truth.values() if isinstance(t, Instances))
    flat = np.where(mask[..., None] > 0, np.array(PALETTE[0], np.uint8), np.uint8(60)).astype(np.uint8)
    return outlined(flat.repeat(2, 0).repeat(2, 1), mask.repeat(2, 0).repeat(2, 1)), picture.repeat(2, 0).repeat(2, 1)


def main() -> None:
    """Draw all columns and write the picture."""
    columns = {
        "nuclei, H&E": nuclei("dsb2018-he", "nuclei-stardist-unet"),
        "nuclei, fluorescence": nuclei("dsb2018-fluorescence", "nuclei-unet-mobile"),
        "H&E to Ki67 (synthetic)": stained(),
        "mask to tissue (synthetic)": drawn(),
    }
    width = len(columns) * (SIDE + GAP) - GAP
    page = Image.new("RGB", (width, HEAD + 2 * SIDE + GAP), "white")
    words, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for place, (title, (given, made)) in enumerate(columns.items()):
        x = place * (SIDE + GAP)
        words.text((x + SIDE / 2, 2), title, fill="black", font=font, anchor="ma")
        page.paste(Image.fromarray(given), (x, HEAD))
        page.paste(Image.fromarray(made), (x, HEAD + SIDE + GAP))
    page.save(OUT, quality=82, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
