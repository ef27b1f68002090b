"""The family detr: deformable DETR over any encoder of the zoo, with MFDS-DETR's neck among others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import registry
from zoo.cards import DatasetCard
from zoo.encoders import Encoder, Pyramid, build_encoder
from zoo.errors import UserError
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Need, Output, TargetMaker
from zoo.families.detr import decode, learn, operating, targets
from zoo.families.detr import transformer as parts
from zoo.families.detr.attributes import RegionHead
from zoo.families.detr.options import DetrOptions
from zoo.families.detr.queries import noisy_queries
from zoo.metrics.boxes import Boxes
from zoo.nn.boxes import inverse_sigmoid, short_side, to_corners
from zoo.nn.deformable import DeformableAttention
from zoo.nn.fusion import HighLevelScreening, build_neck
from zoo.nn.positions import LearnedPositions, resize_padding, sine_of_boxes, sine_positions, valid_ratio
from zoo.types import Batch, Geometry, Prediction, Sample

PRIOR = 0.01
"""Probability of a class at the beginning of training."""


class Detr(Family):
    """Boxes with classes and attributes.

    Raw maps, one row a query: `logits` (B, Q, C), `boxes` (B, Q, 4) centre x, centre y, width, height in [0, 1] of the
    image without padding, `size` (B, 2) height and width of that image in pixels, and `attributes` (B, Q, V) logits of
    all values of all attributes. In training the earlier layers' and the further queries' stand beside them.
    """

    name = "detr"
    summary = "Boxes, their classes and attributes: deformable DETR with the HS-FPN neck, or another"
    measured = ("threshold",)
    Options = DetrOptions
    options: DetrOptions

    def __init__(self, options: DetrOptions) -> None:
        super().__init__(options)
        if options.classes is None:
            raise ValueError("the classes are not known. Write them down: classes: [RBC, WBC, ...]")
        self.classes = options.classes
        width, hidden = options.width, options.selection != "none"
        encoder = _encoder(options)
        self.values = _values(options)
        self.attributes: nn.Module | None = None
        regions = self.values and options.attributes is not None and options.attributes.head == "regions"
        strides = tuple(sorted({*options.strides, *((4, 8) if regions else ())}))
        self.pyramid = Pyramid(encoder, strides)
        self.levels_at = [strides.index(s) for s in options.strides]
        self.regions_at = [strides.index(s) for s in (4, 8)] if regions else []
        channels = [self.pyramid.channels[i] for i in self.levels_at]
        self.neck = build_neck(options.neck, channels, width, options.levels)
        shape = parts.Shape(width, options.heads, options.levels, options.feedforward, options.dropout)
        deep = options.encoder_layers > 0  # only its layers look at positions
        self.level_embed = nn.Parameter(torch.randn(options.levels, width)) if deep else None
        self.positions = LearnedPositions(width // 2) if deep and options.positions == "learned" else None
        self.encoder = parts.Encoder(shape, options.encoder_points, options.encoder_layers)
        self.decoder = parts.Decoder(shape, options.decoder_points, options.decoder_layers, options.refine)
        heads = options.decoder_layers + hidden if options.refine else 1
        class_heads = [nn.Linear(width, options.logits) for _ in range(heads)]
        box_heads = [parts.Layered(width, 4) for _ in range(heads)]
        self.class_embed, self.bbox_embed = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        self._build_queries(options)
        if self.values and not regions:
            self.attributes = nn.Linear(width, sum(self.values))
        self._initialise(class_heads, box_heads)
        if regions and options.attributes is not None:
            inputs = [self.pyramid.channels[i] for i in self.regions_at]
            chosen = options.attributes
            self.attributes = RegionHead(inputs, sum(self.values), chosen.channels, chosen.dropout)
        if options.freeze != "none":
            _freeze(encoder, options.freeze)
        self.spec = self._spec(options, encoder)

    def _build_queries(self, options: DetrOptions) -> None:
        width, chosen = options.width, options.selection
        many = options.one_to_many if chosen != "two-stage" else 0
        if options.one_to_many and chosen == "two-stage":
            raise ValueError("one_to_many needs learned contents. Set selection: mixed or none")
        if chosen == "none":
            self.query_embed: nn.Embedding | None = nn.Embedding(options.queries + many, 2 * width)
            self.reference_points: nn.Linear | None = nn.Linear(width, 2)
        else:
            self.query_embed = nn.Embedding(options.queries + many, width) if chosen == "mixed" else None
            self.reference_points = None
            self.enc_output, self.enc_output_norm = nn.Linear(width, width), nn.LayerNorm(width)
        if chosen == "two-stage":
            self.pos_trans, self.pos_trans_norm = nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)
        elif chosen == "mixed":
            self.place = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.label_embed = nn.Embedding(options.logits, width) if options.denoising else None

    def _initialise(self, class_heads: Sequence[nn.Linear], box_heads: Sequence[parts.Layered]) -> None:
        """Set the transformer, the neck's projections and gates and the heads as Zhu et al. 2021 and MFDS-DETR do."""
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset()
        for name, module in self.neck.named_modules():
            if isinstance(module, nn.Conv2d) and ("input_proj" in name or ".conv" in name):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.reference_points is not None:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        bias = torch.log(torch.tensor(PRIOR / (1 - PRIOR))).item()
        for head in class_heads:
            nn.init.constant_(head.bias, bias)
        for box_head in box_heads:
            nn.init.zeros_(box_head.last.weight)
            nn.init.zeros_(box_head.last.bias)
            if self.options.selection == "none":
                nn.init.constant_(box_head.last.bias[2:], -2.0)

    def _spec(self, options: DetrOptions, encoder: Encoder) -> IOSpec:
        maps = {
            "logits": MapSpec(options.logits, "sigmoid"),
            "boxes": MapSpec(4),
            "size": MapSpec(2),
        }
        if self.values:
            maps["attributes"] = MapSpec(sum(self.values))
        return IOSpec(
            maps=maps,
            outputs={"boxes": Output("boxes", self.classes, options.truth)},
            encoding=Encoding("rgb8", tuple(encoder.mean), tuple(encoder.std)),
            divisor=1,
            margin=options.margin,
            tile=options.tile,
            stitch="objects",
        )

    # what it learns from

    @classmethod
    def needs(cls, options: DetrOptions) -> tuple[Need, ...]:
        return (Need(targets.KINDS, options.truth),)

    @classmethod
    def resolve(cls, options: DetrOptions, cards: Sequence[DatasetCard]) -> DetrOptions:
        return targets.resolve(options, cards)

    @classmethod
    def targets(cls, options: DetrOptions, card: DatasetCard) -> TargetMaker:
        return targets.make(options, card)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {
            "encoder": "test_resnet",
            "width": 32,
            "heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_points": 2,
            "decoder_points": 2,
            "feedforward": 32,
            "queries": 10,
            "classes": ["RBC", "WBC"],
            "refine": True,
        }

    def inputs_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return image and, where some of it is padding, `valid`; in training the truths that queries begin from."""
        inputs = dict(batch.inputs)
        if batch.valid is not None and not bool(batch.valid.all()):
            inputs["valid"] = batch.valid
        if self.training and (self.label_embed is not None or self.regions_at):
            inputs |= learn.padded_truths(batch, self.options.unused)
        return inputs

    # what it computes

    def prepare(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoded image with zeros in its padding, scaled as the options say; `mask` where there is padding;
        `size` (B, 2), height and width without padding before scaling."""
        encoded = super().prepare(inputs)
        image, valid = encoded["image"], encoded.pop("valid", None)
        sizes = [(int(image.shape[-2]), int(image.shape[-1]))] * len(image) if valid is None else learn.extents(valid)
        encoded["size"] = torch.tensor(sizes, dtype=torch.float32, device=image.device)
        side = self.options.short_side
        if side is None and valid is None:
            return encoded
        scaled = sizes
        if side is not None:
            scaled = [short_side(w, h, side, self.options.long_side)[::-1] for h, w in sizes]
        encoded["image"], mask = _laid(image, sizes, scaled)
        return encoded if mask is None else {**encoded, "mask": mask}

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return the raw maps of an encoded `image` (B, 3, H, W), `mask` (B, H, W) bool being True on its padding.

        `taps`: "aux_logits" and "aux_boxes" (N - 1, B, Q, .), the earlier layers; "queries" (B, Q, D), the last states;
        "memory" (B, S, D), zero on padding; "level0", ... the neck's maps; "stride8", ... the encoder's; "top", the
        extra level of HS-FPN; "proposal_logits" and "proposal_boxes" of all tokens. Raises `UserError` for another.
        """
        image, padded = inputs["image"], "mask" in inputs
        blank = torch.zeros(len(image), *image.shape[-2:], dtype=torch.bool, device=image.device)
        mask = inputs["mask"] if padded else blank
        features = self.pyramid.encoder(image, self.options.pad)
        pyramid = self.pyramid.levels(image, features)
        levels = self.neck([pyramid[i] for i in self.levels_at])
        memory = self._encode(levels, mask, padded)
        content, position, reference, groups, chosen = self._queries(memory, inputs)
        blocked = parts.blocked_between(groups, image.device)
        logits, boxes, states = self.decoder(content, position, reference, memory, self._heads, blocked)
        maps = self._maps(logits, boxes, states, groups, inputs)
        if self.values:
            maps |= self._attribute_maps(pyramid, states[-1][:, : self.options.queries], maps["boxes"], mask, inputs)
        if self.training and chosen is not None:
            maps |= {"proposal_logits": chosen[0], "proposal_boxes": chosen[1], "proposal_good": chosen[2]}
        if taps:
            q = self.options.queries
            tokens, padding = memory.tokens, memory.padding
            seen = tokens if padding is None else tokens.masked_fill(padding[..., None], 0)
            known = {"queries": states[-1][:, :q], "memory": seen}
            if len(logits) > 1:
                known["aux_logits"] = torch.stack([v[:, :q] for v in logits[:-1]])
                known["aux_boxes"] = torch.stack([v[:, :q] for v in boxes[:-1]])
            known |= {f"level{i}": level for i, level in enumerate(levels)}
            known |= {f"stride{s}": level for s, level in zip(self.pyramid.strides, pyramid, strict=True)}
            if chosen is not None:
                known |= {"proposal_logits": chosen[0], "proposal_boxes": chosen[1]}
            if "top" in taps and isinstance(self.neck, HighLevelScreening):
                known["top"] = self.neck.top(pyramid[self.levels_at[-1]])
            for tap in taps:
                if tap not in known:
                    raise UserError(f'detr: no feature "{tap}". Expected one of {", ".join(sorted(known))}.')
                maps[tap] = known[tap]
        return maps

    def _encode(self, levels: Sequence[Tensor], mask: Tensor, padded: bool) -> parts.Memory:
        """Return the tokens of all levels after the encoder; `padded`: whether anything in `mask` is True."""
        sizes = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        masks = [resize_padding(mask, size) for size in sizes]
        ratios = torch.stack([valid_ratio(own) for own in masks], 1)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        padding = torch.cat([own.flatten(1) for own in masks], 1) if padded else None
        if self.level_embed is not None:
            half = self.options.width // 2
            made = [self.positions(own) if self.positions is not None else sine_positions(own, half) for own in masks]
            places = [m.flatten(2).transpose(1, 2) + v for m, v in zip(made, self.level_embed, strict=True)]
            tokens = self.encoder(tokens, torch.cat(places, 1), sizes, ratios, padding)
        return parts.Memory(tokens, sizes, ratios, padding)

    def _heads(self, layer: int, states: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes of a layer, each box relative to the reference that entered it."""
        which = layer if self.options.refine else 0
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            offset: Tensor = self.bbox_embed[which](states)
            start = inverse_sigmoid(reference.float())
            if reference.shape[-1] == 4:
                offset = offset + start
            else:
                offset = torch.cat([offset[..., :2] + start, offset[..., 2:]], -1)
            return self.class_embed[which](states), offset.sigmoid()

    def _propose(self, memory: parts.Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, S, C), boxes (B, S, 4) in [0, 1] of every token, and (B, S) bool: which may be chosen."""
        start, good = parts.proposals(memory)
        with torch.autocast(start.device.type, enabled=False):
            tokens = memory.tokens.float().masked_fill(~good[..., None], 0.0)
            tokens = self.enc_output_norm(self.enc_output(tokens))
            return self.class_embed[-1](tokens), (self.bbox_embed[-1](tokens) + start).sigmoid(), good

    def _queries(
        self, memory: parts.Memory, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any, Tensor, list[int], tuple[Tensor, Tensor, Tensor] | None]:
        """Return contents, positions, references, the numbers of queries in each group, and the proposals."""
        B, options = len(memory.tokens), self.options
        count, many = options.queries, options.one_to_many if self.training else 0
        groups = [count, *([many] if many else [])]
        if options.selection == "none":
            assert self.query_embed is not None
            assert self.reference_points is not None
            position, content = self.query_embed.weight[: count + many].chunk(2, 1)
            reference = self.reference_points(position).float().sigmoid()
            position, content, reference = (x[None].expand(B, -1, -1) for x in (position, content, reference))
            return content, position, reference, groups, None
        logits, boxes, good = proposals = self._propose(memory)
        if options.selection == "two-stage":
            best = logits[..., 0].topk(count, 1).indices
            reference = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
            encoded = self.pos_trans_norm(self.pos_trans(sine_of_boxes(reference, options.width // 2)))
            position, content = encoded.chunk(2, 2)
            return content, position, reference, groups, proposals
        strength = logits.detach().amax(-1).masked_fill(~good, -torch.inf)
        wanted = min(count + many, strength.shape[1])
        best = strength.topk(wanted, 1).indices
        best = torch.cat([best, best[:, :1].expand(-1, count + many - wanted)], 1)
        reference = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        assert self.query_embed is not None
        content = self.query_embed.weight[: count + many][None].expand(B, -1, -1)
        if self.label_embed is not None and "truth_boxes" in inputs and self.training:
            labels, places = noisy_queries(
                inputs["truth_labels"],
                inputs["truth_boxes"],
                groups=options.denoising,
                noise=options.noise,
                classes=len(self.classes),
                first=options.unused,
            )
            content = torch.cat([content, self.label_embed(labels)], 1)
            reference = torch.cat([reference, places], 1)
            groups += [inputs["truth_labels"].shape[1]] * options.denoising
        return content, self._place, reference, groups, proposals

    def _place(self, reference: Tensor) -> Tensor:
        made: Tensor = self.place(sine_of_boxes(reference, self.options.width // 2))
        return made

    def _maps(
        self,
        logits: list[Tensor],
        boxes: list[Tensor],
        states: list[Tensor],
        groups: list[int],
        inputs: Mapping[str, Tensor],
    ) -> Maps:
        image = inputs["image"]
        size = inputs.get("size")
        if size is None:
            mask = inputs.get("mask")
            shape = [(int(image.shape[-2]), int(image.shape[-1]))] * len(image)
            known = shape if mask is None else learn.extents(~mask)
            size = torch.tensor(known, dtype=torch.float32, device=image.device)
        first = self.options.queries
        maps = {"logits": logits[-1][:, :first], "boxes": boxes[-1][:, :first], "size": size}
        if self.training:
            every, place = torch.stack(logits), torch.stack(boxes)
            maps |= {"all_logits": every, "all_boxes": place}
        return maps

    def _attribute_maps(
        self, pyramid: Sequence[Tensor], states: Tensor, boxes: Tensor, mask: Tensor, inputs: Mapping[str, Tensor]
    ) -> Maps:
        if isinstance(self.attributes, RegionHead):
            maps = [pyramid[i] for i in self.regions_at]
            inside = valid_ratio(mask).repeat(1, 2)[:, None]
            known = inputs.get("truth_boxes") if self.training else None
            which = boxes if known is None else known
            found = self.attributes(maps, to_corners(which).clamp(0, 1) * inside)
            return {"attributes": found} if known is None else {"truth_attributes": found}
        assert self.attributes is not None
        return {"attributes": self.attributes(states.float())}

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        return learn.loss(maps, batch, self.options, self.values)

    def check_decoding(self, **options: Any) -> None:
        decode.thresholds(self.options, options.get("threshold"))
        top = options.get("top")
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
            raise UserError(f"top: {top} boxes will not do. Expected a whole number from 1.")

    def decode(
        self,
        maps: Maps,
        geometry: Sequence[Geometry],
        *,
        threshold: float | Mapping[str, float] | None = None,
        top: int | None = None,
    ) -> list[dict[str, Prediction]]:
        """Return the boxes of each image; `threshold` (one, or of some classes) and `top` in place of the options'."""
        return [
            {"boxes": decode.boxes({n: v[i : i + 1] for n, v in maps.items()}, g, self.options, threshold, top)}
            for i, g in enumerate(geometry)
        ]

    def operating(self) -> dict[str, tuple[float, ...]]:
        """Return the thresholds that a benchmark may choose from, one for all classes."""
        return {"threshold": operating.GRID[::5]}

    def calibrate(
        self, samples: Sequence[Sample], maps_of: Callable[[Sample], tuple[Maps, Geometry]]
    ) -> DetrOptions | None:
        """Return options with the threshold of each class of the largest F1 on the samples; None without truths."""
        predict = registry.get("engine", "predict")
        pairs = []
        for sample in samples:
            truth = targets.true_boxes(self.options, sample)
            if truth is not None:
                mpp = sample.spacing[-1] if sample.spacing else "native"
                found = predict(self, np.moveaxis(sample.image, 0, -1), mpp=mpp, threshold=0.0)["boxes"]
                pairs.append((Boxes(found.xyxy, found.class_index + 1, found.scores), truth))
        if not pairs:
            return None
        chosen = operating.best_thresholds(pairs, len(self.classes), self.options.thresholds())
        return self.options.changed(threshold=dict(zip(self.classes, chosen, strict=True)))

    def train(self, mode: bool = True) -> Detr:
        super().train(mode)
        if mode and self.options.freeze != "none":
            self.pyramid.encoder.train(True)  # which leaves its frozen norms in evaluation mode
        return self

    def groups(self) -> list[dict[str, Any]] | None:
        """Return the published groups: encoder, offsets and references, neck, and the rest."""
        options = self.options
        found = self.pyramid.groups()
        for group in found:
            group["lr_scale"] *= options.encoder_rate
        inside = {id(p) for p in self.pyramid.parameters()}
        slow: list[nn.Parameter] = []
        neck: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if id(parameter) in inside or not parameter.requires_grad:
                continue
            if "sampling_offsets" in name or name.startswith("reference_points"):
                slow.append(parameter)
            else:
                (neck if name.startswith("neck.") else rest).append(parameter)
        found += [{"params": p, "lr_scale": s} for p, s in ((slow, options.offset_rate), (neck, options.neck_rate))]
        return [group for group in [*found, {"params": rest, "lr_scale": 1.0}] if group["params"]]


