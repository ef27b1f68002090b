"""How an encoder is used: what of it learns (all, nothing, its last blocks, low-rank changes), and how it is seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import nn

from zoo.encoders.base import Encoder
from zoo.encoders.kept import FeatureCache
from zoo.errors import UserError
from zoo.nn import vit_necks
from zoo.schema import Schema


class Tuning(Schema):
    """Arguments of every encoder beside those of its library."""

    tune: str = Field(default="full", pattern=r"^(full|frozen|lora|last-[1-9]\d*)$")
    """What learns: full | frozen | last-N (the last N blocks and what follows them) | lora (low-rank changes)."""
    rank: PositiveInt = 8
    """Rank of low-rank changes."""
    alpha: PositiveFloat | None = None
    """The change is alpha / rank times the product; none = rank."""
    projections: tuple[str, ...] = ("q", "v")
    """What is changed: q, k, v, or any names of linear layers in a block (proj, fc1, fc2)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """By how much the learning rate falls from layer to layer towards the input; 1 = not at all."""
    checkpointing: bool = False
    """Whether blocks are computed again in the backward pass, which takes less memory and more time."""
    patch: PositiveInt | None = None
    """Side of a transformer's patches; none = that of the weights."""
    neck: vit_necks.Kind = "simple"
    """How a plain transformer becomes a pyramid: simple | dpt | detail (with a convolutional stream) | unetr."""
    neck_width: PositiveInt = 256
    """Channels of that pyramid (of its coarser levels, where they differ)."""
    keep: NonNegativeFloat = 0
    """How many GB of features of a frozen encoder are kept in memory, for pictures that come again; 0 = none."""

    @field_validator("projections", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _lora(self) -> Self:
        extra = {"rank", "alpha", "projections"} & self.model_fields_set
        if extra and self.tune != "lora":
            raise ValueError(f"{', '.join(sorted(extra))} is for tune: lora. Write that, or leave it out")
        if self.keep and self.tune != "frozen":
            raise ValueError("keep is for tune: frozen, for what learns changes. Write that, or leave it out")
        return self


NAMES = tuple(Tuning.model_fields)


def split(name: str, arguments: Mapping[str, Any]) -> tuple[Tuning, dict[str, Any]]:
    """Return the tuning that arguments ask for, and the other arguments. Raises `UserError`."""
    try:
        tuning = Tuning.model_validate({k: v for k, v in arguments.items() if k in NAMES})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "tune"
        said = str(first["msg"]).removeprefix("Value error, ").rstrip(".").replace("Input should", "it should")
        if first["type"] == "string_pattern_mismatch":
            value = f'{where} is "{first["input"]}"'
            raise UserError(f"encoder {name}: {value}. Expected full, frozen, last-N (as last-2) or lora.") from None
        value = "" if first["type"] == "value_error" else f"{where} is {first['input']!r}: "
        raise UserError(f"encoder {name}: {value}{said}.") from None
    return tuning, {k: v for k, v in arguments.items() if k not in NAMES}


def apply(encoder: Encoder, tuning: Tuning) -> None:
    """Set what of an encoder learns, in place. Raises `UserError` where it cannot be."""
    if tuning.patch is not None and tuning.patch != encoder.patch:
        encoder.repatch(tuning.patch)
    if tuning.checkpointing:
        encoder.checkpoint()
    encoder.layer_decay, encoder.neck, encoder.neck_width = tuning.layer_decay, tuning.neck, tuning.neck_width
    if tuning.tune == "frozen":
        encoder.kept = FeatureCache(int(tuning.keep * 2**30)) if tuning.keep else None
        encoder.freeze()
    elif tuning.tune == "lora":
        encoder.adapt(tuning.rank, alpha=tuning.alpha, projections=tuning.projections)
    elif tuning.tune != "full":
        _last(encoder, int(tuning.tune.removeprefix("last-")))


def _last(encoder: Encoder, count: int) -> None:
    """Freeze all but the last blocks and what follows them."""
    layers = list(encoder.layers())
    patches = getattr(getattr(encoder, "net", None), "patch_embed", None)  # of transformers: no block
    blocks = [i for i, layer in enumerate(layers) if any(True for _ in layer.children()) and layer is not patches]
    if count > len(blocks):
        raise UserError(f"encoder {encoder.name}: tune is last-{count}, it has {len(blocks)} blocks. Expected fewer.")
    encoder.freeze(bn=False)
    for layer in layers[blocks[-count] :]:
        layer.requires_grad_(True)
    encoder.still = tuple(_statistics(layers[: blocks[-count]]))
    encoder.train(encoder.training)


def _statistics(layers: list[nn.Module]) -> Iterator[nn.Module]:
    from torch.nn.modules.batchnorm import _BatchNorm

    for layer in layers:
        yield from (m for m in layer.modules() if isinstance(m, _BatchNorm))
