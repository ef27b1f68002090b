"""The family unet: an encoder, a decoder, and a class, or several, a pixel; objects by a boundary class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cards import DatasetCard
from zoo.encoders import Encoder, Pyramid, build_encoder, listing
from zoo.errors import UserError
from zoo.families.base import Encoding, Family, IOSpec, Maps, MapSpec, Need, Output, TargetMaker
from zoo.families.unet import decoders, targets
from zoo.families.unet.decode import decode
from zoo.families.unet.options import UNetOptions
from zoo.losses import weighted_sum
from zoo.types import Batch, Geometry, Prediction

RGB = ("red", "green", "blue")


class UNet(Family):
    """Semantic maps, and objects made of them.

    Raw map `logits` (B, K, H, W): one plane for "binary" (sigmoid), one a class for "multilabel" (sigmoid), one a class
    and one more for boundaries where objects want it for "multiclass" (softmax).
    """

    name = "unet"
    summary = "Semantic maps from any encoder with ten decoders; objects by a boundary class and components"
    Options = UNetOptions
    options: UNetOptions

    def __init__(self, options: UNetOptions) -> None:
        super().__init__(options)
        classes = options.classes
        if classes is None:
            raise ValueError("the classes are not known. Write them down: classes: [background, ...]")
        self.classes = classes
        self.mode = options.resolved_mode(classes)
        channels = options.channels or RGB
        encoder = _encoder(options, len(channels))
        chosen = options.decoder
        plan = decoders.plan(chosen.name, chosen.arguments, encoder.strides[-1])
        self.pyramid = Pyramid(encoder, plan.strides)
        self.decoder = plan.build(len(channels), self.pyramid.channels)
        self.dropout = nn.Dropout2d(options.dropout)
        self.head = nn.Conv2d(plan.channels, options.outputs(classes), plan.kernel, padding=plan.kernel // 2)
        self._initialise()
        self._change_norms(options)
        self.divisor = max(*plan.strides, encoder.divisor)
        self.spec = self._spec(options, channels, encoder)

    def _initialise(self) -> None:
        """Set decoder and head as smp does (He et al. 2015, Glorot and Bengio 2010)."""
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.xavier_uniform_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def _change_norms(self, options: UNetOptions) -> None:
        decoders.spare_single_pixels(self.decoder)
        if options.norm == "batch":
            return
        inside = decoders.change_norm(self.pyramid.encoder, options.norm)
        if inside and self.pyramid.encoder.weights != "none":
            raise ValueError(
                f"norm {options.norm} would replace the batch statistics that the pretrained encoder "
                f"{options.encoder.name} relies on. Use norm: batch or encoder_weights: none"
            )
        decoders.change_norm(self.pyramid, options.norm)
        decoders.change_norm(self.decoder, options.norm)

    def _spec(self, options: UNetOptions, channels: tuple[str, ...], encoder: Encoder) -> IOSpec:
        colour = len(channels) == 3 and set(channels) == set(RGB)
        kind: Literal["rgb8", "percentile", "raw"] = options.encoding or ("rgb8" if colour else "percentile")
        activation: Literal["softmax", "sigmoid"] = "softmax" if self.mode == "multiclass" else "sigmoid"
        outputs: dict[str, Output] = {}
        objects = options.instances
        if objects is None or objects.semantic:
            outputs["semantic"] = Output("semantic", self.classes, options.truth)
        if objects is not None:
            outputs["instances"] = Output("instances", self.classes[1:], options.truth)
        return IOSpec(
            maps={"logits": MapSpec(options.outputs(self.classes), activation)},
            outputs=outputs,
            channels=channels,
            encoding=Encoding(kind, tuple(encoder.mean), tuple(encoder.std)),
            mpp=options.mpp,
            divisor=self.divisor,
            margin=options.margin,
            tile=options.tile,
            local=objects is None,
        )

    # what it learns from

    @classmethod
    def needs(cls, options: UNetOptions) -> tuple[Need, ...]:
        return (Need(targets.kinds(options), options.truth),)

    @classmethod
    def resolve(cls, options: UNetOptions, cards: Sequence[DatasetCard]) -> UNetOptions:
        return targets.resolve(options, cards)

    @classmethod
    def targets(cls, options: UNetOptions, card: DatasetCard) -> TargetMaker:
        return targets.make(options, card)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        return {
            "encoder": "test_resnet",
            "decoder": {"name": "unet", "arguments": {"channels": [16, 16, 8, 8, 8]}},
            "classes": ["background", "nucleus"],
            "instances": {"boundary": "touching"},
            "tile": 64,
            "margin": 16,
        }

    # what it computes

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[str] = ()) -> Maps:
        """Return `logits` (B, K, H, W) for an encoded `image` (B, C, H, W) of any size.

        `taps`: "level0", "level1", ... (the pyramid's maps, finest first) and "decoder" (what the head sees), all of
        the padded image. Raises `UserError` for another tap.
        """
        image = inputs["image"]
        height, width = image.shape[-2:]
        down, right = -height % self.divisor, -width % self.divisor
        if down or right:
            image = F.pad(image, (0, right, 0, down))
        levels = self.pyramid(image)
        decoded = decoders.run(self.options.decoder.name, self.decoder, image, levels)
        logits = self.head(self.dropout(decoded))
        if logits.shape[-2:] != image.shape[-2:]:
            logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        known = {"decoder": decoded, **{f"level{i}": level for i, level in enumerate(levels)}}
        for tap in taps:
            if tap not in known:
                raise UserError(f'unet: no feature "{tap}". Expected one of {", ".join(sorted(known))}.')
        return {"logits": logits[..., :height, :width], **{tap: known[tap] for tap in taps}}

    def loss(self, maps: Maps, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the losses by name, each times its weight; the mean over samples (`zoo.losses.common`)."""
        target, weight = batch.targets["semantic"], batch.targets.get("weight")
        assert isinstance(target, Tensor)
        assert weight is None or isinstance(weight, Tensor)
        shared: dict[str, Any] = {
            "mode": self.mode,
            "weights": self.options.class_weights,
            "valid": batch.valid,
            "has": batch.has.get("semantic"),
            "ignore": self.options.ignore,
        }
        return weighted_sum(self.options.loss, maps["logits"], target, shared, weight)

    def operating(self) -> dict[str, tuple[float, ...]]:
        """Return the candidates for `threshold`, which models with a sigmoid have."""
        return {} if self.mode == "multiclass" else {"threshold": tuple(round(0.05 * k, 2) for k in range(2, 19))}

    def check_decoding(self, **options: Any) -> None:
        value = options.get("threshold")
        if value is None:
            return
        if self.mode == "multiclass":
            raise UserError("unet: this model chooses between classes and has no threshold. Leave the option out.")
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"unet: threshold is {value}. Expected a number between 0 and 1.")

    def decode(
        self, maps: Maps, geometry: Sequence[Geometry], threshold: float | None = None
    ) -> list[dict[str, Prediction]]:
        """Return `semantic`, `instances` or both for each image, at the scale of its source.

        `threshold`: probability from which a pixel belongs to the class; None = the options'.
        """
        self.check_decoding(threshold=threshold)
        found = maps["logits"].detach().float().cpu()
        options = self.options if threshold is None else self.options.model_copy(update={"threshold": threshold})
        return [
            decode(planes, where, options, self.classes, self.mode)
            for planes, where in zip(found, geometry, strict=True)
        ]


def _encoder(options: UNetOptions, in_channels: int) -> Encoder:
    """Return the encoder, cut off below the deepest level that the decoder uses. Raises `ValueError`, `UserError`."""
    chosen, decoder = options.encoder, options.decoder
    arguments = {"weights": options.encoder_weights, **chosen.arguments}
    info = listing.info(chosen.name)
    deepest = decoders.plan(decoder.name, decoder.arguments, info.strides[-1]).strides[-1]
    if deepest < info.strides[-1] and info.kind == "pyramid" and "output_stride" not in arguments:
        if info.source != "timm":
            raise ValueError(
                f"the decoder uses strides up to {deepest}, but {chosen.name} goes to {info.strides[-1]} and cannot be "
                "cut off. Add widths to the decoder, or choose an encoder of timm"
            )
        arguments.setdefault("out_indices", tuple(i for i, s in enumerate(info.strides) if s <= deepest))
    return build_encoder(chosen.name, in_channels=in_channels, **arguments)
