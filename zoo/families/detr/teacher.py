"""Mean-teacher adaptation to a site without labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.families.base import Context, Family, Player, Procedure, Supervised
from zoo.families.detr import learn
from zoo.families.detr.model import Detr
from zoo.nn.boxes import to_corners
from zoo.types import Batch

LEAST, MOST = 0.15, 0.9
"""Limits of a threshold that is chosen."""


class MeanTeacher(Procedure):
    """Learn from a labelled stream, and from what a slow average of the model says of an unlabelled one.

    (Tarvainen and Valpola 2017; for detectors Deng et al. 2021, Unbiased Mean Teacher.) `stream`: the unlabelled stream
    of the recipe, whose truths are never looked at. `decay`: of the teacher's weights. `weight`: of what it teaches;
    `begin`: share of training after which that begins, rising to the same share later. `threshold`: the teacher's score
    from which its box is taken for true, or "counts": such that, of each class, it says as many boxes an image as the
    labelled stream has, on a running average, which needs no label of the other site but supposes that both show the
    same mixture of cells. The teacher sees the picture as the loader gives it, the student with other light, noise and
    holes.
    """

    copies_weights = True

    def __init__(
        self,
        stream: str = "target",
        decay: float = 0.998,
        weight: float = 1.0,
        begin: float = 0.1,
        threshold: float | str = "counts",
    ) -> None:
        super().__init__(stream=stream, decay=decay, weight=weight, begin=begin, threshold=threshold)
        numbers = {"decay": decay, "begin": begin} | ({} if isinstance(threshold, str) else {"threshold": threshold})
        for name, value in numbers.items():
            if not 0 <= value < 1:
                raise UserError(f"mean-teacher: {name}: {value} will not do. Expected a number from 0 to below 1.")
        if isinstance(threshold, str) and threshold != "counts":
            raise UserError(f'mean-teacher: threshold: "{threshold}" will not do. Expected a number, or counts.')
        self.stream, self.decay, self.weight, self.begin, self.threshold = stream, decay, weight, begin, threshold
        self.teacher: Detr | None = None
        self.counts: Tensor | None = None
        self.least: Tensor | None = None
        self._restored: Mapping[str, Any] | None = None

    def players(self, family: Family) -> dict[str, Player]:
        if not isinstance(family, Detr):
            raise UserError(f"procedure mean-teacher: works on the family detr, not on {family.name}. Leave it out.")
        return Supervised().players(family)

    def step(self, family: Family, batch: Batch, ctx: Context) -> None:
        assert isinstance(family, Detr)
        if self.stream not in batch.others:
            have = ", ".join(batch.others) or "none"
            raise UserError(
                f'mean-teacher: no stream "{self.stream}" in the step (there are: {have}). Expected the unlabelled '
                f"images under data.streams.{self.stream}."
            )
        teacher = self._taught(family)
        terms = family.loss(family.forward(family.prepare(family.inputs_of(batch))), batch, ctx.progress)
        found = dict(terms)
        pseudo = self._pseudo(teacher, family, batch, batch.others[self.stream])
        ramp = min(max((ctx.progress - self.begin) / max(self.begin, 1e-6), 0.0), 1.0)
        if ramp > 0 and self.weight > 0:
            pseudo.inputs["image"] = stronger(pseudo.inputs["image"], ctx.generator)
            maps = family.forward(family.prepare(family.inputs_of(pseudo)))
            own = family.loss(maps, pseudo, ctx.progress)
            found["taught"] = self.weight * ramp * torch.stack(list(own.values())).sum()
        ctx.update("model", torch.stack(list(found.values())).sum())
        said = sum(len(boxes) for boxes in pseudo.targets["boxes"]) / max(len(pseudo), 1)
        ctx.log({**{name: value.detach() for name, value in found.items()}, "taught_boxes": float(said)})
        self._follow(family)

    def _taught(self, family: Detr) -> Detr:
        """Return the teacher, begun as a copy of the model."""
        if self.teacher is None:
            self.teacher = copy.deepcopy(family).eval().requires_grad_(False)
            if self._restored is not None:
                self.teacher.load_state_dict(self._restored["teacher"])
                self.counts, self.least = self._restored["counts"], self._restored["least"]
        return self.teacher

    @torch.no_grad()
    def _follow(self, family: Detr) -> None:
        assert self.teacher is not None
        for own, new in zip(self.teacher.parameters(), family.parameters(), strict=True):
            own.lerp_(new.detach(), 1 - self.decay)
        for old, now in zip(self.teacher.buffers(), family.buffers(), strict=True):
            old.copy_(now)

    @torch.no_grad()
    def _pseudo(self, teacher: Detr, family: Detr, labelled: Batch, unlabelled: Batch) -> Batch:
        """Return the unlabelled batch with what the teacher says of it as its truth."""
        bare = Batch(dict(unlabelled.inputs), {}, {}, unlabelled.valid, unlabelled.meta)
        maps = teacher.forward(teacher.prepare(teacher.inputs_of(bare)))
        scores, labels = maps["logits"][..., family.options.unused :].sigmoid().max(-1)
        least = self._least(labelled, scores, labels, len(family.classes))
        keep = scores >= least[labels]
        device = scores.device
        height, width = (maps["size"][:, i, None] for i in (0, 1))
        corners = to_corners(maps["boxes"]) * torch.stack([width, height, width, height], -1)
        bare.targets = {
            "boxes": [own[k] for own, k in zip(corners, keep, strict=True)],
            "classes": [own[k] for own, k in zip(labels, keep, strict=True)],
        }
        if "attributes" in maps:
            sizes = [int(k.sum()) for k in keep]
            bare.targets["attributes"] = [
                torch.full((n, len(family.values)), -1, dtype=torch.int64, device=device) for n in sizes
            ]
        bare.has = {name: torch.ones(len(bare), dtype=torch.bool, device=device) for name in bare.targets}
        return bare

    def _least(self, labelled: Batch, scores: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Return the score of each class from which the teacher's boxes are taken for true."""
        if not isinstance(self.threshold, str):
            return torch.full((classes,), float(self.threshold), device=scores.device)
        truths = learn.truths(labelled)
        told = max(int(truths.told.sum()), 1)
        every = torch.cat([own.labels for own in truths.objects])
        seen = torch.bincount(every, minlength=classes).float() / told
        self.counts = seen if self.counts is None else self.counts.to(seen).lerp(seen, 0.05)
        wanted = torch.full_like(self.counts, 0.5)
        for kind in range(classes):
            own = scores[labels == kind].sort(descending=True).values
            place = round(float(self.counts[kind]) * len(scores))
            if 0 < place <= len(own):
                wanted[kind] = own[place - 1]
            else:
                wanted[kind] = MOST if place == 0 else LEAST
        wanted = wanted.clamp(LEAST, MOST)
        self.least = wanted if self.least is None else self.least.to(wanted).lerp(wanted, 0.05)
        return self.least

    # state

    def state(self) -> dict[str, Any]:
        """Return tensors that `load` takes back."""
        if self.teacher is None:
            return {} if self._restored is None else dict(self._restored)
        return {"teacher": self.teacher.state_dict(), "counts": self.counts, "least": self.least}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; the teacher itself is made at the next step."""
        self._restored = state or None


def stronger(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, C, H, W), uint8 or float in [0, 1], as float in other light, with noise and grey holes.

    Nothing moves, so that boxes stay true. All numbers come from `generator`.
    """
    unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    B, C, H, W = unit.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(unit)

    gain = 1 + 0.3 * (2 * draw(B, C, 1, 1) - 1)
    middle = unit.mean((2, 3), keepdim=True)
    contrast = 1 + 0.3 * (2 * draw(B, 1, 1, 1) - 1)
    shift = 0.1 * (2 * draw(B, 1, 1, 1) - 1)
    found = ((unit - middle) * contrast + middle) * gain + shift
    found = found + torch.randn(B, C, H, W, generator=generator).to(unit) * 0.03 * draw(B, 1, 1, 1)
    y, x = (torch.arange(n, device=unit.device) / n for n in (H, W))
    for _ in range(4):
        top, left, side = draw(B, 1, 1, 1), draw(B, 1, 1, 1), 0.05 + 0.1 * draw(B, 1, 1, 1)
        hole = ((y.view(1, 1, H, 1) - top).abs() < side / 2) & ((x.view(1, 1, 1, W) - left).abs() < side / 2)
        found = torch.where(hole, middle.expand_as(found), found)
    return found.clamp(0, 1)
