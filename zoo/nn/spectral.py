"""Spectral norm of convolutions (Miyato et al., ICLR 2018), cheap to build where there is no memory behind weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class _Unfilled(nn.Module):
    """Stands for spectral norm on the meta device: the same entries, no numbers.

    Torch begins with 15 power iterations, which the meta device works through slowly and for nothing.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        rows = weight.shape[dim]
        self.register_buffer("_u", weight.new_empty(rows))
        self.register_buffer("_v", weight.new_empty(weight.numel() // rows))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, which has no numbers. Raises `RuntimeError` where it has."""
        if not weight.is_meta:
            raise RuntimeError("spectral norm was built on the meta device. Build the module anew, on its own device.")
        return weight


def spectral_norm(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """Put a convolution under spectral norm, in place, and return it: one power iteration a use in training."""
    if not layer.weight.is_meta:
        return parametrizations.spectral_norm(layer)
    dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # outputs, as torch has it
    parametrize.register_parametrization(layer, "weight", _Unfilled(layer.weight, dim))
    return layer
