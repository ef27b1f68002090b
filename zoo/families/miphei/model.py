"""H&E to multiplex immunofluorescence: MIPHEI-ViT and what it was compared with.

Sources: Balezo et al. 2025, arXiv 2505.10294 (MIPHEI-ViT); Bian et al. 2024 (HEMIT); Hörst et al. 2024 (CellViT).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cards import DatasetCard
from zoo.errors import nearest
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Need, Output, Procedure, Supervised, TargetMaker
from zoo.families.miphei import calling, clusters
from zoo.families.miphei.network import make_discriminator, make_network
from zoo.families.miphei.options import MipheiOptions
from zoo.families.miphei.procedure import Adversarial
from zoo.families.miphei.targets import MarkerTarget, measure
from zoo.io.colours import marker_colours
from zoo.losses import markers as losses
from zoo.types import Batch, Geometry, PicturePrediction, Prediction, Sample

RGB = ("red", "green", "blue")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Miphei(Family):
    """A plane a marker from H&E, by networks over an encoder."""

    name = "miphei"
    summary = "H&E to multiplex immunofluorescence, a plane a marker: MIPHEI-ViT, UNETR, ConvNeXt, HEMIT."
    Options = MipheiOptions
    options: MipheiOptions

    def __init__(self, options: MipheiOptions) -> None:
        super().__init__(options)
        if options.markers is None:
            raise ValueError("markers: no marker to paint. Name them, or train on data whose card names channels")
        self.markers = options.markers
        self.network = make_network(options, len(RGB), len(self.markers))
        self.clusters = clusters.build(options)
        self.judge: nn.Module | None = None
        if options.discriminator is not None:
            seen = len(self.seen_markers)
            self.judge = make_discriminator(options.discriminator, len(RGB) + seen)
        self.spec = self._spec()

    @property
    def seen_markers(self) -> list[int]:
        """Return the numbers of the markers that the discriminator sees."""
        options = self.options.discriminator
        if options is not None and options.sees == "structural":
            return self.options.structural_of()
        return list(range(len(self.markers)))

    def _spec(self) -> IOSpec:
        options = self.options
        encoder: Any = getattr(self.network, "encoder", None)
        own = HALF if encoder is None else (encoder.mean, encoder.std)
        usual = {"encoder": own, "imagenet": IMAGENET, "half": HALF, "dataset": HALF}[options.normalise]
        mean, std = options.mean or usual[0], options.std or usual[1]
        colours = dict(zip(self.markers, marker_colours(self.markers), strict=True))
        output = Output("picture", truth=options.truth, channels=self.markers, colours=colours)
        divisor = int(cast(Any, self.network).divisor)
        maps = {"picture": MapSpec(len(self.markers), "sigmoid")}
        if options.foreground_head:
            maps["foreground"] = MapSpec(len(self.markers), "sigmoid")
        return IOSpec(
            maps=maps,
            outputs={"markers": output},
            channels=RGB,
            encoding=Encoding("rgb8", tuple(mean), tuple(std)),
            mpp=options.mpp,
            divisor=divisor,
            margin=options.margin,
            tile=options.tile,
            local=True,
        )

    # what it learns from

    @classmethod
    def needs(cls, options: MipheiOptions) -> tuple[Need, ...]:
        """Return the picture, and the nuclei where a loss asks for them."""
        picture = Need(("picture",), options.truth)
        return (picture, Need(("instances",), options.cells)) if options.needs("nuclei") else (picture,)

    @classmethod
    def resolve(cls, options: MipheiOptions, cards: Sequence[DatasetCard]) -> MipheiOptions:
        """Return options with the picture's key, the nuclei's and the markers from the cards. Raises `ValueError`."""
        truth, cells, positive = options.truth, options.cells, options.positive_from
        channels: dict[str, None] = {}
        for card in cards:
            pictures = {k: t for k, t in card.truths.items() if t.kind == "picture" and t.channels not in ((), RGB)}
            if truth is None and len(pictures) > 1:
                raise ValueError(f"truth: {card.name} has several pictures ({', '.join(pictures)}). Name one")
            truth = truth or next(iter(pictures), None)
            channels |= dict.fromkeys(pictures[str(truth)].channels if truth in pictures else ())
            nuclei = [k for k, t in card.truths.items() if t.kind == "instances"]
            cells = cells or next((k for k in nuclei if card.truths[k].values), nuclei[0] if len(nuclei) == 1 else None)
            values = card.truths.get(str(cells))
            if values is not None and values.values and positive is None:
                positive = values.positive
        if channels:
            for marker in options.markers or ():
                if marker not in channels:
                    names = ", ".join(dict.fromkeys(card.name for card in cards))
                    near = nearest(marker, channels)
                    hint = f"Did you mean {', '.join(near)}? " if near else ""
                    raise ValueError(
                        f'markers: no marker "{marker}" on the card of {names}. {hint}Known: {", ".join(channels)}'
                    )
        changes: dict[str, Any] = {"truth": truth, "cells": cells, "positive_from": positive}
        if options.markers is None and channels:
            changes["markers"] = tuple(channels)
        return MipheiOptions.model_validate(options.model_dump(by_alias=True) | changes)

    @classmethod
    def derive(cls, options: MipheiOptions, samples: Sequence[Sample]) -> MipheiOptions:
        """Return options with what is measured on training samples. Raises `ValueError`."""
        options = cls._measured(options, samples)
        if options.needs("network") and options.clusters is None and options.markers is not None:
            return options.model_copy(update={"clusters": clusters.fit(options, samples)})
        return options

    @classmethod
    def _measured(cls, options: MipheiOptions, samples: Sequence[Sample]) -> MipheiOptions:
        complete = options.full_scale and options.statistics and options.dtype
        if options.markers is None or (complete and (options.normalise != "dataset" or options.mean)):
            return options
        found = measure(options, samples)
        if found is None:
            return options
        changes: dict[str, Any] = {"encoding": found.encoding, "dtype": options.dtype or found.dtype}
        changes |= {"full_scale": found.full_scale, "statistics": options.statistics or found.statistics}
        if options.normalise == "dataset":
            changes |= {"mean": options.mean or found.mean, "std": options.std or found.std}
        return options.model_copy(update=changes)

    @classmethod
    def targets(cls, options: MipheiOptions, card: DatasetCard) -> TargetMaker:
        """Return what takes the planes from a sample."""
        cells = options.cells if options.needs("nuclei") else None
        return MarkerTarget(options.truth, cells, options.markers or (), options.dtype or "uint8")

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Return MIPHEI-ViT over a transformer of two blocks."""
        arguments = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, "tune": "lora", "rank": 2}
        return {
            "encoder": {"name": "vit_tiny_patch16_224", "arguments": arguments},
            "detail": [4, 6, 8],
            "fusion": [12, 8, 8, 8],
            "markers": ["Hoechst", "CD3e", "Pan-CK"],
            "truth": "mif",
            "tile": 64,
            "margin": 8,
        }

    def procedure(self) -> Procedure:
        """Return one optimiser, or two where there is a discriminator."""
        return Supervised() if self.judge is None else Adversarial()

    def groups(self) -> list[dict[str, Any]] | None:
        """Return groups whose rates fall towards the encoder's input, where its `layer_decay` says so (published 0.65).

        As published, what stands above the last block is not slower than the decoder.
        """
        encoder: Any = getattr(self.network, "encoder", None)
        decay = 1.0 if encoder is None else encoder.layer_decay
        if decay == 1:
            return None
        return [{**group, "lr_scale": group["lr_scale"] / decay} for group in encoder.groups(decay)]

    # what it computes

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return {"picture": (B, M, H, W)}: twice what goes into tanh, so that its sigmoid is the value in [0, 1]; with
        `foreground_head` also {"foreground": (B, M, H, W)}, logits.

        `taps` names intermediate maps, as each network has them ("encoder.features", "fusion.0", "decoder" ...).
        """
        image = inputs["image"]
        height, width = image.shape[2:]
        seen: dict[str, Tensor] = {}
        found = self.network(self._padded(image), seen if taps else None)[:, :, :height, :width]
        count = len(self.markers)
        more = {"foreground": found[:, count:]} if self.options.foreground_head else {}
        return {"picture": 2 * found[:, :count], **more, **{tap: seen[tap] for tap in taps}}

    def _padded(self, image: Tensor) -> Tensor:
        """Return inputs mirrored at the right and below up to a multiple of the network's divisor."""
        low = [-n % self.spec.divisor for n in image.shape[2:]]
        if not any(low):
            return image
        mode = "reflect" if low[0] < image.shape[2] and low[1] < image.shape[3] else "replicate"
        return F.pad(image, (0, low[1], 0, low[0]), mode=mode)

    def values(self, maps: Maps) -> Tensor:
        """Return the painted values, from -1 to 1, of raw maps."""
        return torch.tanh(maps["picture"].float() / 2)

    def encoded(self, planes: Tensor) -> Tensor:
        """Return values of planes (B, M, H, W) as they were stained: nothing is -limit, full scale is limit."""
        limit = self.options.limit
        scale = planes.new_tensor(self.full_scale, dtype=torch.float32)[:, None, None]
        return (planes.float() / scale * 2 - 1) * limit

    @property
    def full_scale(self) -> tuple[float, ...]:
        """Return what becomes `limit`, a number a marker."""
        return self.options.full_scale or (255.0,) * len(self.markers)

    def known(self, batch: Batch) -> Tensor:
        """Return (B, M, H, W) bool: where a sample carries a marker and is no padding."""
        planes = cast(Tensor, batch.targets["markers"])
        there = cast(Tensor, batch.targets["known"]).bool()[:, :, None, None].expand(planes.shape)
        if batch.valid is not None:
            there = there & batch.valid[:, None]
        if "markers" in batch.has:
            there = there & batch.has["markers"].to(there.device)[:, None, None, None]
        return there

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the weighted terms of the objective by name."""
        picture = self.values(maps)
        if "markers" not in batch.targets:
            return {c.name: 0 * picture.mean() for c in self.options.objective}
        target, known = self.encoded(cast(Tensor, batch.targets["markers"])), self.known(batch)
        given = self._given(batch, maps, picture)
        found = {}
        for component in self.options.objective:
            needs = {name: given[name] for name in losses.NEEDS[component.name]}
            function = losses.LOSSES[component.name]
            found[component.name] = component.weight * function(
                picture, target, known=known, **needs, **component.arguments
            )
        return found

    def _given(self, batch: Batch, maps: Maps, like: Tensor) -> dict[str, Any]:
        """Return what some losses want besides."""
        if self.clusters is not None:
            clusters.fitted(self.options)
        said = self.options.statistics
        ones = like.new_ones(len(self.markers))
        weights = ones if said is None else losses.contrast_weights(like.new_tensor(said.std))
        share = ones if said is None else losses.foreground_weights(like.new_tensor(said.foreground))
        nuclei = batch.targets.get("nuclei")
        if nuclei is None:
            nuclei = torch.zeros(len(like), *like.shape[2:], dtype=torch.int64, device=like.device)
        nuclei = cast(Tensor, nuclei)
        if "nuclei" in batch.has:
            nuclei = nuclei * batch.has["nuclei"].to(nuclei.device)[:, None, None]
        more = {"network": self.clusters, "limit": self.options.limit, "foreground_logits": maps.get("foreground")}
        return {"weights": weights, "foreground": share, "nuclei": nuclei, **more}

    # the discriminator

    def pair(self, maps: Maps, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return input, painted and true values of the samples that carry every marker that is judged, or None."""
        if "markers" not in batch.targets:
            return None
        seen = self.seen_markers
        whole = cast(Tensor, batch.targets["known"]).bool()[:, seen].all(1)
        if "markers" in batch.has:
            whole = whole & batch.has["markers"].to(whole.device)
        if not bool(whole.any()):
            return None
        image = self.prepare(self.inputs_of(batch))["image"]
        target = self.encoded(cast(Tensor, batch.targets["markers"]))
        return image[whole], self.values(maps)[whole][:, seen], target[whole][:, seen]

    def judged(self, image: Tensor, picture: Tensor) -> Tensor:
        """Return the discriminator's raw scores, (B, 1, h, w)."""
        assert self.judge is not None
        found: Tensor = self.judge(torch.cat([image, picture], 1))[0]
        return found

    # what it says

    def decode(self, maps: Maps, geometry: Sequence[Geometry]) -> list[dict[str, Prediction]]:
        """Return one picture an image, in the units of the training pictures, at the size of its source."""
        found: list[dict[str, Prediction]] = []
        scale = np.asarray(self.full_scale, np.float32)[:, None, None]
        for unit, place in zip(maps["picture"].float(), geometry, strict=True):
            height, width = (round(s * k) for s, k in zip(place.shape, place.scale, strict=True))
            here = unit[None, :, :height, :width]
            if here.shape[2:] != tuple(place.shape):
                here = F.interpolate(here, size=tuple(place.shape), mode="bilinear", align_corners=False)
            limit = self.options.limit
            share = (((2 * here[0] - 1).clamp(-limit, limit) + limit) / (2 * limit)).cpu().numpy()
            data = (share * scale).astype(self.options.dtype or "uint8")  # whole numbers are truncated, as published
            said = calling.rule(self.options.calling)
            found.append({"markers": PicturePrediction(data, self.markers, self.options.encoding, said)})
        return found

    def calibrate(
        self, samples: Sequence[Sample], maps_of: Callable[[Sample], tuple[Maps, Geometry]]
    ) -> MipheiOptions | None:
        """Return options with what calls cells positive, fitted on validation cells; None where none carries values."""
        fitted = calling.fit(self, samples, maps_of)
        return None if fitted is None else self.options.model_copy(update={"calling": fitted})
