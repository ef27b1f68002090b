"""Reader "phantom-slide": whole slides, as an overview or at any resolution, read in windows."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field as Argument
from pydantic import PositiveFloat

from zoo.data.phantom.generated import Generated, PhantomArguments, Side, pair
from zoo.data.phantom.slide import Slide
from zoo.data.readers.base import Entry
from zoo.schema import Schema
from zoo.types import Label, Sample, Semantic, Truth


class SlideArguments(PhantomArguments):
    """What the phantom of slides may be told."""

    size: Side | tuple[Side, Side] = (384, 512)
    """Height and width of the overview in pixels of `overview` um: what is on the slide, and how large it is."""
    overview: PositiveFloat = Argument(default=8.0, ge=1, le=64)
    """um per pixel of the overview."""
    um: PositiveFloat | None = Argument(default=None, ge=0.2, le=64)
    """um per pixel of the pictures; none = the overview's. The slide is the same whichever is asked for."""
    train: int = Argument(default=32, ge=0)
    """Slides of split train."""
    val: int = Argument(default=8, ge=0)
    """Slides of split val."""
    test: int = Argument(default=16, ge=0)
    """Slides of split test."""


class SlideReader(Generated):
    """Reader "phantom-slide". Truths: `regions` what lies where, `diagnosis` whether there is a tumour on the slide."""

    Arguments: ClassVar[type[Schema]] = SlideArguments
    KNOWN: ClassVar[tuple[str, ...]] = ("regions", "diagnosis")
    PER_SLIDE: ClassVar[int] = 1

    def slide(self, entry: Entry) -> Slide:
        """Return a slide, to be read in windows."""
        arguments: Any = self.arguments
        height, width = (n * arguments.overview for n in pair(arguments.size))
        um = arguments.um or arguments.overview
        return Slide(self.seed(entry), (height, width), um, arguments.difficulty, self.draws(entry))

    def read(self, entry: Entry) -> Sample:
        """Return one whole slide: (3, H, W) uint8."""
        slide = self.slide(entry)
        picture, regions = slide.read(0, 0, *slide.shape)
        known: dict[str, Truth] = {"regions": Semantic(regions), "diagnosis": Label(slide.diagnosis)}
        return self.sample(entry, picture, (slide.um, slide.um), known)
