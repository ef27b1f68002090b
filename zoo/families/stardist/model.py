"""The family stardist: objects as star-convex polygons and polyhedra, in pictures and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.cards import DatasetCard
from zoo.errors import UserError
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Need, Output, TargetMaker
from zoo.families.stardist import decode, losses, targets, thresholds, whole
from zoo.families.stardist.decode import Stars
from zoo.families.stardist.network import Heads, ResNetBackbone, Trace, UNetBackbone
from zoo.families.stardist.options import StarDistOptions
from zoo.types import Batch, Geometry, Instances, InstancesPrediction, Prediction, Sample

MANY_CANDIDATES = 10_000
"""Candidates of an image, beside a thousand for each of its objects, from which a threshold is not worth trying: where
a network has learnt nothing yet, everything is one."""
MANY = 500
"""Polyhedra from which ours are drawn in one compiled loop; the package takes milliseconds for each."""


class StarDist(Family):
    """A probability and distances along rays for each point of a grid; objects by suppression.

    Raw maps on the grid, G = ceil(S / grid): `prob` (B, 1, *G) logits, `dist` (B, R, *G) pixels, may be negative,
    `prob_class` (B, K + 1, *G) logits with the background first, where there is more than one class.
    """

    name = "stardist"
    summary = "Objects as star-convex polygons (2-D) or polyhedra (3-D); published networks or any encoder"
    measured = ("thresholds",)
    Options = StarDistOptions
    options: StarDistOptions

    def __init__(self, options: StarDistOptions) -> None:
        super().__init__(options)
        if options.classes is None or options.grid is None:
            options = StarDistOptions.model_validate(
                options.model_dump() | {"classes": options.classes or ("object",), "grid": options.grid or self._ones()}
            )
            self.options = options
        assert options.classes is not None
        assert options.grid is not None
        self.grid = options.grid
        self.classes = options.classes
        channels = options.channels or ("red", "green", "blue")
        made: Any = self._backbone(len(channels))
        self.backbone = made
        self.divisor: tuple[int, ...] = made.divisor
        part: Any = options.decoder if options.backbone == "encoder" else getattr(options, options.backbone)
        self.heads = Heads(
            options.dims,
            made.channels,
            options.ray_count,
            options.class_count,
            part.features,
            getattr(part, "kernel", None) or (3,) * options.dims,
            getattr(part, "activation", "relu"),
        )
        self.spec = self._spec(channels)

    def _ones(self) -> tuple[int, ...]:
        return (1,) * self.options.dims

    def _backbone(self, channels: int) -> nn.Module:
        options = self.options
        if options.backbone == "unet":
            return UNetBackbone(options.dims, channels, self.grid, options.unet)
        if options.backbone == "resnet":
            return ResNetBackbone(options.dims, channels, self.grid, options.resnet)
        from zoo.families.stardist.upward import EncoderBackbone

        return EncoderBackbone(options.dims, channels, self.grid, options)

    def _spec(self, channels: tuple[str, ...]) -> IOSpec:
        options = self.options
        maps = {"prob": MapSpec(1, "sigmoid"), "dist": MapSpec(options.ray_count)}
        if options.class_count is not None:
            maps["prob_class"] = MapSpec(options.class_count + 1, "softmax")
        normalise, voxel = options.normalise, options.voxel()
        encoding = Encoding("raw")
        if normalise is not None:
            encoding = Encoding("percentile", low=normalise.low, high=normalise.high, joint=normalise.joint)
        two = options.dims == 2
        tile = options.tile or (512 if two else 128)
        flat = two and voxel is not None
        return IOSpec(
            maps=maps,
            outputs={"instances": Output("instances", self.classes, options.truth)},
            axes="CYX" if two else "CZYX",
            channels=channels,
            encoding=encoding,
            mpp=voxel[0] if flat and voxel is not None else None,
            spacing=None if two else voxel,
            divisor=math.lcm(*self.divisor) if two else max(self.divisor),
            divisors=self.divisor,
            margin=options.margin if options.margin is not None else (64 if two else 24),
            tile=max(tile) if isinstance(tile, tuple) else tile,
            tiles=tile if isinstance(tile, tuple) else None,
            scale=tuple(1 / g for g in self.grid),
            extent=options.extent,
            padding="reflect",
        )

    # what it learns from

    @classmethod
    def needs(cls, options: StarDistOptions) -> tuple[Need, ...]:
        return (Need(("instances",), options.truth),)

    @classmethod
    def resolve(cls, options: StarDistOptions, cards: Sequence[DatasetCard]) -> StarDistOptions:
        return targets.resolve(options, cards)

    @classmethod
    def derive(cls, options: StarDistOptions, samples: Sequence[Sample]) -> StarDistOptions:
        return targets.derive(options, samples)

    @classmethod
    def targets(cls, options: StarDistOptions, card: DatasetCard) -> TargetMaker:
        return targets.maker(options, card)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {
            "unet": {"filters": 8, "depth": 2, "features": 8},
            "rays": 8,
            "grid": [2, 2],
            "classes": ["lymphocyte", "epithelial"],
            "tile": 64,
            "margin": 16,
            "max_candidates": 20_000,
        }

    # what it computes

    def prepare(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return encoded inputs; in training with shape completion the patch's rim is cut off here."""
        found = super().prepare(inputs)
        if self.training and self.options.completion is not None:
            crop = self.options.completion.crop
            found["image"] = found["image"][..., crop:-crop, crop:-crop]
        return found

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return the raw maps for an encoded `image` (B, C, *S) of any size.

        What is not a multiple of the divisor is padded at its end: by reflection, where an axis is long enough for it.
        `taps`: layers by their published names (`down_level_0_no_1`, `features`, `add`), or `level0` ... of an encoder,
        all of the padded image. Raises `UserError` for another tap.
        """
        image = inputs["image"]
        size = image.shape[2:]
        padded = pad_end(image, self.divisor)
        trace = Trace(taps)
        maps: Maps = self.heads(self.backbone(padded, trace), trace)
        grid = tuple(slice(0, -(-n // g)) for n, g in zip(size, self.grid, strict=True))
        found = {name: value[(slice(None), slice(None), *grid)] for name, value in maps.items()}
        for tap in taps:
            if tap not in trace:
                raise UserError(f'stardist: no feature "{tap}". Expected one of {", ".join(trace.names)}.')
        return {**found, **{tap: trace[tap] for tap in taps}}

    def groups(self) -> list[dict[str, Any]] | None:
        """Return the layer of distances apart where it learns at another rate, and the encoder's own groups."""
        found = super().groups()
        if self.options.distance_rate == 1:
            return found
        distances = self.heads.layers["dist"].parameters()
        return [*(found or []), {"params": list(distances), "lr_scale": self.options.distance_rate}]

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the losses of probability, distances and classes, each times its weight, over annotated samples."""
        has = batch.has.get("prob")
        chosen: Any = slice(None) if has is None or bool(has.all()) else has
        wanted: dict[str, Tensor] = {}
        for name in ("prob", "dist", "mask", "prob_class"):
            value = batch.targets.get(name)
            if isinstance(value, Tensor):
                wanted[name] = value[chosen].float()
        made = {name: self._cropped(value, wanted["prob"])[chosen].float() for name, value in maps.items()}
        known = self._known(batch, chosen, wanted["prob"])
        prob = wanted["prob"] if known is None else wanted["prob"].masked_fill(~known, -1)
        if not len(prob):
            return {name: 0.0 * value.float().sum() for name, value in maps.items()}
        weight = self.options.loss_weights
        terms = {
            "prob": weight[0] * losses.probability(made["prob"].sigmoid(), prob),
            "dist": weight[1]
            * losses.distance_sum(
                made["dist"], wanted["dist"], wanted["mask"], self.options.loss_shares, self.options.background
            ),
        }
        if "prob_class" in made:
            classes = wanted["prob_class"] if known is None else wanted["prob_class"].masked_fill(~known, -1)
            probability = made["prob_class"].softmax(1)
            terms["class"] = weight[2] * losses.classes(probability, classes, self.options.class_weights)
        return terms

    def _cropped(self, value: Tensor, target: Tensor) -> Tensor:
        """Return maps without the rim that shape completion does not look at, where it is still there."""
        if value.shape[2:] == target.shape[2:] or self.options.completion is None:
            return value
        starts = [self.options.completion.crop // g for g in self.grid]
        window = tuple(slice(s, s + n) for s, n in zip(starts, target.shape[2:], strict=True))
        return value[(slice(None), slice(None), *window)]

    def _known(self, batch: Batch, chosen: Any, prob: Tensor) -> Tensor | None:
        """Return where on the grid there is an image, or None where that is everywhere."""
        if batch.valid is None or bool(batch.valid.all()):
            return None
        steps = tuple(slice(None, None, g) for g in self.grid)
        crop = 0 if self.options.completion is None else self.options.completion.crop
        inner = (slice(crop, -crop or None),) * self.options.dims
        valid = batch.valid[chosen][(slice(None), *inner)][(slice(None), *steps)]
        return valid[:, None].expand_as(prob)

    # what it says

    def check_decoding(self, **options: Any) -> None:
        for name in ("prob", "nms"):
            value = options.get(name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise UserError(f"stardist: {name} is {value}. Expected a number between 0 and 1.")
        most = options.get("max_candidates")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise UserError(f"stardist: max_candidates is {most}. Expected a whole number from 1.")

    def decode(
        self,
        maps: Maps,
        geometry: Sequence[Geometry],
        prob: float | None = None,
        nms: float | None = None,
        max_candidates: int | None = None,
    ) -> list[dict[str, Prediction]]:
        """Return `instances` for each image, at the scale of its source, strongest objects first.

        `prob`, `nms`, `max_candidates`: instead of the options' thresholds. Raises `UserError` for numbers that cannot
        be and for more candidates than allowed.
        """
        self.check_decoding(prob=prob, nms=nms, max_candidates=max_candidates)
        arrays = {name: value.detach().float().cpu().numpy() for name, value in maps.items()}
        return [
            {"instances": self._objects({n: a[i] for n, a in arrays.items()}, where, prob, nms, max_candidates)}
            for i, where in enumerate(geometry)
        ]

    def _objects(
        self,
        maps: Mapping[str, Any],
        where: Geometry,
        prob: float | None,
        nms: float | None,
        most: int | None,
    ) -> InstancesPrediction:
        known = self.options.thresholds
        classes = maps.get("prob_class")
        stars = decode.candidates(
            maps["prob"][0],
            maps["dist"],
            self.grid,
            known.prob if prob is None else prob,
            self.sides(maps["prob"].shape[1:]),
            classes,
            most or self.options.max_candidates,
        )
        rays = None if self.options.dims == 2 else self.options.directions
        stars = decode.survivors(stars, known.nms if nms is None else nms, rays)
        labels, stars = self.draw(stars, where)
        kinds, scores = whole.told(stars)
        return InstancesPrediction(labels, self.classes, kinds, scores)

    def sides(self, grid: Sequence[int]) -> list[tuple[int, int]]:
        """Return the grid points at each side that give no candidates: those at the border of the padded image, as the
        published prediction has it, so that an image that is no multiple of the divisor keeps them at its end."""
        border = self.options.border
        found = []
        for n, g, d in zip(grid, self.grid, self.divisor, strict=True):
            padded = -(-n * g // d) * d // g
            found.append((border, max(0, border - (padded - n))))
        return found

    def draw(self, stars: Stars, where: Geometry) -> tuple[Any, Stars]:
        """Return labels 1..N in the pixels of the source, and the objects that paint any.

        A grid point stands for the pixel with its index; the centre of pixel i of the model is at i + 0.5.
        """
        scale, offset = np.asarray(where.scale), np.asarray(where.offset)
        plain = bool(np.all(scale == 1))
        points = stars.points + offset
        points = points if plain else (points + 0.5) / scale - 0.5
        if self.options.dims == 2:
            centres = np.rint(points).astype(np.int64) if plain and not np.any(offset % 1) else points
            labels = decode.draw_polygons(stars, where.shape, centres, 1 / scale)
        elif len(stars) > MANY:  # as an untrained network says them
            labels = whole.painter(stars, self.options.directions, where.scale, where.offset)((0, 0, 0), where.shape)
        else:
            rays = self.options.directions if plain else self.options.directions.scaled(1 / scale)
            labels = decode.draw_polyhedra(stars, rays, where.shape, points)
        return decode.sequential(labels, stars)

    # volumes of any size (see zoo.inference.volumes)

    def find(
        self,
        maps: Maps,
        read: whole.Box,
        core: whole.Box,
        shape: Sequence[int],
        prob: float | None = None,
        nms: float | None = None,
        max_candidates: int | None = None,
    ) -> Stars:
        """Return the candidates in the `core` of a block of a volume of `shape`, in voxels of the volume.

        `maps`: those of the box `read`, (1, C, ...). Options as for `decode`.
        """
        del nms
        arrays = {name: value[0].float().cpu().numpy() for name, value in maps.items()}
        ends = self.sides(arrays["prob"].shape[1:])
        border = [
            (before if begin == 0 else 0, after if end >= n else 0)
            for (before, after), (begin, end), n in zip(ends, read, shape, strict=True)
        ]
        least = self.options.thresholds.prob if prob is None else prob
        most = max_candidates or self.options.max_candidates
        classes = arrays.get("prob_class")
        stars = decode.candidates(arrays["prob"][0], arrays["dist"], self.grid, least, border, classes, most)
        return whole.in_core(stars, read, core)

    def settle(
        self,
        parts: Sequence[Stars],
        shape: Sequence[int],
        prob: float | None = None,
        nms: float | None = None,
        max_candidates: int | None = None,
    ) -> Stars:
        """Return the objects that suppression over the candidates of all blocks of a volume of `shape` leaves.

        Raises `UserError` where there are more candidates than `max_candidates`, or where nobody says a number, than
        the options' and a quarter of the volume's grid points: a large volume may have many, none consists of them.
        """
        del prob
        points = math.prod(-(-n // g) for n, g in zip(shape, self.grid, strict=True))
        stars = whole.joined(parts, max_candidates or max(self.options.max_candidates, points // 4))
        rays = None if self.options.dims == 2 else self.options.directions
        return decode.survivors(stars, self.options.thresholds.nms if nms is None else nms, rays)

    def painter(self, stars: Stars, scales: Sequence[float]) -> Callable[..., Any]:
        """Return what draws a window (begin, size) of the volume at `scales` model voxels per voxel."""
        return whole.painter(stars, self.options.directions, scales)

    def told(self, stars: Stars) -> tuple[Any, Any]:
        """Return the class and the score of each object."""
        return whole.told(stars)

    # its operating point

    def calibrate(
        self, samples: Sequence[Sample], maps_of: Callable[[Sample], tuple[Maps, Geometry]]
    ) -> StarDistOptions | None:
        """Return options with the thresholds that suit `samples` best, None where those hold no object.

        `maps_of` gives a sample's activated maps and their geometry. The steps are in `thresholds.optimise`.
        """
        truths, found = [], []
        for sample in samples:
            truth = sample.truth.get(self.options.truth or "") or next(
                (t for t in sample.truth.values() if isinstance(t, Instances)), None
            )
            if isinstance(truth, Instances) and truth.map.ndim == self.options.dims:
                truths.append(np.where(truth.ignore, 0, truth.map) if truth.ignore is not None else truth.map)
                found.append(maps_of(sample))
        if not truths or not any(t.any() for t in truths):
            return None
        highest = max(float(maps["prob"].max()) for maps, _ in found)
        most = [min(self.options.max_candidates, MANY_CANDIDATES + 1000 * len(np.unique(t))) for t in truths]

        def score(prob: float, nms: float) -> float:
            try:
                drawn = [
                    self.decode(maps, [where], prob=prob, nms=nms, max_candidates=n)[0]["instances"]
                    for (maps, where), n in zip(found, most, strict=True)
                ]
            except UserError:  # more candidates than allowed: no operating point
                return 0.0
            pairs = [(t, d.map) for t, d in zip(truths, drawn, strict=True) if isinstance(d, InstancesPrediction)]
            return thresholds.accuracy(pairs)

        prob, nms, best, _ = thresholds.optimise(score, highest)
        if best <= 0:
            return None
        chosen = {"prob": float(np.clip(prob, 0.01, 0.99)), "nms": nms, "found": True}
        return StarDistOptions.model_validate(self.options.model_dump() | {"thresholds": chosen})


def pad_end(image: Tensor, divisor: Sequence[int]) -> Tensor:
    """Return (B, C, *S) padded at the end of each axis to a multiple: by reflection as often as it takes."""
    for axis, d in enumerate(divisor, start=2):
        while (missing := -image.shape[axis] % d) > 0:
            n = image.shape[axis]
            if n == 1:
                image = image.repeat_interleave(d, axis)
                break
            count = min(missing, n - 1)
            image = torch.cat([image, image.narrow(axis, n - 1 - count, count).flip(axis)], axis)
    return image
