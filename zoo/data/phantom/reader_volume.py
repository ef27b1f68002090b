"""Reader "phantom-volume": nuclei in three dimensions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field as Argument
from pydantic import PositiveFloat

from zoo.data.phantom.generated import Generated, PhantomArguments
from zoo.data.phantom.volume import DEPTHS, lay_out, render
from zoo.data.readers.base import Entry
from zoo.schema import Schema
from zoo.types import Instances, Sample

_Side = Annotated[int, Argument(ge=4, le=4096)]


class VolumeArguments(PhantomArguments):
    """What the phantom of volumes may be told."""

    size: tuple[_Side, _Side, _Side] = (32, 96, 96)
    """Depth, height and width in voxels."""
    um: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1.5, 0.5, 0.5)
    """um per voxel along depth, height and width."""
    radius: PositiveFloat = Argument(default=3.6, ge=1, le=20)
    """Mean radius of a nucleus in um."""
    train: int = Argument(default=64, ge=0)
    """Volumes of split train."""
    val: int = Argument(default=8, ge=0)
    """Volumes of split val."""
    test: int = Argument(default=16, ge=0)
    """Volumes of split test."""


class VolumeReader(Generated):
    """Reader "phantom-volume". Truth: `nuclei`, instances (D, H, W)."""

    Arguments: ClassVar[type[Schema]] = VolumeArguments
    KNOWN: ClassVar[tuple[str, ...]] = ("nuclei",)

    def read(self, entry: Entry) -> Sample:
        """Return one volume: (1, D, H, W) uint16."""
        arguments: Any = self.arguments
        depths = DEPTHS[arguments.difficulty]
        volume = lay_out(self.seed(entry), arguments.size, arguments.um, depths, arguments.radius)
        return self.sample(entry, render(volume, depths), arguments.um, {"nuclei": Instances(volume.nuclei)})
