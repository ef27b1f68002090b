"""The terms of an objective: what a generator may be asked to minimise, each a function of one pass.

A `Pass` holds the pictures of a step and computes what terms share once: the fake, the identity picture, features of
each, the way back. A term returns a scalar; its weight stands in the recipe.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.encoders import listing
from zoo.errors import UserError, suggest
from zoo.losses import adversarial, contrastive, pyramids
from zoo.schema import Component

if TYPE_CHECKING:
    from zoo.families.translation.model import Translation

Positions = Callable[[str, Sequence[int]], list[Tensor]]


@dataclass
class Pass:
    """One step's pictures in [-1, 1]: `a` (B, C, H, W), `b` (B, D, H, W), of the same field or not; `progress` of the
    training in [0, 1); `rng` draws positions and penalties; `flip`: the input is mirrored, and what comes of it is
    mirrored back before it is compared."""

    family: Translation
    a: Tensor
    b: Tensor
    progress: float = 0.0
    rng: torch.Generator | None = None
    flip: bool = False
    positions: Positions | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def _mirror(self, x: Tensor) -> Tensor:
        return x.flip(3) if self.flip else x

    def _painted(self) -> tuple[Tensor, Tensor | None]:
        """Return G(a) and, where a term wants it, G(b): one pass over both, as published."""
        if not self.family.options.has("identity", "identity_nce"):
            return self.family.paint(self._mirror(self.a)), None
        both = self.family.paint(self._mirror(torch.cat([self.a, self.b])))
        return both[: len(self.a)], both[len(self.a) :]

    @property
    def raw_fake(self) -> Tensor:
        """Return G(a) as it came, mirrored where the input was."""
        found: Tensor = self._once("painted", self._painted)[0]
        return found

    @property
    def fake(self) -> Tensor:
        """Return G(a) on the grid of `a`."""
        return self._mirror(self.raw_fake)

    @property
    def same(self) -> Tensor:
        """Return G(b) on the grid of `b`."""
        found: Tensor = self._once("painted", self._painted)[1]
        return self._mirror(found)

    @property
    def back(self) -> Tensor:
        """Return the second generator's picture of `b`."""
        found: Tensor = self._once("back", lambda: self.family.paint_back(self.b))
        return found

    def features(self, name: str) -> list[Tensor]:
        """Return the generator's features of "a", "b", "fake" or "same", computed once a step."""
        layers = self.family.options.features.layers

        def make() -> list[Tensor]:
            if name in ("a", "b"):  # keys only, which carry no gradient
                with torch.no_grad():
                    return self.family.generator.features(self.a if name == "a" else self.b, layers)
            painted = self._once("painted", self._painted)
            found = self.family.generator.features(painted[0] if name == "fake" else painted[1], layers)
            return [self._mirror(f) for f in found]

        found: list[Tensor] = self._once(f"features {name}", make)
        return found

    def compared(self, term: str, queries: str, keys: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return (B * P, D) queries and keys a layer, at the same random places."""
        q, k = self.features(queries), self.features(keys)
        sizes = [f.shape[2] * f.shape[3] for f in k]
        places = self.positions(term, sizes) if self.positions else [self._places(size) for size in sizes]
        at = [p.to(self.a.device) for p in places]
        project = self.family.projector
        assert project is not None
        with torch.no_grad():
            found = project(k, at)
        return project(q, at), found

    def _places(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.rng)[: self.family.options.features.patches]


# --- terms ------------------------------------------------------------------------------------------------------------


def gan(step: Pass) -> Tensor:
    """Fool the discriminator; with the term cycle, that of the way back too."""
    family = step.family
    options = family.options.discriminator
    assert options is not None
    total = adversarial.judged(family.judged(step.a, step.fake), True, options.mode, generator=True)
    if family.judge_back is not None:
        total = total + adversarial.judged(family.judge_back(step.back), True, options.mode, generator=True)
    return total


def l1(step: Pass) -> Tensor:
    """Mean absolute difference to the target, values from -1 to 1."""
    return F.l1_loss(step.fake, step.b)


def gaussian_pyramid(step: Pass, weights: Sequence[float] = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)) -> Tensor:
    """Mean absolute difference at the levels of a Gaussian pyramid, finest first (ASP)."""
    return pyramids.gaussian_pyramid_l1(step.fake, step.b, weights)


def octaves(step: Pass, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Mean absolute difference at full size and after each octave of blurring, weighted and summed (PyramidPix2pix)."""
    pairs = (pyramids.octaves(x, len(weights)) for x in (step.fake, step.b))
    each = pyramids.level_l1(*pairs)
    return (each * each.new_tensor(list(weights))).sum()


def _contrast(step: Pass, term: str, queries: str, keys: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (loss a patch, queries, keys) of each layer."""
    options = step.family.options.features
    found = []
    for q, k in zip(*step.compared(term, queries, keys), strict=True):
        each = contrastive.patch_nce(q, k, len(step.a), options.temperature, all_negatives=options.all_negatives)
        found.append((each, q, k))
    return found


def patch_nce(step: Pass) -> Tensor:
    """A patch of the picture is to be nearer to the same place of the input than to others (CUT)."""
    return torch.stack([each.mean() for each, _, _ in _contrast(step, "patch_nce", "fake", "a")]).mean()


def identity_nce(step: Pass) -> Tensor:
    """The same for a picture that needs no change: G(target) against the target (CUT)."""
    return torch.stack([each.mean() for each, _, _ in _contrast(step, "identity_nce", "same", "b")]).mean()


def supervised_nce(
    step: Pass, schedule: str = "none", weighting: str = "linear", constant: int = 30, decay: int = 10
) -> Tensor:
    """A patch is to be near to the same place of the target (SP); with a schedule, the more so the likelier it is that
    the place shows the same tissue (ASP). The schedule's clock is the training's progress, in `constant` + `decay`
    epochs."""
    terms = []
    epoch = int(step.progress * (constant + decay) + 1e-6) + 1
    for each, q, k in _contrast(step, "supervised_nce", "fake", "b"):
        if schedule == "none":
            terms.append(each.mean())
            continue
        share = contrastive.adaptive_share(schedule, epoch, constant, decay)
        terms.append((each * contrastive.adaptive_weights(q, k, weighting, share)).mean())
    return torch.stack(terms).mean()


def identity(step: Pass) -> Tensor:
    """A picture of the target's kind is to stay as it is; with the term cycle, on both ways."""
    total = F.l1_loss(step.same, step.b)
    if step.family.back is not None:
        total = total + F.l1_loss(step.family.paint_back(step.a), step.a)
    return total


def cycle(step: Pass) -> Tensor:
    """There and back again: both ways (CycleGAN)."""
    there = F.l1_loss(step.family.paint_back(step.fake), step.a)
    return there + F.l1_loss(step.family.paint(step.back), step.b)


def perceptual(
    step: Pass, encoder: str = "resnet18", encoder_weights: str = "none", levels: Sequence[int] = (0, 1, 2)
) -> Tensor:
    """Mean absolute difference of an encoder's maps, a level at a time, each over its mean size. The encoder stands
    still; without pretrained weights it is a random one."""
    network = step.family.perceptual(encoder, encoder_weights)
    ours = network((step.fake + 1) / 2)
    with torch.no_grad():
        theirs = network((step.b + 1) / 2)
    if max(levels) >= len(ours):
        raise UserError(f"perceptual: levels {list(levels)} will not do. {encoder} has levels 0 to {len(ours) - 1}.")
    parts = [F.l1_loss(ours[i], theirs[i]) / theirs[i].abs().mean().clamp_min(1e-6) for i in levels]
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class Term:
    """A term: its function; `aligned`: it compares the picture with a target of the same field; `contrast`: it moves
    the network on patch features."""

    function: Callable[..., Tensor]
    aligned: bool = False
    contrast: bool = False


TERMS: dict[str, Term] = {
    "gan": Term(gan),
    "l1": Term(l1, aligned=True),
    "gaussian_pyramid": Term(gaussian_pyramid, aligned=True),
    "octaves": Term(octaves, aligned=True),
    "patch_nce": Term(patch_nce, contrast=True),
    "identity_nce": Term(identity_nce, contrast=True),
    "supervised_nce": Term(supervised_nce, aligned=True, contrast=True),
    "identity": Term(identity),
    "cycle": Term(cycle),
    "perceptual": Term(perceptual, aligned=True),
}
"""Name in a recipe -> term."""


def check_arguments(component: Component) -> None:
    """Raise `ValueError` where a term is unknown, or an argument of it."""
    if component.name not in TERMS:
        raise ValueError(f'no term "{component.name}". {suggest(component.name, TERMS)}')
    known = [n for n in inspect.signature(TERMS[component.name].function).parameters if n != "step"]
    for name, value in component.arguments.items():
        if name not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise ValueError(f'{component.name}: unknown argument "{name}". {suggest(name, known)} {takes}')
        expected = _expected(name, value)
        if expected:
            raise ValueError(f'{component.name}: {name}: "{value}" will not do. Expected {expected}')
    clock = {"constant": 30, "decay": 10} | component.arguments
    if component.name == "supervised_nce" and not clock["constant"] + clock["decay"]:
        raise ValueError("supervised_nce: constant and decay are both 0. Expected at least one epoch in all")
    if not (math.isfinite(component.weight) and component.weight >= 0):
        raise ValueError(f"{component.name}: weight {component.weight:g} will not do. Expected a number from 0")


_CHOICES = {"schedule": ("none", *contrastive.SCHEDULES), "weighting": contrastive.WEIGHTINGS}


def _expected(name: str, value: Any) -> str:
    """Return what was expected of an argument, "" where its value will do."""
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name in ("constant", "decay"):
        return "" if type(value) is int and value >= 0 else "a whole number from 0"
    if name in ("weights", "levels"):
        known = (int,) if name == "levels" else (int, float)
        fine = isinstance(value, list | tuple) and bool(value)
        fine = fine and all(type(v) in known and math.isfinite(v) and v >= 0 for v in value)
        return "" if fine else f"a list of {'whole ' if name == 'levels' else ''}numbers from 0, one or more"
    if not isinstance(value, str):
        return "a name"
    try:
        _ = listing.info(value) if name == "encoder" else None
    except UserError as error:
        return f"an encoder: {error}"
    return ""


def smallest(component: Component) -> int:
    """Return the side in pixels of the smallest picture whose levels the term can still blur, 1 for other terms."""
    if component.name not in ("gaussian_pyramid", "octaves"):
        return 1
    default = inspect.signature(TERMS[component.name].function).parameters["weights"].default
    halvings: int = len(component.arguments.get("weights", default)) - 1
    if not halvings:
        return 1
    return 1 + (1 << halvings if component.name == "gaussian_pyramid" else 1 << halvings - 1)