def _values(options: DetrOptions) -> list[int]:
    """Return the number of values of each attribute."""
    known = options.attributes.values if options.attributes is not None else None
    if options.attributes is not None and not known:
        raise ValueError("the attributes are not known. Write them down: attributes: {values: {NAME: [VALUE, ...]}}")
    return [len(values) for values in (known or {}).values()]


def _encoder(options: DetrOptions) -> Encoder:
    return build_encoder(options.encoder.name, weights=options.encoder_weights, **options.encoder.arguments)


def _freeze(encoder: Encoder, what: str) -> None:
    """Make norms with their statistics, or everything, stand still."""
    if what == "all":
        encoder.freeze()
        return
    moving = [p for m in encoder.modules() if not list(m.children()) and not _is_norm(m) for p in m.parameters()]
    encoder.freeze()
    for parameter in moving:
        parameter.requires_grad_(True)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)


def _laid(
    image: Tensor, sizes: Sequence[tuple[int, int]], scaled: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor | None]:
    """Return images cut to their sizes, scaled, and laid into one tensor with zeros around; and where those are, None
    where there are none."""
    if len(set(zip(sizes, scaled, strict=True))) == 1:
        (h, w), (own_h, own_w) = sizes[0], scaled[0]
        return _resized(image[..., :h, :w], (own_h, own_w)), None
    high, wide = max(h for h, _ in scaled), max(w for _, w in scaled)
    found = image.new_zeros(len(image), image.shape[1], high, wide)
    mask = torch.ones(len(image), high, wide, dtype=torch.bool, device=image.device)
    for i, ((h, w), (own_h, own_w)) in enumerate(zip(sizes, scaled, strict=True)):
        found[i, :, :own_h, :own_w] = _resized(image[i : i + 1, :, :h, :w], (own_h, own_w))[0]
        mask[i, :own_h, :own_w] = False
    return found, mask


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
