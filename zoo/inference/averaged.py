"""Several answers to one question averaged: test-time augmentation (the image turned and flipped) and ensembles.

What is averaged are activated maps, tile by tile, before they are stitched and decoded: so objects, classes and
probabilities are those of the mean map. Only maps that turn with the image can be turned back: probabilities
(softmax, sigmoid) do; distances along rays, offsets and pictures of other encodings need a family that says how
(`Family.turn_back`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.families.base import Family, Maps
from zoo.types import Batch, Geometry, Prediction

TURNS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, True), (2, False)),
    "d4": tuple((k, flip) for flip in (False, True) for k in range(4)),
}
"""Name of a test-time augmentation -> (quarter turns, mirrored) of each view; "flips" are both axes, "d4" all eight."""


def turned(x: Tensor, k: int, flip: bool) -> Tensor:
    """Return a (..., H, W) tensor mirrored along its columns (where `flip`), then turned by `k` quarters."""
    return torch.rot90(x.flip(-1) if flip else x, k, (-2, -1))


class Averaged(Family):
    """A family whose maps are the mean over members and views; decoding is the first member's."""

    name = "averaged"

    def __init__(self, members: Sequence[Family], turns: str = "none") -> None:
        super().__init__(members[0].options)
        _check(members, turns)
        self.members = nn.ModuleList(members)
        self.turns = TURNS[turns]
        self.spec = members[0].spec
        self.weights_name = members[0].weights_name
        self.weights_metadata = members[0].weights_metadata
        self.decode = members[0].decode  # type: ignore[method-assign]  # with the options that it takes
        self.keeps = members[0].keeps  # type: ignore[method-assign]
        self.decode_stored = members[0].decode_stored  # type: ignore[method-assign]

    @classmethod
    def targets(cls, options: Any, card: Any) -> Any:
        raise NotImplementedError("an average is not trained")

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        raise NotImplementedError("an average is not trained")

    def prepare(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)  # each member prepares for itself

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        return self.infer(inputs)

    def infer(self, inputs: Mapping[str, Tensor], *, rng: torch.Generator | None = None, **options: Any) -> Maps:
        """Return the mean of the members' activated maps over all views."""
        total: Maps = {}
        for member in self.members:
            assert isinstance(member, Family)
            for k, flip in self.turns:
                view = {n: turned(x, k, flip) if n == "image" else x for n, x in inputs.items()}
                maps = member.activate(member.infer(member.prepare(view), rng=rng, **options))
                for name, value in member.turn_back(maps, k, flip).items():
                    total[name] = total[name] + value if name in total else value
        return {name: value / (len(self.members) * len(self.turns)) for name, value in total.items()}

    def activate(self, maps: Maps) -> Maps:
        return maps

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        raise NotImplementedError("replaced by the first member's")


def average(members: Sequence[Family], turns: str = "none") -> Family:
    """Return one family for several and for several views of the image; the only member itself where that is all.

    Raises `UserError` where the members say different things, or a map cannot be turned.
    """
    return members[0] if len(members) == 1 and turns == "none" else Averaged(members, turns).eval()


def _check(members: Sequence[Family], turns: str) -> None:
    first = members[0].spec
    for member in members[1:]:
        spec = member.spec
        theirs, ours = ((s.maps, s.outputs, s.axes, s.channels, s.mpp, s.scale) for s in (spec, first))
        if theirs != ours:
            raise UserError(
                f"{member.weights_name} and {members[0].weights_name} cannot be averaged: they give different maps, "
                "classes or sizes. Expected an ensemble of weights of one recipe, or of recipes with the same outputs."
            )
    if first.stitch == "latents":
        raise UserError(f"{members[0].weights_name}: a sampler has no maps to average. Expected another family.")
    if turns != "none" and type(members[0]).turn_back is Family.turn_back:
        fixed = [name for name, spec in first.maps.items() if spec.activation == "none"]
        if fixed or first.axes != "CYX":
            what = f"its maps {', '.join(fixed)} do not turn with the image" if fixed else "volumes are not turned"
            raise UserError(
                f"{members[0].weights_name}: no test-time augmentation for the family {members[0].name}: {what}. "
                "Leave out --tta."
            )
