"""Features of pictures by a named encoder of the zoo: what FID and KID of predicted pictures are measured with."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.encoders import Encoder, build_encoder
from zoo.errors import UserError, ZooError
from zoo.metrics import picture


@functools.lru_cache(maxsize=2)
def encoder_of(text: str) -> Encoder:
    """Return the encoder of `NAME` (its ImageNet weights) or `NAME:WEIGHTS`, frozen.

    Raises `UserError`, also where its weights cannot be fetched: that is so for every picture, not for one.
    """
    name, _, weights = text.partition(":")
    try:
        return build_encoder(name, weights=weights or "imagenet").eval().requires_grad_(False)
    except UserError:
        raise
    except (ZooError, OSError) as error:
        raise UserError(f"{text}: {error}") from None


@dataclass(frozen=True)
class Encoded:
    """A predicted and a true picture, whose features are taken when an encoder is named."""

    both: picture.Pair

    def of(self, encoder: str) -> NDArray[np.float32]:
        """Return (2, D): the features of the prediction and of the truth.

        Pictures of one channel are repeated to three; integers are scaled to [0, 1], floats are taken as they are. A
        feature is the spatial mean of a channel of the encoder's coarsest map, at the picture's own size. Raises
        `ValueError` for other numbers of channels.
        """
        network = encoder_of(encoder)
        pair = np.stack([_rgb(self.both.prediction, self.both.spread), _rgb(self.both.truth, self.both.spread)])
        x = torch.from_numpy(pair)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.mean, network.std))
        with torch.inference_mode():
            found: Any = network((x - mean) / std).maps[-1].mean((2, 3))
        return np.asarray(found.numpy(), np.float32)


def _rgb(data: NDArray[np.float64], spread: float) -> NDArray[np.float32]:
    if len(data) not in (1, 3):
        raise ValueError(f"pictures of {len(data)} channels have no features here. Expected 1 or 3")
    scaled = data / spread if spread > 1 else data
    return np.asarray(np.repeat(scaled, 3, 0) if len(data) == 1 else scaled, np.float32)
